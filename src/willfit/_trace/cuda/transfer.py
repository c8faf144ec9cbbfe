"""Moves between the CPU and the GPU: ``.to``, ``.cuda()``, ``.cpu()``.

Source: to_impl and _to_copy in aten/src/ATen/native/TensorConversions.cpp: a tensor that is already there, in that
dtype, is returned as it is.
"""

from __future__ import annotations

import math
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
    source, device, dtype = call.args[0], call.kwargs.get("device"), call.kwargs.get("dtype")
    non_blocking = call.kwargs.get("non_blocking", False)
    if device is not None and device.type == "cpu":
        call.recorder.moved(source.nbytes, to_host=True)
        is_alike = torch.ops.aten.is_non_overlapping_and_dense(source)  # then the copy has its strides
        _convert_for_the_host(call, source, dtype or source.dtype, is_alike, non_blocking)
        return known_on_cpu(call.recorder, source, dtype)
    made = call.run()
    if not isinstance(source, FakeCudaTensor):
        call.recorder.moved(source.nbytes, to_host=False)
        _convert_for_the_gpu(call, source, made, non_blocking)
    return made


@kernel("copy_")
def copy_(call: Call) -> Any:
    """A copy into a CPU tensor leaves nothing on the GPU; its values stay what they were."""
    destination, source = call.args[:2]
    non_blocking = call.argument("non_blocking", False)
    if not isinstance(destination, FakeCudaTensor):
        call.recorder.moved(source.nbytes, to_host=True)
        is_alike = _are_alike(source, destination)
        _convert_for_the_host(call, source, destination.dtype, is_alike, non_blocking, destination.shape)
        call.recorder.known.forget_on_host(destination)
        return destination
    if not isinstance(source, FakeCudaTensor):
        call.recorder.moved(source.nbytes, to_host=False)
        _convert_for_the_gpu(call, source, destination, non_blocking)
    return call.run()


# -- temporaries -------------------------------------------------------------------------------------------------------
#
# What is of one dtype and laid out alike on both sides is moved as it is. Else it is put in order, and converted: on
# the GPU where the host does not wait, else on the host. Source: copy_requires_temporaries and copy_kernel_cuda in
# aten/src/ATen/native/cuda/Copy.cu.


def _convert_for_the_host(
    call: Call,
    source: torch.Tensor,
    dtype: torch.dtype,
    is_alike: bool,
    non_blocking: bool,
    shape: torch.Size | None = None,
) -> None:
    """``shape`` is what the source is expanded to, if it is."""
    count = math.prod(shape or source.shape)
    if count < 2 or (is_alike and dtype == source.dtype):
        return
    converted = []
    if non_blocking and dtype != source.dtype:
        converted.append(call.take(source.numel() * dtype.itemsize))
    if not source.is_contiguous() or count != source.numel():
        with call.temporary(count * (dtype if non_blocking else source.dtype).itemsize):
            call.give_back(*converted)
    else:
        call.give_back(*converted)


def _convert_for_the_gpu(call: Call, source: torch.Tensor, destination: torch.Tensor, non_blocking: bool) -> None:
    same_dtype = source.dtype == destination.dtype
    if destination.numel() < 2 or (same_dtype and _are_alike(source, destination)):
        return
    if not destination.is_contiguous() or (non_blocking and not same_dtype):
        dtype = source.dtype if non_blocking else destination.dtype
        with call.temporary(destination.numel() * dtype.itemsize):
            pass


def _are_alike(source: torch.Tensor, destination: torch.Tensor) -> bool:
    """Whether one tensor's memory goes to the other's in one piece."""
    if source.shape != destination.shape or not torch.ops.aten.is_non_overlapping_and_dense(source):
        return False
    strides = zip(source.shape, source.stride(), destination.stride(), strict=True)
    return all(size == 1 or one == other for size, one, other in strides)
