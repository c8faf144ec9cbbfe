"""How each kind of value is written down, for the comparison of jobs (`_same_job`)."""

from __future__ import annotations

import argparse
import ctypes
import enum
import functools
import logging
import re
import types
import weakref
from collections import OrderedDict, defaultdict, deque, namedtuple
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn

from willfit._copying import has_c_state, is_data, is_written_in_c, slots
from willfit._libraries import is_trusted
from willfit._trace.known import MOST_ELEMENTS

if TYPE_CHECKING:
    from willfit._same_job import Writer

ATOMS: Final = frozenset(
    {
        *(type(None), bool, int, float, complex, str, bytes, range, type(...), type(NotImplemented)),
        *(torch.dtype, torch.device, torch.layout, torch.memory_format, torch.Size),
    }
)
"""Types of values that are their own tokens."""

# What tensors hold that a step reads on the host is compared up to this size in bytes.
_MOST_CONTENT: Final = 2**16
# Entries of a class that have no part in what its objects do.
_DESCRIPTIVE: Final = frozenset(
    {
        *("__dict__", "__weakref__", "__doc__", "__annotations__", "__annotate__", "__annotate_func__", "_abc_impl"),
        *("__annotations_cache__", "__orig_bases__", "__parameters__", "__type_params__"),
        *("__dataclass_fields__", "__dataclass_params__", "__static_attributes__", "__firstlineno__"),
    }
)


class NotComparable(Exception):  # noqa: N818 - no error: the end of an attempt
    """Something was met that cannot be written down."""


@functools.singledispatch
def write(value: Any, to: Writer) -> None:
    """An object of a class in Python: all of its attributes."""
    cls = type(value)
    if cls is object or cls.__module__ == "typing":
        to.keep(value)
        return
    if is_data(value) or has_c_state(cls):
        raise NotComparable(cls)
    to.value(cls)
    if hasattr(value, "__dict__"):
        to.items(vars(value).items())
    for name in slots(cls):
        if hasattr(value, name):
            to.value(name)
            to.value(getattr(value, name))


# -- containers ------------------------------------------------------------------------------------------------


@write.register(dict)
@write.register(list)
@write.register(tuple)
@write.register(deque)
def _container(value: Any, to: Writer) -> None:
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


@write.register(set)
@write.register(frozenset)
def _set(value: Any, to: Writer) -> None:
    if not all(type(item) in ATOMS for item in value):
        raise NotComparable(type(value))  # its order is that of addresses
    to.tokens += (type(value), len(value))
    for item in value:
        to.value(item)


@write.register(types.MappingProxyType)
def _read_only(value: Any, to: Writer) -> None:
    to.items(value.items())


# -- tensors ---------------------------------------------------------------------------------------------------


@write.register(torch.Tensor)
def _tensor(tensor: torch.Tensor, to: Writer) -> None:
    where = tensor.device.type
    plain = type(tensor) in (torch.Tensor, nn.Parameter, nn.Buffer) and tensor.layout == torch.strided
    if not plain or tensor.is_quantized or where not in ("cpu", "meta"):
        raise NotComparable(type(tensor))
    storage = tensor.untyped_storage()
    to.tokens += (type(tensor), tensor.shape, tensor.stride(), tensor.storage_offset(), tensor.dtype, where)
    to.tokens += (tensor.requires_grad, tensor.is_leaf, storage.nbytes())
    to.tokens.append(to.storages.setdefault(storage._cdata, len(to.storages)))
    to.value(tensor._backward_hooks)
    if tensor.is_leaf:
        to.value(tensor.grad)
        to.value(getattr(tensor, "_post_accumulate_grad_hooks", None))
    to.items(vars(tensor).items())
    if id(tensor) not in to.placed and where == "cpu":
        if tensor.numel() * tensor.itemsize > _MOST_CONTENT:
            raise NotComparable("what a large tensor holds")
        to.tokens.append(content(tensor))


def content(tensor: torch.Tensor) -> bytes:
    """What a CPU tensor holds."""
    plain = tensor.detach().resolve_conj().resolve_neg().contiguous()
    return ctypes.string_at(plain.data_ptr(), plain.numel() * plain.itemsize)


def is_known(tensor: torch.Tensor) -> bool:
    """Whether the step would know what this tensor of the batch or buffer holds, on the GPU (`_trace.known`)."""
    return tensor.device.type == "cpu" and tensor.numel() <= MOST_ELEMENTS


