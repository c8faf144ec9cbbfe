"""group_norm, layer_norm, rms_norm and weight_norm on CUDA: their statistics and the partial sums of backward.

Source: aten/src/ATen/native/cuda/group_norm_kernel.cu (GroupNormKernelImplInternal and
GroupNormBackwardKernelImplInternal), aten/src/ATen/native/cuda/layer_norm_kernel.cu (layer_norm_cuda,
layer_norm_backward_cuda, _fused_rms_norm_cuda and LaunchGammaBetaBackwardCUDAKernel), and rms_norm_symint in
aten/src/ATen/native/layer_norm.cpp; weight_norm_backward_cuda in aten/src/ATen/native/cuda/WeightNorm.cu.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from packaging.version import Version

from willfit._trace.cuda import autocast  # noqa: F401  # autocast's casts come first
from willfit._trace.cuda.composing import accumulated, contiguous, empty, empty_like, operate, suggested_format
from willfit._trace.fake import FakeCudaTensor
from willfit._trace.kernels import Call, kernel
from willfit._trace.overrides import overload, override

_DENSE = torch.contiguous_format


# Channels last stays what it is from torch 2.15 on; from 2.14 on the input is copied after the outputs are there.
_TORCH = Version(Version(torch.__version__).base_version)
_KEEPS_CHANNELS_LAST = Version("2.15") <= _TORCH
_COPIES_LATE = Version("2.14") <= _TORCH
_MEANS_IN_FP32 = Version("2.10") <= _TORCH  # not in 2.9


def _group_format(x: torch.Tensor) -> torch.memory_format:
    return suggested_format(x) if _KEEPS_CHANNELS_LAST else _DENSE


@kernel("native_group_norm")
def group_norm(call: Call) -> Any:
    """Means in fp32 beside those of half precision; then scale and shift of each channel, unless of one element."""
    x, gamma, beta = call.args[:3]
    batch, channels, plane, groups = call.args[3:7]
    accumulator = accumulated(x.dtype).itemsize
    memory_format = _group_format(x)
    if not _COPIES_LATE:
        x = contiguous(call, x, memory_format)
    out = empty_like(call, x, memory_format)
    mean, rstd = (empty(call, (batch, groups), x.dtype) for _ in range(2))
    x = contiguous(call, x, memory_format)
    has_both_means = _MEANS_IN_FP32 and accumulator != x.itemsize
    sizes = [batch * groups * accumulator] * 2 if has_both_means else []
    if memory_format != _DENSE or (plane != 1 and (gamma is not None or beta is not None)):
        sizes += [batch * channels * accumulator] * 2
    if out.numel():
        with call.temporary(*sizes):
            pass
    return out, mean, rstd


@kernel("native_group_norm_backward")
def group_norm_backward(call: Call) -> Any:
    """Sums for each channel, ds and db, and the factors c1 to c3 of the input's gradient."""
    gradient, x, _, _, gamma, batch, channels, plane, groups, mask = call.args
    accumulator = accumulated(x.dtype).itemsize
    memory_format = _group_format(x)
    x, gradient = contiguous(call, x, memory_format), contiguous(call, gradient, memory_format)
    dx = empty_like(call, x, memory_format) if mask[0] else None
    outputs = (dx, *_gradients(call, mask[1:], gamma, gamma))
    has_sums = plane != 1 or not _COPIES_LATE
    held = [call.take(batch * channels * accumulator) for _ in range(2)] if has_sums else []
    if mask[0]:
        factors = [batch * groups * accumulator] * 2
        if memory_format == _DENSE and plane != 1 and gamma is not None:
            factors.append(batch * channels * accumulator)
        taken = [call.take(size) for size in factors]
        call.give_back(taken[1], taken[0], *taken[2:])
    call.give_back(*reversed(held))
    return outputs


