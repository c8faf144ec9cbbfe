"""TRL's kernels in Triton, where Triton is not installed, as it is not beside PyTorch's build for the CPU.

TRL chooses when it is imported. Without Triton it takes another way through the loss, whose temporaries are as large as
the logits. So its modules of kernels are run once more, apart from those that TRL uses itself, over a stand-in for
Triton, and its trainers get what is in them while a step is followed.

Source: trl/kernels, and what trl/trainer takes from there and from ``transformers.utils.is_triton_available``.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FunctionType, ModuleType
from typing import Any
from unittest.mock import patch

from willfit._trace.following import Follower

_KERNELS = "trl.kernels"
# What a module of TRL imports only where Triton is: its name there, and in trl.kernels.
_WITH_TRITON_ALONE = {"trl.trainer.utils": ("_fused_logprob_entropy", "selective_log_softmax_and_entropy")}


@contextmanager
def trl_as_with_triton(recorder: Follower) -> Iterator[None]:
    """While the body runs, TRL's trainers take the way that they take where Triton is installed."""
    if _KERNELS not in sys.modules or importlib.util.find_spec("triton") is not None:
        yield
        return
    modules = _kernels_with_triton()
    assumption = "TRL's kernels in Triton are taken to run, as where Triton is installed; here it is not"
    with ExitStack() as stack:
        stack.enter_context(patch.object(_Kernel, "launched", lambda: recorder.assume(assumption)))
        for name, module in list(sys.modules.items()):
            if name.startswith("trl.") and not name.startswith(_KERNELS):
                for key, value in _in_place_of(name, vars(module), modules).items():
                    stack.enter_context(patch.object(module, key, value, create=True))
        yield


def _in_place_of(name: str, names: dict[str, Any], modules: dict[str, ModuleType]) -> dict[str, Any]:
    """What names of one of TRL's modules stand for where Triton is installed."""
    exchanged = {
        key: getattr(modules[value.__module__], value.__name__)
        for key, value in names.items()
        if isinstance(value, (type, FunctionType)) and value.__module__ in modules
    }
    if "is_triton_available" in names:
        exchanged["is_triton_available"] = _yes
    if name in _WITH_TRITON_ALONE:
        key, kernel = _WITH_TRITON_ALONE[name]
        exchanged[key] = getattr(modules[_KERNELS], kernel, None)
    return exchanged


@functools.cache
def _kernels_with_triton() -> dict[str, ModuleType]:
    """The modules of trl.kernels by name, run over the stand-in."""
    import transformers.utils
    import trl

    with (
        patch.dict(sys.modules, {"triton": _Triton("triton"), "triton.language": _Language("triton.language")}),
        patch.object(transformers.utils, "is_triton_available", _yes),
        patch.object(trl, "kernels", trl.kernels),  # an import of it sets this
    ):
        for name in [name for name in sys.modules if name.startswith(_KERNELS)]:
            del sys.modules[name]
        importlib.import_module(_KERNELS)
        return {name: module for name, module in sys.modules.items() if name.startswith(_KERNELS)}


def _yes() -> bool:
    return True


# -- the stand-in for Triton -------------------------------------------------------------------------------------------


class _Kernel:
    """A function under ``triton.jit``: launched as ``kernel[grid](...)``, it does nothing."""

    launched: Callable[[], None] = staticmethod(lambda: None)

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        return lambda *_, **__: _Kernel.launched()


class _Triton(ModuleType):
    """What is used of Triton to define kernels, and to choose their grids."""

    @staticmethod
    def jit(function: Any = None, **_: Any) -> Any:
        return _Kernel() if function is not None else lambda _: _Kernel()

    @staticmethod
    def cdiv(number: int, by: int) -> int:
        return -(-number // by)

    @staticmethod
    def next_power_of_2(number: int) -> int:
        return 1 << (number - 1).bit_length()


class _Language(ModuleType):
    """Names of types, in annotations."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return object
