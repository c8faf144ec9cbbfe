"""What is read from an emulated GPU: the same answers as in a prediction on fake tensors (_trace/cuda/values.py).

Kernels write nothing, so every copy to the CPU would give zeros. Where PyTorch's own code reads a count or a scalar,
the runtime is told what it finds there; then that code itself goes on as it would on a GPU with such values. Every
operator passes by here before autograd, so that what is known of the batch's values is followed (_trace/known.py).
"""

from __future__ import annotations

import ctypes
import functools
import struct
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from typing import Any
from unittest.mock import patch

import torch

from willfit._emulator.operators import Operator, met
from willfit._real.follower import RealFollower
from willfit._trace.cuda import values
from willfit._trace.cuda.conditions import COMPARISONS, EITHER
from willfit._trace.cuda.convolution import bound_workspace
from willfit._trace.cuda.recurrent import CUDNN_ALONE_KNOWS
from willfit._trace.kernels import argument_of
from willfit._trace.triton import triton_kernels_not_launched

_Answer = Callable[..., Any]
"""Called as ``answer(answers, operator, *args, **kwargs)``."""

_always: dict[str, _Answer] = {}
_forward: dict[str, _Answer] = {}

_CONDITIONS = ("all", "all.dim", "all.dims", "any", "any.dim", "any.dims", "isnan", "isinf")


def _answer(*names: str, where: dict[str, _Answer] = _always) -> Callable[[_Answer], _Answer]:
    def register(function: _Answer) -> _Answer:
        where.update(dict.fromkeys(names, function))
        return function

    return register


