"""PyTorch's CUDA caching allocator, replayed: which blocks and segments a sequence of mallocs and frees leads to.

It follows c10/cuda/CUDACachingAllocator.cpp as of torch 2.13 in everything that decides a size, and names things as
that file does: a *segment* comes from the driver (cudaMalloc), is split into *blocks*, and freed blocks wait in the
*pool* of their stream, small or large. CUDA graphs' private pools and blocks used on several streams are left out.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable
from operator import attrgetter
from typing import Final, TypeAlias

from willfit._allocator_blocks import (
    ADDRESS_BITS,
    ALLOCATED,
    EMPTY,
    FREE,
    MIN_BLOCK_SIZE,
    SMALL_BUFFER,
    SMALL_SIZE,
    UNLIMITED,
    UNMAPPED,
    Block,
    Pool,
    Pools,
    cut,
    expandable_size,
    merge,
)
from willfit._allocator_settings import MIB, MIN_LARGE_ALLOC, ROUNDUP_INTERVALS, AllocatorSettings

ROUND_LARGE: Final = 2 * MIB  # AllocatorConfig.h: kRoundLarge
DRIVER_PAGE: Final = 2 * MIB  # what cudaMalloc and cuMemCreate count in on every GPU since Pascal

_address = attrgetter("address")

OnSegment: TypeAlias = Callable[[str, int, int], None]


class OutOfMemory(Exception):  # noqa: N818 - the name PyTorch's users know it by
    """The allocator has freed what it could, and the request still does not fit. Sizes are bytes."""

    def __init__(self, requested: int, segment: int, allocated: int, reserved: int, capacity: int) -> None:
        self.requested = requested
        """As asked for, before rounding."""
        self.segment = segment
        """The segment that was tried: the size that PyTorch's message names."""
        self.allocated = allocated
        self.reserved = reserved
        self.capacity = capacity
        """What the allocator may hold: the driver's limit, or the memory fraction's if that is less."""
        self.free = capacity - reserved
        super().__init__(f"{requested} bytes asked for, {self.free} of {capacity} free, {allocated} allocated")


