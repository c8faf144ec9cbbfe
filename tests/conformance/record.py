"""Record what PyTorch's own CUDA code allocates for the samples: ``python record.py [DIRECTORY]``.

On a GPU, or with a stand-in for the CUDA driver. Operators run in a process that is replaced by a new one when one of
them brings it down.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import recorded
import torch
from samples import moved, operators, run, samples, text


def measured(entry: Any, sample: Any) -> str:
    """The allocations and frees of one call and its backward."""
    arguments = moved(sample, lambda t: t.detach().to("cuda").requires_grad_(t.requires_grad))
    torch.cuda.memory._record_memory_history(enabled=None)
    torch.cuda.memory._record_memory_history(context=None, max_entries=10**6)
    kept = run(entry, arguments)
    sizes: dict[int, int] = {}
    events = []
    for step in torch.cuda.memory._snapshot()["device_traces"][0]:
        if step["action"] == "alloc":
            sizes[step["addr"]] = step["size"]
            events.append((True, step["size"]))
        elif step["action"] == "free_requested" and step["addr"] in sizes:
            events.append((False, sizes.pop(step["addr"])))
    del kept
    return text(events)


def measure(entry: Any) -> dict[str, str]:
    """The samples of one operator, without those that CUDA, or the stand-in, cannot run."""
    found = {}
    for key, sample in samples(entry):
        try:
            found[key] = measured(entry, sample)
        except Exception:
            continue
    return found


def measure_all(entries: list[tuple[str, Any]]) -> None:
    """Print a line of JSON for each operator."""
    x = torch.empty(8, 8, device="cuda", requires_grad=True)
    torch.nn.functional.linear(x @ x, x, x[0]).sum().backward()  # cuBLAS's workspaces of both threads, cuBLASLt's
    for name, entry in entries:
        print(json.dumps([name, measure(entry)]), flush=True)


def measured_elsewhere(start: int) -> list[tuple[str, dict[str, str]]]:
    """Measure operators in a new process, from this one to the last, or to one that brings it down."""
    command = [sys.executable, __file__, "--from", str(start)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        return [json.loads(line) for line in process.stdout or () if line.startswith("[")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", nargs="?", type=Path, default=recorded.DATA)
    parser.add_argument("--from", dest="start", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    entries = list(operators())
    if options.start is not None:
        measure_all(entries[options.start :])
        return
    calls = {}
    reached = 0
    while reached < len(entries):
        found = measured_elsewhere(reached)
        calls.update(found)
        reached += len(found) + 1
    recorded.write(torch.__version__.partition("+")[0], calls, options.directory)


if __name__ == "__main__":
    main()