class EmulatedFollower(RealFollower):
    """Follows a job on a GPU whose kernels write nothing."""

    def has_no_values(self, tensor: torch.Tensor) -> bool:
        """No tensor on that GPU has any."""
        return tensor.is_cuda

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Triton's kernels are not launched: PyTorch's own are among them, and it would look for a compiler."""
        with suppress(ImportError):
            import_module("triton.runtime.autotuner")  # which PyTorch imports when it needs the first
        with super().at_work(), triton_kernels_not_launched(self):
            yield


class _Indices:
    """What is known of the indices of sparse tensors: where they lie in memory, as C++ hands them on unseen."""

    def __init__(self) -> None:
        self._noted: dict[tuple[int, int], tuple[weakref.ref[Any], torch.Tensor, bool]] = {}

    def note(self, indices: torch.Tensor, found: torch.Tensor, of_the_batch: bool) -> None:
        """What these indices are, and whether the batch says so."""
        storage = indices.untyped_storage()
        self._noted[storage._cdata, int(indices.storage_offset())] = weakref.ref(storage), found, of_the_batch

    def of(self, indices: torch.Tensor) -> tuple[torch.Tensor, bool] | None:
        """What was noted, in the shape of these indices; None where that is nothing."""
        storage = indices.untyped_storage()
        noted = self._noted.get((storage._cdata, int(indices.storage_offset())))
        if noted is None or noted[0]() is not storage or noted[1].numel() != indices.numel():
            return None
        return noted[1].reshape(indices.shape), noted[2]


class Answers:
    """What is known and, where nothing is, the policy; for one run."""

    def __init__(self, follower: RealFollower) -> None:
        self.follower = follower
        self._counts: list[int] = []
        """What an operator that is running reads by ``.item()`` inside."""
        self.indices = _Indices()

    @contextmanager
    def given(self) -> Iterator[None]:
        """While the body runs, what is known is followed and reads are answered."""
        always = {name: functools.partial(self._answered, answer) for name, answer in _always.items()}
        forward = {name: functools.partial(self._followed, answer) for name, answer in _forward.items()}
        others = functools.partial(self._followed, lambda _, operator, *args, **kwargs: operator(*args, **kwargs))
        with (
            patch.object(torch.Tensor, "detach", self._detached(torch.Tensor.detach)),
            patch.object(torch.Tensor, "__getitem__", self._indexed(torch.Tensor.__getitem__)),
            met(always, forward, others),
        ):
            yield

    def _answered(self, answer: _Answer, operator: Operator, *args: Any, **kwargs: Any) -> Any:
        if any(isinstance(arg, torch.Tensor) and arg.is_cuda for arg in args):
            return answer(self, operator, *args, **kwargs)
        return operator(*args, **kwargs)

    def _followed(self, answer: _Answer, operator: Operator, *args: Any, **kwargs: Any) -> Any:
        out = self._answered(answer, operator, *args, **kwargs)
        if torch.Tag.nondeterministic_seeded in operator.func.tags and not getattr(out, "is_cuda", True):
            self.follower.draws_on_host = True
        self.follower.known.after(operator.func, args, kwargs, out)
        return out

    def _detached(self, own: Any) -> Callable[..., torch.Tensor]:
        """An operator that is not met on the way."""

        def detach(tensor: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = own(tensor)
            self.follower.known.after(torch.ops.aten.detach.default, (tensor,), {}, out)
            return out

        return detach

    def _indexed(self, own: Any) -> Callable[..., torch.Tensor]:
        """All of a tensor, as by ``x[:]``, is an alias of it: another operator that is not met on the way."""

        def index(tensor: torch.Tensor, key: Any) -> torch.Tensor:
            out: torch.Tensor = own(tensor, key)
            if out.is_cuda and out.shape == tensor.shape and out.data_ptr() == tensor.data_ptr():
                self.follower.known.after(torch.ops.aten.alias.default, (tensor,), {}, out)
            return out

        return index

    @contextmanager
    def counts(self, number: int) -> Iterator[None]:
        """Within the body PyTorch reads this number: by ``.item()``, or by a copy of its own."""
        self._counts.append(number)
        try:
            with _reads(struct.pack("<q", number)):
                yield
        finally:
            self._counts.pop()

    def number(self, tensor: torch.Tensor) -> Any:
        """What ``tensor.item()`` finds."""
        if self._counts and values.values_of(self.follower, tensor) is None:
            return self._counts[-1]
        return values.value_of(self.follower, tensor)


_runtime = ctypes.CDLL(None)


@contextmanager
def _reads(answer: bytes) -> Iterator[None]:
    """Within the body, this thread reads these bytes from the GPU."""
    _runtime.willfit_reads(answer, ctypes.c_size_t(len(answer)))
    try:
        yield
    finally:
        _runtime.willfit_reads(None, ctypes.c_size_t(0))


# -- numbers and conditions --------------------------------------------------------------------------------------------


@_answer("_local_scalar_dense")
def _item(answers: Answers, operator: Operator, tensor: torch.Tensor) -> Any:
    value = torch.full((1,), answers.number(tensor), dtype=tensor.dtype, device="cpu")
    with _reads(ctypes.string_at(value.data_ptr(), value.element_size())):
        return operator(tensor)


@_answer(*_CONDITIONS, *COMPARISONS)
def _condition(answers: Answers, operator: Operator, *args: Any, **kwargs: Any) -> Any:
    out = operator(*args, **kwargs)
    if operator.name in _CONDITIONS or out.numel() == 1:
        values.remember(answers.follower, out, operator.name)
    return out


@_answer(*EITHER)
def _either(answers: Answers, operator: Operator, first: torch.Tensor, second: torch.Tensor) -> Any:
    out = operator(first, second)
    values.remember_either(answers.follower, out, first, second)
    return out


@_answer("equal")
def _equal(answers: Answers, operator: Operator, first: torch.Tensor, second: torch.Tensor) -> Any:
    if first.shape != second.shape:
        return operator(first, second)
    with answers.counts(values.are_equal(answers.follower, first, second)):
        return operator(first, second)


@_answer("_amp_foreach_non_finite_check_and_unscale_")
def _unscale(
    answers: Answers, operator: Operator, gradients: Any, found_inf: torch.Tensor, inverse_scale: torch.Tensor
) -> None:
    values.remember(answers.follower, found_inf, "found_inf")
    operator(gradients, found_inf, inverse_scale)


# -- counts ------------------------------------------------------------------------------------------------------------


@_answer("nonzero")
def _nonzero(answers: Answers, operator: Operator, tensor: torch.Tensor) -> Any:
    with answers.counts(values.number_nonzero(answers.follower, tensor)):
        return operator(tensor)


@_answer("_unique", "_unique2", "unique_consecutive", "unique_dim", "unique_dim_consecutive")
def _unique(answers: Answers, operator: Operator, tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    dim = argument_of(operator.func, (tensor, *args), kwargs, "dim")
    kept = values.number_unique(answers.follower, tensor, dim, "consecutive" in operator.name)
    if tensor.dtype == torch.bool and operator.name in ("_unique", "_unique2"):  # read is how many are true
        kept = tensor.numel() if kept == 1 else -(-tensor.numel() // 2)
    with answers.counts(kept):
        return operator(tensor, *args, **kwargs)


@_answer("embedding", "_embedding_bag", where=_forward)
def _embedding(
    answers: Answers, operator: Operator, weight: torch.Tensor, indices: torch.Tensor, *args: Any, **kwargs: Any
) -> Any:
    """Its sparse gradient has these indices, in the same memory: what is known of them is remembered by that."""
    known = answers.follower.known
    if (found := known.of(indices)) is not None:
        answers.indices.note(indices, found, known.is_of_the_batch(indices))
    return operator(weight, indices, *args, **kwargs)


@_answer("add.Tensor", "add_.Tensor")
def _add(answers: Answers, operator: Operator, first: torch.Tensor, second: Any, *args: Any, **kwargs: Any) -> Any:
    """A sum of sparse tensors, as of gradients, has the entries of both (add_out_sparse_cuda)."""
    if not isinstance(second, torch.Tensor) or not first.is_sparse or not second.is_sparse:
        return operator(first, second, *args, **kwargs)
    parts = [answers.indices.of(each._indices()) for each in (first, second)]
    out = operator(first, second, *args, **kwargs)
    known = [part for part in parts if part is not None]
    if len(known) == len(parts):
        joined = torch.cat([found for found, _ in known], dim=1)
        answers.indices.note(out._indices(), joined, any(of_the_batch for _, of_the_batch in known))
    return out


@_answer("_coalesce")
def _coalesce(answers: Answers, operator: Operator, tensor: torch.Tensor) -> Any:
    """Entries of a sparse tensor that have the same place are added up."""
    indices = tensor._indices()
    if (known := answers.indices.of(indices)) is not None:
        answers.follower.known.give(indices, known[0], of_the_batch=known[1])
    with answers.counts(values.number_unique(answers.follower, indices, dim=1)):
        return operator(tensor)


@_answer("repeat_interleave.Tensor")
def _repeat_interleave(
    answers: Answers, operator: Operator, repeats: torch.Tensor, *, output_size: int | None = None
) -> Any:
    if output_size is not None:
        return operator(repeats, output_size=output_size)
    with answers.counts(values.number_repeated(answers.follower, repeats)):
        return operator(repeats)


@_answer("bincount")
def _bincount(answers: Answers, operator: Operator, tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    with answers.counts(values.largest_counted(answers.follower, tensor)):
        return operator(tensor, *args, **kwargs)


# -- whole tensors -----------------------------------------------------------------------------------------------------


@_answer("_to_copy", where=_forward)
def _to_copy(answers: Answers, operator: Operator, tensor: torch.Tensor, **kwargs: Any) -> Any:
    out = operator(tensor, **kwargs)
    if out.device.type == "cpu":
        values.write(answers.follower, out, tensor)
    return out


@_answer("copy_", where=_forward)
def _copy(answers: Answers, operator: Operator, destination: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    """A CPU tensor that is written to keeps its values."""
    if destination.is_cuda:
        return operator(destination, *args, **kwargs)
    before = destination.detach().clone()
    operator(destination, *args, **kwargs)
    with torch.no_grad():
        return destination.copy_(before)


# -- what cuDNN alone knows --------------------------------------------------------------------------------------------


@_answer("convolution", where=_forward)
def _convolution(
    answers: Answers, operator: Operator, x: torch.Tensor, weight: torch.Tensor, *args: Any, **kwargs: Any
) -> Any:
    out = operator(x, weight, *args, **kwargs)
    transposed = args[4]
    if torch._C._select_conv_backend(_laid_out(x), weight, *args) in _BY_CUDNN:
        bound_workspace(answers.follower, x, weight, out, transposed)
    return out


def _laid_out(tensor: torch.Tensor) -> torch.Tensor:
    """The same memory as if it lay in order, so that the question which backend is taken copies nothing."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    in_order = tensor.is_contiguous() or (
        tensor.dim() in formats and tensor.is_contiguous(memory_format=formats[tensor.dim()])
    )
    if in_order or tensor.nbytes > tensor.untyped_storage().nbytes():
        return tensor
    with torch.no_grad():
        return tensor.as_strided(tensor.shape, torch.empty(tensor.shape, device="meta").stride(), 0)


_ConvBackend: Any = torch._C._ConvBackend  # type: ignore[attr-defined]
_BY_CUDNN = (_ConvBackend.Cudnn, _ConvBackend.CudnnTranspose)


@_answer("_cudnn_rnn", where=_forward)
def _cudnn_rnn(answers: Answers, operator: Operator, *args: Any, **kwargs: Any) -> Any:
    answers.follower.assume(CUDNN_ALONE_KNOWS)
    return operator(*args, **kwargs)
