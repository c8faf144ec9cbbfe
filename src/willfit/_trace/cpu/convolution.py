"""Convolutions on the CPU: by oneDNN, which works on layouts of its own, or unfolded.

Source: _mkldnn_convolution, mkldnn_convolution_backward and their helpers in
aten/src/ATen/native/mkldnn/Conv.cpp; slow_conv2d_forward_out_cpu in ConvolutionMM2d.cpp. Dense tensors are reordered
into blocks of channels before a convolution, and out of them afterwards; those in channels_last are taken as they are,
but for the weights. Which blocks is oneDNN's choice: of 16 channels with AVX-512, of 8 without.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from willfit._trace.cpu.kernels import CpuCall, cpu_kernel
from willfit._trace.cuda.composing import suggested_format
from willfit._trace.kernels import nbytes

_KNOWN_BY_ONEDNN = (
    "oneDNN's convolutions are taken to reorder dense tensors into blocks of channels: oneDNN alone knows"
)


def _block() -> int:
    return 16 if "AVX512" in torch.backends.cpu.get_cpu_capability() else 8


_DENSE = torch.contiguous_format
_LAST_BY_DIMENSIONS = {4: torch.channels_last, 5: torch.channels_last_3d}
_LAST = tuple(_LAST_BY_DIMENSIONS.values())


def _padded(channels: int) -> int:
    return -(-channels // _block()) * _block()


def _blocked(tensor: torch.Tensor) -> int:
    """Bytes of images in blocks of channels."""
    return nbytes(tensor) // tensor.size(1) * _padded(tensor.size(1)) if tensor.numel() else 0


def _blocked_weight(weight: torch.Tensor, groups: int) -> int:
    """Bytes of weights in blocks; those of single channels are in blocks of groups."""
    window = math.prod(weight.shape[2:]) * weight.itemsize
    if groups > 1:
        return _padded(groups) * window if weight.size(1) == 1 else nbytes(weight)
    inner = weight.size(1) if weight.size(1) < _block() else _padded(weight.size(1))
    return _padded(weight.size(0)) * inner * window


def _is_last(*tensors: torch.Tensor) -> bool:
    """mkldnn_conv_use_channels_last and thnn_conv_use_channels_last: where one of them is, the output is."""
    return any(suggested_format(tensor) in _LAST for tensor in tensors)


def _output(call: CpuCall, x: torch.Tensor, weight: torch.Tensor, options: tuple[Any, ...]) -> torch.Tensor:
    """What the output will be like; on meta it is dense whatever the input is."""
    out: torch.Tensor = call.recorder.on_meta(torch.ops.aten.convolution.default, (x, weight, *options), {})
    with torch._C._DisableTorchDispatch():
        return out.contiguous(memory_format=_LAST_BY_DIMENSIONS[x.dim()] if _is_last(x, weight) else _DENSE)


@cpu_kernel("mkldnn_convolution")
def convolution(call: CpuCall) -> Any:
    """Input and weights reordered, the output in blocks, then as it is asked for."""
    x, weight, bias, padding, stride, dilation, groups = call.args
    return _forward(call, x, weight, (bias, stride, padding, dilation, False, [0] * len(stride), groups))


@cpu_kernel("mkldnn_convolution_transpose")
def transposed_convolution(call: CpuCall) -> Any:
    """As `convolution`."""
    x, weight, bias, padding, output_padding, stride, dilation, groups = call.args
    return _forward(call, x, weight, (bias, stride, padding, dilation, True, output_padding, groups))


def _forward(call: CpuCall, x: torch.Tensor, weight: torch.Tensor, options: tuple[Any, ...]) -> torch.Tensor:
    call.recorder.assume(_KNOWN_BY_ONEDNN)
    groups = options[-1]
    out = _output(call, x, weight, options)
    if _is_last(x, weight):
        given = call.born(out)
        with call.temporary(_blocked_weight(weight, groups)):
            pass
        return given
    reordered = () if x.size(1) < _block() else (_blocked(x),)
    handles = [call.take(size) for size in (*reordered, _blocked_weight(weight, groups))]
    result = call.take(_blocked(out))
    call.give_back(*reversed(handles))
    given = call.born(out)
    call.give_back(result)
    return given


_ConvBackend: Any = torch._C._ConvBackend  # type: ignore[attr-defined]
_BY_ONEDNN = tuple(getattr(_ConvBackend, name) for name in ("Mkldnn", "MkldnnTranspose") if hasattr(_ConvBackend, name))


@cpu_kernel("convolution_backward")
def convolution_backward(call: CpuCall) -> Any:
    """First the gradient of the input, then those of weight and bias."""
    gradient, x, weight = call.args[:3]
    if torch._C._select_conv_backend(x, weight, None, *call.args[4:10]) not in _BY_ONEDNN:
        return call.as_composite()
    groups, mask = call.args[9], call.args[10]
    last = _is_last(x, weight, gradient)
    inputs = weights = bias = None
    outputs = list(call.on_meta())
    if mask[0]:
        if last:
            inputs = call.born(outputs[0])
            with call.temporary(_blocked_weight(weight, groups)):
                pass
        else:
            handles = [call.take(_blocked(gradient)), call.take(_blocked_weight(weight, groups))]
            result = call.take(_blocked(x))
            call.give_back(*reversed(handles))
            inputs = call.born(outputs[0])
            call.give_back(result)
    if mask[1]:
        reordered = [] if last else [call.take(_blocked(gradient))]
        if not last and x.size(1) > 3:  # images of up to 3 channels are taken as they are
            reordered.append(call.take(_blocked(x)))
        result = call.take(_blocked_weight(weight, groups))
        call.give_back(*reversed(reordered))
        if mask[2]:
            bias = call.born(outputs[2])
        dense = [call.take(nbytes(weight))] if last else []  # then copied into the layout that is asked for
        weights = call.born(outputs[1])
        call.give_back(*dense, result)
    return inputs, weights, bias


@cpu_kernel("_slow_conv2d_forward")
def unfolded(call: CpuCall) -> Any:
    """All windows of all images side by side, unless they are single pixels."""
    x, weight, _, bias, stride, padding = call.args
    options = (bias, stride, padding, [1, 1], False, [0, 0], 1)
    out = call.born(_output(call, x, weight, options))
    with call.temporary(*_columns(x, weight, out)):
        pass
    return out


@cpu_kernel("_slow_conv2d_backward.output_mask")
def unfolded_backward(call: CpuCall) -> Any:
    """The gradients of input, bias and weight, the first and last by way of the windows."""
    gradient, x, weight = call.args[:3]
    mask = call.args[6]
    inputs = call.born(_like(x)) if mask[0] else None
    if mask[0]:
        with call.temporary(*_columns(x, weight, gradient)):
            pass
    bias = call.born(_like(weight, weight.size(0))) if mask[2] else None
    weights = call.born(_like(weight)) if mask[1] else None
    if mask[1]:
        with call.temporary(*_columns(x, weight, gradient)):
            pass
    return inputs, weights, bias


def _columns(x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor) -> list[int]:
    window = math.prod(weight.shape[2:])
    return [x.size(0) * x.size(1) * window * math.prod(out.shape[2:]) * x.itemsize] if window > 1 else []


def _like(tensor: torch.Tensor, *shape: int) -> torch.Tensor:
    with torch._C._DisableTorchDispatch():
        return torch.empty(shape or tensor.shape, dtype=tensor.dtype, device="meta")
