"""Globals of the user's own modules, exchanged for copies while a step is traced.

Training scripts keep schedulers, scalers, lists of losses and caches in globals, and reach them from functions and
methods alike. What the step can reach by name is exchanged in place, so that all of its code sees the copies.
"""

from __future__ import annotations

import argparse
import functools
import os
import types
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.optim.lr_scheduler import LRScheduler

from willfit._code import reads
from willfit._copying import Copier, is_copied_by_attributes, is_cpu, is_data
from willfit._standins import Silent, is_logger

_MISSING = object()
_LruCache = type(functools.lru_cache(lambda: None))
_STATEFUL = (
    *(torch.Tensor, torch.nn.Module, torch.optim.Optimizer, LRScheduler, torch.amp.GradScaler, torch.Generator),
    *(list, dict, set, deque, functools.partial, types.GeneratorType, types.MethodType),
    *(types.SimpleNamespace, argparse.Namespace),
)
_NOT_THE_USERS = (
    os.path.dirname(os.__file__) + os.sep,
    os.path.dirname(torch.__file__) + os.sep,
    os.path.dirname(__file__) + os.sep,
    "<frozen",
)


@contextmanager
def exchanged_globals(copier: Copier) -> Iterator[None]:
    """While the body runs, globals that code of the objects copied so far can reach are copies; no change stays.

    So are attributes of classes in which all of their objects keep their own.
    """
    reach = _Reach(copier)
    try:
        reach.follow()
        yield
    finally:
        reach.put_back()


def is_the_users(filename: str) -> bool:
    """Whether code of this file is the user's own, and not a library's."""
    if "site-packages" in filename or "dist-packages" in filename:
        return False
    return not filename.startswith(_NOT_THE_USERS)


class _Reach:
    """What code can reach by global names."""

    def __init__(self, copier: Copier) -> None:
        self._copier = copier
        self._before: dict[tuple[int, str], tuple[dict[str, Any], Any]] = {}
        self._shared: list[tuple[type, str, Any]] = []
        self._seen: set[int] = set()
        self._queue: deque[Any] = deque()

    def follow(self) -> None:
        kept = 0
        while self._queue or kept < len(self._copier.kept):
            while self._queue:
                self._code(self._queue.popleft())
            self._queue.extend(self._copier.kept[kept:])
            kept = len(self._copier.kept)
        for cls, name, attributes in self._copier.shared:
            self._shared.append((cls, name, getattr(cls, name)))
            setattr(cls, name, attributes)

    def put_back(self) -> None:
        for cls, name, attributes in self._shared:
            setattr(cls, name, attributes)
        for (_, name), (namespace, value) in self._before.items():
            if value is _MISSING:
                namespace.pop(name, None)
            else:
                namespace[name] = value

    def _code(self, value: Any) -> None:
        """Follow the code that belongs to a value: a function's own, a class's methods."""
        if isinstance(value, (classmethod, staticmethod, types.MethodType)):
            value = value.__func__
        elif isinstance(value, _LruCache):
            value = value.__wrapped__
        if isinstance(value, property):
            self._queue.extend(f for f in (value.fget, value.fset) if f is not None)
        elif isinstance(value, types.FunctionType):
            if id(value) not in self._seen and is_the_users(value.__code__.co_filename):
                self._seen.add(id(value))
                self._function(value)
        elif isinstance(value, types.CellType | dict | list | tuple | set | torch.Tensor):
            pass  # what is in them was met by itself
        else:
            cls = value if isinstance(value, type) else type(value)
            if id(cls) not in self._seen:
                self._seen.add(id(cls))
                for base in cls.__mro__:
                    if base is not object:
                        self._queue.extend(vars(base).values() if _may_be_the_users(base) else ())

    def _function(self, function: types.FunctionType) -> None:
        names = set(reads(function.__code__).globals)
        self._namespace(function.__globals__, names)
        if (wrapped := getattr(function, "__wrapped__", None)) is not None:
            self._queue.append(wrapped)
        for cell in function.__closure__ or ():
            try:
                self._queue.append(cell.cell_contents)
            except ValueError:
                continue

    def _namespace(self, namespace: dict[str, Any], names: set[str]) -> None:
        for name in sorted(names):
            key = (id(namespace), name)
            if key in self._before:
                continue
            value = namespace.get(name, _MISSING)
            if isinstance(value, types.ModuleType) and not is_logger(value.__name__):
                if is_the_users(getattr(value, "__file__", None) or os.sep + "site-packages"):
                    self._namespace(vars(value), names)
                continue
            self._before[key] = namespace, value
            if value is not _MISSING:
                self._global(namespace, name, value)

    def _global(self, namespace: dict[str, Any], name: str, value: Any) -> None:
        if isinstance(value, (types.FunctionType, type)):
            self._queue.append(value)
        if isinstance(value, types.ModuleType):
            namespace[name] = Silent()
        elif isinstance(value, _LruCache):
            self._queue.append(value)
            namespace[name] = functools.lru_cache(**value.cache_parameters())(value.__wrapped__)
        elif is_cpu(value) or isinstance(value, types.FunctionType) or self._is_stateful(value):
            namespace[name] = self._copier.named(name, value)

    def _is_stateful(self, value: Any) -> bool:
        if isinstance(value, type) or is_data(value):
            return False
        if is_copied_by_attributes(type(value)):
            return True
        return isinstance(value, _STATEFUL) or hasattr(type(value), "__next__") or _may_be_the_users(type(value))


def _may_be_the_users(cls: type) -> bool:
    """Whether a class was made by code of the user's, as far as its methods tell."""
    functions = [item for item in vars(cls).values() if isinstance(item, types.FunctionType)]
    if functions:
        return any(is_the_users(function.__code__.co_filename) for function in functions)
    return cls.__module__ == "__main__"
