"""When two training jobs are the same, so that the prediction of one is that of the other.

A job is written down in full: its objects, the code that they run, what that code reads by name, and what the process
is set to. Two jobs are the same if their descriptions are equal. Whatever is met that cannot be written down (an open
file, a generator, a clock) ends the attempt: such a job is like no other, and is predicted anew each time.

The user's code is followed wherever it leads. That of libraries is not (`_libraries` says which): of them it is noticed
what was replaced. What remains unseen is a change inside of an object that such a library alone holds, as a registry.
"""

from __future__ import annotations

import argparse
import builtins
import enum
import functools
import logging
import os
import pathlib
import re
import types
import weakref
from collections import OrderedDict, defaultdict, deque, namedtuple
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import nn

from willfit._code import reads
from willfit._copying import has_c_state, is_data, is_written_in_c, slots
from willfit._libraries import is_trusted, is_watched
from willfit._placement import optimizers_of
from willfit._plugins import plugins
from willfit._trace.surroundings import global_hooks, settings_in_force

# What tensors and arrays hold that a step reads on the host is compared up to this size in bytes.
_MOST_CONTENT: Final = 2**16

_ATOMS: Final = frozenset(
    {
        *(type(None), bool, int, float, complex, str, bytes, range, type(...), type(NotImplemented)),
        *(torch.dtype, torch.device, torch.layout, torch.memory_format, torch.Size),
    }
)
# Builtins by which code sees what is not written down.
_UNSEEN: Final = frozenset({"__import__", "compile", "eval", "exec", "globals", "id", "input", "locals", "open"})
# By these, code may ask a module for a name that it makes up.
_MADE_UP: Final = frozenset({"__dict__", "attrgetter", "getattr", "methodcaller", "setattr", "vars"})
# Entries of a class that have no part in what its objects do.
_DESCRIPTIVE: Final = frozenset(
    {
        *("__dict__", "__weakref__", "__doc__", "__annotations__", "__annotate__", "__annotate_func__", "_abc_impl"),
        *("__annotations_cache__", "__orig_bases__", "__parameters__", "__type_params__"),
        *("__dataclass_fields__", "__dataclass_params__", "__static_attributes__", "__firstlineno__"),
    }
)
_PYTEST: Final = "PYTEST_CURRENT_TEST"  # where pytest says which test runs


@dataclass(frozen=True, slots=True)
class Description:
    """All that the prediction of a job depends on."""

    key: tuple[Any, ...]
    """Equal for jobs that are the same."""
    kept: tuple[Any, ...]
    """What the key knows by its address: it must live as long as the key does."""
    classes: frozenset[type]
    """Classes of libraries that were met: the key holds as long as nothing in them is replaced."""


class _NotComparable(Exception):  # noqa: N818 - no error: the end of an attempt
    """Something was met that cannot be written down."""


def describe(model: Any, optimizer: Any, batch: Any, *rest: Any) -> Description | None:
    """The description of a job; None if there is something to it that cannot be compared.

    ``rest`` is what else the prediction depends on: step, loss, target.
    """
    try:
        return _Writer().describe(model, optimizer, batch, rest)
    except Exception:  # _NotComparable, or an object of the user's that minds being looked at
        return None


