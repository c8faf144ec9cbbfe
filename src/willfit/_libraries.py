"""Libraries whose code is taken to do the same each time, as long as nothing in it was replaced."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from types import ModuleType
from typing import Any, Final

_TRUSTED: Final = frozenset(
    {
        *("torch", "torchvision", "torchaudio", "numpy", "einops", "willfit"),
        *("transformers", "accelerate", "peft", "diffusers", "timm", "trl"),
    }
)
"""Top-level packages whose functions depend on nothing but their arguments and what their own modules hold."""

# Modules of the standard library that have no state, and ask nothing of clock, disk or network.
_STATELESS: Final = frozenset(
    {
        *("abc", "builtins", "cmath", "collections", "contextlib", "copy", "dataclasses", "enum", "fractions"),
        *("functools", "itertools", "logging", "math", "numbers", "operator", "re", "string", "types", "typing"),
        *("typing_extensions", "warnings", "__future__"),
    }
)


def is_watched(module: str | None) -> bool:
    """Whether this is a module of the packages in which replacements are noticed.

    >>> is_watched("torch.nn.functional"), is_watched("math"), is_watched("train")
    (True, False, False)
    """
    return (module or "").partition(".")[0] in _TRUSTED


def is_trusted(module: str | None) -> bool:
    """Whether code of this module need not be followed to know that it does the same each time.

    >>> is_trusted("torch.nn.functional"), is_trusted("collections.abc"), is_trusted("time"), is_trusted("train")
    (True, True, False, False)
    """
    return is_watched(module) or (module or "").partition(".")[0] in _STATELESS


class Watch:
    """Notices when something in the trusted packages is replaced: a function in a module, a method of a class.

    What those hold is compared by identity, one level deep: a registry to which an entry is added is still the same.
    """

    def __init__(self) -> None:
        self._held: dict[ModuleType | type, tuple[Any, ...]] = {}
        self._loaded = 0

    def add(self, classes: Iterable[type]) -> None:
        """Watch these classes too, and modules that are new."""
        for cls in classes:
            self._held.setdefault(cls, tuple(vars(cls).values()))
        if len(sys.modules) != self._loaded:
            for name, module in list(sys.modules.items()):
                if is_watched(name) and isinstance(module, ModuleType):
                    self._held.setdefault(module, tuple(vars(module).values()))
            self._loaded = len(sys.modules)

    def is_unchanged(self) -> bool:
        """Whether nothing was replaced since this was last asked; from now on, things are right as they are."""
        changed = {}
        for holder, before in self._held.items():
            now = tuple(vars(holder).values())
            try:
                if now == before:  # tuples compare by identity before they ask for equality, and in C
                    continue
            except Exception:  # an array that was replaced does not say whether it equals another
                pass
            changed[holder] = now
        self._held |= changed
        return not changed
