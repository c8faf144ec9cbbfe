"""What is remembered of operators against PyTorch's own shape functions, on shapes that hypothesis chooses."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from willfit._trace import shapes
from willfit._trace.fake import META, FakeCudaTensor, run_on_meta
from willfit._trace.shapes import Shapes

DTYPES = st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool])
SHAPES = st.lists(st.integers(0, 5), max_size=4)
aten = torch.ops.aten


def described(out: Any) -> Any:
    if isinstance(out, torch.Tensor):
        return out.dtype, tuple(out.shape), out.stride(), out.untyped_storage().nbytes()
    return [described(item) for item in out] if isinstance(out, (list, tuple)) else out


def is_remembered(op: Any, *args: Any, **kwargs: Any) -> bool:
    """Check that the second answer, and one to new tensors like these, is PyTorch's; whether PyTorch was not asked."""
    asked = []

    def ask(*call: Any) -> Any:
        asked.append(call)
        return run_on_meta(*call)

    answers = Shapes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shapes, "run_on_meta", ask)
        try:
            truth = described(run_on_meta(op, args, kwargs))
        except (RuntimeError, IndexError, TypeError, NotImplementedError) as error:
            with pytest.raises(type(error)):
                answers.run(op, args, kwargs)
            return False
        for number in range(2):
            assert described(answers.run(op, args, kwargs)) == truth, number
        args = tuple(like(value) for value in args)
        assert described(answers.run(op, args, kwargs)) == truth
    return len(asked) <= 1


def fake(*sizes: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return FakeCudaTensor.wrap(torch.empty(sizes, dtype=dtype, device=META))


def like(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        with torch._C._DisableTorchDispatch():
            return FakeCudaTensor.wrap(torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=META))
    return type(value)(map(like, value)) if isinstance(value, (list, tuple)) else value


@st.composite
def tensors(draw: Any, shape: Any = SHAPES) -> torch.Tensor:
    made = torch.empty(draw(shape), dtype=draw(DTYPES), device=META)
    if made.dim() > 1 and draw(st.booleans()):
        made = made.transpose(0, -1)
    return FakeCudaTensor.wrap(made)


@st.composite
def broadcastable(draw: Any) -> tuple[torch.Tensor, torch.Tensor]:
    whole = draw(tensors())
    sizes = [draw(st.sampled_from([n, 1])) for n in whole.shape][draw(st.integers(0, whole.dim())) :]
    part = fake(*sizes, dtype=draw(st.sampled_from([whole.dtype, torch.float32])))
    return (whole, part) if draw(st.booleans()) else (part, whole)


NUMBERS = st.sampled_from([1, 1.0, True, 2])


@settings(deadline=None)
@given(tensors(), NUMBERS)
def test_one_tensor(tensor: torch.Tensor, number: float) -> None:
    for op in (aten.neg.default, aten.silu.default, aten.rsqrt.default, aten.clone.default):
        is_remembered(op, tensor)
    for op in (aten.pow.Tensor_Scalar, aten.mul.Scalar, aten.div.Scalar, aten.mul.Tensor, aten.lt.Scalar):
        is_remembered(op, tensor, number)


@settings(deadline=None)
@given(broadcastable())
def test_two_tensors(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    for op in (aten.mul.Tensor, aten.add.Tensor, aten.div.Tensor, aten.copysign.Tensor):
        is_remembered(op, *pair)


@settings(deadline=None)
@given(tensors(), st.data())
def test_reductions(tensor: torch.Tensor, data: Any) -> None:
    dims = data.draw(st.lists(st.integers(-3, 3), max_size=2))
    is_remembered(aten.sum.dim_IntList, tensor, dims, data.draw(st.booleans()))
    is_remembered(aten.max.dim, tensor, data.draw(st.integers(-3, 3)))


@settings(deadline=None)
@given(tensors(), st.integers(-4, 4), st.integers(0, 4))
def test_lists(tensor: torch.Tensor, dim: int, size: int) -> None:
    sizes = list(tensor.shape)
    if -len(sizes) <= dim < len(sizes):
        sizes[dim] = size
    is_remembered(aten.cat.default, [tensor, fake(*sizes, dtype=tensor.dtype)], dim)
    is_remembered(aten._foreach_sqrt.default, [tensor, fake(*sizes)])
    is_remembered(aten.stack.default, [tensor, tensor], dim)


def test_the_frequent_ones_are_remembered() -> None:
    matrix = fake(3, 4)
    assert is_remembered(aten.mul.Tensor, matrix, matrix)
    assert is_remembered(aten.sum.dim_IntList, matrix, [0])
    assert is_remembered(aten.cat.default, [matrix, matrix], 1)
    assert is_remembered(aten.mm.default, matrix, fake(4, 5))
    assert is_remembered(aten.native_layer_norm.default, matrix, [4], None, None, 1e-5)
    assert is_remembered(aten._foreach_mul.Scalar, [matrix, matrix], 2)
    assert is_remembered(aten._to_copy.default, matrix, dtype=torch.float16)


@pytest.mark.parametrize("number", [1, 1.0])
def test_numbers_that_are_equal_are_told_apart(number: float) -> None:
    """1 == 1.0 == True, but a tensor of whole numbers times 1.0 is one of floating point."""
    answers, tensor = Shapes(), fake(3, dtype=torch.int64)
    for other in (True, 1, 1.0, number):
        made = answers.run(aten.mul.Tensor, (tensor, other), {})
        assert made.dtype == (torch.float32 if isinstance(other, float) else torch.int64)


def test_the_default_dtype_counts() -> None:
    answers, tensor = Shapes(), fake(3, dtype=torch.int64)
    before = torch.get_default_dtype()
    assert answers.run(aten.mul.Tensor, (tensor, 1.5), {}).dtype == torch.float32
    try:
        torch.set_default_dtype(torch.float64)
        assert answers.run(aten.mul.Tensor, (tensor, 1.5), {}).dtype == torch.float64
    finally:
        torch.set_default_dtype(before)


def test_a_view_shares_the_storage_each_time() -> None:
    """_unsafe_view returns a view, which its schema keeps to itself."""
    answers, tensor = Shapes(), fake(3, 4)
    for _ in range(3):
        for op, arguments in ((aten.view.default, ([12],)), (aten._unsafe_view.default, ([12],)), (aten.t.default, ())):
            made = answers.run(op, (tensor, *arguments), {})
            assert made.untyped_storage()._cdata == tensor.untyped_storage()._cdata


def test_what_changes_in_place_is_the_tensor_itself() -> None:
    answers, tensor = Shapes(), fake(3, 4)
    for _ in range(2):
        assert answers.run(aten.add_.Tensor, (tensor, tensor), {}) is tensor
    assert answers.run(aten._foreach_mul_.Scalar, ([tensor, tensor], 2), {}) is None
    with pytest.raises(RuntimeError, match=r"broadcast|shape"):
        answers.run(aten.add_.Tensor, (fake(3), fake(4)), {})


def test_a_number_on_the_cpu_is_asked_for_each_time() -> None:
    """Whether a tensor of no dimensions stands for a Python number decides the dtype, and cannot be seen."""
    assert not is_remembered(aten.mul.Tensor, fake(3, dtype=torch.float16), torch.tensor(2.0))