@write.register(nn.Module)
def _module(module: nn.Module, to: Writer) -> None:
    to.placed.update(map(id, (*module._parameters.values(), *module._buffers.values())))
    write.dispatch(object)(module, to)
    for buffer in module._buffers.values():
        if buffer is not None and not buffer.is_floating_point() and is_known(buffer):
            to.tokens.append(content(buffer))


# -- code ------------------------------------------------------------------------------------------------------


@write.register(type)
def _class(cls: type, to: Writer) -> None:
    to.keep(cls)
    if is_written_in_c(cls) and not is_trusted(cls.__module__):
        raise NotComparable(cls)  # its methods may ask for the time
    for other in (type(cls), *cls.__bases__):
        if other is not type:
            to.value(other)
    if is_trusted(cls.__module__):
        to.classes.add(cls)
    else:
        to.items((name, item) for name, item in vars(cls).items() if name not in _DESCRIPTIVE)


@write.register(types.FunctionType)
def _function(function: types.FunctionType, to: Writer) -> None:
    to.keep(function.__code__)
    for held in (function.__closure__, function.__defaults__, function.__kwdefaults__):
        to.value(held)
    to.items(vars(function).items())
    if not is_trusted(function.__globals__.get("__name__")):
        to.code(function)


@write.register(types.CellType)
def _cell(cell: types.CellType, to: Writer) -> None:
    try:
        content = cell.cell_contents
    except ValueError:
        to.tokens.append("empty")
    else:
        to.value(content)


@write.register(types.BuiltinFunctionType)
def _builtin(function: Any, to: Writer) -> None:
    owner = function.__self__
    to.tokens.append(function.__name__)
    if owner is not None and not isinstance(owner, (type, types.ModuleType)):
        to.value(owner)
    elif is_trusted(function.__module__ or getattr(owner, "__module__", None)):
        to.keep(function)
    else:
        raise NotComparable(function)


@write.register(types.ModuleType)
def _module_of_python(module: types.ModuleType, to: Writer) -> None:
    to.keep(module)
    if is_trusted(module.__name__):
        return
    if "__getattr__" in vars(module) or not str(getattr(module, "__file__", "")).endswith(".py"):
        raise NotComparable(module)
    to.modules.append(module)


# -- what is known by a few of its attributes -------------------------------------------------------------------


def _by(*names: str) -> Callable[[Any, Writer], None]:
    def write(value: Any, to: Writer) -> None:
        to.value(type(value))
        for name in names:
            to.value(getattr(value, name))

    return write


write.register(types.MethodType)(_by("__func__", "__self__"))
write.register(classmethod)(_by("__func__"))
write.register(staticmethod)(_by("__func__"))
write.register(property)(_by("fget", "fset", "fdel"))
write.register(functools.cached_property)(_by("func"))
write.register(functools.partial)(_by("func", "args", "keywords"))
write.register(slice)(_by("start", "stop", "step"))
write.register(re.Pattern)(_by("pattern", "flags"))
write.register(types.SimpleNamespace)(_by("__dict__"))
write.register(argparse.Namespace)(_by("__dict__"))


@write.register(type(functools.lru_cache(lambda: None)))
def _lru_cache(cached: Any, to: Writer) -> None:
    to.items(cached.cache_parameters().items())
    to.tokens.append(cached.cache_info().currsize)  # 0 after a job that filled it (`_trace.surroundings`)
    to.value(cached.__wrapped__)


@write.register(weakref.ref)
def _weak(reference: weakref.ref[Any], to: Writer) -> None:
    to.tokens.append(type(reference))
    to.value(reference())


# -- what is known by its identity, and does the same each time ---------------------------------------------------


@write.register(logging.Logger)
def _logger(logger: logging.Logger, to: Writer) -> None:
    to.keep(logger)
    to.tokens += (logger.getEffectiveLevel(), logger.disabled)


@write.register(enum.Enum)
@write.register(torch._ops.OpOverload)
@write.register(torch._ops.OpOverloadPacket)
def _mark(value: Any, to: Writer) -> None:
    to.keep(value)
    to.value(type(value))


@write.register(types.WrapperDescriptorType)
@write.register(types.MethodWrapperType)
@write.register(types.MethodDescriptorType)
@write.register(types.ClassMethodDescriptorType)
@write.register(types.GetSetDescriptorType)
@write.register(types.MemberDescriptorType)
@write.register(type(namedtuple("Named", "field").__dict__["field"]))
def _descriptor(value: Any, to: Writer) -> None:
    to.keep(value)
