"""Convolutions on CUDA: which library takes them, the copies that it makes and the order of its gradients.

Source: _select_conv_backend, _convolution and convolution_backward in aten/src/ATen/native/Convolution.cpp,
aten/src/ATen/native/ConvUtils.h, aten/src/ATen/native/cudnn/ConvShared.cpp, and DepthwiseConv2d.cu and
DepthwiseConv3d.cu in aten/src/ATen/native/cuda.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from willfit._trace.cuda import unfolded_convolution
from willfit._trace.cuda.composing import contiguous, empty, operate, suggested_format
from willfit._trace.fake import run_on_meta
from willfit._trace.following import Follower
from willfit._trace.kernels import Call, kernel, nbytes

_DENSE = torch.contiguous_format
_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


class _Convolution(NamedTuple):
    """One convolution; a one-dimensional one is done as a two-dimensional one (view1d_as_2d)."""

    x: torch.Tensor
    weight: torch.Tensor
    stride: Sequence[int]
    dilation: Sequence[int]
    transposed: bool
    groups: int


def _planar(call: Call, tensor: torch.Tensor) -> torch.Tensor:
    """view4d."""
    return operate(call, "unsqueeze", tensor, 2) if tensor.dim() == 3 else tensor


def _convolution(call: Call, x: torch.Tensor, weight: torch.Tensor) -> _Convolution:
    stride, dilation = call.argument("stride"), call.argument("dilation")
    transposed, groups = call.argument("transposed"), call.argument("groups")
    if x.dim() == 3:
        x, weight = _planar(call, contiguous(call, x)), _planar(call, weight)
        stride, dilation = (1, *stride[-1:]), (1, *dilation[-1:])
    return _Convolution(x, weight, stride, dilation, transposed, groups)


# -- the choice --------------------------------------------------------------------------------------------------------


def _format(first: torch.Tensor, second: torch.Tensor) -> torch.memory_format:
    """cudnn_conv_suggest_memory_format: channels last where either of the two is."""
    if torch.float64 in (first.dtype, second.dtype):
        return _DENSE
    last = _LAST[second.dim()]
    return last if last in (suggested_format(first), suggested_format(second)) else _DENSE


def _cudnn_takes(call: Call, one: _Convolution) -> bool:
    """ConvParams::use_cudnn: bf16 needs sm_80 and cuDNN's newer interface."""
    if one.x.dtype == torch.bfloat16:
        disabled = os.environ.get("TORCH_CUDNN_V8_API_DISABLED") == "1"
        if disabled or call.recorder.compute_capability < (8, 0):
            return False
    return torch.backends.cudnn.enabled


def _is_depthwise(one: _Convolution) -> bool:
    """ConvParams::is_depthwise."""
    channels = one.x.size(1)
    return not one.transposed and channels == one.groups > 1 and one.weight.size(0) % channels == 0


def _is_depthwise_of_cudnn(call: Call, one: _Convolution) -> bool:
    """ConvParams::use_cudnn_depthwise: in channels last always, else some in fp16."""
    if not torch.backends.cudnn.enabled:
        return False
    if _format(one.x, one.weight) != _DENSE:
        return True
    return (
        _cudnn_takes(call, one)
        and one.x.dtype == one.weight.dtype == torch.float16
        and one.x.dim() == 4
        and all(step == 1 for step in one.dilation)
        and (one.stride[0] == one.stride[1] or one.x.size(2) == 1)
        and one.x.size(1) >= 32
        and _is_fast_in_cudnn(one)
    )


def _is_fast_in_cudnn(one: _Convolution) -> bool:
    """check_cudnn_depthwise_workload_with_filter: what was measured to be faster."""
    batch, channels, height, width = one.x.shape
    size, stride = one.weight.size(3), one.stride[1]
    if height == 1 and stride == 1:
        return True
    if one.weight.size(2) != size or size not in (1, 3, 5) or width < 7 or stride not in (1, 2):
        return False
    if stride == 1:
        return True
    if batch == 1:
        return size != 1 or width <= 28
    if size == 1:
        return batch <= 16 and channels >= 128 and width <= 7
    return channels >= 512 or (channels >= 256 and width >= 28)


def _is_done_by_pytorch(call: Call, one: _Convolution) -> bool:
    """Depthwise convolutions that cuDNN is not given."""
    return _is_depthwise(one) and not _is_depthwise_of_cudnn(call, one)


def _is_unfolded(call: Call, one: _Convolution) -> bool:
    """Convolutions that are unfolded into columns, sample by sample: Slow2d and its like (unfolded_convolution.py)."""
    return not _is_depthwise(one) and not _cudnn_takes(call, one)


# -- forward -----------------------------------------------------------------------------------------------------------


@kernel("convolution")
def convolution(call: Call) -> Any:
    """The input in cuDNN's format, the output, and the weight in that format while it computes."""
    one = _convolution(call, *call.args[:2])
    if one.x.numel() == 0:
        return call.run()
    shape = run_on_meta(call.func, call.args, call.kwargs).shape
    if _is_unfolded(call, one):
        planar = (*shape[:2], 1, *shape[2:]) if len(shape) == 3 else shape
        out = unfolded_convolution.forward(call, one.x, one.weight, planar)
        return operate(call, "squeeze.dim", out, 2) if len(shape) == 3 else out
    memory_format = _DENSE if _is_done_by_pytorch(call, one) else _format(one.x, one.weight)
    x = contiguous(call, one.x, memory_format)
    if _is_done_by_pytorch(call, one):
        weight = contiguous(call, one.weight)
        out = _output(call, shape, x.dtype, memory_format)
    else:
        out = _output(call, shape, x.dtype, memory_format)
        weight = contiguous(call, one.weight, memory_format)
        bound_workspace(call.recorder, one.x, one.weight, out, one.transposed)
    del weight
    return out


