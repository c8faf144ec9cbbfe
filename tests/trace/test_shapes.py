"""Shortcuts against PyTorch's own shape functions, on shapes that hypothesis chooses."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from willfit._trace import shapes
from willfit._trace.fake import META

DTYPES = st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool])
SHAPES = st.lists(st.integers(0, 5), max_size=4)
aten = torch.ops.aten


def described(out: Any) -> Any:
    if isinstance(out, torch.Tensor):
        # the stride of a dimension of length 1 says nothing, and versions of PyTorch differ in it
        strides = [stride for size, stride in zip(out.shape, out.stride(), strict=True) if size > 1]
        return out.dtype, tuple(out.shape), strides, out.untyped_storage().nbytes()
    return [described(item) for item in out] if isinstance(out, (list, tuple)) else out


def agree(op: Any, *args: Any, **kwargs: Any) -> bool:
    """True where the shortcut answers, and then as PyTorch does."""
    quick = shapes.shortcut(op)
    assert quick is not None
    mine = quick(*args, **kwargs)
    if mine is NotImplemented:
        return False
    assert described(mine) == described(op(*args, **kwargs))
    return True


@st.composite
def tensors(draw: Any, shape: Any = SHAPES) -> torch.Tensor:
    made = torch.empty(draw(shape), dtype=draw(DTYPES), device=META)
    if made.dim() > 1 and draw(st.booleans()):
        made = made.transpose(0, -1)
    return made


@st.composite
def broadcastable(draw: Any) -> tuple[torch.Tensor, torch.Tensor]:
    whole = draw(tensors())
    sizes = [draw(st.sampled_from([n, 1])) for n in whole.shape][draw(st.integers(0, whole.dim())) :]
    part = torch.empty(sizes, dtype=draw(st.sampled_from([whole.dtype, torch.float32])), device=META)
    return (whole, part) if draw(st.booleans()) else (part, whole)


@settings(deadline=None)
@given(tensors())
def test_unary(tensor: torch.Tensor) -> None:
    if tensor.dtype != torch.bool:
        agree(aten.neg.default, tensor)
    if tensor.is_floating_point():
        for op in (aten.silu.default, aten.sigmoid.default, aten.rsqrt.default):
            agree(op, tensor)
        for op in (aten.pow.Tensor_Scalar, aten.mul.Scalar, aten.div.Scalar):
            agree(op, tensor, 2)


@settings(deadline=None)
@given(broadcastable())
def test_binary(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    for op in (aten.mul.Tensor, aten.add.Tensor, aten.div.Tensor):
        agree(op, *pair)


@pytest.mark.parametrize("sizes", [(3, 4), (4,)])
def test_two_floating_point_dtypes_are_answered(sizes: tuple[int, ...]) -> None:
    half, single = torch.empty(2, 3, 4, dtype=torch.bfloat16, device=META), torch.empty(sizes, device=META)
    assert agree(aten.mul.Tensor, single, half)
    assert agree(aten.add.Tensor, half, single)


@settings(deadline=None)
@given(tensors(), st.data())
def test_reductions(tensor: torch.Tensor, data: Any) -> None:
    if not tensor.is_floating_point() or not tensor.dim():
        return
    dims = data.draw(st.lists(st.integers(-tensor.dim(), tensor.dim() - 1), unique_by=lambda d: d % tensor.dim()))
    keep = data.draw(st.booleans())
    agree(aten.sum.dim_IntList, tensor, dims, keep)
    agree(aten.mean.dim, tensor, dims, keep)


@settings(deadline=None)
@given(tensors(), st.data())
def test_cat(tensor: torch.Tensor, data: Any) -> None:
    if not tensor.dim():
        return
    dim = data.draw(st.integers(-tensor.dim(), tensor.dim() - 1))
    sizes = list(tensor.shape)
    sizes[dim] = data.draw(st.integers(0, 4))
    agree(aten.cat.default, [tensor, torch.empty(sizes, dtype=tensor.dtype, device=META)], dim)


@settings(deadline=None)
@given(st.integers(0, 5), st.integers(0, 5), st.integers(0, 5))
def test_mm(m: int, k: int, n: int) -> None:
    assert agree(aten.mm.default, torch.empty(m, k, device=META), torch.empty(n, k, device=META).t())


@settings(max_examples=30, deadline=None)
@given(st.lists(tensors(st.lists(st.integers(1, 4), max_size=3)), min_size=1, max_size=3))
def test_foreach(tensors: list[torch.Tensor]) -> None:
    floats = [t if t.is_floating_point() else t.to(torch.float32) for t in tensors]
    agree(aten._foreach_sqrt.default, floats)
    agree(aten._foreach_mul.Scalar, floats, 2)
    assert agree(aten._foreach_mul_.Scalar, floats, 2)


def test_the_plain_case_is_answered() -> None:
    matrix = torch.empty(3, 4, device=META)
    assert agree(aten.mul.Tensor, matrix, matrix)
    assert agree(aten.sum.dim_IntList, matrix, [0])
    assert agree(aten.cat.default, [matrix, matrix], 1)


@pytest.mark.parametrize("dims", [[5], [-3]])
def test_wrong_dimensions_are_left_to_pytorch(dims: list[int]) -> None:
    assert shapes.reduction(torch.empty(3, 4, device=META), dims) is NotImplemented
