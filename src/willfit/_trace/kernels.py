"""Rules for single CUDA kernels: what they allocate besides their outputs.

A rule is called instead of the kernel, below autograd. It runs the kernel with ``call.run()``, which records the
outputs, and takes what the kernel takes with ``call.temporary(nbytes)`` or ``call.recorder.allocate``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch

from willfit._plugins import plugins
from willfit._trace.overrides import overload

if TYPE_CHECKING:
    from willfit._trace.recorder import Recorder


class OperatorCall:
    """One call of an operator below autograd, about to be recorded."""

    __slots__ = ("args", "func", "kwargs", "recorder")

    def __init__(self, recorder: Any, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.recorder = recorder
        self.func = func
        self.args = args
        self.kwargs = kwargs

    def take(self, nbytes: int) -> int:
        """Allocate a temporary; returns its handle, for ``give_back``."""
        return self.recorder.allocate(nbytes)  # type: ignore[no-any-return]

    def give_back(self, *handles: int) -> None:
        """Free temporaries."""
        for handle in handles:
            self.recorder.free(handle)

    @contextmanager
    def temporary(self, *sizes: int) -> Iterator[None]:
        """Hold temporaries of these many bytes, allocated in this order, freed in the reverse one."""
        handles = [self.take(size) for size in sizes]
        try:
            yield
        finally:
            self.give_back(*reversed(handles))

    def argument(self, name: str, default: Any = None) -> Any:
        """The argument of that name in the operator's schema, given by position or by name."""
        return argument_of(self.func, self.args, self.kwargs, name, default)


class Call(OperatorCall):
    """A call on fake CUDA tensors."""

    __slots__ = ()
    recorder: Recorder

    def run(self, order: Sequence[int] | None = None) -> Any:
        """Run the operator on meta tensors; its new outputs are recorded as allocated, in the order given or theirs."""
        return self.recorder.run(self.func, self.args, self.kwargs, order)


def argument_of(func: Any, args: Sequence[Any], kwargs: dict[str, Any], name: str, default: Any = None) -> Any:
    """The argument of that name in an operator's schema; ``default`` where it has neither that nor one of its own."""
    for position, argument in enumerate(func._schema.arguments):
        if argument.name == name:
            if position < len(args):
                return args[position]
            return kwargs.get(name, argument.default_value if argument.has_default_value() else default)
    return default


_DISPATCH_DIRECTORIES = (os.path.dirname(__file__), os.path.join(os.path.dirname(torch.__file__), "_dynamo"))
_DISPATCH_FILE = os.path.join(os.path.dirname(torch.__file__), "_compile.py")


def calling_frame() -> FrameType:
    """The Python code that called the operator, itself or through C++."""
    frame = sys._getframe(1)
    while frame.f_back is not None:
        name = frame.f_code.co_filename
        if not name.startswith(_DISPATCH_DIRECTORIES) and name != _DISPATCH_FILE:
            break
        frame = frame.f_back
    return frame


Rule = Callable[[Call], Any]

_rules: dict[str, Rule] = {}


def kernel(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for operators such as ``"mm"`` or ``"mul.Tensor"`` of aten."""

    def register(rule: Rule) -> Rule:
        for name in names:
            if name in _rules:
                raise AssertionError(f"two rules for aten::{name}")
            _rules[name] = rule
        return rule

    return register


def rules() -> dict[Any, Rule]:
    """Every rule by operator, for those that this version of PyTorch has, and those of plugins."""
    named = [_rules, *plugins().hook.willfit_kernel_rules()]
    return {op: rule for each in named for name, rule in each.items() if (op := overload(name)) is not None}


def nbytes(tensor: torch.Tensor, dtype: torch.dtype | None = None) -> int:
    """Bytes of a contiguous tensor of this shape."""
    return tensor.numel() * (dtype or tensor.dtype).itemsize
