from __future__ import annotations

import itertools
import json
import pickle
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from willfit._allocator import FREE, UNMAPPED, Block, CachingAllocator, OutOfMemory
from willfit._allocator_settings import AllocatorSettings

MIB = 2**20

# Real histories


class PlainUnpickler(pickle.Unpickler):
    """A snapshot holds plain containers only: refuse whatever else a pickle can do."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"{module}.{name} in a snapshot")


@dataclass(frozen=True)
class Snapshot:
    """A memory snapshot of one device, its segments as at the end of its trace."""

    segments: list[dict[str, Any]]
    trace: list[dict[str, Any]]

    @classmethod
    def load(cls, name: str) -> Snapshot:
        path = Path(__file__).resolve().parents[2] / "shared" / "snapshots" / name
        if not path.exists():
            pytest.skip(f"{path} is not there: the snapshots of real GPUs are not part of the project")
        with path.open("rb") as file:
            data = PlainUnpickler(file).load()
        (trace,) = filter(None, data["device_traces"])
        return cls(data["segments"], trace)

    def events(self, *actions: str) -> Iterator[dict[str, Any]]:
        return (event for event in self.trace if event["action"] in actions)

    def start(self) -> tuple[dict[int, int], dict[int, int]]:
        """Segments and live allocations when the trace begins, by address: the final state, rewound."""
        segments = {segment["address"]: segment["total_size"] for segment in self.segments}
        live = {}
        for segment in self.segments:
            for block in segment["blocks"]:
                if block["state"] == "active_allocated":
                    live[block["address"]] = block["requested_size"]
        for event in reversed(self.trace):
            match event["action"]:
                case "segment_alloc":
                    assert segments.pop(event["addr"]) == event["size"]
                case "segment_free":
                    segments[event["addr"]] = event["size"]
                case "alloc":
                    assert live.pop(event["addr"]) == event["size"]
                case "free_completed":
                    live[event["addr"]] = event["size"]
        return segments, live


def restore(allocator: CachingAllocator, segments: dict[int, int], live: dict[int, int]) -> dict[int, Block]:
    """Bring an empty allocator into a state by mallocs and frees alone; returns the live blocks by address.

    Segment by segment, in the order of addresses: each is taken whole, filled up, and only at the end are the gaps
    freed, so that nothing of one segment lands in another.
    """
    blocks: dict[int, Block] = {}
    gaps: list[Block] = []
    for start, total in sorted(segments.items()):
        end = start + total
        small = total == 2 * MIB
        allocator.free(allocator.malloc(1 if small else total))  # now there is one free block: this segment
        at = start
        for address in sorted(address for address in live if start <= address < end):
            gaps += fill(allocator, address - at, small)
            blocks[address] = allocator.malloc(live[address])
            at = address + blocks[address].size
        gaps += fill(allocator, end - at, small)
    for block in gaps:
        allocator.free(block)
    return blocks


def fill(allocator: CachingAllocator, size: int, small: bool) -> Iterable[Block]:
    """Blocks that cover a gap; in the small pool none can be larger than 1 MiB."""
    while size:
        block = allocator.malloc(min(size, MIB) if small else size)
        size -= block.size
        yield block


def replay(allocator: CachingAllocator, snapshot: Snapshot, blocks: dict[int, Block]) -> None:
    for event in snapshot.events("alloc", "free_completed"):
        if event["action"] == "alloc":
            blocks[event["addr"]] = allocator.malloc(event["size"], event["stream"])
        else:
            allocator.free(blocks.pop(event["addr"]))


def segment_events(snapshot: Snapshot) -> list[tuple[str, int, int]]:
    found = snapshot.events("segment_alloc", "segment_free")
    return [(event["action"], event["size"], event["stream"]) for event in found]


def test_a_whole_process_on_a_real_gpu() -> None:
    snapshot = Snapshot.load("attention-complete.pickle")
    seen: list[tuple[str, int, int]] = []
    allocator = CachingAllocator(on_segment=lambda *event: seen.append(event))
    replay(allocator, snapshot, {})
    assert seen == segment_events(snapshot)
    assert allocator.reserved == sum(segment["total_size"] for segment in snapshot.segments)
    assert allocator.allocated == sum(segment["allocated_size"] for segment in snapshot.segments)


def test_the_first_step_of_a_language_model_on_a_real_gpu() -> None:
    snapshot = Snapshot.load("llm-3.4b-first-step.pickle")
    seen: list[tuple[str, int, int]] = []
    allocator = CachingAllocator(on_segment=lambda *event: seen.append(event))
    blocks = restore(allocator, *snapshot.start())
    seen.clear()
    allocator.empty_cache()
    replay(allocator, snapshot, blocks)
    expected = segment_events(snapshot)
    assert len(expected) == 782 + 430
    assert seen == expected
    assert (allocator.allocated, allocator.reserved) == (54_873_829_888, 61_111_009_280)


# PyTorch's own allocator

RECORDED = Path(__file__).parent / "data" / "allocator_emulator.json"  # by record_allocator.py
RUNS = json.loads(RECORDED.read_text())


@pytest.mark.parametrize("run", RUNS, ids=lambda run: f"{run['settings'] or 'default'}-{run['total'] // MIB}MiB")
def test_random_workloads_near_capacity_go_as_in_pytorch(run: dict[str, Any]) -> None:
    """Every block's size, every change of the reserved bytes, every moment memory runs out, peaks and retries."""
    settings = AllocatorSettings.parse(run["settings"])
    for workload in run["workloads"]:
        allocator = CachingAllocator(run["capacity"], settings, total=run["total"])
        held: list[Block | None] = []
        reserved: list[list[int]] = []
        for number, event in enumerate(workload["events"]):
            if event == []:
                allocator.empty_cache()
            elif isinstance(event, list) or event >= 0:
                size, stream = event if isinstance(event, list) else (event, 0)
                expected = workload["blocks"][len(held)]
                try:
                    block = allocator.malloc(size, stream)
                    held.append(block)
                    assert expected is not None, f"event {number} ran out of memory in PyTorch"
                    assert block.size == expected * 512, f"event {number}"
                except OutOfMemory:
                    held.append(None)
                    assert expected is None, f"event {number}"
            elif (freed := held[-event - 1]) is not None:
                held[-event - 1] = None
                allocator.free(freed)
            if not reserved or reserved[-1][1] != allocator.reserved:
                reserved.append([number, allocator.reserved])
                assert reserved == workload["reserved"][: len(reserved)]
        assert reserved == workload["reserved"]
        found = (allocator.allocated, allocator.peak_allocated, allocator.peak_reserved, allocator.retries)
        assert found == tuple(workload[name] for name in ("allocated", "peak_allocated", "peak_reserved", "retries"))