class CachingAllocator:
    """The allocator of one device, from an empty process on. All sizes are bytes.

    `capacity` is what the driver can give it (None: without limit), `total` the device's memory, of which a memory
    fraction is a part (by default `capacity`). `on_segment` is told of each ``segment_alloc`` and ``segment_free``, or
    ``segment_map`` and ``segment_unmap`` with expandable segments, with size and stream.

    >>> allocator = CachingAllocator(capacity=24 * 2**20)
    >>> block = allocator.malloc(5 * 2**20)
    >>> allocator.allocated, allocator.reserved
    (5242880, 20971520)
    >>> allocator.malloc(16 * 2**20)
    Traceback (most recent call last):
    willfit._allocator.OutOfMemory: 16777216 bytes asked for, 4194304 of 25165824 free, 5242880 allocated
    >>> allocator.free(block)
    >>> allocator.malloc(24 * 2**20).size, allocator.retries
    (25165824, 2)
    """

    def __init__(
        self,
        capacity: int | None = None,
        settings: AllocatorSettings = AllocatorSettings(),  # noqa: B008 - frozen
        on_segment: OnSegment | None = None,
        *,
        total: int | None = None,
    ) -> None:
        self.settings = settings
        self.capacity = capacity
        self.allocated = 0
        """Bytes of the blocks in use: torch.cuda.memory_allocated()."""
        self.reserved = 0
        """Bytes of all segments: torch.cuda.memory_reserved()."""
        self.peak_allocated = 0
        self.peak_reserved = 0
        self.retries = 0
        """How often the whole cache was freed for one request: num_alloc_retries."""
        self._on_segment = on_segment
        self._small = Pools(True, settings)
        self._large = Pools(False, settings)
        self._empty = Block(0, 0, Pool(0, True, settings), EMPTY)
        self._driver_limit = UNLIMITED if capacity is None else capacity
        self._driver_used = 0
        self._next_address = DRIVER_PAGE
        total = total if total is not None else self._driver_limit
        # setMemoryFraction: of the whole device, not of what is free of it.
        fraction = settings.per_process_memory_fraction
        self._allowed = int(fraction * total) if fraction < 1 else UNLIMITED
        self._address_space = total + total // 8  # of an expandable segment: ExpandableSegment's constructor
        self._collects = fraction < 1 and settings.garbage_collection_threshold > 0
        self._searches = 0  # get_free_blocks_call_count
        self._expandable = settings.expandable_segments
        self._max_split_size = settings.max_split_size or UNLIMITED
        self._rounds_up = any(divisions > 1 for divisions in settings.roundup_power2_divisions)
        self._best_fit_is_first = not (self._collects or self._expandable or settings.max_split_size)

    def malloc(self, size: int, stream: int = 0) -> Block:
        """The block that a request for `size` bytes gets; for 0 bytes one that takes nothing, as in PyTorch.

        Raises `OutOfMemory` when `capacity` does not suffice even after the cache has been freed.
        """
        rounded = _round_up(size, self.settings) if self._rounds_up else (size + 511) & -512
        if rounded <= 0:
            if size < 0:
                raise ValueError(f"a size cannot be negative: found {size}")
            return self._empty
        pool = (self._small if rounded <= SMALL_SIZE else self._large)[stream]
        keys = pool.keys
        at = bisect_left(keys, rounded << ADDRESS_BITS)
        if not self._best_fit_is_first:
            at = self._best_fit(pool, at, rounded)
        if at < len(keys):
            block = pool.blocks.pop(at)
            del keys[at]
        else:
            block = self._new_block(pool, rounded, size)
        remainder = block.size - rounded
        if remainder >= pool.min_remainder and rounded < pool.max_split_size:
            address = block.address + rounded
            rest = Block(address, remainder, pool)
            rest.cached_at = self._searches
            rest.prev = block
            after = rest.next = block.next
            if after is not None:
                after.prev = rest
            block.next = rest
            block.size = rounded
            key = remainder << ADDRESS_BITS | address
            at = bisect_left(keys, key)
            keys.insert(at, key)
            pool.blocks.insert(at, rest)
        block.state = ALLOCATED
        allocated = self.allocated = self.allocated + block.size
        if allocated > self.peak_allocated:
            self.peak_allocated = allocated
        return block

    def free(self, block: Block) -> None:
        """Hand a block back to its pool, merged with its free neighbours. Raises ValueError if it is free already."""
        if block.state != ALLOCATED:
            if block.state == EMPTY:
                return
            raise ValueError(f"{block!r} is free already")
        size = block.size
        self.allocated -= size
        pool = block.pool
        keys, blocks = pool.keys, pool.blocks
        before = block.prev
        if before is not None and before.state == FREE:
            at = bisect_left(keys, before.size << ADDRESS_BITS | before.address)
            del keys[at], blocks[at]
            block.address = before.address
            size += before.size
            before = block.prev = before.prev
            if before is not None:
                before.next = block
        after = block.next
        if after is not None and after.state == FREE:
            at = bisect_left(keys, after.size << ADDRESS_BITS | after.address)
            del keys[at], blocks[at]
            size += after.size
            after = block.next = after.next
            if after is not None:
                after.prev = block
        block.size = size
        block.state = FREE
        block.cached_at = self._searches
        key = size << ADDRESS_BITS | block.address
        at = bisect_left(keys, key)
        keys.insert(at, key)
        blocks.insert(at, block)

    def empty_cache(self) -> None:
        """Hand every segment without a block in use back to the driver: torch.cuda.empty_cache()."""
        for pools in (self._large, self._small):  # release_cached_blocks
            for pool in pools.by_stream():
                for block in pool.blocks.copy():
                    if self._expandable:
                        self._unmap(block)
                    elif block.prev is None and block.next is None:
                        self._release(block)

    # How a free block is chosen when the settings have a say: get_free_block

    def _best_fit(self, pool: Pool, at: int, rounded: int) -> int:
        """The index of the free block to take, where `at` is that of the smallest one that is large enough."""
        blocks = pool.blocks
        self._searches += self._collects and not pool.is_small
        if at == len(blocks):
            return at
        if self._expandable:
            # A block that can grow counts as large as it can become: prefer another that is just large enough.
            while at + 1 < len(blocks) and expandable_size(blocks[at + 1]) < expandable_size(blocks[at]):
                at += 1
        size = blocks[at].size
        if rounded < self._max_split_size:
            fits = size < self._max_split_size
        else:
            fits = size < rounded + self.settings.max_non_split_rounding
        return at if fits else len(blocks)

    # How a segment is taken from the driver: malloc, alloc_block

    def _new_block(self, pool: Pool, rounded: int, requested: int) -> Block:
        if pool.is_small:
            segment = SMALL_BUFFER
        elif rounded < MIN_LARGE_ALLOC:
            segment = self.settings.large_segment_size
        else:
            segment = -(-rounded // ROUND_LARGE) * ROUND_LARGE
        if self._collects:
            self._collect_garbage()
        block = self._allocate(pool, segment, rounded)
        if block is None and self._release_available(pool, rounded):
            block = self._allocate(pool, segment, rounded)
        if block is None:
            self.empty_cache()
            self.retries += 1
            block = self._allocate(pool, segment, rounded)
        if block is None:
            limit = min(self._driver_limit, self._allowed)
            raise OutOfMemory(requested, segment, self.allocated, self.reserved, limit)
        return block

    def _allocate(self, pool: Pool, segment: int, rounded: int) -> Block | None:
        if self.reserved + segment > self._allowed:
            return None
        if self._expandable:
            return self._grow(pool, rounded)
        if not self._take_from_driver(segment, segment):
            return None
        self._note("segment_alloc", segment, pool)
        return Block(self._reserve_addresses(segment), segment, pool)

    def _take_from_driver(self, size: int, piece: int) -> bool:
        """Whether the driver has `size` bytes more, in pieces of which each takes whole pages."""
        pages = size // piece * _pages(piece)
        if self._driver_used + pages > self._driver_limit:
            return False
        self._driver_used += pages
        return True

    def _reserve_addresses(self, size: int, alignment: int = DRIVER_PAGE) -> int:
        """Addresses only ever rise: the best fit among blocks of one size is the one whose segment is oldest."""
        address = -(-self._next_address // alignment) * alignment
        self._next_address = address + size + DRIVER_PAGE
        return address

    def _note(self, event: str, size: int, pool: Pool) -> None:
        """Account for a segment, or a part of one, that came (or went: a negative size)."""
        self.reserved += size
        self.peak_reserved = max(self.peak_reserved, self.reserved)
        if self._on_segment is not None:
            self._on_segment(event, abs(size), pool.stream)

    # How segments go back to the driver

    def _release(self, block: Block) -> None:
        """Free a block that is a whole segment: release_block."""
        block.pool.remove(block)
        self._driver_used -= _pages(block.size)
        self._note("segment_free", -block.size, block.pool)

    def _release_available(self, pool: Pool, rounded: int) -> bool:
        """Free blocks too large to be split, just enough for this request: release_available_cached_blocks."""
        if self.settings.max_split_size is None or self._expandable:
            return False
        wanted = max(rounded, self._max_split_size)
        at = bisect_left(pool.keys, wanted << ADDRESS_BITS)
        if at < len(pool.blocks):
            self._release(pool.blocks[at])
            return True
        released = 0
        for block in reversed(pool.blocks[:at]):
            if released >= wanted or block.size < self._max_split_size:
                break
            released += block.size
            self._release(block)
        return released >= wanted

    def _collect_garbage(self) -> None:
        """Free whole large segments, those unused for longest first: garbage_collect_cached_blocks."""
        threshold = int(self.settings.garbage_collection_threshold * self._allowed)
        to_reclaim = self.reserved - threshold
        if self._expandable or to_reclaim <= 0:
            return
        free = (block for pool in self._large.by_stream() for block in pool.blocks)
        cached = [block for block in free if block.prev is None and block.next is None]
        while cached and to_reclaim > 0:
            average = sum(self._searches - block.cached_at for block in cached) / len(cached)
            kept = []
            for block in cached:
                if self._searches - block.cached_at >= average:
                    to_reclaim -= block.size
                    self._release(block)
                else:
                    kept.append(block)
            cached = kept

    # Expandable segments: one segment for each pool and stream, mapped piece by piece

    def _grow(self, pool: Pool, rounded: int) -> Block | None:
        """A free block of `rounded` bytes or more, at the lowest address with room: try_allocate_expandable_block."""
        block = self._find_expandable(pool, rounded)
        if block.state == UNMAPPED and not self._map(block, min(block.size, rounded)):
            return None
        while block.size < rounded:
            unmapped = block.next
            assert unmapped is not None
            if not self._map(unmapped, min(rounded - block.size, unmapped.size)):
                return None
            block = unmapped
        pool.remove(block)
        return block

    def _find_expandable(self, pool: Pool, rounded: int) -> Block:
        for block in pool.unmapped:
            before = block.prev
            start = before if before is not None and before.state == FREE else block
            room = 0
            at: Block | None = start
            while room < rounded and at is not None and at.state != ALLOCATED:
                room += at.size
                at = at.next
            if room >= rounded:
                return start
        size = -(-self._address_space // pool.page) * pool.page
        block = Block(self._reserve_addresses(size, pool.page), size, pool, UNMAPPED)
        insort(pool.unmapped, block, key=_address)
        return block

    def _map(self, block: Block, size: int) -> bool:
        """Put memory behind the start of an unmapped block and make that a free block: map_block."""
        pool = block.pool
        size = -(-size // pool.page) * pool.page
        if not self._take_from_driver(size, pool.page):
            return False
        pool.unmapped.remove(block)
        if size < block.size:
            insort(pool.unmapped, cut(block, size), key=_address)
        block.state = FREE
        merge(block)
        pool.add(block)
        self._note("segment_map", size, pool)
        return True

    def _unmap(self, block: Block) -> None:
        """Give the whole pages of a free block back to the driver: unmap_block."""
        pool = block.pool
        start = -(-block.address // pool.page) * pool.page
        end = (block.address + block.size) // pool.page * pool.page
        if start >= end:
            return
        pool.remove(block)
        if block.address < start:
            front, block = block, cut(block, start - block.address)
            pool.add(front)
        if block.size > end - start:
            pool.add(cut(block, end - start))
        block.state = UNMAPPED
        merge(block)
        if block.prev is not None or block.next is not None:  # else the whole segment goes: release_expandable_segment
            insort(pool.unmapped, block, key=_address)
        self._driver_used -= (end - start) // pool.page * _pages(pool.page)
        self._note("segment_unmap", start - end, pool)


def _round_up(size: int, settings: AllocatorSettings) -> int:
    """The block size for a request with roundup_power2_divisions: round_size."""
    interval = min(max(size.bit_length() - MIB.bit_length(), 0), ROUNDUP_INTERVALS - 1)
    divisions = settings.roundup_power2_divisions[interval]
    if divisions > 1 and size > MIN_BLOCK_SIZE * divisions:
        step = max(1 << size.bit_length() - 1 >> divisions.bit_length() - 1, 1)
    else:
        step = MIN_BLOCK_SIZE
    return -(-size // step) * step


def _pages(size: int) -> int:
    """What the driver takes for an allocation: whole pages."""
    return -(-size // DRIVER_PAGE) * DRIVER_PAGE
