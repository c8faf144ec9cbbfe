"""What the emulated engine costs for Llama-3-8B: ``python benchmarks/llama_emulated.py``. Prints a table of seconds.

The first run builds the stand-in for the GPU's libraries in an empty cache; the second finds it there. Beside the wall
clock, which a busy machine stretches, stands what this process and the one that emulates took of the CPU.
"""

from __future__ import annotations

import os
import resource
import tempfile
import time

import torch
from llama import llama

from willfit._devices import find_device
from willfit._emulator.engine import run_job
from willfit._emulator.launch import Emulated


def run() -> tuple[Emulated, float, float]:
    """What came out, and the seconds that it took: by the clock, and of the CPU."""
    model = llama(32)
    ids = torch.zeros(1, 512, dtype=torch.long)
    batch, optimizer = {"input_ids": ids, "labels": ids}, torch.optim.AdamW(model.parameters())
    cpu, clock = _cpu(), time.perf_counter()
    emulated = run_job(model, optimizer, batch, None, None, find_device("A100-80GB"), steps=3)
    return emulated, time.perf_counter() - clock, _cpu() - cpu


def _cpu() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def main() -> None:
    with tempfile.TemporaryDirectory() as cache:
        os.environ["XDG_CACHE_HOME"] = cache
        runs = [run(), run()]
    print(f"Llama-3-8B with AdamW, 3 steps on an emulated A100-80GB; torch {runs[0][0].interpreter.torch}")
    print("| seconds | first | again |")
    print("| --- | ---: | ---: |")
    for name in runs[0][0].seconds:
        print(f"| {name} | {' | '.join(f'{emulated.seconds[name]:.1f}' for emulated, *_ in runs)} |")
    print(f"| in all | {' | '.join(f'{clock:.1f}' for _, clock, _ in runs)} |")
    print(f"| in all, of the CPU | {' | '.join(f'{cpu:.1f}' for *_, cpu in runs)} |")
    trace = runs[1][0].free.trace
    assert trace is not None
    print(f"{len(trace.events):,} events; peak allocated {runs[1][0].free.peak_allocated:,} B")


if __name__ == "__main__":
    main()
