"""Convolutions that PyTorch does itself: one sample at a time, unfolded into columns, by cuBLAS.

That is what bf16 gets where cuDNN does not take it: before sm_80, say. Sources: case Slow2d and those after it of
_convolution and convolution_backward in aten/src/ATen/native/Convolution.cpp (groups, one by one); in
aten/src/ATen/native/cuda, slow_conv2d_forward_cuda and slow_conv2d_backward_cuda in ConvolutionMM2d.cu,
slow_conv_dilated_all_cuda_template in NaiveDilatedConvolution.cu, and NaiveConvolutionTranspose2d.cu and
NaiveConvolutionTranspose3d.cu.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from willfit._trace.cuda.composing import contiguous, empty, empty_like, operate
from willfit._trace.cuda.gemm import take_workspace
from willfit._trace.kernels import Call

_DENSE = torch.contiguous_format
_Gradients = tuple["torch.Tensor | None", "torch.Tensor | None", "torch.Tensor | None"]


# -- groups ------------------------------------------------------------------------------------------------------------


def forward(call: Call, x: torch.Tensor, weight: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """The output of this shape; of several groups, those of all, joined."""
    compute = _forward_of(call, x)
    groups = call.argument("groups")
    x = contiguous(call, x)
    if groups == 1:
        return compute(call, x, weight, shape)
    shape = (shape[0], shape[1] // groups, *shape[2:])
    outputs = []
    for group in range(groups):
        outputs.append(compute(call, _part(call, x, 1, group), _part(call, weight, 0, group), shape))
    return operate(call, "cat", outputs, 1)  # type: ignore[no-any-return]


def backward(
    call: Call, gradient: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, mask: Sequence[bool]
) -> _Gradients:
    """The gradients of input, weight and bias; of several groups, those of all, joined."""
    compute = _backward_of(call, x)
    groups = call.argument("groups")
    x, weight = contiguous(call, x), contiguous(call, weight)
    if groups == 1:
        return compute(call, gradient, x, weight, mask)
    found = []
    for group in range(groups):
        parts = _part(call, gradient, 1, group), _part(call, x, 1, group), _part(call, weight, 0, group)
        found.append(compute(call, *parts, mask))
        del parts
    joined = [
        operate(call, "cat", [gradients[which] for gradients in found], dim) if mask[which] else None
        for which, dim in enumerate((1, 0, 0))
    ]
    return joined[0], joined[1], joined[2]


def _part(call: Call, tensor: torch.Tensor, dim: int, group: int) -> torch.Tensor:
    """A group's part (subtensor)."""
    size = tensor.size(dim) // call.argument("groups")
    return contiguous(call, operate(call, "slice.Tensor", tensor, dim, group * size, (group + 1) * size))


def _forward_of(call: Call, x: torch.Tensor) -> Callable[..., torch.Tensor]:
    """_select_conv_backend."""
    if call.argument("transposed"):
        return _forward_transposed
    return _forward_dilated if _is_dilated(call, x) else _forward_plain


def _backward_of(call: Call, x: torch.Tensor) -> Callable[..., _Gradients]:
    if call.argument("transposed"):
        return _backward_transposed
    return _backward_dilated if _is_dilated(call, x) else _backward_plain


def _is_dilated(call: Call, x: torch.Tensor) -> bool:
    return x.dim() == 5 or any(step != 1 for step in call.argument("dilation"))


def _multiply(call: Call, x: torch.Tensor, products: int = 1) -> None:
    """Matrix products for each sample."""
    for _ in range(x.size(0) * products):
        take_workspace(call)


def _columns(weight: torch.Tensor, places: Sequence[int]) -> int:
    """Bytes of one sample's columns: a number for each weight of a filter, at each place."""
    return math.prod(weight.shape[1:]) * math.prod(places) * weight.itemsize


# -- two dimensions, no dilation ---------------------------------------------------------------------------------------


