"""How long until all of 4 processes have ended, when one is short of memory: ``python benchmarks/ranks.py``.

They train together over gloo, on the CPU as if for a T4 each. Counted is from the moment at which the last one calls
its guarded function to the moment at which the last one has ended, and apart from that until all have their answer.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import time
import warnings
from typing import Any

import torch
import torch.distributed as dist

import willfit

PROCESSES, SHORT, WIDTH, LAYERS = 4, 2, 768, 12


def model() -> torch.nn.Module:
    return torch.nn.Sequential(*(torch.nn.TransformerEncoderLayer(WIDTH, 12, 4 * WIDTH) for _ in range(LAYERS)))


def rank(number: int, port: int, answers: Any) -> None:
    from accelerate import Accelerator

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(number), WORLD_SIZE=str(PROCESSES))
    os.environ.update(LOCAL_RANK=str(number), ACCELERATE_USE_CPU="true")
    accelerator = Accelerator(cpu=True)
    made = model()
    made, optimizer = accelerator.prepare(made, torch.optim.AdamW(made.parameters()))

    @willfit.guard(
        on="T4",
        capacity="1 GiB" if number == SHORT else None,
        accelerator=accelerator,
        loss=lambda model, batch: model(batch).sum(),
    )
    def train(model: Any, optimizer: Any, batch: Any) -> None:
        raise AssertionError("nothing is trained")

    dist.barrier()
    start = time.time()
    try:
        train(made, optimizer, torch.zeros(64, 4, WIDTH))
    except willfit.WillNotFit as error:
        answers.put((number, start, time.time(), str(error).splitlines()[0]))
        sys.exit(1)


if __name__ == "__main__":
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    processes = [context.Process(target=rank, args=(number, port, answers)) for number in range(PROCESSES)]
    for process in processes:
        process.start()
    told = sorted(answers.get(timeout=300) for _ in processes)
    for process in processes:
        process.join()
    ended = time.time()
    for number, _, _, message in told:
        print(f"rank {number}: {message}")
    called = max(start for _, start, _, _ in told)
    print(
        f"answered after {max(answer for _, _, answer, _ in told) - called:.1f} s, ended after {ended - called:.1f} s"
    )
    print(f"on {os.cpu_count()} processors; exit statuses {[process.exitcode for process in processes]}")
