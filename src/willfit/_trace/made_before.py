"""Mixed precision that was set up before the trace: PyTorch and Accelerate switch it off where they find no GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any
from unittest.mock import patch

import torch

from willfit._trace.following import Follower


def enable_scaler(scaler: torch.amp.GradScaler, recorder: Follower) -> None:
    """Switch on the copy of a GradScaler that is off, unless there is a GPU here, so that it is off on purpose."""
    if not scaler._enabled and not recorder.made_with_gpu:
        recorder.assume("a GradScaler that is switched off, as on a machine without a GPU, is taken as switched on")
        torch.amp.GradScaler.__init__(scaler, "cuda")


def enable_fp16(accelerator: Any, recorder: Follower) -> None:
    """Give the copy of an `accelerate.Accelerator` what its ``mixed_precision="fp16"`` stands for on a GPU.

    Without one, Accelerate leaves autocast and scaler out, and says nothing. Call it where the globals are the copy's.
    Source: Accelerator.__init__, prepare_model and prepare_optimizer in accelerate/accelerator.py.
    """
    if accelerator.mixed_precision != "fp16" or accelerator.native_amp or recorder.made_with_gpu:
        return
    from accelerate.optimizer import AcceleratedOptimizer
    from accelerate.utils import convert_outputs_to_fp32
    from accelerate.utils.modeling import get_mixed_precision_context_manager

    recorder.assume('mixed_precision="fp16", which Accelerate leaves out without a GPU, is taken to be in use')
    accelerator.native_amp = True
    options = {} if accelerator.scaler_handler is None else accelerator.scaler_handler.to_kwargs()
    accelerator.scaler = torch.amp.GradScaler("cuda", **options)
    for optimizer in accelerator._optimizers:
        AcceleratedOptimizer.__init__(optimizer, optimizer.optimizer, device_placement=False, scaler=accelerator.scaler)
    for model in accelerator._models:
        if isinstance(model, torch.nn.parallel.DistributedDataParallel):
            model = model.module
        autocast = get_mixed_precision_context_manager(True, accelerator.autocast_handler)
        function = getattr(model.forward, "__func__", None)
        if function is None:
            model.forward = convert_outputs_to_fp32(autocast(model.forward))
        else:
            model.forward = MethodType(convert_outputs_to_fp32(autocast(function)), model)


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
