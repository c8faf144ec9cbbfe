"""PyTorch's operators on their way to the emulated GPU, met in Python before autograd sees them.

Two dispatch keys that no backend of PyTorch uses by itself are switched on for the threads of the job. At the first,
single operators are answered for, at all times. At the second, all others pass by; it is off while autograd's own
operators run. A tensor that Python has met is held by its Python object too, so that autograd would not add a gradient
into it in place (can_accumulate_inplace in torch/csrc/autograd/input_buffer.cpp), nor keep it as ``p.grad`` without a
copy (torch/csrc/autograd/functions/accumulate_grad.h).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch.library import Library, fallthrough_kernel

from willfit._trace.fake import OVERRIDES_KEY
from willfit._trace.overrides import overload

_ALWAYS = OVERRIDES_KEY
_FORWARD: Any = torch._C.DispatchKey.AutocastIPU  # type: ignore[attr-defined]

# What these return, C++ makes into an object of another class, Parameters among them, which it does not of a tensor
# that Python has met (Tensor._make_subclass, Tensor.as_subclass).
_BECOME_OTHERS = ("detach", "alias")
# These are given numbers that C++ has wrapped as tensors on the GPU, which cannot come to Python.
_TAKE_NUMBERS_ON_THE_GPU = ("pow.Tensor_Tensor", "pow.Tensor_Tensor_out")
_NOT_MET = _BECOME_OTHERS + _TAKE_NUMBERS_ON_THE_GPU

# A number that C++ has wrapped as a tensor counts for less when dtypes are promoted, and comes to Python as a number.
# These wrap it again (should_allow_numbers_as_tensors in torch/csrc/utils/python_arg_parser.cpp); to others it is
# given as a tensor of the default dtype.
_WRAP_NUMBERS = frozenset(
    f"{name}{end}"
    for name in ("add", "sub", "mul", "div", "divide", "multiply", "subtract", "true_divide", "floor_divide")
    for end in ("", "_")
)


@dataclass(frozen=True, slots=True)
class Operator:
    """An operator, called with what it was called with."""

    func: Any
    key: Any
    keyset: Any

    @property
    def name(self) -> str:
        """``"gt"``."""
        return str(self.func._schema.name.removeprefix("aten::"))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Let PyTorch run it."""
        numbers = [i for i in _tensor_positions(self.func) if i < len(args) and isinstance(args[i], (bool, int, float))]
        if numbers and self.name in _WRAP_NUMBERS:
            with _switched(self.key, on=False):
                return self.func(*args, **kwargs)
        if numbers:
            args = tuple(torch.tensor(arg, device="cpu") if i in numbers else arg for i, arg in enumerate(args))
        return self.func.redispatch(self.keyset & torch._C._dispatch_keyset_full_after(self.key), *args, **kwargs)


@functools.cache
def _tensor_positions(func: Any) -> tuple[int, ...]:
    return tuple(i for i, argument in enumerate(func._schema.arguments) if isinstance(argument.type, torch.TensorType))


Answer = Callable[..., Any]
"""Called as ``answer(operator, *args, **kwargs)``."""


@contextmanager
def met(always: Mapping[str, Answer], forward: Mapping[str, Answer], others: Answer) -> Iterator[None]:
    """While the body runs, operators are met on this thread and those of its backward passes.

    Args:
        always: what is done for single operators, wherever they are called.
        forward: the same, but not while autograd's own operators run.
        others: what is done for all others, but not then.
    """
    with ExitStack() as stack:
        _register(stack, _ALWAYS, always, None, ())
        _register(stack, _FORWARD, forward, others, _NOT_MET)
        stack.enter_context(_off_in_backward())
        stack.enter_context(_switched(_ALWAYS, on=True))
        stack.enter_context(_switched(_FORWARD, on=True))
        yield


def _register(
    stack: ExitStack, key: Any, answers: Mapping[str, Answer], others: Answer | None, left_out: tuple[str, ...]
) -> None:
    rest, library = Library("_", "IMPL"), Library("aten", "IMPL")
    stack.callback(rest._destroy)
    stack.callback(library._destroy)

    def fallback(keyset: Any, func: Any, *args: Any, **kwargs: Any) -> Any:
        assert others is not None
        return others(Operator(func, key, keyset), *args, **kwargs)

    def kernel(func: Any, answer: Answer) -> Answer:
        return lambda keyset, *args, **kwargs: answer(Operator(func, key, keyset), *args, **kwargs)

    if others is None:
        rest.fallback(fallthrough_kernel, key.name)
    else:
        rest.fallback(fallback, key.name, with_keyset=True)
    for name, answer in answers.items():
        if (func := overload(name)) is not None:
            library.impl(func, kernel(func, answer), key.name, with_keyset=True)
    for name in left_out:
        library.impl(overload(name), fallthrough_kernel, key.name)


@contextmanager
def _switched(key: Any, *, on: bool) -> Iterator[None]:
    with torch._C._PreserveDispatchKeyGuard():
        torch._C._dispatch_tls_set_dispatch_key_included(key, on)
        torch._C._dispatch_tls_set_dispatch_key_excluded(key, not on)
        yield


@contextmanager
def _off_in_backward() -> Iterator[None]:
    """The second key is off in backward passes, unless they run a part of forward again: they switch gradients on."""
    run = torch.autograd._engine_run_backward  # type: ignore[attr-defined]
    enter, leave = torch.enable_grad.__enter__, torch.enable_grad.__exit__
    again = "_willfit_again"

    def backward(*args: Any, **kwargs: Any) -> Any:
        with _switched(_FORWARD, on=False):
            return run(*args, **kwargs)

    def entered(self: Any) -> None:
        enter(self)
        if torch._C._current_graph_task_id() != -1:
            guard = _switched(_FORWARD, on=True)
            guard.__enter__()
            vars(self).setdefault(again, []).append(guard)

    def left(self: Any, *exception: Any) -> None:
        if guards := vars(self).get(again):
            guards.pop().__exit__(None, None, None)
        leave(self, *exception)

    with (
        patch.object(torch.autograd, "_engine_run_backward", backward),
        patch.object(torch.enable_grad, "__enter__", entered),
        patch.object(torch.enable_grad, "__exit__", left),
    ):
        yield
