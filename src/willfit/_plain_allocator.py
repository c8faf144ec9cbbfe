"""The CPU's allocator: every request gets what it asks for, and what is given back is gone."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PlainBlock:
    """What a request got."""

    size: int


class PlainAllocator:
    """With the interface of `CachingAllocator`, as far as a replay needs it."""

    def __init__(self) -> None:
        self.allocated = self.reserved = self.peak_reserved = self.retries = 0

    def malloc(self, size: int, stream: int = 0) -> PlainBlock:
        """A block of this size."""
        self.allocated += size
        self.reserved = self.allocated
        self.peak_reserved = max(self.peak_reserved, self.reserved)
        return PlainBlock(size)

    def free(self, block: PlainBlock) -> None:
        """Take a block back."""
        self.allocated -= block.size
        self.reserved = self.allocated

    def empty_cache(self) -> None:
        """There is none."""
