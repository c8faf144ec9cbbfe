"""Outputs of the most frequent operators, found without PyTorch's Python implementations of them, which are slower.

A shortcut answers only in the plain case, and NotImplemented in any other, which then goes PyTorch's own way. That both
agree is tested on random shapes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from willfit._trace.fake import META
from willfit._trace.overrides import overload

Shortcut = Callable[..., Any]
_shortcuts: dict[Any, Shortcut] = {}


def shortcut(func: Any) -> Shortcut | None:
    """The shortcut for an operator, if it has one."""
    return _shortcuts.get(func)


def _for(*names: str) -> Callable[[Shortcut], Shortcut]:
    def register(function: Shortcut) -> Shortcut:
        for name in names:
            if (op := overload(name)) is not None:
                _shortcuts[op] = function
        return function

    return register


def _new(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    with torch._C._DisableTorchDispatch():
        return torch.empty(shape, dtype=dtype, device=META)


@_for(
    *("neg", "silu", "gelu", "relu", "sigmoid", "tanh", "exp", "log", "sqrt", "rsqrt", "cos", "sin", "abs", "square"),
    *("pow.Tensor_Scalar", "mul.Scalar", "add.Scalar", "div.Scalar", "sub.Scalar", "reciprocal"),
)
def unary(tensor: torch.Tensor, *_: Any, **__: Any) -> Any:
    """One output of the shape of a contiguous floating-point input."""
    return _new(tensor.shape, tensor.dtype) if tensor.is_floating_point() and tensor.is_contiguous() else NotImplemented


@_for("silu_backward", "gelu_backward", "sigmoid_backward", "tanh_backward", "threshold_backward")
def binary(first: torch.Tensor, second: Any, *_: Any, **__: Any) -> Any:
    """Contiguous inputs of one floating-point dtype, one of which has the shape of the output."""
    if not isinstance(second, torch.Tensor):
        return unary(first)
    if not first.is_floating_point() or not first.is_contiguous() or not second.is_contiguous():
        return NotImplemented
    if first.shape == second.shape:
        return _new(first.shape, first.dtype) if first.dtype == second.dtype else NotImplemented
    if first.dim() == 0 or second.dim() == 0:
        whole, number = (first, second) if second.dim() == 0 else (second, first)
        return _new(whole.shape, whole.dtype) if whole.dtype == number.dtype else NotImplemented
    if first.dtype != second.dtype:
        return NotImplemented
    shape = torch.broadcast_shapes(first.shape, second.shape)
    whole = first if first.shape == shape else second
    return _new(shape, whole.dtype) if whole.shape == shape else NotImplemented


@_for("mul.Tensor", "add.Tensor", "sub.Tensor", "div.Tensor")
def arithmetic(first: torch.Tensor, second: Any, *_: Any, **__: Any) -> Any:
    """As `binary`; also of two floating-point dtypes, as adapters beside 16-bit weights have them."""
    if not isinstance(second, torch.Tensor) or first.dtype == second.dtype:
        return binary(first, second)
    if not all(each.is_floating_point() and each.dim() and each.is_contiguous() for each in (first, second)):
        return NotImplemented
    shape = torch.broadcast_shapes(first.shape, second.shape)
    dtype = torch.promote_types(first.dtype, second.dtype)
    return _new(shape, dtype) if shape in (first.shape, second.shape) else NotImplemented


@_for("add_.Tensor", "mul_.Tensor", "sub_.Tensor", "div_.Tensor", "add_.Scalar", "mul_.Scalar", "div_.Scalar")
def in_place(tensor: torch.Tensor, other: Any, *_: Any, **__: Any) -> Any:
    """Nothing but the tensor itself."""
    if not isinstance(other, torch.Tensor) or other.dim() == 0 or other.shape == tensor.shape:
        return tensor if tensor.is_floating_point() else NotImplemented
    return NotImplemented


@_for("mm")
def mm(first: torch.Tensor, second: torch.Tensor) -> Any:
    """A contiguous matrix."""
    if first.dim() == second.dim() == 2 and first.size(1) == second.size(0) and first.dtype == second.dtype:
        return _new((first.size(0), second.size(1)), first.dtype)
    return NotImplemented


@_for("sum.dim_IntList", "mean.dim", "sum", "mean")
def reduction(tensor: torch.Tensor, dim: Any = None, keepdim: bool = False, *, dtype: torch.dtype | None = None) -> Any:
    """A contiguous tensor without the reduced dimensions."""
    if not tensor.is_floating_point() or tensor.dim() == 0 or tensor.numel() == 0:
        return NotImplemented
    rank = tensor.dim()
    dims = dim or range(rank)
    if any(not -rank <= index < rank for index in dims):
        return NotImplemented
    reduced = {index % rank for index in dims}
    shape = [1 if i in reduced else n for i, n in enumerate(tensor.shape) if keepdim or i not in reduced]
    return _new(shape, dtype or tensor.dtype)


@_for("cat")
def cat(tensors: Sequence[torch.Tensor], dim: int = 0) -> Any:
    """Contiguous tensors of one dtype that differ in one dimension at most."""
    first = tensors[0]
    rank = first.dim()
    if not rank or not -rank <= dim < rank:
        return NotImplemented
    dim %= rank
    shape = list(first.shape)
    shape[dim] = 0
    for tensor in tensors:
        if tensor.dtype != first.dtype or tensor.dim() != rank or not tensor.is_contiguous() or not tensor.numel():
            return NotImplemented
        if any(a != b for i, (a, b) in enumerate(zip(shape, tensor.shape, strict=True)) if i != dim):
            return NotImplemented
        shape[dim] += tensor.size(dim)
    return _new(shape, first.dtype) if math.prod(shape) else NotImplemented


def _foreach(names: str) -> tuple[str, ...]:
    return tuple(f"_foreach_{name}" for name in names.split())


@_for(
    *_foreach("add_.Scalar add_.List add_.ScalarList mul_.Scalar mul_.ScalarList mul_.List mul_.Tensor sub_.List"),
    *_foreach("div_.Scalar div_.ScalarList div_.List div_.Tensor neg_ sqrt_ lerp_.Scalar lerp_.List maximum_.List"),
    *_foreach(
        "addcmul_.Scalar addcmul_.ScalarList addcdiv_.Scalar addcdiv_.ScalarList zero_ copy_ reciprocal_ pow_.Scalar"
    ),
)
def foreach_in_place(tensors: Sequence[torch.Tensor], *_: Any, **__: Any) -> None:
    """Nothing: they change their tensors."""


@_for(
    *_foreach("sqrt neg abs reciprocal add.Scalar mul.Scalar mul.ScalarList div.Scalar add.ScalarList div.ScalarList")
)
def foreach_unary(tensors: Sequence[torch.Tensor], *_: Any) -> Any:
    """An output like each input."""
    if all(tensor.is_floating_point() and tensor.is_contiguous() for tensor in tensors):
        return [_new(tensor.shape, tensor.dtype) for tensor in tensors]
    return NotImplemented
