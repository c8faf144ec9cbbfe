"""What PyTorch computes in place on CUDA, and out of place for tensor subclasses, which a fake tensor is one of.

Source: where isTensorSubclassLike and areAnyTensorSubclassLike are asked in torch/csrc/autograd/FunctionsManual.cpp.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from packaging.version import Version

from willfit._trace.cuda.composing import contiguous, empty, empty_like, operate
from willfit._trace.cuda.conditions import either
from willfit._trace.fake import run_on_meta
from willfit._trace.kernels import Call, kernel, nbytes
from willfit._trace.overrides import overload, override

_SELECTED = ("Max", "Min", "Sort", "Topk", "Kthvalue", "Median", "Nanmedian", "Mode", "Cummax", "Cummin")
_EXTREMES = tuple(
    f"{name}Backward{number}"
    for name in ("Maximum", "Minimum", "Fmax", "Fmin", "Clamp", "ClampMin", "ClampMax")
    for number in (0, 1)
    if Version("2.14") <= Version(Version(torch.__version__).base_version)  # its formulas are others
)
_CLAMP = ("ClampBackward0", "ClampBackward1")

_IN_PLACE: dict[str, tuple[str, ...]] = {
    "scatter.src": tuple(f"{name}Backward{number}" for name in _SELECTED for number in (0, 1)),
    "scatter_add": ("GatherBackward0", "CummaxBackward0", "CumminBackward0"),
    "index_add": ("IndexSelectBackward0",),
    "put": ("TakeBackward0",),
    "index_fill.int_Tensor": ("TraceBackward0",),
    "logical_and": (*_CLAMP, "MaxBackward1", "MinBackward1", "MedianBackward0", "NanmedianBackward0"),
    "logical_or": _CLAMP,
    "masked_fill.Scalar": ("Atan2Backward0", *_EXTREMES),
    "sub.Tensor": ("BinaryCrossEntropyWithLogitsBackward0",),
    "mul.Tensor": ("BinaryCrossEntropyBackward0", "BinaryCrossEntropyWithLogitsBackward0"),
}
"""Operators, and the nodes of autograd whose formulas call their twins in place instead."""


def _node() -> str:
    """The node of autograd that is running."""
    if torch._C._current_graph_task_id() == -1 or torch.is_grad_enabled():
        return ""
    node = torch._C._current_autograd_node()
    return "" if node is None else node.name()


@kernel(*_IN_PLACE)
def in_place(call: Call) -> Any:
    """The twin in place, where a formula of backward calls one."""
    schema = call.func._schema
    name, variant = schema.name.removeprefix("aten::"), schema.overload_name and f".{schema.overload_name}"
    if _node() not in _IN_PLACE[name + variant] or _makes_another(call):
        return either(call) if name == "logical_or" else call.run()
    return call.recorder.run(overload(f"{name}_{variant}"), call.args, call.kwargs)


def _makes_another(call: Call) -> bool:
    """Whether the formula keeps the operand: ``pos_weight.mul(target)``, which broadcasts, and ``-self * grad``."""
    if len(call.args) != 2 or not isinstance(call.args[1], torch.Tensor):
        return False
    negated: Any = torch.ops.aten.neg.default
    return call.recorder.last_operator is negated or bool(
        torch.broadcast_shapes(call.args[0].shape, call.args[1].shape) != call.args[0].shape
    )


@kernel("pow.Scalar")
def power_of_scalar(call: Call) -> Any:
    """A contiguous output; the base becomes a tensor on the GPU (pow_Scalar_out in aten/src/ATen/native/Pow.cpp)."""
    like = run_on_meta(call.func, call.args, call.kwargs)
    out = empty(call, like.shape, like.dtype)
    with call.temporary(8):
        pass
    return out


@kernel("log_sigmoid_forward")
def log_sigmoid(call: Call) -> Any:
    """The buffer is for the CPU alone (log_sigmoid_forward_cuda in aten/src/ATen/native/cuda/Activation.cpp)."""
    return empty_like(call, call.args[0]), empty(call, (0,), call.args[0].dtype)


@override("mish_backward")
def mish_backward(own: Callable[..., Any], grad_output: torch.Tensor, self: torch.Tensor) -> Any:
    """One kernel (aten/src/ATen/native/Activation.cpp); where there is none PyTorch composes it."""
    return own(grad_output, self) if torch.is_grad_enabled() else torch.empty_like(grad_output)


@kernel("fractional_max_pool3d_backward")
def fractional_max_pool3d_backward(call: Call) -> Any:
    """The input's gradient: PyTorch has no meta kernel for it."""
    return empty_like(call, call.args[1], torch.contiguous_format)


