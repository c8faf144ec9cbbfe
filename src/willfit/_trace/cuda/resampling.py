"""Upsampling and padding: copies of inputs and outputs that do not lie in memory as the kernels want them.

Sources, in aten/src/ATen/native/cuda: UpSampleNearest1d.cu, UpSampleNearest2d.cu, UpSampleNearest3d.cu,
UpSampleBilinear2d.cu (with antialiasing), UpSampleBicubic2d.cu, ReflectionPad.cu.
"""

from __future__ import annotations

from typing import Any

import torch

from willfit._trace.cuda.composing import contiguous, empty_like, suggested_format
from willfit._trace.kernels import Call, kernel

_DENSE = torch.contiguous_format
_LEAST_CHANNELS = 4  # from here on the kernel for channels last is the faster one


def _plain(call: Call) -> Any:
    """The kernel reads and writes in the plain order; an output that comes otherwise is copied from there."""
    out = call.run()
    held = [] if out.is_contiguous() else [empty_like(call, out, _DENSE)]
    held.append(contiguous(call, call.args[0]))
    del held
    return out


def _of(*names: str, dims: tuple[int, ...]) -> list[str]:
    return [f"{name}{dim}d{end}" for name in names for dim in dims for end in ("", "_backward")]


@kernel(*_of("upsample_nearest", "_upsample_nearest_exact", dims=(2,)))
def nearest(call: Call) -> Any:
    """Channels last where that is faster."""
    x = call.args[0]
    if suggested_format(x) == _DENSE or x.size(1) < _LEAST_CHANNELS:
        return _plain(call)
    out = call.run()
    copy = contiguous(call, x, torch.channels_last)
    del copy
    return out


@kernel(*_of("upsample_nearest", "_upsample_nearest_exact", dims=(1, 3)), *_of("reflection_pad", dims=(1, 2)))
@kernel("reflection_pad3d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa")
def in_plain_order(call: Call) -> Any:
    """Kernels that know of no channels last."""
    return _plain(call)


@kernel("_upsample_bilinear2d_aa_backward", "_upsample_bicubic2d_aa_backward", "upsample_bicubic2d_backward")
def strided_backward(call: Call) -> Any:
    """Only the gradient is read in the plain order."""
    out = call.run()
    copy = contiguous(call, call.args[0])
    del copy
    return out


@kernel("upsample_bilinear2d_backward")
def bilinear_backward(call: Call) -> Any:
    """As the nearest neighbour."""
    return nearest(call)


@kernel("upsample_trilinear3d_backward", "upsample_linear1d_backward")
def linear_backward(call: Call) -> Any:
    """The copy of what is read before that of what is written."""
    out = call.run()
    held = [contiguous(call, call.args[0])]
    if not out.is_contiguous():
        held.append(empty_like(call, out, _DENSE))
    del held
    return out
