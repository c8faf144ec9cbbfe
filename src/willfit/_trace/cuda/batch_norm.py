"""batch_norm on CUDA: the choice between cuDNN and PyTorch's own kernels, and what both allocate.

Source: _select_batch_norm_backend and _batch_norm_impl_index in aten/src/ATen/native/Normalization.cpp,
aten/src/ATen/native/cudnn/BatchNorm.cpp, and aten/src/ATen/native/cuda/Normalization.cu with Normalization.cuh.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from willfit._trace.cuda.composing import accumulated, contiguous, empty, empty_like, operate, suggested_format
from willfit._trace.cuda.variance import welford_temporaries
from willfit._trace.fake import FakeCudaTensor
from willfit._trace.kernels import Call, kernel
from willfit._trace.overrides import override

_aten = torch.ops.aten
_CUDNN_MOST_SAMPLES_IN_TRAINING = 880801
_CUDNN_MOST_SAMPLES = 65535
_CUDNN_LEAST_EPSILON = 1e-5
_INT32 = 2**31 - 1


def _takes_cudnn(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    means: torch.Tensor | None,
    variances: torch.Tensor | None,
    training: bool,
    eps: float,
) -> bool:
    """_select_batch_norm_backend."""
    if weight is None or bias is None or not torch.backends.cudnn.enabled or x.dim() < 3:
        return False
    if torch.bfloat16 in (x.dtype, weight.dtype) or (x.dtype == torch.float16 and weight.dtype != torch.float32):
        return False
    with_statistics = means is not None and variances is not None
    without = means is None and variances is None and training
    most = _CUDNN_MOST_SAMPLES_IN_TRAINING if training else _CUDNN_MOST_SAMPLES
    return (with_statistics or without) and x.size(0) <= most and eps >= _CUDNN_LEAST_EPSILON


@override("_batch_norm_impl_index")
def choose(
    own: Callable[..., Any],
    input: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    running_mean: torch.Tensor | None,
    running_var: torch.Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> Any:
    """By cuDNN in fp32, and for fp16 with fp32 weights, of three dimensions and more."""
    given = (weight, bias, running_mean, running_var)
    if not isinstance(input, FakeCudaTensor) or not (cudnn_enabled and _takes_cudnn(input, *given, training, eps)):
        return own(input, *given, training, momentum, eps, False)
    input = input.contiguous(memory_format=suggested_format(input))
    weight, bias, means, variances = (t if t is None else t.contiguous() for t in given)
    return *_aten.cudnn_batch_norm(input, weight, bias, means, variances, training, momentum, eps), 1


@kernel("cudnn_batch_norm")
def cudnn_batch_norm(call: Call) -> Any:
    """Mean and variance are kept where it trains; cuDNN's own workspace and reserve are not known."""
    x, weight, training = call.args[0], call.args[1], call.args[5]
    out = empty_like(call, x, suggested_format(x))
    reserve = empty(call, (0,), torch.uint8)
    if not training:
        return out, None, None, reserve
    mean, variance = (empty(call, (x.size(1),), weight.dtype) for _ in range(2))
    return out, mean, variance, reserve


@kernel("cudnn_batch_norm_backward")
def cudnn_batch_norm_backward(call: Call) -> Any:
    """The gradient in the input's format, then the three gradients."""
    x, gradient, weight = call.args[:3]
    gradient = contiguous(call, gradient, suggested_format(x))
    return (
        empty_like(call, x, suggested_format(x)),
        empty(call, weight.shape, weight.dtype),
        empty(call, weight.shape, weight.dtype),
    )


# -- PyTorch's own kernels ---------------------------------------------------------------------------------------------


def _fits_32_bits(tensor: torch.Tensor) -> bool:
    """canUse32BitIndexMath."""
    return 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)) <= _INT32


def _layout(tensor: torch.Tensor) -> str:
    """batch_norm_choose_impl."""
    if not _fits_32_bits(tensor):
        return "general"
    if tensor.is_contiguous():
        return "channels last" if tensor.stride(1) == 1 else "contiguous"
    last = tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    return "channels last" if last else "general"


def _has_channels_last(tensor: torch.Tensor) -> bool:
    """batch_norm_use_channels_last_kernels."""
    if tensor.dim() in (4, 5):
        last = torch.channels_last if tensor.dim() == 4 else torch.channels_last_3d
        if tensor.is_contiguous(memory_format=last):
            return True
    return tensor.is_contiguous() and tensor.stride(1) == 1


def _last_power_of_2(number: int) -> int:
    return 1 << max(0, number.bit_length() - 1)


