"""What is read from an emulated GPU: the same answers as in a prediction on fake tensors (_trace/cuda/values.py).

Kernels write nothing, so every copy to the CPU would give zeros. Where PyTorch's own code reads a count or a scalar,
the runtime is told what it finds there; then that code itself goes on as it would on a GPU with such values.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.library import Library

from willfit._trace.cuda import values
from willfit._trace.cuda.conditions import COMPARISONS
from willfit._trace.cuda.convolution import bound_workspace
from willfit._trace.cuda.recurrent import CUDNN_ALONE_KNOWS
from willfit._trace.following import Follower
from willfit._trace.overrides import as_tensor, overload

_KEY: Any = torch._C.DispatchKey.AutocastPrivateUse1  # type: ignore[attr-defined]  # used by no backend of PyTorch
_BELOW = torch._C._dispatch_keyset_full_after(_KEY)

Answer = Callable[..., Any]
"""Called as ``answer(answers, own, *args, **kwargs)``, where ``own`` is PyTorch's operator."""

_answers: dict[str, Answer] = {}

_CONDITIONS = ("all", "all.dim", "all.dims", "any", "any.dim", "any.dims", "isnan", "isinf")


def _answer(*names: str) -> Callable[[Answer], Answer]:
    def register(function: Answer) -> Answer:
        _answers.update(dict.fromkeys(names, function))
        return function

    return register


class Answers:
    """The policy, for one run."""

    def __init__(self, follower: Follower) -> None:
        self.follower = follower
        self.operator = ""
        """The one that is answered for: ``"gt"``."""
        self._counts: list[int] = []
        """What an operator that is running reads by ``.item()`` inside."""

    @contextmanager
    def given(self) -> Iterator[None]:
        """While the body runs, reads are answered."""
        fallback, library = Library("_", "IMPL"), Library("aten", "IMPL")
        fallback.fallback(torch.library.fallthrough_kernel, _KEY.name)
        for name, function in _answers.items():
            if (op := overload(name)) is not None:
                library.impl(op, self._kernel(op, function), _KEY.name, with_keyset=True)
        try:
            with torch._C._PreserveDispatchKeyGuard():
                torch._C._dispatch_tls_set_dispatch_key_included(_KEY, True)
                torch._C._dispatch_tls_set_dispatch_key_excluded(_KEY, False)
                yield
        finally:
            library._destroy()
            fallback._destroy()

    def _kernel(self, op: Any, function: Answer) -> Callable[..., Any]:
        positions = {i for i, argument in enumerate(op._schema.arguments) if str(argument.type) == "Tensor"}

        def kernel(keyset: Any, *args: Any, **kwargs: Any) -> Any:
            def own(*args: Any, **kwargs: Any) -> Any:
                return op.redispatch(keyset & _BELOW, *args, **kwargs)

            if not any(isinstance(arg, torch.Tensor) and arg.is_cuda for arg in args):
                return own(*(as_tensor(arg) if i in positions else arg for i, arg in enumerate(args)), **kwargs)
            self.operator = op._schema.name.removeprefix("aten::")
            return function(self, own, *args, **kwargs)

        return kernel

    def remembered(self, tensor: torch.Tensor, origin: str) -> torch.Tensor:
        """The tensor, with a note of what its values say, for when they are read."""
        values.remember(self.follower, tensor, origin)
        return tensor

    def scalar(self, tensor: torch.Tensor) -> int | bool:
        """What ``tensor.item()`` finds."""
        return self._counts[-1] if self._counts else values.answer(self.follower, tensor)

    @contextmanager
    def counts(self, number: int) -> Iterator[None]:
        """Within the body PyTorch reads this number: by ``.item()``, or by a copy of its own."""
        self._counts.append(number)
        try:
            with _reads(struct.pack("<q", number)):
                yield
        finally:
            self._counts.pop()


_runtime = ctypes.CDLL(None)


@contextmanager
def _reads(answer: bytes) -> Iterator[None]:
    """Within the body, this thread reads these bytes from the GPU."""
    _runtime.willfit_reads(answer, ctypes.c_size_t(len(answer)))
    try:
        yield
    finally:
        _runtime.willfit_reads(None, ctypes.c_size_t(0))


