"""Two-dimensional convolutions that PyTorch does itself: one sample at a time, unfolded into columns.

That is what bf16 gets where cuDNN does not take it: before sm_80, say. Source: slow_conv2d_forward_cuda and
slow_conv2d_backward_cuda in aten/src/ATen/native/cuda/ConvolutionMM2d.cu.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from willfit._trace.cuda.composing import contiguous, empty, operate
from willfit._trace.cuda.gemm import take_workspace
from willfit._trace.kernels import Call

_Gradients = tuple["torch.Tensor | None", "torch.Tensor | None", "torch.Tensor | None"]


def _columns(x: torch.Tensor, weight: torch.Tensor, places: Sequence[int]) -> int:
    """Bytes of one sample's columns: a number for each weight of a filter, at each place of the output."""
    return math.prod(weight.shape[1:]) * math.prod(places) * x.itemsize


def _is_unfolded(call: Call, weight: torch.Tensor) -> bool:
    """Whether the columns are anything else than the input itself."""
    steps, padding = call.argument("stride"), call.argument("padding")
    return any(n != 1 for n in (*weight.shape[2:], *steps)) or any(n != 0 for n in padding)


def forward(call: Call, x: torch.Tensor, weight: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Contiguous operands, the output, the columns if there are any, and cuBLAS."""
    operands = [contiguous(call, tensor) for tensor in (x, weight)]
    out = empty(call, shape, x.dtype)
    with call.temporary(_columns(x, weight, shape[2:]) if _is_unfolded(call, weight) else 0):
        take_workspace(call)
    del operands
    return out


def backward(
    call: Call, gradient: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, mask: Sequence[bool]
) -> _Gradients:
    """The gradients of the input, the bias and the weight, in this order, with the same columns."""
    x, weight = contiguous(call, x), contiguous(call, weight)
    gradient = contiguous(call, gradient)
    size = _columns(x, weight, gradient.shape[2:])
    dx = dweight = dbias = None
    columns = None
    if mask[0]:
        dx = empty(call, x.shape, x.dtype)
        columns = call.take(size)
        take_workspace(call)
    if mask[2]:
        dbias = operate(call, "sum.dim_IntList", gradient, [0, 2, 3])
    if mask[1]:
        dweight = empty(call, weight.shape, weight.dtype)
        if columns is None:
            columns = call.take(size)
        take_workspace(call)
    if columns is not None:
        call.give_back(columns)
    return dx, dweight, dbias
