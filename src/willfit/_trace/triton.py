"""Kernels written in Triton: Python allocates what they write to, and they themselves nothing."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

from willfit._trace.following import Follower

# What a launch, kernel[grid](...), calls: the kernel itself, and the decorators that choose its parameters.
_LAUNCHERS = (
    ("triton.runtime.jit", "JITFunction"),
    ("triton.runtime.autotuner", "Autotuner"),
    ("triton.runtime.autotuner", "Heuristics"),
)


@contextmanager
def triton_kernels_not_launched(recorder: Follower) -> Iterator[None]:
    """While the body runs, launches of Triton's kernels do nothing: there is no memory for them to work on."""

    def run(self: Any, *_: Any, **__: Any) -> None:
        recorder.assume("kernels written in Triton are not launched; what they return has no known values")

    with ExitStack() as stack:
        for module, name in _LAUNCHERS:
            launcher = getattr(sys.modules.get(module), name, None)
            if launcher is not None:
                stack.enter_context(patch.object(launcher, "run", run))
        yield
