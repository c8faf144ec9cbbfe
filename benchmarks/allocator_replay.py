"""How many events (one malloc or one free) the replayed caching allocator takes per second.

Run by hand: python benchmarks/allocator_replay.py [SNAPSHOT ...]
"""

from __future__ import annotations

import pickle
import random
import sys
import time
from pathlib import Path
from typing import Any

from willfit._allocator import Block, CachingAllocator
from willfit._allocator_settings import AllocatorSettings

Trace = list[tuple[int, int]]  # (allocation, its size in bytes), or (allocation, -1) where it is freed


class PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"{module}.{name} in a snapshot")


def transformer(layers: int = 32, hidden: int = 4096, tokens: int = 2048, steps: int = 3) -> Trace:
    """Steps like those of a transformer: weights, activations kept until backward, gradients, temporaries, Adam."""
    trace: Trace = []
    born = 0

    def new(size: int) -> int:
        nonlocal born
        born += 1
        trace.append((born, size))
        return born

    def free(*allocations: int) -> None:
        trace.extend((allocation, -1) for allocation in allocations)

    random.seed(0)
    weights = [size * 2 for size in (hidden**2,) * 4 + (hidden * 3 * hidden,) * 3 + (hidden,) * 2] * layers
    for size in weights:
        new(size)
    activation = 2 * tokens * hidden
    for step in range(steps):
        saved: list[list[int]] = []
        for _ in range(layers):
            kept = []
            for _ in range(20):
                temporaries = [new(random.choice((512, 4096, tokens * 4, activation, 2 * activation)))]
                kept.append(new(random.choice((tokens * 4, tokens * 8, activation, activation, 3 * activation))))
                temporaries.append(new(random.choice((8, activation))))
                free(*temporaries)
            saved.append(kept)
        gradients = []
        for kept in reversed(saved):
            for allocation in reversed(kept):
                temporaries = [new(activation), new(random.choice((4, 1024, 3 * activation)))]
                free(allocation, *temporaries)
            gradients += [new(size) for size in weights[: len(weights) // layers]]
        if step == 0:
            for size in weights:
                new(2 * size), new(2 * size)
        temporaries = [new(size) for size in weights]
        free(*temporaries, *gradients)
    return trace


def snapshot(path: Path) -> Trace:
    """A recorded trace's own allocations, and their frees."""
    with path.open("rb") as file:
        (events,) = filter(None, PlainUnpickler(file).load()["device_traces"])
    trace: Trace = []
    live: dict[int, int] = {}
    for number, event in enumerate(events):
        if event["action"] == "alloc":
            live[event["addr"]] = number
            trace.append((number, event["size"]))
        elif event["action"] == "free_completed" and event["addr"] in live:
            trace.append((live.pop(event["addr"]), -1))
    return trace


def replay(trace: Trace, settings: AllocatorSettings) -> CachingAllocator:
    allocator = CachingAllocator(settings=settings)
    malloc, free = allocator.malloc, allocator.free
    held: dict[int, Block] = {}
    for allocation, size in trace:
        if size >= 0:
            held[allocation] = malloc(size)
        else:
            free(held.pop(allocation))
    return allocator


def measure(name: str, trace: Trace, settings: str = "") -> None:
    best = float("inf")
    parsed = AllocatorSettings.parse(settings)
    for _ in range(7):
        start = time.perf_counter()
        allocator = replay(trace, parsed)
        best = min(best, time.perf_counter() - start)
    print(
        f"{name:28} {settings:26} {len(trace):7,} events {len(trace) / best:10,.0f} events/s"
        f"   peak {allocator.peak_allocated / 2**30:6.2f} GiB, reserved {allocator.peak_reserved / 2**30:6.2f} GiB"
    )


if __name__ == "__main__":
    traces = {"transformer": transformer()} | {Path(name).stem: snapshot(Path(name)) for name in sys.argv[1:]}
    for name, trace in traces.items():
        measure(name, trace)
    for settings in ("expandable_segments:True", "max_split_size_mb:128"):
        measure("transformer", traces["transformer"], settings)
