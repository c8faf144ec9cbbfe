"""How much memory this machine has left for a process."""

from __future__ import annotations

from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")  # version 2, as containers see their own


def available_memory() -> int:
    """Bytes that this process can still take without swapping: the machine's, or its container's if that is less."""
    import psutil

    available = int(psutil.virtual_memory().available)
    try:
        limit = (_CGROUP / "memory.max").read_text().strip()
        if limit != "max":
            available = min(available, int(limit) - int((_CGROUP / "memory.current").read_text()))
    except (OSError, ValueError):
        pass  # no such container
    return max(0, available)
