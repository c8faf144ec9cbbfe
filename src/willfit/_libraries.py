"""Libraries whose code is taken to do the same each time, as long as nothing in it was replaced."""

from __future__ import annotations

import sys
from collections.abc import Iterable, MutableMapping
from itertools import chain
from types import ModuleType
from typing import Any, Final

from torch.utils.hooks import RemovableHandle

_TRUSTED: Final = frozenset(
    {
        *("torch", "torchvision", "torchaudio", "numpy", "einops", "willfit"),
        *("transformers", "accelerate", "peft", "diffusers", "timm", "trl"),
    }
)
"""Top-level packages whose functions depend on nothing but their arguments and what their own modules hold."""

# What has no part in an eager step on one GPU, half of all that there would be to watch; and what changes by itself.
_NOT_WATCHED: Final = (
    *("torch._dynamo", "torch._export", "torch._inductor", "torch.ao", "torch.distributed", "torch.export"),
    *("torch.fx", "torch.jit", "torch.onnx", "torch.package", "torch.profiler", "torch.testing"),
    *("builtins", "logging", "re", "typing", "warnings"),
)

_CAN_BE_CHANGED: Final = 1 << 9  # Py_TPFLAGS_HEAPTYPE: other classes, written in C, take no attributes

# Modules of the standard library that have no state, and ask nothing of clock, disk or network.
_STATELESS: Final = frozenset(
    {
        *("abc", "builtins", "cmath", "collections", "contextlib", "copy", "dataclasses", "enum", "fractions"),
        *("functools", "itertools", "logging", "math", "numbers", "operator", "re", "string", "types", "typing"),
        *("typing_extensions", "warnings", "__future__"),
    }
)


def is_trusted(module: str | None) -> bool:
    """Whether code of this module need not be followed to know that it does the same each time.

    >>> is_trusted("torch.nn.functional"), is_trusted("collections.abc"), is_trusted("time"), is_trusted("train")
    (True, True, False, False)
    """
    package = (module or "").partition(".")[0]
    return package in _TRUSTED or package in _STATELESS


class Watch:
    """Notices when something in the trusted libraries is replaced: a function, a method, an entry in a registry.

    It looks at their modules, at the classes in these, and at the dicts and mappings that both hold.
    """

    def __init__(self) -> None:
        self._classes: set[type] = set()
        self._views: list[Iterable[Any]] = []
        """Live: each gives what a module, a class or a registry holds now."""
        self._before: list[Any] = []
        self._modules = 0

    def add(self, classes: Iterable[type]) -> None:
        """Watch these classes too, and modules that are new; after a change, take things as they are now."""
        new = set(classes) - self._classes
        if not new and self._modules == len(sys.modules):
            return
        self._classes |= new
        self._modules = len(sys.modules)
        views: dict[int, Iterable[Any]] = {}
        for name, module in list(sys.modules.items()):
            if _is_watched(name) and issubclass(type(module), ModuleType):
                _look_at(module, views)
        for cls in self._classes:
            _look_at(cls, views)
        self._views = list(views.values())
        self._before = list(chain.from_iterable(self._views))

    def is_unchanged(self) -> bool:
        """Whether nothing was replaced; where something was, `add` starts anew."""
        try:
            if list(chain.from_iterable(self._views)) == self._before:  # by identity first, and in C
                return True
        except Exception:  # an array that was replaced does not say whether it equals another
            pass
        self._modules = 0
        return False


def _is_watched(module: Any) -> bool:
    return is_trusted(str(module)) and not str(module).startswith(_NOT_WATCHED)


def _look_at(holder: Any, views: dict[int, Iterable[Any]]) -> None:
    """Add a view of what a module, a class or a mapping holds, and of the registries in it."""
    if id(holder) in views or holder is RemovableHandle:  # its class counts them
        return
    views[id(holder)] = vars(holder).values()
    is_module = issubclass(type(holder), ModuleType)
    for name, item in list(vars(holder).items()):
        kind = type(item)  # asked of isinstance, a lazy object would load what it stands for
        if name.startswith("__"):
            continue
        if issubclass(kind, dict):
            views[id(item)] = dict.values(item)
        elif issubclass(kind, type):
            if is_module and item.__flags__ & _CAN_BE_CHANGED and _is_watched(item.__module__):
                _look_at(item, views)
        elif issubclass(kind, MutableMapping) and hasattr(item, "__dict__"):
            _look_at(item, views)
