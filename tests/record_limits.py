"""Record what PyTorch's own allocator does with the jobs of limits.py near their limits.

Run with a CUDA build of PyTorch, on a GPU or under an emulator of one: ``python record_limits.py > FILE``. A memory
fraction stands for the card's capacity: the allocator treats both alike (alloc_block in CUDACachingAllocator.cpp).
"""

import gc
import json
from typing import Any

import torch

from limits import CAPACITIES, JOBS, job


def place(module: torch.nn.Module) -> None:
    for child in module.children():
        place(child)
    for name, parameter in module._parameters.items():
        module._parameters[name] = torch.nn.Parameter(torch.empty_like(parameter, device="cuda"))


def train(seed: int) -> bool:
    """Three steps; whether memory ran out."""
    with torch.device("meta"):
        model, optimizer_of, batch, step = job(seed)
    try:
        place(model)
        batch = batch.to("cuda")
        optimizer = optimizer_of(model)
        for _ in range(3):
            step(model, optimizer, batch)
    except torch.OutOfMemoryError:
        return True
    return False


def run(seed: int, capacity: int) -> list[Any]:
    """[allocations until memory ran out or None, peak allocated, peak reserved, retries]."""
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(capacity / total if capacity else 1.0)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_stats()["num_alloc_retries"]
    torch.cuda.memory._record_memory_history(enabled=None)
    torch.cuda.memory._record_memory_history(context=None, max_entries=10**6)
    ran_out = train(seed)
    count = 0
    for entry in torch.cuda.memory._snapshot()["device_traces"][0]:
        count += entry["action"] == "alloc"
        if entry["action"] == "oom":
            break
    stats = torch.cuda.memory_stats()
    peak, reserved = stats["allocated_bytes.all.peak"], stats["reserved_bytes.all.peak"]
    torch._C._cuda_clearCublasWorkspaces()
    gc.collect()
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() == 0
    return [count if ran_out else None, peak, reserved, stats["num_alloc_retries"] - before]


def main() -> None:
    total = torch.cuda.get_device_properties(0).total_memory
    unlimited, limited = [], []
    for seed in range(JOBS):
        unlimited.append(run(seed, 0))
        for share in CAPACITIES:
            capacity = int(unlimited[-1][1] * share)
            allowed = int(capacity / total * total)
            limited.append([seed, allowed, *run(seed, capacity)])
    version = torch.__version__.partition("+")[0]
    print(json.dumps({"torch": version, "unlimited": unlimited, "limited": limited}, separators=(",", ":")))


main()