# The rules, one by one


@pytest.mark.parametrize(
    ("size", "block", "reserved"),
    [
        (1, 512, 2 * MIB),
        (512, 512, 2 * MIB),
        (513, 1024, 2 * MIB),
        (MIB, MIB, 2 * MIB),  # the largest small one
        (MIB + 1, MIB + 512, 20 * MIB),
        (10 * MIB - 512, 10 * MIB - 512, 20 * MIB),
        (10 * MIB, 10 * MIB, 10 * MIB),  # from here on a segment of its own, in steps of 2 MiB
        (10 * MIB + 1, 10 * MIB + 512, 12 * MIB),  # 2 MiB - 512 B are left over: more than 1 MiB, so split off
        (11 * MIB, 12 * MIB, 12 * MIB),  # 1 MiB is left over: not more, so not split off
        (25 * MIB, 26 * MIB, 26 * MIB),
        (25 * MIB - 512, 25 * MIB - 512, 26 * MIB),  # 1 MiB + 512 B are left over: split off
    ],
)
def test_the_block_and_the_segment_for_a_size(size: int, block: int, reserved: int) -> None:
    allocator = CachingAllocator()
    assert allocator.malloc(size).size == block
    assert (allocator.allocated, allocator.reserved) == (block, reserved)


def test_nothing_is_taken_for_no_bytes() -> None:
    allocator = CachingAllocator()
    block = allocator.malloc(0)
    allocator.free(block)
    allocator.free(allocator.malloc(0))
    assert (block.size, allocator.allocated, allocator.reserved) == (0, 0, 0)


def test_what_cannot_be_asked_for() -> None:
    allocator = CachingAllocator()
    with pytest.raises(ValueError, match="negative: found -1"):
        allocator.malloc(-1)
    with pytest.raises(ValueError, match="negative: found -513"):
        allocator.malloc(-513)
    block = allocator.malloc(1)
    allocator.free(block)
    with pytest.raises(ValueError, match="free already"):
        allocator.free(block)


def test_the_smallest_block_that_fits_is_taken_and_of_equals_the_one_at_the_lowest_address() -> None:
    allocator = CachingAllocator()
    blocks = [allocator.malloc(size * MIB) for size in (40, 24, 32, 24)]
    addresses = [block.address for block in blocks]
    for block in blocks:
        allocator.free(block)
    assert [allocator.malloc(24 * MIB).address for _ in range(3)] == [addresses[1], addresses[3], addresses[2]]
    assert allocator.malloc(40 * MIB).address == addresses[0]


