"""What a script does that fake tensors cannot do, in sentences: told from mistakes of the script's own."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from willfit._errors import TraceError
from willfit._trace.following import Follower, line, shows_where
from willfit._wrong_jobs import cannot_be_followed, shortened

_RUN_IT_EMULATED = (
    "PyTorch's own CUDA code runs it on an emulated GPU: install a CUDA build of PyTorch (it needs no GPU), or name a "
    "Python that has one with WILLFIT_CUDA_PYTHON"
)
_NEEDS_CUDA = "it needs a CUDA build of PyTorch"
# Parts of messages that tell what is not there, each with what that is.
_NOT_THERE = {
    "not compiled with CUDA": _NEEDS_CUDA,
    "not linked with support for cuda": _NEEDS_CUDA,
    "dummy base class": _NEEDS_CUDA,
    "module 'torch._C' has no attribute": _NEEDS_CUDA,
    "TorchScript interpreter": "TorchScript keeps tensors where they cannot be followed",
    "a meta tensor": "it reads the memory of a tensor on the GPU",
    "on meta tensors": "it reads the memory of a tensor on the GPU",
    "Meta tensors": "it reads the memory of a tensor on the GPU",
    "that doesn't have storage": "it reads the memory of a tensor on the GPU",
}


def refused(error: Exception, follower: Follower, script: str) -> TraceError | None:
    """What to raise where fake tensors are why a script failed; None for a mistake of its own."""
    if (found := cannot_be_followed(error, follower, script)) is not None:
        return TraceError(f"{found}. {_RUN_IT_EMULATED}")
    what = _not_there(error)
    if what is None:
        return None
    said = shortened(error).partition("\n")[0]
    return TraceError(
        f"{script} cannot be followed on fake tensors{_where(error)}: {what} ({said}). {_RUN_IT_EMULATED}"
    )


def _not_there(error: BaseException) -> str | None:
    return next((what for part, what in _NOT_THERE.items() if part in str(error)), None)


def _where(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if shows_where(f.filename) and "site-packages" not in f.filename and f.filename[0] != "<"]
    return f" ({line(own[-1].filename, own[-1].lineno or 0)})" if own else ""


@contextmanager
def threads_watched(follower: Follower) -> Iterator[None]:
    """While the body runs, what a thread of the script's would have done on the GPU is said not to be seen."""
    own = threading.excepthook

    def hook(arguments: Any) -> None:
        if arguments.exc_value is not None and _not_there(arguments.exc_value) is not None:
            follower.assume("a thread of the script's uses the GPU, and ended there: what it holds is not seen")
        own(arguments)

    with patch.object(threading, "excepthook", hook):
        yield