class _Writer:
    """Writes values down as tokens, in the order in which they are met; what is met again is a reference."""

    def __init__(self) -> None:
        self.tokens: list[Any] = []
        self.numbers: dict[int, int] = {}
        self.placed: set[int] = set()
        """Tensors that will be on the GPU, so that what they hold is not read."""
        self.is_batch = False
        self.storages: dict[int, int] = {}
        self.classes: set[type] = set()
        self.modules: list[types.ModuleType] = []
        self._met: list[Any] = []  # so that no address is used twice meanwhile
        self._kept: dict[int, Any] = {}
        self._read: set[tuple[int, str]] = set()
        self._names: set[str] = set()

    def describe(self, model: nn.Module, optimizer: Any, batch: Any, rest: tuple[Any, ...]) -> Description:
        """Write down a job."""
        self.value({key: value for key, value in os.environ.items() if key != _PYTEST})
        self.value(settings_in_force())
        self.value(global_hooks())
        self.tokens += (name for name, _ in plugins().list_name_plugin())
        self.placed.update(map(id, (*model.parameters(), *model.buffers())))
        self.value(model)
        for each in optimizers_of(optimizer):
            self.placed.update(id(parameter) for group in each.param_groups for parameter in group["params"])
            states = (item for state in each.state.values() for item in state.values())
            self.placed.update(id(item) for item in states if isinstance(item, torch.Tensor) and item.dim())
        self.value(optimizer)
        self.value(rest)
        self.is_batch = True  # last, as a step that holds a tensor of the batch reads what it holds
        self.value(batch)
        self._names_in_modules()
        return Description(tuple(self.tokens), tuple(self._kept.values()), frozenset(self.classes))

    def value(self, value: Any) -> None:
        """Write down any value."""
        kind = type(value)
        if kind in _ATOMS:
            self.tokens += (kind, value)
        elif (number := self.numbers.setdefault(id(value), len(self.numbers))) < len(self._met):
            self.tokens += ("again", number)
        else:
            self._met.append(value)
            _write.dispatch(kind)(value, self)

    def keep(self, value: Any) -> None:
        """Write a value down by its identity."""
        self._kept[id(value)] = value
        self.tokens.append(id(value))

    def items(self, items: Iterable[tuple[Any, Any]]) -> None:
        """Write down keys and values, and where they end."""
        for key, item in items:
            self.value(key)
            self.value(item)
        self.tokens.append("end")

    def code(self, function: types.FunctionType) -> None:
        """Write down what code of the user's reads by name."""
        read = reads(function.__code__)
        if not all(map(is_trusted, read.imports)):
            raise _NotComparable(read.imports)
        self._names |= read.names
        for name in read.globals:
            self._name(function.__globals__, name)

    def _name(self, namespace: dict[str, Any], name: str) -> None:
        if (id(namespace), name) in self._read:
            return
        self._read.add((id(namespace), name))
        self.tokens += ("name", name)
        if name in namespace:
            self.value(namespace[name])
        elif name in _UNSEEN:
            raise _NotComparable(name)
        else:
            self.keep(getattr(builtins, name, None))

    def _names_in_modules(self) -> None:
        """Write down what any code of the user's may ask of the user's modules that it can reach."""
        if self.modules and self._names & _MADE_UP:
            raise _NotComparable(self.modules)
        before = -1
        while before != len(self._read):
            before = len(self._read)
            for module in list(self.modules):
                for name in sorted(self._names & vars(module).keys()):
                    self._name(vars(module), name)


@functools.singledispatch
def _write(value: Any, to: _Writer) -> None:
    """An object of a class in Python: all of its attributes."""
    cls = type(value)
    if cls is object or cls.__module__ == "typing":
        to.keep(value)
        return
    if is_data(value) or has_c_state(cls):
        raise _NotComparable(cls)
    to.value(cls)
    if hasattr(value, "__dict__"):
        to.items(vars(value).items())
    for name in slots(cls):
        if hasattr(value, name):
            to.value(name)
            to.value(getattr(value, name))


# -- containers ------------------------------------------------------------------------------------------------


@_write.register(dict)
@_write.register(list)
@_write.register(tuple)
@_write.register(deque)
def _container(value: Any, to: _Writer) -> None:
    to.value(type(value))
    if isinstance(value, dict):
        to.items(OrderedDict.items(value) if isinstance(value, OrderedDict) else dict.items(value))
        if isinstance(value, defaultdict):
            to.value(value.default_factory)
    else:
        to.tokens += (len(value), value.maxlen if isinstance(value, deque) else None)
        for item in value:
            to.value(item)
    if hasattr(value, "__dict__"):
        to.items(vars(value).items())


@_write.register(set)
@_write.register(frozenset)
def _set(value: Any, to: _Writer) -> None:
    if not all(type(item) in _ATOMS for item in value):
        raise _NotComparable(type(value))  # its order is that of addresses
    to.tokens += (type(value), frozenset((type(item), item) for item in value))


@_write.register(types.MappingProxyType)
def _read_only(value: Any, to: _Writer) -> None:
    to.items(value.items())


# -- tensors ---------------------------------------------------------------------------------------------------


@_write.register(torch.Tensor)
def _tensor(tensor: torch.Tensor, to: _Writer) -> None:
    where = tensor.device.type
    plain = type(tensor) in (torch.Tensor, nn.Parameter, nn.Buffer) and tensor.layout == torch.strided
    if not plain or where not in ("cpu", "meta"):
        raise _NotComparable(type(tensor))
    storage = tensor.untyped_storage()
    to.tokens += (type(tensor), tensor.shape, tensor.stride(), tensor.storage_offset(), tensor.dtype, where)
    to.tokens += (tensor.requires_grad, tensor.is_leaf, storage.nbytes())
    to.tokens.append(to.storages.setdefault(storage._cdata, len(to.storages)))
    to.value(tensor._backward_hooks)
    if tensor.is_leaf:
        to.value(tensor.grad)
        to.value(getattr(tensor, "_post_accumulate_grad_hooks", None))
    to.items(vars(tensor).items())
    if where == "cpu" and not to.is_batch and id(tensor) not in to.placed:
        if tensor.numel() * tensor.itemsize > _MOST_CONTENT:
            raise _NotComparable("what a large tensor holds")
        plain_bytes = tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8)
        to.tokens.append(bytes(plain_bytes.tolist()))


