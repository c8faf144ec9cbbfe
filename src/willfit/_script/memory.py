"""What torch.cuda says of memory while a script runs on fake tensors: what the allocator would."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from willfit._allocator import CachingAllocator
from willfit._allocator_settings import AllocatorSettings
from willfit._devices import Device
from willfit._trace.recorder import Recorder


class _LiveAllocator:
    """Replays what was recorded so far, when it is asked."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._allocator = CachingAllocator(None, AllocatorSettings.from_environment())
        self._blocks: dict[int, Any] = {}
        self._seen = 0

    def now(self) -> CachingAllocator:
        """The allocator as it is at this moment."""
        for event in self._recorder.events_from(self._seen):
            self._seen += 1
            if event > 0:
                self._blocks[event] = self._allocator.malloc(*self._recorder.request(event - 1))
            elif event < 0:
                self._allocator.free(self._blocks.pop(-event))
            else:
                self._allocator.empty_cache()
        return self._allocator

    def reset_peaks(self) -> None:
        """From now on peaks are those from now on."""
        allocator = self.now()
        allocator.peak_allocated, allocator.peak_reserved = allocator.allocated, allocator.reserved


def memory_answers(recorder: Recorder, device: Device) -> dict[str, Callable[..., Any]]:
    """Functions of torch.cuda, by name. All sizes are bytes."""
    live = _LiveAllocator(recorder)

    def stats(*_: Any) -> dict[str, int]:
        now = live.now()
        return {
            "allocated_bytes.all.current": now.allocated,
            "allocated_bytes.all.peak": now.peak_allocated,
            "reserved_bytes.all.current": now.reserved,
            "reserved_bytes.all.peak": now.peak_reserved,
            "num_alloc_retries": now.retries,
            "num_ooms": 0,
        }

    return {
        "memory_allocated": lambda *_: live.now().allocated,
        "memory_reserved": lambda *_: live.now().reserved,
        "max_memory_allocated": lambda *_: live.now().peak_allocated,
        "max_memory_reserved": lambda *_: live.now().peak_reserved,
        "memory_stats": stats,
        "mem_get_info": lambda *_: (max(0, device.capacity - live.now().reserved), device.total),
        "reset_peak_memory_stats": lambda *_: live.reset_peaks(),
        "reset_max_memory_allocated": lambda *_: live.reset_peaks(),
    }
