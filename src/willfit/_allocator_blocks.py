"""Blocks and the pools that free ones wait in: the caching allocator's data, without its policy.

Named as in c10/cuda/CUDACachingAllocator.cpp.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from typing import Final

from willfit._allocator_settings import MIB, AllocatorSettings

MIN_BLOCK_SIZE: Final = 512  # AllocatorConfig.h: kMinBlockSize
SMALL_SIZE: Final = 1 * MIB  # AllocatorConfig.h: kSmallSize, the largest request served from the small pool
SMALL_BUFFER: Final = 2 * MIB  # AllocatorConfig.h: kSmallBuffer, the segments of the small pool
UNLIMITED: Final = 2**63

FREE, ALLOCATED, UNMAPPED, EMPTY = range(4)
"""States of a block: in its pool; handed out; address space without memory behind it; a request for 0 bytes."""

ADDRESS_BITS: Final = 48  # of a CUDA virtual address


class Block:
    """A piece of a segment. Its `size` in bytes is what memory_allocated counts: rounding and unsplit rest included."""

    __slots__ = ("address", "cached_at", "next", "pool", "prev", "size", "state")

    def __init__(self, address: int, size: int, pool: Pool, state: int = FREE) -> None:
        self.address = address
        self.size = size
        self.pool = pool
        self.state = state
        self.prev: Block | None = None  # the neighbours in the same segment
        self.next: Block | None = None
        self.cached_at = 0  # the count of searches when it came into its pool, for garbage collection

    def __repr__(self) -> str:
        return f"Block(address={self.address:#x}, size={self.size})"


class Pool:
    """The free blocks of one stream, small or large, ordered by size, then address: BlockComparatorSize."""

    __slots__ = ("blocks", "is_small", "keys", "max_split_size", "min_remainder", "page", "stream", "unmapped")

    def __init__(self, stream: int, is_small: bool, settings: AllocatorSettings) -> None:
        self.stream = stream
        self.is_small = is_small
        self.keys: list[int] = []  # of the blocks, as Pool.key makes them
        self.blocks: list[Block] = []
        self.unmapped: list[Block] = []  # by address; only with expandable segments
        self.page = SMALL_BUFFER if is_small else settings.large_segment_size  # the unit in which they are mapped
        # should_split: what must be left over for a block to be split, and the request from which none is.
        splits_freely = is_small or settings.expandable_segments
        self.min_remainder = MIN_BLOCK_SIZE if splits_freely else SMALL_SIZE + 1
        self.max_split_size = UNLIMITED if splits_freely else settings.max_split_size or UNLIMITED

    def add(self, block: Block) -> None:
        key = block.size << ADDRESS_BITS | block.address
        at = bisect_left(self.keys, key)
        self.keys.insert(at, key)
        self.blocks.insert(at, block)

    def remove(self, block: Block) -> None:
        at = bisect_left(self.keys, block.size << ADDRESS_BITS | block.address)
        del self.keys[at], self.blocks[at]


class Pools(dict[int, Pool]):
    """The pools of one kind, by stream; made as streams appear."""

    def __init__(self, is_small: bool, settings: AllocatorSettings) -> None:
        self.is_small = is_small
        self.settings = settings

    def __missing__(self, stream: int) -> Pool:
        pool = self[stream] = Pool(stream, self.is_small, self.settings)
        return pool

    def by_stream(self) -> Iterator[Pool]:
        return (self[stream] for stream in sorted(self))


def cut(block: Block, size: int) -> Block:
    """Cut a block after `size` bytes; returns the rest, of the same state, in no pool yet."""
    rest = Block(block.address + size, block.size - size, block.pool, block.state)
    rest.prev, rest.next = block, block.next
    if rest.next is not None:
        rest.next.prev = rest
    block.next = rest
    block.size = size
    return rest


def merge(block: Block) -> None:
    """Absorb the neighbours that are in the same state, and take them out of the pool: try_merge_blocks."""
    for other in (block.prev, block.next):
        if other is None or other.state != block.state:
            continue
        if other.state == FREE:
            block.pool.remove(other)
        else:
            block.pool.unmapped.remove(other)
        block.size += other.size
        if other is block.prev:
            block.address = other.address
            block.prev = other.prev
            if block.prev is not None:
                block.prev.next = block
        else:
            block.next = other.next
            if block.next is not None:
                block.next.prev = block


def expandable_size(block: Block) -> int:
    after = block.next
    return block.size + (after.size if after is not None and after.state == UNMAPPED else 0)
