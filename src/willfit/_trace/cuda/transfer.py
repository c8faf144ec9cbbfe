"""Moves between the CPU and the GPU: ``.to``, ``.cuda()``, ``.cpu()``.

Source: to_impl and _to_copy in aten/src/ATen/native/TensorConversions.cpp: a tensor that is already there, in that
dtype, is returned as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from willfit._trace.cuda.values import known_on_cpu
from willfit._trace.fake import CUDA, FakeCudaTensor
from willfit._trace.kernels import Call, kernel
from willfit._trace.overrides import as_tensor, override


@override("to.dtype_layout", "to.device", "to.other", "to.dtype")
def to(own: Callable[..., Any], self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    """Resolve where to, since the dispatcher takes a fake tensor for a meta one."""
    self = as_tensor(self)
    target = next(
        (
            a
            for a in (*args, kwargs.get("device"), kwargs.get("other"))
            if a is not None and not isinstance(a, (bool, torch.dtype, torch.memory_format))
        ),
        None,
    )
    device = target.device if isinstance(target, torch.Tensor) else target
    dtype = next((a for a in (*args, kwargs.get("dtype")) if isinstance(a, torch.dtype)), None)
    if isinstance(target, torch.Tensor):
        dtype = target.dtype
    if not isinstance(device, torch.device):
        device = None
    flags = [a for a in args if isinstance(a, bool)]
    non_blocking = kwargs.get("non_blocking", flags[0] if flags else False)
    copy = kwargs.get("copy", flags[1] if len(flags) > 1 else False)
    formats = (a for a in (*args, kwargs.get("memory_format")) if isinstance(a, torch.memory_format))
    memory_format = next(formats, torch.preserve_format)
    here = self.device
    there = here if device is None else CUDA if device.type in ("cuda", "meta") else device
    dtype = dtype or self.dtype
    if (
        not copy
        and dtype == self.dtype
        and there.type == here.type
        and (memory_format == torch.preserve_format or self.is_contiguous(memory_format=memory_format))
    ):
        return self
    return torch.ops.aten._to_copy(
        self, dtype=dtype, device=there, non_blocking=non_blocking, memory_format=memory_format
    )


@kernel("_to_copy")
def to_copy(call: Call) -> Any:
    """A copy to the CPU has values by the policy; any other is an allocation on the GPU."""
    source, device = call.args[0], call.kwargs.get("device")
    if device is not None and device.type == "cpu":
        call.recorder.moved(source.nbytes, to_host=True)
        return known_on_cpu(call.recorder, source, call.kwargs.get("dtype"))
    if not isinstance(source, FakeCudaTensor):
        call.recorder.moved(source.nbytes, to_host=False)
    return call.run()


@kernel("copy_")
def copy_(call: Call) -> Any:
    """A copy into a CPU tensor changes no memory on the GPU; its values stay what they were."""
    destination, source = call.args[:2]
    on_gpu = isinstance(destination, FakeCudaTensor)
    if on_gpu != isinstance(source, FakeCudaTensor):
        call.recorder.moved(source.nbytes, to_host=not on_gpu)
    return call.run() if on_gpu else destination