def _staging(x: torch.Tensor, numbers: int) -> tuple[int, int]:
    """flexible_launch_configs: bytes of staging data and semaphores of the kernels for channels last."""
    channels = x.size(1)
    rows = x.numel() // channels
    width = min(_last_power_of_2(channels), 32)
    height = min(_last_power_of_2(-(-rows // 16)), 512 // width)
    if width * height != 512:
        width = min(_last_power_of_2(channels), 512 // height)
    blocks = min(-(-rows // (height * 16)), 128)
    if blocks < 8:
        return 0, 0
    return numbers * channels * blocks * accumulated(x.dtype).itemsize, -(-channels // width) * 4


@kernel("native_batch_norm")
def batch_norm(call: Call) -> Any:
    """Output, mean and reciprocal deviation; blocks of the kernel for channels last meet in staging data."""
    x, training = call.args[0], call.args[5]
    out = empty_like(call, x)
    statistics = [empty(call, (x.size(1),), accumulated(x.dtype)) for _ in range(2)]
    if training:
        layout = _layout(x)
        if layout == "channels last":
            with call.temporary(*_staging(x, 4)):
                pass
        elif layout == "general":
            x = x if x.dtype == statistics[0].dtype else operate(call, "_to_copy", x, dtype=statistics[0].dtype)
            welford_temporaries(call, x, [dim for dim in range(x.dim()) if dim != 1], x.itemsize)
    return out, *statistics


@kernel("native_batch_norm_backward")
def batch_norm_backward(call: Call) -> Any:
    """One fused kernel, or sums first and then the input's gradient where channels come last."""
    gradient, x, weight, _, _, mean, reciprocal, training, _, mask = call.args
    needs_sums = training or mask[1] or mask[2]
    if needs_sums and mask[0] and not _has_channels_last(x) and _fits_32_bits(x) and _fits_32_bits(gradient):
        reshaped = [_merged(call, tensor) for tensor in (x, gradient)]
        fused = empty_like(call, x, torch.contiguous_format)
        weights = [empty_like(call, weight, torch.contiguous_format) if wanted else None for wanted in mask[1:]]
        del reshaped
        return fused, *weights
    dtype = accumulated(x.dtype)
    held = []
    if needs_sums and mean is None:
        running = call.args[3]
        held += [call.take(running.numel() * dtype.itemsize)] if running.dtype != dtype else []
    if reciprocal is None:
        held.append(call.take(x.size(1) * dtype.itemsize))
    dweight = dbias = None
    if needs_sums:
        sums, dweight, dbias = _sums(call, x, gradient, weight, mask)
        held += sums
    dx = _input_gradient(call, x, gradient, training) if mask[0] else None
    call.give_back(*reversed(held))
    return dx, dweight if mask[1] else None, dbias if mask[2] else None


def _merged(call: Call, tensor: torch.Tensor) -> torch.Tensor:
    """``tensor.reshape(N, C, -1)``, which copies where the planes are not one run."""
    shape = (tensor.size(0), tensor.size(1), -1)
    return call.recorder.run(_aten.reshape.default, (tensor, shape), {})  # type: ignore[no-any-return]


def _sums(
    call: Call, x: torch.Tensor, gradient: torch.Tensor, weight: torch.Tensor | None, mask: list[bool]
) -> tuple[list[int], torch.Tensor | None, torch.Tensor | None]:
    """batch_norm_backward_reduce_cuda: the handles of two sums, the gradients of weight and bias."""
    size = x.size(1) * accumulated(x.dtype).itemsize
    if _has_channels_last(x) and _has_channels_last(gradient) and _fits_32_bits(gradient):
        sums = [call.take(size) for _ in range(2)]
        gradients = [weight if weight is None else empty(call, weight.shape, weight.dtype) for _ in range(2)]
        with call.temporary(*_staging(x, 2)):
            pass
        return sums, gradients[0], gradients[1]
    reshaped = [_merged(call, tensor) for tensor in (x, gradient)]
    sums = [call.take(size) for _ in range(2)] if mask[0] else []
    gradients = [
        empty(call, weight.shape, weight.dtype) if wanted and weight is not None else None for wanted in mask[1:]
    ]
    del reshaped
    return sums, gradients[0], gradients[1]


def _input_gradient(call: Call, x: torch.Tensor, gradient: torch.Tensor, training: bool) -> torch.Tensor:
    """batch_norm_elementwise_backward_train and _eval."""
    if not training:
        return empty(call, x.shape, gradient.dtype)
    layouts = {_layout(x), _layout(gradient)}
    memory_format = {"channels last": torch.preserve_format, "contiguous": torch.contiguous_format}
    chosen = memory_format[layouts.pop()] if layouts in ({"channels last"}, {"contiguous"}) else suggested_format(x)
    return empty_like(call, x, chosen)
