"""The policy for values that are not known: what ``.item()``, ``bool(tensor)`` and ``nonzero`` answer."""

from __future__ import annotations

import weakref
from typing import Any

import torch

from willfit._trace.cuda import cub
from willfit._trace.cuda.composing import contiguous, empty, operate
from willfit._trace.fake import FakeCudaTensor
from willfit._trace.following import Follower
from willfit._trace.kernels import Call, kernel
from willfit._trace.overrides import override

_ORIGIN = "value origin"


def _note(recorder: Follower, what: str, answer: Any) -> None:
    recorder.assume(f"{what} depends on values that are not known: taken as {answer}")


@kernel("_local_scalar_dense")
def item(call: Call) -> Any:
    """``tensor.item()`` and ``bool(tensor)``."""
    return value_of(call.recorder, call.args[0])


def value_of(recorder: Follower, tensor: torch.Tensor) -> Any:
    """What a tensor of one element holds: its value where that is known, else what the policy says."""
    if (known := values_of(recorder, tensor)) is not None:
        return known.item()
    answer = _answer(recorder, tensor)
    if tensor.dtype == torch.bool:
        return bool(answer)
    if tensor.is_floating_point():
        return float(answer)
    return complex(answer) if tensor.is_complex() else answer


def values_of(recorder: Follower, tensor: torch.Tensor) -> torch.Tensor | None:
    """The values of a tensor that the step is about to read, where they are known."""
    known = recorder.known.of(tensor)
    if known is not None and recorder.known.is_of_the_batch(tensor):
        recorder.assume("what the step reads of the batch's values, such as masks, is as in the batch that was given")
    return known if _origin(recorder, tensor) != "found_inf" else None


def _origin(recorder: Follower, tensor: torch.Tensor) -> str | None:
    storage = tensor.untyped_storage()
    born, origin = recorder.state.get((_ORIGIN, storage._cdata), (lambda: None, None))
    return origin if born() is storage else None  # else the address was used again


def _answer(recorder: Follower, tensor: torch.Tensor) -> int:
    origin = _origin(recorder, tensor)
    if origin == "found_inf":
        _note(recorder, "GradScaler's found_inf", "0: no overflow, the optimizer steps")
        return 0
    if origin is not None:
        answer = int(origin == "all")
        _note(recorder, f"{origin}()", bool(answer))
        return answer
    _note(recorder, "a number or condition read from a tensor (.item())", 1)
    return 1


def remember(recorder: Follower, tensor: torch.Tensor, origin: str) -> None:
    """Where a tensor's values come from, for when they are read."""
    storage = tensor.untyped_storage()
    recorder.state[_ORIGIN, storage._cdata] = (weakref.ref(storage), origin)


def remember_either(recorder: Follower, out: torch.Tensor, first: torch.Tensor, second: torch.Tensor) -> None:
    """What ``first | second`` will be read as, where it is decided for them."""
    origins = [_origin(recorder, tensor) for tensor in (first, second)]
    if "all" in origins:
        remember(recorder, out, "all")
    elif origins[0] is not None and origins[1] is not None:
        remember(recorder, out, origins[0])


@kernel("all", "all.dim", "all.dims")
def all_(call: Call) -> Any:
    """``all()`` is true."""
    out = call.run()
    remember(call.recorder, out, "all")
    return out


@kernel("any", "any.dim", "any.dims")
def any_(call: Call) -> Any:
    """``any()`` is false."""
    out = call.run()
    remember(call.recorder, out, "any")
    return out


@kernel("isnan", "isinf")
def not_finite(call: Call) -> Any:
    """``isnan()`` and ``isinf()`` are false; the latter is ``abs() == inf`` (isinf in TensorCompare.cpp)."""
    tensor = call.args[0]
    is_compared = call.func is torch.ops.aten.isinf.default and tensor.is_floating_point()
    absolute = operate(call, "abs", tensor) if is_compared else None
    out = call.run()
    del absolute
    remember(call.recorder, out, call.func._schema.name.removeprefix("aten::"))
    return out


@kernel("equal")
def equal(call: Call) -> Any:
    """``torch.equal`` is true for tensors of one shape, which are compared (cuda_equal in cuda/Equal.cpp)."""
    first, second = call.args
    if first.shape != second.shape:
        return False
    if first.numel() and first is not second:
        same = operate(call, "eq.Tensor", first, second)
        alike = operate(call, "all", same)
        del alike, same
        return are_equal(call.recorder, first, second)
    return True


def are_equal(recorder: Follower, first: torch.Tensor, second: torch.Tensor) -> bool:
    """Whether two tensors of one shape are equal: yes, where that is not known."""
    one, other = values_of(recorder, first), values_of(recorder, second)
    if one is not None and other is not None:
        return torch.equal(one, other)
    _note(recorder, "torch.equal()", True)
    return True


@override("allclose")
def allclose(own: Any, tensor: torch.Tensor, other: torch.Tensor, *args: Any, **kwargs: Any) -> bool:
    """``torch.allclose`` is true: the comparison is made for its memory, and its answer not read."""
    if not isinstance(tensor, FakeCudaTensor):
        return own(tensor, other, *args, **kwargs)  # type: ignore[no-any-return]
    close = torch.isclose(tensor, other, *args, **kwargs)
    return bool(close.all())