@kernel("_cdist_forward")
def cdist(call: Call) -> Any:
    """Of contiguous points (cdist_impl in aten/src/ATen/native/Distance.cpp)."""
    copies = [contiguous(call, points) for points in call.args[:2]]
    out = call.run()
    del copies
    return out


@kernel("_cdist_backward")
def cdist_backward(call: Call) -> Any:
    """A buffer of batch, both counts of rows, and columns (aten/src/ATen/native/cuda/DistanceKernel.cu)."""
    first, second = (contiguous(call, points) for points in call.args[1:3])
    out = call.run()
    with call.temporary(first.numel() * second.size(-2) * first.itemsize if call.args[3] > 0 else 0):
        pass
    return out


@kernel("_euclidean_dist")
def euclidean_dist(call: Call) -> Any:
    """By a matrix product of padded rows (_euclidean_dist in aten/src/ATen/native/Distance.cpp)."""
    left, right = call.args[:2]
    left_rows = _squared_rows(call, left)
    right_rows = _squared_rows(call, right)
    parts = [operate(call, "mul.Scalar", left, -2), *left_rows]
    left = _joined(call, parts, left_rows)
    parts = [right, *reversed(right_rows)]
    right = _joined(call, parts, right_rows)
    product = {2: "mm", 3: "bmm"}.get(left.dim(), "matmul")
    out = operate(call, product, left, operate(call, "transpose.int", right, -2, -1))
    del right
    return out


def _squared_rows(call: Call, rows: torch.Tensor) -> list[torch.Tensor]:
    squares = operate(call, "pow.Tensor_Scalar", rows, 2)
    norm = operate(call, "sum.dim_IntList", squares, [-1], True)
    del squares
    return [norm, empty_like(call, norm, torch.contiguous_format)]


def _joined(call: Call, parts: list[torch.Tensor], owned: list[torch.Tensor]) -> torch.Tensor:
    """at::cat of a list that is destroyed from its end."""
    owned.clear()
    out = operate(call, "cat", parts, -1)
    while parts:
        parts.pop()
    return out  # type: ignore[no-any-return]


@kernel("dist")
def dist(call: Call) -> Any:
    """The norm of the difference (dist in aten/src/ATen/native/Distance.cpp)."""
    difference = operate(call, "sub.Tensor", *call.args[:2])
    return operate(call, "linalg_vector_norm", difference, call.argument("p"))


@kernel("_pdist_backward")
def pdist_backward(call: Call) -> Any:
    """A buffer of a row's distances to all others (aten/src/ATen/native/cuda/DistanceKernel.cu)."""
    out = call.run()
    points = call.args[1]
    with call.temporary((points.size(0) - 1) * nbytes(points)):
        pass
    return out


@override("cumprod_backward")
def cumprod_backward(
    own: Callable[..., Any], grad: torch.Tensor, input: torch.Tensor, dim: int, output: torch.Tensor
) -> Any:
    """Without zeros a sum from the end (cumprod_backward in torch/csrc/autograd/FunctionsManual.cpp)."""
    if torch.is_grad_enabled() or input.numel() <= 1 or input.size(dim) == 1:
        return own(grad, input, dim, output)
    product = output * grad
    is_zero = input == 0
    if is_zero.any().item():
        return own(grad, input, dim, output)
    flipped = product.flip(dim)
    summed = flipped.cumsum(dim)
    back = summed.flip(dim)
    del flipped, summed
    return back.div(input)