# -- numbers and conditions ----------------------------------------------------------------------------------


@_answer("_local_scalar_dense")
def _item(answers: Answers, own: Any, tensor: torch.Tensor) -> Any:
    value = torch.full((1,), answers.scalar(tensor), dtype=tensor.dtype, device="cpu")
    with _reads(ctypes.string_at(value.data_ptr(), value.element_size())):
        return own(tensor)


@_answer(*_CONDITIONS, *COMPARISONS)
def _condition(answers: Answers, own: Any, *args: Any, **kwargs: Any) -> Any:
    name = answers.operator  # before another runs within it
    out = own(*args, **kwargs)
    return answers.remembered(out, name) if name in _CONDITIONS or out.numel() == 1 else out


@_answer("equal")
def _equal(answers: Answers, own: Any, first: torch.Tensor, second: torch.Tensor) -> Any:
    if first.shape == second.shape:
        answers.follower.assume(values.EQUAL)
    with answers.counts(1):
        return own(first, second)


@_answer("_amp_foreach_non_finite_check_and_unscale_")
def _unscale(answers: Answers, own: Any, gradients: Any, found_inf: torch.Tensor, inverse_scale: torch.Tensor) -> None:
    answers.remembered(found_inf, "found_inf")
    own(gradients, found_inf, inverse_scale)


# -- counts --------------------------------------------------------------------------------------------------


@_answer("nonzero")
def _nonzero(answers: Answers, own: Any, tensor: torch.Tensor) -> Any:
    with answers.counts(values.number_nonzero(answers.follower, tensor.numel())):
        return own(tensor)


@_answer("_unique", "_unique2", "unique_consecutive", "unique_dim", "unique_dim_consecutive")
def _unique(answers: Answers, own: Any, tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    if tensor.dtype == torch.bool:  # read is how many are true: so many that both values are there
        number = -(-tensor.numel() // 2)
    else:
        number = values.number_unique(answers.follower, tensor.numel())
    with answers.counts(number):
        return own(tensor, *args, **kwargs)


@_answer("repeat_interleave.Tensor")
def _repeat_interleave(answers: Answers, own: Any, repeats: torch.Tensor, *, output_size: int | None = None) -> Any:
    if output_size is not None:
        return own(repeats, output_size=output_size)
    with answers.counts(values.number_repeated(answers.follower, repeats)):
        return own(repeats)


@_answer("bincount")
def _bincount(answers: Answers, own: Any, *args: Any, **kwargs: Any) -> Any:
    with answers.counts(values.largest_counted(answers.follower)):
        return own(*args, **kwargs)


# -- whole tensors -------------------------------------------------------------------------------------------


@_answer("_to_copy")
def _to_copy(answers: Answers, own: Any, tensor: torch.Tensor, **kwargs: Any) -> Any:
    out = own(tensor, **kwargs)
    if out.device.type == "cpu":
        values.write(answers.follower, out, answers.scalar(tensor) if tensor.numel() == 1 else 1)
    return out


@_answer("copy_")
def _copy(answers: Answers, own: Any, destination: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    """A CPU tensor that is written to keeps its values."""
    if destination.is_cuda:
        return own(destination, *args, **kwargs)
    before = destination.detach().clone()
    own(destination, *args, **kwargs)
    with torch.no_grad():
        return destination.copy_(before)


# -- what cuDNN alone knows ----------------------------------------------------------------------------------


@_answer("convolution")
def _convolution(answers: Answers, own: Any, x: torch.Tensor, weight: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    out = own(x, weight, *args, **kwargs)
    transposed = args[4]
    if torch._C._select_conv_backend(x, weight, *args) in _BY_CUDNN:
        bound_workspace(answers.follower, x, weight, out, transposed)
    return out


_ConvBackend: Any = torch._C._ConvBackend  # type: ignore[attr-defined]
_BY_CUDNN = (_ConvBackend.Cudnn, _ConvBackend.CudnnTranspose)


@_answer("_cudnn_rnn")
def _cudnn_rnn(answers: Answers, own: Any, *args: Any, **kwargs: Any) -> Any:
    answers.follower.assume(CUDNN_ALONE_KNOWS)
    return own(*args, **kwargs)
