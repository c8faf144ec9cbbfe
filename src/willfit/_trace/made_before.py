"""Scalers and autocast contexts that were made before the trace: PyTorch switches them off where it finds no GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch

from willfit._trace.following import Follower


def enable_scaler(scaler: torch.amp.GradScaler, recorder: Follower) -> None:
    """Switch on the copy of a GradScaler that is off, unless there is a GPU here, so that it is off on purpose."""
    if not scaler._enabled and not recorder.made_with_gpu:
        recorder.assume("a GradScaler that is switched off, as on a machine without a GPU, is taken as switched on")
        torch.amp.GradScaler.__init__(scaler, "cuda")


@contextmanager
def autocast_contexts_enabled(recorder: Follower) -> Iterator[None]:
    """While the body runs, autocast contexts that were made before it do what they would with a GPU.

    One for the CPU too, unless there is a GPU here: it got its device from a variable that says so.
    """
    cls: Any = torch.amp.autocast_mode.autocast
    own_init, own_enter, own_exit = cls.__init__, cls.__enter__, cls.__exit__
    made_here = "_willfit_made_here"
    entered: list[tuple[Any, Any]] = []

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        own_init(self, *args, **kwargs)
        setattr(self, made_here, True)

    def enter(self: Any) -> Any:
        if hasattr(self, made_here) or recorder.made_with_gpu or self.device not in ("cuda", "cpu"):
            return own_enter(self)
        enabled = self._enabled
        if self.device == "cuda" and not enabled:
            recorder.assume(
                "an autocast context that is switched off, as on a machine without a GPU, is taken as switched on"
            )
            enabled = True
        stand_in = cls("cuda", self.fast_dtype, enabled, self._cache_enabled)
        entered.append((self, stand_in))
        return own_enter(stand_in)

    def leave(self: Any, *exception: Any) -> Any:
        for position in range(len(entered) - 1, -1, -1):
            if entered[position][0] is self:
                return own_exit(entered.pop(position)[1], *exception)
        return own_exit(self, *exception)

    with (
        patch.object(cls, "__init__", init),
        patch.object(cls, "__enter__", enter),
        patch.object(cls, "__exit__", leave),
    ):
        yield