@_write.register(nn.Module)
def _module(module: nn.Module, to: _Writer) -> None:
    to.placed.update(map(id, (*module._parameters.values(), *module._buffers.values())))
    _write.dispatch(object)(module, to)


# -- code ------------------------------------------------------------------------------------------------------


@_write.register(type)
def _class(cls: type, to: _Writer) -> None:
    to.keep(cls)
    if is_watched(cls.__module__):
        to.classes.add(cls)
    for other in (type(cls), *cls.__bases__):
        if other is not type:
            to.value(other)
    if not is_trusted(cls.__module__) and not is_written_in_c(cls):
        to.items((name, item) for name, item in vars(cls).items() if name not in _DESCRIPTIVE)


@_write.register(types.FunctionType)
def _function(function: types.FunctionType, to: _Writer) -> None:
    to.keep(function.__code__)
    for held in (function.__closure__, function.__defaults__, function.__kwdefaults__):
        to.value(held)
    to.items(vars(function).items())
    if not is_trusted(function.__globals__.get("__name__")):
        to.code(function)


@_write.register(types.CellType)
def _cell(cell: types.CellType, to: _Writer) -> None:
    try:
        content = cell.cell_contents
    except ValueError:
        to.tokens.append("empty")
    else:
        to.value(content)


@_write.register(types.BuiltinFunctionType)
def _builtin(function: Any, to: _Writer) -> None:
    owner = function.__self__
    to.tokens.append(function.__name__)
    if owner is not None and not isinstance(owner, (type, types.ModuleType)):
        to.value(owner)
    elif is_trusted(function.__module__ or getattr(owner, "__module__", None)):
        to.keep(function)
    else:
        raise _NotComparable(function)


@_write.register(types.ModuleType)
def _module_of_python(module: types.ModuleType, to: _Writer) -> None:
    to.keep(module)
    if is_trusted(module.__name__):
        return
    if "__getattr__" in vars(module) or not str(getattr(module, "__file__", "")).endswith(".py"):
        raise _NotComparable(module)
    to.modules.append(module)


# -- what is known by a few of its attributes -------------------------------------------------------------------


def _by(*names: str) -> Callable[[Any, _Writer], None]:
    def write(value: Any, to: _Writer) -> None:
        to.value(type(value))
        for name in names:
            to.value(getattr(value, name))

    return write


_write.register(types.MethodType)(_by("__func__", "__self__"))
_write.register(classmethod)(_by("__func__"))
_write.register(staticmethod)(_by("__func__"))
_write.register(property)(_by("fget", "fset", "fdel"))
_write.register(functools.cached_property)(_by("func"))
_write.register(functools.partial)(_by("func", "args", "keywords"))
_write.register(slice)(_by("start", "stop", "step"))
_write.register(re.Pattern)(_by("pattern", "flags"))
_write.register(types.SimpleNamespace)(_by("__dict__"))
_write.register(argparse.Namespace)(_by("__dict__"))


@_write.register(type(functools.lru_cache(lambda: None)))
def _lru_cache(cached: Any, to: _Writer) -> None:
    to.items(cached.cache_parameters().items())  # what it has cached has no part in a prediction
    to.value(cached.__wrapped__)


@_write.register(weakref.ref)
def _weak(reference: weakref.ref[Any], to: _Writer) -> None:
    to.value(type(reference))
    to.value(reference())


@_write.register(pathlib.PurePath)
def _path(path: pathlib.PurePath, to: _Writer) -> None:
    to.tokens += (type(path), str(path))


# -- what is known by its identity, and does the same each time ---------------------------------------------------


@_write.register(enum.Enum)
@_write.register(logging.Logger)
@_write.register(torch._ops.OpOverload)
@_write.register(torch._ops.OpOverloadPacket)
def _mark(value: Any, to: _Writer) -> None:
    to.keep(value)
    to.value(type(value))


@_write.register(types.WrapperDescriptorType)
@_write.register(types.MethodWrapperType)
@_write.register(types.MethodDescriptorType)
@_write.register(types.ClassMethodDescriptorType)
@_write.register(types.GetSetDescriptorType)
@_write.register(types.MemberDescriptorType)
@_write.register(type(namedtuple("Named", "field").__dict__["field"]))
def _descriptor(value: Any, to: _Writer) -> None:
    to.keep(value)