def _output(
    call: Call, shape: Sequence[int], dtype: torch.dtype, memory_format: torch.memory_format = _DENSE
) -> torch.Tensor:
    """A tensor in this format, of one dimension less where the convolution is one-dimensional."""
    if memory_format == _DENSE:
        return empty(call, shape, dtype)
    options = {"dtype": dtype, "device": call.args[0].device, "memory_format": memory_format}
    return call.recorder.run(torch.ops.aten.empty.memory_format, (list(shape),), options)  # type: ignore[no-any-return]


def bound_workspace(
    recorder: Follower, x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor, transposed: bool
) -> None:
    """An upper bound for the most that cuDNN takes for one convolution, of which cuDNN alone knows.

    An algorithm by explicit matrix product unfolds the whole input; one for tensor cores copies input, weight and
    output into another layout. PyTorch tries others where that much is not free (Conv_v7.cpp, Conv_v8.cpp).
    """
    recorder.assume(
        "cuDNN's workspace is taken to be at most the unfolded input of the largest convolution, "
        "or a copy of its input, weight and output, and is not in the peaks"
    )
    if torch.backends.cudnn.benchmark:  # findAlgorithms in Conv_v7.cpp empties the cache
        recorder.assume(
            "cudnn.benchmark: what is tried for each new convolution, and the cached memory that PyTorch then gives "
            "back, are not followed"
        )
    places = out if not transposed else x
    channels = x.size(1) if not transposed else out.size(1)
    window = math.prod(weight.shape[2:])
    unfolded = places.size(0) * channels * math.prod(places.shape[2:]) * window * x.itemsize
    copies = nbytes(x) + nbytes(weight) + nbytes(out)
    recorder.convolution_workspace = max(recorder.convolution_workspace, unfolded, copies)


# -- backward ----------------------------------------------------------------------------------------------------------


@kernel("convolution_backward")
def convolution_backward(call: Call) -> Any:
    """The gradients of input and weight, then that of the bias: a sum."""
    gradient, x, weight = call.args[:3]
    mask = call.argument("output_mask")
    one = _convolution(call, x, weight)
    if one.x.numel() == 0:
        return call.run()
    if _is_unfolded(call, one):
        dx, dweight, dbias = unfolded_convolution.backward(call, _planar(call, gradient), one.x, one.weight, mask)
        return *_as_given(call, x, dx, dweight), dbias
    compute = _by_pytorch if _is_done_by_pytorch(call, one) else _by_cudnn
    dx, dweight = compute(call, one, _planar(call, gradient), mask)
    dbias = None
    if mask[2]:
        dbias = operate(call, "sum.dim_IntList", gradient, [0, *range(2, gradient.dim())])
    return *_as_given(call, x, dx, dweight), dbias


_Gradients = tuple["torch.Tensor | None", "torch.Tensor | None"]


def _as_given(call: Call, x: torch.Tensor, *gradients: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
    """view3d, for a one-dimensional convolution."""
    if x.dim() == 4 or x.dim() == 5:
        return gradients
    return tuple(grad if grad is None else operate(call, "squeeze.dim", grad, 2) for grad in gradients)


def _by_cudnn(call: Call, one: _Convolution, gradient: torch.Tensor, mask: Sequence[bool]) -> _Gradients:
    """cudnn_convolution_backward: the input is brought into the format only for the weight's gradient."""
    x = contiguous(call, one.x, _format(one.x, one.weight)) if mask[1] else one.x
    gradient = contiguous(call, gradient, suggested_format(x))
    dx = dweight = None
    if mask[0]:
        memory_format = _format(gradient, one.weight)
        dx = _output(call, x.shape, x.dtype, memory_format)
        copies = [contiguous(call, tensor, memory_format) for tensor in (one.weight, gradient)]
        del copies
    if mask[1]:
        dweight = _output(call, one.weight.shape, one.weight.dtype, _format(x, gradient))
    del gradient
    return dx, dweight


def _by_pytorch(call: Call, one: _Convolution, gradient: torch.Tensor, mask: Sequence[bool]) -> _Gradients:
    """conv_depthwise2d_backward_cuda and conv_depthwise3d_backward_cuda."""
    gradient = contiguous(call, gradient)
    if one.x.dim() == 4:
        dweight = _like_with(call, one.weight, one.x) if mask[1] else None
        dx = _like_with(call, one.x, one.weight) if mask[0] else None
        return dx, dweight
    x = contiguous(call, one.x)
    dx = empty(call, x.shape, x.dtype) if mask[0] else None
    dweight = empty(call, one.weight.shape, one.weight.dtype) if mask[1] else None
    return dx, dweight


def _like_with(call: Call, tensor: torch.Tensor, read: torch.Tensor) -> torch.Tensor:
    """The gradient of one operand, for which the other is read in contiguous order."""
    copy = contiguous(call, read)
    out = empty(call, tensor.shape, tensor.dtype)
    del copy
    return out