def test_streams_do_not_share_their_cache() -> None:
    allocator = CachingAllocator()
    allocator.free(allocator.malloc(32 * MIB, stream=1))
    allocator.malloc(32 * MIB, stream=2)
    assert allocator.reserved == 64 * MIB
    allocator.malloc(32 * MIB, stream=1)
    assert allocator.reserved == 64 * MIB


def test_neighbours_merge_whatever_the_order_in_which_they_are_freed() -> None:
    for order in itertools.permutations(range(4)):
        allocator = CachingAllocator()
        blocks = [allocator.malloc(5 * MIB) for _ in range(4)]  # 20 MiB: one segment
        for index in order:
            allocator.free(blocks[index])
        assert allocator.malloc(20 * MIB).size == 20 * MIB
        assert allocator.reserved == 20 * MIB


def test_when_the_device_is_full_the_whole_cache_is_freed_once() -> None:
    seen: list[tuple[str, int, int]] = []
    allocator = CachingAllocator(64 * MIB, on_segment=lambda *event: seen.append(event))
    allocator.free(allocator.malloc(24 * MIB))
    allocator.free(allocator.malloc(12 * MIB, stream=3))
    allocator.free(allocator.malloc(1, stream=3))
    assert allocator.malloc(64 * MIB).size == 64 * MIB
    assert allocator.retries == 1
    freed = [("segment_free", 24 * MIB, 0), ("segment_free", 12 * MIB, 3), ("segment_free", 2 * MIB, 3)]
    assert seen[3:] == [*freed, ("segment_alloc", 64 * MIB, 0)]


def test_what_is_said_when_memory_runs_out() -> None:
    allocator = CachingAllocator(60 * MIB)
    kept = allocator.malloc(5 * MIB)  # 15 of its 20 MiB stay cached: the segment is in use
    with pytest.raises(OutOfMemory) as error:
        allocator.malloc(41 * MIB)
    found = error.value
    assert (found.requested, found.segment) == (41 * MIB, 42 * MIB)
    assert (found.allocated, found.reserved, found.free, found.capacity) == (5 * MIB, 20 * MIB, 40 * MIB, 60 * MIB)
    allocator.free(kept)  # it can be caught, and the work go on
    allocator.malloc(41 * MIB)
    assert allocator.retries == 2


def test_a_memory_fraction_is_one_of_the_whole_device() -> None:
    settings = AllocatorSettings.parse("per_process_memory_fraction:0.5")
    with pytest.raises(OutOfMemory) as error:
        CachingAllocator(90 * MIB, settings, total=100 * MIB).malloc(52 * MIB)
    assert error.value.capacity == 50 * MIB
    CachingAllocator(90 * MIB, settings, total=100 * MIB).malloc(50 * MIB)


def test_blocks_above_max_split_size_are_kept_whole() -> None:
    allocator = CachingAllocator(settings=AllocatorSettings.parse("max_split_size_mb:64"))
    allocator.free(allocator.malloc(100 * MIB))
    assert allocator.malloc(32 * MIB).size == 32 * MIB  # not out of the 100 MiB
    assert allocator.reserved == 132 * MIB
    assert allocator.malloc(81 * MIB).size == 100 * MIB  # within 20 MiB: taken whole
    allocator.malloc(79 * MIB)
    assert allocator.reserved == (132 + 80) * MIB


def test_garbage_collection_frees_the_segments_that_have_waited_longest() -> None:
    seen: list[tuple[str, int, int]] = []
    text = "garbage_collection_threshold:0.5,per_process_memory_fraction:0.8"
    settings = AllocatorSettings.parse(text)
    allocator = CachingAllocator(1000 * MIB, settings, lambda *event: seen.append(event))
    old, young = allocator.malloc(200 * MIB), allocator.malloc(220 * MIB)  # above 0.5 * 0.8 * 1000 MiB
    allocator.free(old)
    allocator.malloc(2 * MIB)  # a search, out of the old one... which is split now: it cannot go
    allocator.free(young)
    allocator.malloc(230 * MIB)
    assert [event for event in seen if event[0] == "segment_free"] == [("segment_free", 220 * MIB, 0)]
    assert allocator.retries == 0


