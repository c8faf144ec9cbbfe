"""bitsandbytes' operators: the code of its own CUDA backend, on fake tensors.

That backend is Python: it chooses between kernels, allocates outputs and temporaries with PyTorch, and hands pointers
to functions in C, which allocate nothing. So its rules are not written down here again: its modules are run once more,
apart from those that bitsandbytes uses itself, over a library whose functions do nothing.

Source: bitsandbytes/backends/cuda/ops.py; bitsandbytes/backends/default/ops.py for operators for which CUDA has no
kernel of its own; csrc/pythonInterface.cpp for the library.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable
from contextlib import ExitStack
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch

from willfit._trace.fake import FakeCudaTensor
from willfit._trace.overrides import Override, install

_MODULES = ("bitsandbytes.backends.cuda.ops", "bitsandbytes.backends.default.ops")  # the first takes precedence
Kernel = Callable[..., Any]


class NoLibrary:
    """Stands for the library in C: has every function, each of which returns 0, for success."""

    def __getattr__(self, name: str) -> Callable[..., int]:
        return _zero


def _zero(*_: Any) -> int:
    return 0


@functools.cache
def backends() -> tuple[ModuleType, ...]:
    """The backend's modules, whose kernels operators of bitsandbytes run from then on where their tensors are fake."""
    kernels: dict[str, Kernel] = {}
    modules = tuple(_run(name, kernels) for name in _MODULES)
    kernels.setdefault("bitsandbytes::int8_vectorwise_dequant", _int8_vectorwise_dequant)
    install("bitsandbytes", {name: [_on_fakes(kernel)] for name, kernel in kernels.items()})
    return modules


def _run(name: str, kernels: dict[str, Kernel]) -> ModuleType:
    """Run a module of that name, of which PyTorch learns nothing: the kernels go into ``kernels``."""

    def register_kernel(operator: str, _: str) -> Callable[[Kernel], Kernel]:
        def register(kernel: Kernel) -> Kernel:
            kernels.setdefault(operator, kernel)
            return kernel

        return register

    functional, ops, library = (
        importlib.import_module(f"bitsandbytes.{each}") for each in ("functional", "_ops", "cextension")
    )
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with ExitStack() as stack:
        stack.enter_context(patch.object(ops, "register_kernel", register_kernel))
        stack.enter_context(patch.object(library, "lib", NoLibrary()))
        for owner, stream in ((torch._C, "_cuda_getCurrentRawStream"), (functional, "_get_tensor_stream")):
            stack.enter_context(patch.object(owner, stream, _zero, create=True))  # not in builds for the CPU
        spec.loader.exec_module(module)
    return module


def _on_fakes(kernel: Kernel) -> Override:
    def run(own: Kernel, *args: Any, **kwargs: Any) -> Any:
        is_fake = any(isinstance(each, FakeCudaTensor) for each in (*args, *kwargs.values()))
        return (kernel if is_fake else own)(*args, **kwargs)

    return run


def _int8_vectorwise_dequant(tensor: torch.Tensor, stats: torch.Tensor) -> torch.Tensor:
    """As in bitsandbytes/_ops.py, which cannot be run again."""
    return tensor * stats.view(-1, 1) * 7.874015718698502e-3
