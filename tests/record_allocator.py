"""Record what PyTorch's own caching allocator does with random workloads, for test_allocator.py to replay.

It takes a CUDA build of PyTorch and a stand-in for the CUDA runtime that hands out memory up to EMULATED_BYTES, of
which the context takes EMULATED_CONTEXT, at addresses that only rise:

    PYTHON=cuda/bin/python python tests/record_allocator.py --emulator path/to/run tests/data/allocator_emulator.json

With PyTorch as it is on a GPU, in place of the stand-in, other things on the card would decide when memory runs out.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

MIB = 2**20
CONTEXT = 37 * MIB
SETTINGS = [  # (PYTORCH_CUDA_ALLOC_CONF, the device's memory in MiB)
    ("", 512),
    ("", 229),
    ("max_split_size_mb:20", 512),
    ("max_split_size_mb:64,max_non_split_rounding_mb:40", 640),
    ("roundup_power2_divisions:4", 512),
    ("roundup_power2_divisions:[1:8,4:2,16:16,>:1]", 512),
    ("per_process_memory_fraction:0.6", 512),
    ("per_process_memory_fraction:0.9,garbage_collection_threshold:0.5", 768),
    ("per_process_memory_fraction:0.7,garbage_collection_threshold:0.8,max_split_size_mb:32", 768),
    ("large_segment_size_mb:32", 512),
    ("large_segment_size_mb:11", 512),
    ("per_process_memory_fraction:0.7,throw_on_cudamalloc_oom:True", 512),
    ("expandable_segments:True", 512),
    ("expandable_segments:True", 229),
    ("expandable_segments:True,roundup_power2_divisions:8", 512),
    ("expandable_segments:True,max_split_size_mb:32", 512),
    ("expandable_segments:True,large_segment_size_mb:32", 512),
    ("expandable_segments:True,per_process_memory_fraction:0.8,garbage_collection_threshold:0.5", 512),
    ("expandable_segments:True,per_process_memory_fraction:0.7,throw_on_cudamalloc_oom:True", 512),
]


def workload(seed: int, events: int, streams: int = 3) -> list[int | list[int]]:
    """Random events: a number of bytes to allocate, or [bytes, stream]; -n frees the n-th allocation; [] the cache."""
    rng = random.Random(seed)
    usual = [_size(rng) for _ in range(6)]
    crowded = rng.uniform(0.35, 0.65)  # how often there is an allocation rather than a free
    result: list[int | list[int]] = []
    live: list[int] = []
    born = 0
    for _ in range(events):
        if rng.random() < 0.01:
            result.append([])
        elif not live or rng.random() < crowded:
            size = rng.choice(usual) if rng.random() < 0.4 else _size(rng)
            stream = rng.randrange(streams) if rng.random() < 0.2 else 0
            result.append([size, stream] if stream else size)
            born += 1
            live.append(born)
        else:
            # The youngest, the oldest or any: stacks, queues and disorder.
            at = rng.choice((-1, -1, 0, rng.randrange(len(live))))
            result.append(-live.pop(at))
    return result


def _size(rng: random.Random) -> int:
    kind = rng.random()
    if kind < 0.02:
        return 0
    if kind < 0.25:
        return rng.randint(1, 8192)
    if kind < 0.4:
        return rng.randint(8192, MIB)
    if kind < 0.6:
        return rng.randint(MIB, 10 * MIB)
    if kind < 0.75:
        return rng.randint(10 * MIB, 40 * MIB)
    if kind < 0.85:
        return rng.randint(40 * MIB, 120 * MIB)
    # At and beside the sizes where the rules change.
    return max(rng.choice((512, 1024, MIB, 2 * MIB, 10 * MIB, 20 * MIB, 32 * MIB, 64 * MIB)) + rng.randint(-1, 1), 0)


def play(events: list[int | list[int]]) -> dict[str, Any]:
    """What PyTorch does with a workload: block sizes in units of 512 B, null where memory runs out; changes of reserved
    bytes as [event, bytes]; peaks; retries. Freeing an allocation that failed does nothing.
    """
    import torch

    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    torch.cuda.reset_accumulated_memory_stats()
    assert torch.cuda.memory_reserved() == 0
    # Pools are ordered by the address of their stream: number the streams in that order.
    streams = sorted((torch.cuda.Stream() for _ in range(2)), key=lambda stream: stream.cuda_stream)
    streams.insert(0, torch.cuda.default_stream())
    assert [stream.cuda_stream for stream in streams] == sorted({stream.cuda_stream for stream in streams})
    held: list[Any] = []
    blocks: list[int | None] = []
    reserved: list[list[int]] = []
    for number, event in enumerate(events):
        before = torch.cuda.memory_allocated()
        if event == []:
            torch.cuda.empty_cache()
        elif isinstance(event, list) or event >= 0:
            size, stream = event if isinstance(event, list) else (event, 0)
            with torch.cuda.stream(streams[stream]):
                try:
                    held.append(torch.empty(size, dtype=torch.uint8, device="cuda"))
                    blocks.append((torch.cuda.memory_allocated() - before) // 512)
                except torch.OutOfMemoryError:
                    held.append(None)
                    blocks.append(None)
        else:
            held[-event - 1] = None
        if not reserved or reserved[-1][1] != torch.cuda.memory_reserved():
            reserved.append([number, torch.cuda.memory_reserved()])
    return {
        "events": events,
        "blocks": blocks,
        "reserved": reserved,
        "allocated": torch.cuda.memory_allocated(),
        "peak_allocated": torch.cuda.max_memory_allocated(),
        "peak_reserved": torch.cuda.max_memory_reserved(),
        "retries": torch.cuda.memory_stats()["num_alloc_retries"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--emulator", help="a command that runs a script under the stand-in: EMULATOR GPU SCRIPT")
    parser.add_argument("--workloads", type=int, default=2, help="for each of the settings")
    parser.add_argument("--events", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    seeds = range(options.seed, options.seed + options.workloads)
    if options.emulator is None:  # in the child: one process for each of the settings
        import torch

        played = [play(workload(seed, options.events)) for seed in seeds]
        options.output.write_text(json.dumps({"torch": torch.__version__, "workloads": played}))
        return
    runs = []
    for number, (settings, memory) in enumerate(SETTINGS):
        environment = dict(os.environ, PYTORCH_CUDA_ALLOC_CONF=settings, TORCH_CPP_LOG_LEVEL="ERROR")
        environment |= {"EMULATED_BYTES": str(memory * MIB), "EMULATED_CONTEXT": str(CONTEXT)}
        seed = options.seed + number * options.workloads
        arguments = [f"--workloads={options.workloads}", f"--events={options.events}", f"--seed={seed}"]
        command = [options.emulator, "T4", __file__, str(options.output), *arguments]
        subprocess.run(command, env=environment, check=True)
        played = json.loads(options.output.read_text())
        runs.append({"settings": settings, "total": memory * MIB, "capacity": memory * MIB - CONTEXT} | played)
        print(f"{settings or 'default'}: {len(played['workloads'])} workloads", file=sys.stderr)
    lines = ",\n".join(json.dumps(run, separators=(",", ":")) for run in runs)
    options.output.write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()