@override("is_nonzero")
def is_nonzero(own: Any, tensor: torch.Tensor) -> bool:
    """What a condition on one number reads."""
    return bool(tensor.item()) if isinstance(tensor, FakeCudaTensor) else own(tensor)


@kernel("_amp_foreach_non_finite_check_and_unscale_")
def unscale(call: Call) -> Any:
    """GradScaler: nothing overflows. The kernel works in place (aten/src/ATen/native/cuda/AmpKernels.cu)."""
    remember(call.recorder, call.args[1], "found_inf")


@kernel("_amp_update_scale_")
def update_scale(call: Call) -> Any:
    """GradScaler's scale is changed in place."""
    return call.args[0]


def number_nonzero(recorder: Follower, tensor: torch.Tensor) -> int:
    """How many elements are nonzero: all, where that is not known."""
    if (known := values_of(recorder, tensor)) is not None:
        return int(known.count_nonzero())
    _note(recorder, "the number of nonzero elements (nonzero, masked_select, indexing by a mask)", "all of them")
    return tensor.numel()


def number_repeated(recorder: Follower, repeats: torch.Tensor) -> int:
    """How many elements repeat_interleave makes: one for each that it repeats, where that is not known."""
    if (known := values_of(recorder, repeats)) is not None:
        return int(known.sum())
    _note(recorder, "the output size of repeat_interleave()", "one element for each")
    return repeats.numel()


def number_unique(recorder: Follower, tensor: torch.Tensor, dim: int | None = None, consecutive: bool = False) -> int:
    """How many elements, or rows, are unique: all, where that is not known."""
    if (known := values_of(recorder, tensor)) is not None:
        found = torch.unique_consecutive(known, dim=dim) if consecutive else torch.unique(known, dim=dim)
        return int(found.size(dim or 0))
    _note(recorder, "the number of unique elements", "all of them")
    return tensor.numel() if dim is None else tensor.size(dim)


def largest_counted(recorder: Follower, tensor: torch.Tensor) -> int:
    """The largest number that bincount meets: 1, where that is not known."""
    if (known := values_of(recorder, tensor)) is not None:
        return int(known.max())
    _note(recorder, "the number of bins of bincount()", "what minlength asks for, at least 2")
    return 1


@kernel("nonzero")
def nonzero(call: Call) -> Any:
    """Everything is taken to be nonzero."""
    return nonzero_indices(call, call.args[0])


def nonzero_indices(call: Call, tensor: torch.Tensor) -> torch.Tensor:
    """nonzero_cuda_out_impl in aten/src/ATen/native/cuda/Nonzero.cu: counted, then selected; by column, as it lies."""
    recorder = call.recorder
    copy = contiguous(call, tensor)
    elements = tensor.numel()
    with call.temporary(4):
        with call.temporary(cub.reduce(elements, 4, recorder.compute_capability, recorder.multiprocessors)):
            pass
        out = empty(call, (tensor.dim(), number_nonzero(recorder, tensor)), torch.int64)
        if tensor.dim():
            with call.temporary(cub.select_flagged(elements, recorder.compute_capability)):
                pass
    del copy
    return operate(call, "t", out)  # type: ignore[no-any-return]


@kernel("nonzero_static")
def nonzero_static(call: Call) -> Any:
    """nonzero_static_cuda_out_impl: the sums of each block, and those added up."""
    tensor = call.args[0]
    out = operate(call, "t", empty(call, (tensor.dim(), call.argument("size")), torch.int64))
    copy = contiguous(call, tensor)
    if out.numel():
        blocks = cub.ceil_div(tensor.numel(), 512 * 16)
        target = call.recorder.multiprocessors * (2 if tensor.element_size() == 1 else 1)
        each = cub.ceil_div(blocks, target) * 512 * 16
        blocks = cub.ceil_div(tensor.numel(), each) if each else 0
        with call.temporary(4 * blocks, 8 * blocks):
            pass
    del copy
    return out


# Above this a copy on the CPU is left unwritten, so that it takes no real memory (bytes).
_WRITTEN = 64 * 2**20


def known_on_cpu(recorder: Follower, tensor: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    """A CPU tensor in place of a fake one: ones (small ones), so that code that goes on with its values runs."""
    if not isinstance(tensor, FakeCudaTensor):
        raise AssertionError("only fake tensors have no values")
    layout = torch.empty_strided(tensor.shape, tensor.stride(), dtype=dtype or tensor.dtype, device="meta")
    out = torch.empty_like(layout, device="cpu")
    write(recorder, out, tensor)
    recorder.own_cpu_tensor(out)
    return out


def write(recorder: Follower, out: torch.Tensor, tensor: torch.Tensor) -> None:
    """Fill a copy on the CPU of a tensor on the GPU with its values, or small ones with those of the policy."""
    if (known := values_of(recorder, tensor)) is not None:
        out.copy_(known)
    elif tensor.numel() == 1:
        out.fill_(_answer(recorder, tensor))
    elif out.untyped_storage().nbytes() <= _WRITTEN:
        out.fill_(1)
        recorder.assume("values copied from the GPU to the CPU are not known: taken as 1")