@pytest.mark.parametrize(
    ("size", "block"),
    [  # 4 steps between powers of 2: 1, 1.25, 1.5, 1.75
        (1025, 1536),  # not more than 4 * 512 B: in steps of 512 B
        (2049, 2560),  # 2048 * 1.25
        (3 * MIB + 1, 3 * MIB + MIB // 2),
        (4 * MIB, 4 * MIB),
        (13 * MIB, 14 * MIB),
    ],
)
def test_sizes_rounded_to_parts_of_powers_of_2(size: int, block: int) -> None:
    allocator = CachingAllocator(settings=AllocatorSettings.parse("roundup_power2_divisions:4"))
    assert allocator.malloc(size).size == block


def test_an_expandable_segment_grows_and_gives_back_its_pages() -> None:
    seen: list[tuple[str, int, int]] = []
    settings = AllocatorSettings.parse("expandable_segments:True")
    allocator = CachingAllocator(100 * MIB, settings, on_segment=lambda *event: seen.append(event))
    first = allocator.malloc(25 * MIB)
    assert (first.size, allocator.reserved) == (25 * MIB, 40 * MIB)  # two pages of 20 MiB, and split at 512 B
    last = allocator.malloc(30 * MIB)  # 15 MiB are there: one page more
    assert (last.address, allocator.reserved) == (first.address + 25 * MIB, 60 * MIB)
    small = allocator.malloc(1)  # pages of 2 MiB
    assert allocator.reserved == 62 * MIB
    allocator.free(last)
    allocator.empty_cache()  # of what is free from 25 MiB on, the whole page from 40 to 60 MiB goes
    assert allocator.reserved == 42 * MIB
    allocator.free(first)
    allocator.free(small)
    allocator.empty_cache()
    assert allocator.reserved == 0
    maps = [(event, size // MIB) for event, size, _ in seen]
    assert maps[:3] == [("segment_map", 40), ("segment_map", 20), ("segment_map", 2)]
    assert maps[3:] == [("segment_unmap", 20), ("segment_unmap", 40), ("segment_unmap", 2)]


# Whatever the workload


TEXTS = sorted({run["settings"] for run in RUNS})
SIZES = st.one_of(st.integers(0, 4096), st.integers(0, 4 * MIB), st.integers(0, 60 * MIB))


class AllocatorMachine(RuleBasedStateMachine):
    """Mallocs and frees in any order, under any settings, on a small device."""

    @initialize(text=st.sampled_from(TEXTS), capacity=st.integers(20 * MIB, 300 * MIB))
    def start(self, text: str, capacity: int) -> None:
        self.reserved_by_segments = 0
        settings = AllocatorSettings.parse(text)
        self.allocator = CachingAllocator(capacity, settings, self.note)
        self.held: list[Block] = []
        self.peak = 0

    def note(self, event: str, size: int, stream: int) -> None:
        assert size > 0
        self.reserved_by_segments += size if event in ("segment_alloc", "segment_map") else -size

    @rule(size=SIZES, stream=st.integers(0, 2))
    def malloc(self, size: int, stream: int) -> None:
        try:
            block = self.allocator.malloc(size, stream)
        except OutOfMemory:
            return
        assert block.size >= size
        assert block.size % 512 == 0
        if size:
            self.held.append(block)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        self.allocator.free(self.held.pop(data.draw(st.integers(0, len(self.held) - 1))))

    @rule()
    def empty_cache(self) -> None:
        self.allocator.empty_cache()

    @invariant()
    def the_books_balance(self) -> None:
        if not hasattr(self, "allocator"):
            return
        allocator = self.allocator
        assert allocator.allocated == sum(block.size for block in self.held)
        assert allocator.reserved == self.reserved_by_segments
        free = [block for block in free_blocks(allocator) if block.state == FREE]
        assert allocator.allocated + sum(block.size for block in free) == allocator.reserved
        assert allocator.capacity is not None
        assert allocator.allocated <= allocator.reserved <= allocator.capacity
        assert self.peak <= allocator.peak_allocated <= allocator.peak_reserved
        self.peak = allocator.peak_allocated
        assert allocator.peak_allocated >= allocator.allocated
        in_order = sorted([*self.held, *free], key=lambda block: block.address)
        for block, after in itertools.pairwise(in_order):
            assert block.address + block.size <= after.address

    def teardown(self) -> None:
        if hasattr(self, "allocator"):
            for block in self.held:
                self.allocator.free(block)
            self.allocator.empty_cache()
            assert (self.allocator.allocated, self.allocator.reserved) == (0, 0)
            # Address space may stay, of an expandable segment for which there never was memory.
            assert all(block.state == UNMAPPED for block in free_blocks(self.allocator))


def free_blocks(allocator: CachingAllocator) -> Iterator[Block]:
    for pools in (allocator._small, allocator._large):
        for pool in pools.values():
            assert pool.keys == sorted(pool.keys)
            yield from pool.blocks
            yield from pool.unmapped


TestAnyWorkload = AllocatorMachine.TestCase
TestAnyWorkload.settings = hypothesis_settings(max_examples=60, stateful_step_count=60, deadline=None)
