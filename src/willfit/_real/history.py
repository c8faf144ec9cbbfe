"""PyTorch's own record of what its CUDA allocator did, read through ``torch.cuda.memory._record_memory_history``."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from types import CodeType
from typing import Any

import torch

from willfit._trace.following import line, shows_where


@dataclass(slots=True)
class HistoryEntry:
    """An allocation asked of the allocator, or a block given back to it."""

    address: int
    size: int
    """Bytes asked for; negative when the block is given back."""
    stream: int
    """0 is the default stream; others by their order of appearance."""
    source: str
    """The innermost line of Python that shows where; "" where none does, as on autograd's own thread."""


@dataclass(slots=True)
class OutOfMemoryEntry:
    """The last time that memory ran out."""

    requested: int
    free: int
    """What the driver still had."""
    source: str


@dataclass(slots=True)
class History:
    """What the allocator did, in order, and where it failed."""

    entries: list[HistoryEntry]
    out_of_memory: OutOfMemoryEntry | None


def start() -> None:
    """Have everything recorded from now on, with Python's stacks."""
    torch.cuda.memory._record_memory_history(enabled="all", context="all", stacks="python")


def stop() -> None:
    """Record no more; what was recorded is forgotten."""
    torch.cuda.memory._record_memory_history(enabled=None)


def is_on() -> bool:
    """Whether someone records. Nobody does before CUDA is in use; asking the allocator then would crash."""
    return torch.cuda.is_initialized() and bool(torch._C._cuda_isHistoryEnabled())


def read(device: int, outermost: CodeType | None) -> History:
    """What was recorded on a device; source lines end at the function whose code is ``outermost``."""
    streams: dict[int, int] = {0: 0}
    found: list[HistoryEntry] = []
    out_of_memory = None
    for entry in torch.cuda.memory._snapshot(device)["device_traces"][device]:
        action = entry["action"]
        if action == "alloc":
            stream = streams.setdefault(entry["stream"], len(streams))
            found.append(HistoryEntry(entry["addr"], entry["size"], stream, _source(entry, outermost)))
        elif action == "free_requested":
            found.append(HistoryEntry(entry["addr"], -entry["size"], 0, ""))
        elif action == "oom":
            out_of_memory = OutOfMemoryEntry(entry["size"], entry["device_free"], _source(entry, outermost))
    return History(found, out_of_memory)


_shows_where = cache(shows_where)


def _source(entry: dict[str, Any], outermost: CodeType | None) -> str:
    for frame in entry.get("frames", ()):
        if outermost and frame["filename"] == outermost.co_filename and frame["name"] == outermost.co_name:
            return ""
        if _shows_where(frame["filename"]):
            return line(frame["filename"], frame["line"])
    return ""
