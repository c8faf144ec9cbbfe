"""PyTorch's own record of what its CUDA allocator did, read through ``torch.cuda.memory._record_memory_history``."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
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


def start() -> None:
    """Have everything recorded from now on, with Python's stacks."""
    torch.cuda.memory._record_memory_history(enabled="all", context="alloc", stacks="python")


def stop() -> None:
    """Record no more; what was recorded is forgotten."""
    torch.cuda.memory._record_memory_history(enabled=None)


def is_on() -> bool:
    """Whether someone records."""
    return bool(torch._C._cuda_isHistoryEnabled())


def entries(device: int, outermost: tuple[str, str]) -> list[HistoryEntry]:
    """What was recorded on a device, in order; lines that called the function ``outermost`` (file, name) do not count."""
    streams: dict[int, int] = {0: 0}
    found = []
    for entry in torch.cuda.memory._snapshot(device)["device_traces"][device]:
        action = entry["action"]
        if action == "alloc":
            stream = streams.setdefault(entry["stream"], len(streams))
            source = _source(entry.get("frames", ()), outermost)
            found.append(HistoryEntry(entry["addr"], entry["size"], stream, source))
        elif action == "free_requested":
            found.append(HistoryEntry(entry["addr"], -entry["size"], 0, ""))
    return found


_shows_where = cache(shows_where)


def _source(frames: Any, outermost: tuple[str, str]) -> str:
    file, name = outermost
    for frame in frames:
        if frame["filename"] == file and frame["name"] == name:
            return ""
        if _shows_where(frame["filename"]):
            return line(frame["filename"], frame["line"])
    return ""
