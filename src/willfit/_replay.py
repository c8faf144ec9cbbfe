"""A trace replayed through the caching allocator of a device."""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from typing import Any

from willfit._allocator import CachingAllocator, OutOfMemory
from willfit._allocator_settings import AllocatorSettings
from willfit._plain_allocator import PlainAllocator
from willfit._trace.trace import Phase, Trace


@dataclass(frozen=True, slots=True)
class PhasePeak:
    """One phase of one step: peaks within it, in bytes."""

    step: int
    phase: Phase
    peak_allocated: int
    peak_reserved: int
    allocated_at_end: int


@dataclass(frozen=True, slots=True)
class OutOfMemoryPlace:
    """Where the replay runs out, and what PyTorch's own error would have said. Sizes are bytes."""

    step: int
    phase: Phase
    module: str
    op: str
    source: str
    requested: int
    allocated: int
    reserved: int
    free: int
    """What the driver still has."""
    capacity: int


@dataclass(frozen=True, slots=True)
class Replay:
    """What the allocator did with a trace. Sizes are bytes of blocks, as torch.cuda.memory_allocated counts them."""

    peak_allocated: int
    peak_reserved: int
    peak_event: int
    """The first event at which allocated equals its peak; -1 for an empty trace."""
    blocks: array[int]
    """Size of the block that each allocation got; 0 for those never reached."""
    allocated: array[int]
    """After each event."""
    reserved: array[int]
    """After each event."""
    retries: int
    """How often cached segments had to be freed before an allocation succeeded."""
    out_of_memory: OutOfMemoryPlace | None


def replay(
    trace: Trace, capacity: int | None = None, settings: AllocatorSettings | None = None, total: int | None = None
) -> Replay:
    """Replay a trace on a card whose allocator may hold ``capacity`` bytes (None: without limit).

    ``total`` is the card's memory, of which a memory fraction in the settings is a part.
    """
    allocator: CachingAllocator | PlainAllocator
    if trace.target == "cpu":
        allocator = PlainAllocator()
    else:
        allocator = CachingAllocator(capacity, settings or AllocatorSettings(), total=total)
    malloc, free = allocator.malloc, allocator.free
    sizes = [allocation.size for allocation in trace.allocations]
    streams = [allocation.stream for allocation in trace.allocations]
    held: list[Any] = [None] * len(sizes)
    blocks = array("q", bytes(8 * len(sizes)))
    allocated, reserved = array("q"), array("q")
    peak, peak_event = 0, -1
    place = None
    for number, event in enumerate(trace.events):
        if event > 0:
            index = event - 1
            try:
                block = held[index] = malloc(sizes[index], streams[index])
            except OutOfMemory as error:
                place = _place(trace, index, error)
                break
            blocks[index] = block.size
            if allocator.allocated > peak:
                peak, peak_event = allocator.allocated, number
        elif event < 0:
            freed = held[-event - 1]
            if freed is not None:
                free(freed)
                held[-event - 1] = None
        else:
            allocator.empty_cache()
        allocated.append(allocator.allocated)
        reserved.append(allocator.reserved)
    return Replay(peak, allocator.peak_reserved, peak_event, blocks, allocated, reserved, allocator.retries, place)


def _place(trace: Trace, index: int, error: OutOfMemory) -> OutOfMemoryPlace:
    allocation = trace.allocations[index]
    return OutOfMemoryPlace(
        step=allocation.step,
        phase=allocation.phase,
        module=allocation.module,
        op=allocation.op,
        source=allocation.source,
        requested=error.requested,
        allocated=error.allocated,
        reserved=error.reserved,
        free=error.free,
        capacity=error.capacity,
    )


def phase_peaks(trace: Trace, result: Replay) -> tuple[PhasePeak, ...]:
    """Peaks within each phase of each step, in order; phases in which nothing happened are left out."""
    peaks = []
    ends = [mark.event for mark in trace.marks[1:]] + [len(result.allocated)]
    before = (0, 0)
    for mark, end in zip(trace.marks, ends, strict=True):
        end = min(end, len(result.allocated))
        if mark.event < end:
            peaks.append(
                PhasePeak(
                    mark.step,
                    mark.phase,
                    max(before[0], max(result.allocated[mark.event : end])),
                    max(before[1], max(result.reserved[mark.event : end])),
                    result.allocated[end - 1],
                )
            )
            before = (result.allocated[end - 1], result.reserved[end - 1])
    return tuple(peaks)


def live_at(trace: Trace, event: int) -> list[int]:
    """Indices of the allocations that are live after this event."""
    live: dict[int, None] = {}
    for entry in trace.events[: event + 1]:
        if entry > 0:
            live[entry - 1] = None
        elif entry < 0:
            live.pop(-entry - 1, None)
    return list(live)