@override("where.ScalarOther")
def filled_value(own: Callable[..., Any], condition: torch.Tensor, self: torch.Tensor, other: float) -> Any:
    """The gradient of the value in masked_fill sums what it selects (masked_fill_backward in FunctionsManual.cpp)."""
    if _node().startswith("MaskedFillBackward"):
        return self.masked_select(condition)
    return own(condition, self, other)


@override("one_hot")
def one_hot(own: Callable[..., Any], self: torch.Tensor, num_classes: int = -1) -> Any:
    """Ones scattered into zeros (one_hot in aten/src/ATen/native/Onehot.cpp)."""
    if not self.numel():
        return own(self, num_classes)
    classes = int(self.max().item()) + 1 if num_classes == -1 else num_classes
    return self.new_zeros((*self.shape, classes)).scatter_(-1, self.unsqueeze(-1), 1)


@kernel("logsumexp")
def logsumexp(call: Call) -> Any:
    """logsumexp_out_impl in aten/src/ATen/native/ReduceOps.cpp."""
    x, dims = call.args[:2]
    maxima = operate(call, "amax", x, dims, True)
    absolute = operate(call, "abs", maxima)
    infinite = operate(call, "eq.Scalar", absolute, float("inf"))
    del infinite
    del absolute
    exponentials = operate(call, "sub.Tensor", x, maxima)
    out = operate(call, "sum.dim_IntList", exponentials, dims, call.argument("keepdim"))
    del exponentials
    return out


@kernel("roll")
def roll(call: Call) -> Any:
    """A dimension at a time (roll_common in aten/src/ATen/native/TensorTransformations.h, roll_cuda beside it)."""
    x, shifts, dims = call.args[0], call.argument("shifts"), call.argument("dims")
    if len(shifts) == 1:
        return empty_like(call, contiguous(call, x), torch.contiguous_format)
    rolled = operate(call, "roll", x, shifts[:1], dims[:1])
    return operate(call, "roll", rolled, shifts[1:], dims[1:])


@kernel("unfold_backward")
def unfold_backward(call: Call) -> Any:
    """The places that windows cover, in int64 (aten/src/ATen/native/UnfoldBackward.h)."""
    out = call.run()
    gradient, dim, size, step = call.args[0], *call.args[2:5]
    if step < size:
        covered = min(out.size(dim), (gradient.size(dim) - 1) * step + size)
        with call.temporary(8 * covered):
            pass
    return out


@kernel("view_copy")
def view_copy(call: Call) -> Any:
    """A contiguous copy, also where a view is not possible (view_copy in aten/src/ATen/native/TensorShape.cpp)."""
    x, shape = call.args
    return empty(call, torch._prims_common.infer_size(shape, x.numel()), x.dtype)


@kernel("ldexp.Tensor")
def ldexp(call: Call) -> Any:
    """A power of two times the input (aten/src/ATen/native/BinaryOps.cpp)."""
    x, exponent = call.args
    power = operate(call, "pow.Scalar", 2.0, exponent)
    return operate(call, "mul.Tensor", x, power)


@kernel("im2col", "col2im")
def columns(call: Call) -> Any:
    """The output is allocated like the input and then resized: a smaller one keeps the larger storage.

    im2col_cuda and col2im_cuda in aten/src/ATen/native/cuda/Im2Col.cu and Col2Im.cu.
    """
    x = call.args[0]
    out = run_on_meta(call.func, call.args, call.kwargs)
    like = empty_like(call, x, torch.contiguous_format)
    dense = contiguous(call, x)
    if nbytes(out) > nbytes(like):
        like = empty(call, out.shape, x.dtype)
    del dense
    return call.recorder.run(torch.ops.aten.as_strided.default, (like, out.shape, out.stride()), {})
