"""Several predictions at once, in processes of their own where that is safe."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")

_PR_SET_PDEATHSIG = 1  # linux/prctl.h; forks are made on Linux alone

_work: list[Callable[[], Any]] = []


def each_of(
    work: Sequence[Callable[[], T]], begin: Callable[[int], None] = lambda number: None, processes: int | None = None
) -> list[T]:
    """What each of these functions returns, in their order; ``begin`` is told of each when its turn comes.

    They run in forks of this process, as many at a time as there are processors, so that they need not be pickled, only
    what they return. Where a fork is not safe (not Linux, other threads, CUDA in use) they run here, one by one.

    >>> each_of([lambda: 1, lambda: 2])
    [1, 2]
    """
    count = min(len(work), processes or len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1)
    if count < 2 or not _may_fork():
        found = []
        for number, function in enumerate(work):
            begin(number)
            found.append(function())
        return found
    _work[:] = work
    try:
        with ProcessPoolExecutor(count, multiprocessing.get_context("fork"), _begin) as pool:
            futures = [pool.submit(_run, number) for number in range(len(work))]
            found = []
            for number, future in enumerate(futures):
                begin(number)
                found.append(future.result())
            return found
    finally:
        _work.clear()


def _begin() -> None:
    """In a new process: end when the parent is killed, which a pool does not notice.

    OpenMP's threads did not come along, and PyTorch would wait for them. The garbage collector need not look at what
    the parent has, again and again, which would also copy its pages.
    """
    end_with_the_parent()
    gc.freeze()
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)


def end_with_the_parent() -> None:
    """Let the system kill this process when the one that made it ends, however that ends; on Linux."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _run(number: int) -> Any:
    return _work[number]()


def _may_fork() -> bool:
    torch = sys.modules.get("torch")
    uses_cuda = torch is not None and torch.cuda.is_initialized()
    return sys.platform == "linux" and threading.active_count() == 1 and not uses_cuda