def _gradients(call: Call, mask: Sequence[bool], *like: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    return tuple(
        empty_like(call, tensor, _DENSE) if wanted else None for wanted, tensor in zip(mask, like, strict=True)
    )


def _rows(x: torch.Tensor, shape: Sequence[int]) -> int:
    return x.numel() // max(1, math.prod(shape))


@kernel("native_layer_norm")
def layer_norm(call: Call) -> Any:
    """The statistics are of accumulation type."""
    x, shape = call.args[:2]
    axis = x.dim() - len(shape)
    statistics = (*x.shape[:axis], *[1] * len(shape))
    dense = contiguous(call, x)
    out = empty_like(call, dense, _DENSE)
    mean, rstd = (empty(call, statistics, accumulated(x.dtype)) for _ in range(2))
    return out, mean, rstd


@kernel("native_layer_norm_backward")
def layer_norm_backward(call: Call) -> Any:
    """The gradients of weight and bias are summed over blocks of rows where there are many rows."""
    gradient, x, shape, _, _, gamma, beta, mask = call.args
    x = contiguous(call, x)
    outputs = list(_gradients(call, mask, x, gamma, beta))
    gradient = contiguous(call, gradient)
    _summed_in_parts(call, outputs, _rows(x, shape), math.prod(shape))
    return tuple(outputs)


def _summed_in_parts(call: Call, outputs: list[Any], rows: int, columns: int) -> None:
    """LaunchGammaBetaBackwardCUDAKernel: partial sums over blocks of 32 rows, then a sum of those."""
    width = -(-columns // 32)
    if rows <= 64 * 1024 or columns // 32 >= call.recorder.multiprocessors // 2:
        return
    blocks = min(32 * 1024 // width, -(-rows // 32))
    partial = [out if out is None else empty(call, (blocks, columns), out.dtype) for out in outputs[1:]]
    for index, sums in enumerate(partial, start=1):
        if sums is not None:
            outputs[index] = operate(call, "sum.dim_IntList", sums, [0])
        del sums
    while partial:
        partial.pop()


class _FusedRmsNorm(torch.autograd.Function):
    """aten::_fused_rms_norm, which autograd does not know for meta tensors."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, shape: Sequence[int], weight: torch.Tensor | None) -> torch.Tensor:
        """The output, and the reciprocal of the root for backward."""
        axis = x.dim() - len(shape)
        dense = x.contiguous()
        factors = None if weight is None else weight.contiguous()
        out = torch.empty_like(dense)
        rstd = x.new_empty((*x.shape[:axis], *[1] * len(shape)), dtype=accumulated(x.dtype))
        del factors
        ctx.save_for_backward(x, weight, rstd)
        ctx.shape = shape
        return out

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        """By the fused kernel."""
        x, weight, rstd = ctx.saved_tensors
        mask = [ctx.needs_input_grad[0], ctx.needs_input_grad[2]]
        backward = torch.ops.aten._fused_rms_norm_backward
        dx, dgamma = backward(gradient, x, ctx.shape, rstd, weight, mask)
        return dx, None, dgamma


@override("rms_norm")
def rms_norm(
    own: Callable[..., Any],
    input: torch.Tensor,
    normalized_shape: Sequence[int],
    weight: torch.Tensor | None = None,
    eps: float | None = None,
) -> Any:
    """Fused, from the versions on that have it, unless dtypes differ or channels come last."""
    if (
        overload("_fused_rms_norm") is None
        or not isinstance(input, FakeCudaTensor)
        or input.is_complex()
        or suggested_format(input) != _DENSE
        or (weight is not None and weight.dtype != input.dtype)
    ):
        return own(input, normalized_shape, weight, eps)
    return _FusedRmsNorm.apply(input, list(normalized_shape), weight)  # type: ignore[no-untyped-call]


@kernel("_fused_rms_norm_backward")
def rms_norm_backward(call: Call) -> Any:
    """As that of layer_norm."""
    gradient, x, shape, _, gamma, mask = call.args
    x = contiguous(call, x)
    read = x if gamma is None else contiguous(call, gamma)
    outputs = list(_gradients(call, mask, x, gamma))
    gradient = contiguous(call, gradient)
    _summed_in_parts(call, outputs, _rows(x, shape), math.prod(shape))
    del read
    return tuple(outputs)


@kernel("_weight_norm_interface_backward")
def weight_norm_backward(call: Call) -> Any:
    """The gradients of direction and magnitude. Before torch 2.13 PyTorch does not say their shapes by itself."""
    _, direction, magnitude = call.args[:3]
    return empty_like(call, direction, _DENSE), empty_like(call, magnitude, _DENSE)
