"""Pooling: copies of inputs and gradients that do not lie in memory as the kernels read them.

Sources, in aten/src/ATen/native/cuda: AveragePool2d.cu, AveragePool3d.cu, DilatedMaxPool2d.cu, DilatedMaxPool3d.cu,
AdaptiveAveragePooling.cu, AdaptiveAveragePooling3d.cu, AdaptiveMaxPooling2d.cu, AdaptiveMaxPooling3d.cu,
FractionalMaxPool2d.cu and MaxUnpooling.cu.
"""

from __future__ import annotations

from typing import Any

import torch

from willfit._trace.cuda.composing import contiguous, empty, empty_like, operate, suggested_format
from willfit._trace.fake import run_on_meta
from willfit._trace.kernels import Call, kernel

_aten = torch.ops.aten
_DENSE = torch.contiguous_format


@kernel("avg_pool2d", "max_pool2d_with_indices")
def planar(call: Call) -> Any:
    """The output, and the input in its own format, channels last or not."""
    x = call.args[0]
    out = call.run()
    copy = contiguous(call, x, suggested_format(x))
    del copy
    return out


@kernel("avg_pool2d_backward", "max_pool2d_with_indices_backward")
def planar_backward(call: Call) -> Any:
    """The gradient, then all that is read in the input's format."""
    gradient, x = call.args[:2]
    out = call.run()
    memory_format = suggested_format(x)
    indices = call.argument("indices")
    read = [x, gradient] if indices is None else [x, gradient, indices]
    copies = [contiguous(call, tensor, memory_format) for tensor in read]
    del copies
    return out


@kernel("avg_pool3d")
def avg_pool3d(call: Call) -> Any:
    """The output, and the input in its own order."""
    out = call.run()
    copy = contiguous(call, call.args[0])
    del copy
    return out


@kernel("max_pool3d_with_indices")
def max_pool3d(call: Call) -> Any:
    """As in two dimensions, channels last or not."""
    out = call.run()
    copy = contiguous(call, call.args[0], _spatial_format(call, call.args[0]))
    del copy
    return out


def _spatial_format(call: Call, x: torch.Tensor) -> torch.memory_format:
    """Channels last or not, of an input without a batch as well."""
    batched = x if x.dim() == 5 else operate(call, "unsqueeze", x, 0)
    if batched.is_contiguous():
        return _DENSE
    last = torch.channels_last_3d
    if x.dim() == 4:
        last_of_x = torch.preserve_format if batched.is_contiguous(memory_format=last) else _DENSE
        return last_of_x if suggested_format(batched) == last else _DENSE
    return suggested_format(x)


@kernel("avg_pool3d_backward", "adaptive_max_pool3d_backward", "max_pool3d_with_indices_backward")
def spatial_backward(call: Call) -> Any:
    """The gradient, and the output's gradient in its own order, or in that of the maxima's input."""
    gradient, x = call.args[:2]
    out = call.run()
    of_maxima = call.func is _aten.max_pool3d_with_indices_backward.default
    copy = contiguous(call, gradient, _spatial_format(call, x) if of_maxima else _DENSE)
    del copy
    return out


@kernel("_adaptive_avg_pool2d", "_adaptive_avg_pool3d")
def adaptive_average(call: Call) -> Any:
    """A copy of the input first, but for a sample without a batch, and for channels last in two dimensions."""
    x = call.args[0]
    is_planar = call.func is _aten._adaptive_avg_pool2d.default
    as_it_is = _is_one_sample(call) or (is_planar and suggested_format(x) != _DENSE)
    copy = x if as_it_is else contiguous(call, x)
    out = call.run()
    del copy
    return out


@kernel("_adaptive_avg_pool2d_backward", "_adaptive_avg_pool3d_backward")
def adaptive_average_backward(call: Call) -> Any:
    """The gradient, and a copy of the output's, but for channels last in two dimensions."""
    gradient, x = call.args
    out = call.run()
    as_it_is = (
        x.dim() == 4 and suggested_format(x) != _DENSE and call.func is _aten._adaptive_avg_pool2d_backward.default
    )
    copy = gradient if as_it_is else contiguous(call, gradient)
    del copy
    return out


@kernel("adaptive_max_pool2d", "adaptive_max_pool3d")
def adaptive_max(call: Call) -> Any:
    """The kernel writes in the plain order, from where outputs are copied that come channels last."""
    x = call.args[0]
    outputs = call.run()
    held = [empty_like(call, out, _DENSE) for out in outputs if not out.is_contiguous()]
    held.append(x if _is_one_sample(call) else contiguous(call, x))
    del held
    return outputs


def _is_one_sample(call: Call) -> bool:
    """The input has no batch: kernels of adaptive pooling then take it as it lies."""
    return call.args[0].dim() == len(call.args[1]) + 1  # type: ignore[no-any-return]


@kernel("adaptive_max_pool2d_backward")
def adaptive_max_backward(call: Call) -> Any:
    """Likewise."""
    gradient, _, indices = call.args[:3]
    out = call.run()
    held = [contiguous(call, tensor) for tensor in (gradient, indices)]
    if not out.is_contiguous():
        held.append(empty_like(call, out, _DENSE))
    del held
    return out


@kernel("max_unpool2d", "max_unpool3d")
def max_unpool(call: Call) -> Any:
    """A contiguous output comes after contiguous copies."""
    copies = [contiguous(call, tensor) for tensor in call.args[:2]]
    out = empty(call, run_on_meta(call.func, call.args, call.kwargs).shape, call.args[0].dtype)
    while copies:
        copies.pop()
    return out


@kernel("fractional_max_pool2d_backward")
def fractional_max_pool2d_backward(call: Call) -> Any:
    """The copy of the output's gradient comes first."""
    copy = contiguous(call, call.args[0])
    out = call.run()
    del copy
    return out
