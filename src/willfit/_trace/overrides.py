"""Python implementations that run before autograd, where CUDA takes another path than a meta tensor would.

They are registered on a dispatch key that no backend of PyTorch uses by itself and that is switched on for the
tracing thread alone, so nothing outside the trace, not even a real CUDA job in another thread, can meet them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import torch
from torch.library import Library, fallthrough_kernel

from willfit._trace.fake import OVERRIDES_KEY as KEY
from willfit._trace.fake import FakeCudaTensor

_BELOW = torch._C._dispatch_keyset_full_after(KEY)

Override = Callable[..., Any]
"""Called as ``override(own, *args, **kwargs)``, where ``own`` is the operator's own implementation."""

_overrides: dict[str, list[Override]] = {}
_libraries: list[Library] = []


def override(*names: str) -> Callable[[Override], Override]:
    """Register an override for operators such as ``"dropout"`` or ``"to.device"``.

    Several for one operator nest: the one registered first runs outermost.
    """

    def register(function: Override) -> Override:
        for name in names:
            _overrides.setdefault(name, []).append(function)
        return function

    return register


def as_tensor(value: Any) -> torch.Tensor:
    """An argument that is a tensor to C++: a number that C++ wraps as one comes to Python as a number."""
    if isinstance(value, torch.Tensor):
        return value
    return torch.tensor(value, dtype=torch.float64 if isinstance(value, float) else None, device="cpu")


def overload(name: str) -> Any:
    """The operator of that name, ``"add.Tensor"`` of aten or ``"library::scan"``; None where there is none."""
    namespace, _, rest = name.rpartition("::")
    packet, _, variant = rest.partition(".")
    operators = getattr(torch.ops, namespace or "aten")
    return getattr(getattr(operators, packet, None), variant or "default", None)


def _kernel(op: Any, functions: list[Override]) -> Callable[..., Any]:
    def kernel(keyset: Any, *args: Any, **kwargs: Any) -> Any:
        call: Callable[..., Any] = partial(op.redispatch, keyset & _BELOW)
        if not FakeCudaTensor.in_kernel:
            for function in reversed(functions):
                call = partial(function, call)
        return call(*args, **kwargs)

    return kernel


@cache
def _install() -> None:
    """Register everything, once in a process: the key stays off outside of a trace."""
    rest = Library("_", "IMPL")
    rest.fallback(fallthrough_kernel, KEY.name)
    _libraries.append(rest)
    install("aten", _overrides)


def install(namespace: str, overrides: Mapping[str, list[Override]]) -> None:
    """Register overrides of a library's operators, those of them that it has; once in a process."""
    library = Library(namespace, "IMPL")
    for name, functions in overrides.items():
        if (op := overload(name)) is not None:
            library.impl(op, _kernel(op, functions), KEY.name, with_keyset=True)
    _libraries.append(library)


@contextmanager
def overrides_enabled() -> Iterator[None]:
    """Switch the overrides on for this thread."""
    _install()
    with torch._C._PreserveDispatchKeyGuard():
        torch._C._dispatch_tls_set_dispatch_key_included(KEY, True)
        torch._C._dispatch_tls_set_dispatch_key_excluded(KEY, False)
        yield