def _forward_plain(call: Call, x: torch.Tensor, weight: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Contiguous operands, the output, the columns if there are any, and cuBLAS."""
    operands = [contiguous(call, tensor) for tensor in (x, weight)]
    out = empty(call, shape, x.dtype)
    steps, padding = call.argument("stride"), call.argument("padding")
    are_the_input = all(n == 1 for n in (*weight.shape[2:], *steps)) and not any(padding)
    with call.temporary(0 if are_the_input else _columns(weight, shape[2:])):
        _multiply(call, x)
    del operands
    return out


def _backward_plain(
    call: Call, gradient: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, mask: Sequence[bool]
) -> _Gradients:
    """The gradients of the input, the bias and the weight, in this order, with the same columns."""
    gradient = contiguous(call, gradient)
    size = _columns(weight, gradient.shape[2:])
    dx = dweight = dbias = None
    columns = None
    if mask[0]:
        dx = empty(call, x.shape, x.dtype)
        columns = call.take(size)
        _multiply(call, x)
    if mask[2]:
        dbias = operate(call, "sum.dim_IntList", gradient, [0, 2, 3])
    if mask[1]:
        dweight = empty(call, weight.shape, weight.dtype)
        if columns is None:
            columns = call.take(size)
        _multiply(call, x)
    if columns is not None:
        call.give_back(columns)
    return dx, dweight, dbias


# -- dilated, and three dimensions -------------------------------------------------------------------------------------


def _forward_dilated(call: Call, x: torch.Tensor, weight: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Contiguous operands, the output and the columns."""
    operands = [contiguous(call, tensor) for tensor in (x, weight)]
    out = empty(call, shape, x.dtype)
    with call.temporary(_columns(weight, shape[2:])):
        _multiply(call, x)
    del operands
    return out


def _backward_dilated(
    call: Call, gradient: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, mask: Sequence[bool]
) -> _Gradients:
    """All gradients first; the bias's is added up sample by sample."""
    gradient = contiguous(call, gradient)
    dx = empty(call, x.shape, x.dtype) if mask[0] else None
    dweight = empty(call, weight.shape, x.dtype) if mask[1] else None
    dbias = empty(call, weight.shape[:1], x.dtype) if mask[2] else None
    with call.temporary(_columns(weight, gradient.shape[2:]) if mask[0] or mask[1] else 0):
        for number in range(x.size(0)):
            for _ in range(mask[0] + mask[1]):
                take_workspace(call)
            if mask[2]:
                sample = operate(call, "select.int", gradient, 0, number)
                operate(call, "sum.dim_IntList", sample, list(range(1, sample.dim())))
    return dx, dweight, dbias


# -- transposed --------------------------------------------------------------------------------------------------------


def _forward_transposed(call: Call, x: torch.Tensor, weight: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """The columns of the input's places; a bias is added as a product with ones."""
    operands = [contiguous(call, tensor) for tensor in (x, weight)]
    like = empty_like(call, x, _DENSE) if x.dim() == 5 else None  # resized then, which keeps a storage that suffices
    if like is None or math.prod(shape) > x.numel():
        out = empty(call, shape, x.dtype)
    else:
        out = operate(call, "as_strided", like, shape, torch._prims_common.make_contiguous_strides_for(tuple(shape)))
    del like
    bias = call.argument("bias")
    ones = math.prod(shape[2:]) * x.itemsize if bias is not None else 0
    with call.temporary(_columns(weight, x.shape[2:]), ones):
        _multiply(call, x, products=1 if bias is None else 2)
    del operands
    return out


def _backward_transposed(
    call: Call, gradient: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, mask: Sequence[bool]
) -> _Gradients:
    """The input's gradient with its columns, then weight and bias with columns again."""
    gradient = contiguous(call, gradient)
    size = _columns(weight, x.shape[2:])
    dx = dweight = dbias = None
    if mask[0]:
        dx = empty(call, x.shape, x.dtype)
        with call.temporary(size):
            _multiply(call, x)
    if mask[1]:
        dweight = empty(call, weight.shape, x.dtype)
    if mask[2]:
        dbias = empty(call, weight.shape[1:2], x.dtype)
    if mask[1] or mask[2]:
        with call.temporary(size):
            _multiply(call, x, products=int(mask[1]))
    return dx, dweight, dbias
