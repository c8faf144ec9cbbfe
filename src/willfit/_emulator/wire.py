"""A live job as bytes, for another process: its tensors by description, the user's own code by value.

Values go along where a step could go another way without them: those of small tensors and arrays on the CPU. All others
are zeros there, in memory that is never touched.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import io
import mmap
import os
import sys
import threading
import types
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import cloudpickle
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from willfit._copying import MOST_BYTES, Copier, behind, is_copied_by_attributes, shared_attributes
from willfit._errors import JobError
from willfit._globals import exchanged_globals, is_the_users
from willfit._placement_bitsandbytes import parameter_class
from willfit._trace.fake import CUDA, META
from willfit._trace.known import MOST_ELEMENTS

_LOCKS = (type(threading.Lock()), type(threading.RLock()))
_NORESERVE = 0x4000  # MAP_NORESERVE of Linux, which Python has a name for from 3.13 on


@dataclass(frozen=True)
class Job:
    """The arguments of `willfit.predict`, and what is known of the process that they come from."""

    model: Any
    optimizer: Any
    batch: Any
    step: Any
    loss: Any
    made_with_gpu: bool
    """Whether there was a GPU there: what is switched off is so on purpose."""
    notes: tuple[str, ...] = ()
    """What was decided on the way, in sentences for people."""


def pack(job: Job) -> bytes:
    """The job as bytes; nothing of the user's is changed.

    Raises `JobError` for what cannot travel to another process.
    """
    copier = Copier(lambda tensor: tensor)
    parts = copier.copy((job.model, job.optimizer, job.batch, job.step, job.loss))
    with exchanged_globals(copier):
        model, optimizer, batch, step, loss = parts
        packed = Job(model, optimizer, batch, step, loss, job.made_with_gpu, tuple(copier.notes))
        try:
            with _users_modules_by_value():
                return _packed(packed, copier)
        except Exception:  # a module that holds what cannot travel: the other process imports it by its name
            try:
                return _packed(packed, copier)
            except Exception as error:
                raise JobError(
                    f"the job cannot be sent to the process that emulates the GPU: {type(error).__name__}: {error}. "
                    "Keep what is named there out of model, batch and step, or give a TARGET on the command line, "
                    "which that process imports"
                ) from error


def unpack(data: bytes) -> Job:
    """The job again. Its tensors lie where they lay: those on a GPU pose as such until they are placed."""
    job: Job = cloudpickle.loads(data)
    return job


def _packed(job: Job, copier: Copier) -> bytes:
    file = io.BytesIO()
    _Pickler(file, copier).dump(job)
    return file.getvalue()


@contextmanager
def _users_modules_by_value() -> Iterator[None]:
    """Functions and classes of the user's own modules travel as they are now, and not as importing makes them."""
    with ExitStack() as stack:
        for name, module in list(sys.modules.items()):
            file = getattr(module, "__file__", None)
            own = isinstance(file, str) and is_the_users(file) and isinstance(module, types.ModuleType)
            if own and name != "__main__" and name not in cloudpickle.list_registry_pickle_by_value():
                cloudpickle.register_pickle_by_value(module)
                stack.callback(cloudpickle.unregister_pickle_by_value, module)
        yield


def _code(code: types.CodeType) -> tuple[Any, tuple[Any, ...]]:
    """As cloudpickle does, but with the file's name, by which source lines are told."""
    make, arguments = cloudpickle.cloudpickle._code_reduce(code)
    return make, tuple(code.co_filename if each == "<dynamic-code>" else each for each in arguments)


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]  # cloudpickle has no types
    dispatch_table = cloudpickle.Pickler.dispatch_table.new_child({types.CodeType: _code})

    def __init__(self, file: io.BytesIO, copier: Copier) -> None:
        super().__init__(file)
        self._copier = copier
        self._storages: dict[int, _Storage] = {}

    def reducer_override(self, value: Any) -> Any:
        """How a value travels; as cloudpickle says where there is nothing special about it."""
        if type(value) in weakref.ProxyTypes:  # which isinstance takes for what they stand for
            return _proxy, (behind(value),)
        if is_copied_by_attributes(type(value)):
            return _blank, (type(value),), vars(value), None, None, _set_attributes
        if isinstance(value, torch.Tensor):
            if value.layout == torch.strided and not value.is_quantized and not value.is_nested:
                return self._tensor(value)
        elif isinstance(value, nn.Module):
            return _blank, (type(value),), vars(value), None, None, _set_attributes
        elif isinstance(value, torch.optim.Optimizer):
            is_wrapper = "param_groups" not in vars(value)
            set_state = _set_attributes if is_wrapper else torch.optim.Optimizer.__setstate__
            return _blank, (type(value),), vars(value), None, None, set_state
        elif isinstance(value, types.FunctionType) and _is_copied_of_a_library(value):
            return _named, (value.__module__, value.__qualname__)
        elif isinstance(value, type) and _has_been_renamed(value):
            return _named, (value.__module__, value.__name__)
        elif (special := _special(value)) is not None:
            return special
        elif not isinstance(value, type) and (name := shared_attributes(value)) is not None:
            return _sharing, (type(value), name, vars(value))
        reduced = super().reducer_override(value)
        if reduced is NotImplemented and type(value) not in self.dispatch_table and not _can_travel(value):
            return NotSent, (type(value).__name__,)
        return reduced

    def _dynamic_function_reduce(self, function: types.FunctionType) -> Any:
        """A function that a library made as it ran reads the names of its library there, and not copies of them."""
        make, arguments, (attributes, slots), *rest = super()._dynamic_function_reduce(function)
        module = function.__globals__.get("__name__")
        own = vars(sys.modules[module]) if module in sys.modules else None
        if own is function.__globals__ and not is_the_users(function.__code__.co_filename):
            make, arguments = _function_of, (module, arguments[0], arguments[-1])
            slots.update({"__globals__": {}, "_cloudpickle_submodules": []})
        return (make, arguments, (attributes, slots), *rest)

    def _tensor(self, tensor: torch.Tensor) -> Any:
        what = (self._storage(tensor), tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
        copy = self._copier.copy
        attributes = {name: copy(item) for name, item in vars(tensor).items() if name != "_is_param"}
        hooks = [copy(hook) for hook in (tensor._backward_hooks or {}).values()]
        after = [copy(hook) for hook in (getattr(tensor, "_post_accumulate_grad_hooks", None) or {}).values()]
        grad = tensor.grad if tensor.is_leaf else None
        state = (tensor.requires_grad, grad, attributes, hooks, after)
        if what[0].kind == "cuda" and tensor.numel() <= MOST_ELEMENTS and not isinstance(tensor, nn.Parameter):
            attributes["held"] = tensor.detach().cpu()
        kind = parameter_class(tensor) if isinstance(tensor, nn.Parameter) else None
        return _tensor, (*what, kind), state, None, None, _finish_tensor

    def _storage(self, tensor: torch.Tensor) -> _Storage:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._storages:
            kind = "meta" if isinstance(tensor, FakeTensor) else tensor.device.type
            small = kind == "cpu" and storage.nbytes() <= MOST_BYTES and not isinstance(tensor, nn.Parameter)
            values = ctypes.string_at(storage.data_ptr(), storage.nbytes()) if small and storage.nbytes() else None
            self._storages[key] = _Storage(kind, storage.nbytes(), values)
        return self._storages[key]


def _sharing(cls: type, name: str, attributes: dict[str, Any]) -> Any:
    """An object that keeps its attributes in its class."""
    setattr(cls, name, attributes)
    value: Any = object.__new__(cls)
    value.__dict__ = attributes
    return value


# -- tensors on the other side -------------------------------------------------------------------------------


class _OnGpu(torch.Tensor):
    """A tensor that lay on a GPU: its layout, until it is placed, and the values of a small one."""

    held: torch.Tensor | None = None

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return CUDA

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return True

    @property
    def is_meta(self) -> bool:  # type: ignore[override]
        return False

    def cpu(self) -> torch.Tensor:  # type: ignore[override]
        return torch.empty(self.shape, dtype=self.dtype, device=META) if self.held is None else self.held


@dataclass
class _Storage:
    kind: str
    size: int
    values: bytes | None

    @functools.cached_property
    def bytes(self) -> torch.Tensor:
        """All of the storage."""
        if self.kind != "cpu":
            return torch.empty(self.size, dtype=torch.uint8, device=META)
        if self.values is not None:
            return torch.frombuffer(bytearray(self.values), dtype=torch.uint8)
        if not self.size:
            return torch.empty(0, dtype=torch.uint8)
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE
        return torch.frombuffer(mmap.mmap(-1, self.size, flags=flags), dtype=torch.uint8)


def _tensor(
    storage: _Storage,
    offset: int,
    shape: tuple[int, ...],
    stride: tuple[int, ...],
    dtype: torch.dtype,
    kind: type[nn.Parameter] | None,
) -> torch.Tensor:
    tensor: torch.Tensor = torch.empty(0, dtype=dtype, device=storage.bytes.device)
    tensor.set_(storage.bytes.untyped_storage(), offset, shape, stride)
    if storage.kind == "cuda":
        tensor = torch.Tensor._make_subclass(_OnGpu if kind in (None, nn.Parameter) else _posing(kind), tensor)
        if kind is not None:
            tensor._is_param = True  # what isinstance(x, nn.Parameter) looks at
        return tensor
    if kind is not None:
        tensor = torch.Tensor._make_subclass(kind, tensor, False)
    return tensor


@functools.cache
def _posing(kind: Any) -> Any:
    """A parameter's class, of one that lay on a GPU."""
    return type(kind.__name__, (_OnGpu, kind), {})


def _finish_tensor(tensor: torch.Tensor, state: tuple[bool, Any, dict[str, Any], list[Any], list[Any]]) -> None:
    requires_grad, grad, attributes, hooks, after = state
    tensor.requires_grad_(requires_grad)
    if grad is not None:
        tensor.grad = grad
    for name, value in attributes.items():
        setattr(tensor, name, value)
    for hook in hooks:
        tensor.register_hook(hook)
    for hook in after:
        tensor.register_post_accumulate_grad_hook(hook)


# -- objects -------------------------------------------------------------------------------------------------


def _blank(cls: Any) -> Any:
    return cls.__new__(cls)


def _set_attributes(value: Any, attributes: dict[str, Any]) -> None:
    value.__dict__.update(attributes)
    for name in _TRANSFORMERS_REGISTRIES:
        registry = getattr(sys.modules.get(name), "_CAN_RECORD_REGISTRY", None)
        if registry is not None and hasattr(value, "_can_record_outputs"):
            dict.__setitem__(registry, str(type(value)), value._can_record_outputs)


# Where PreTrainedModel.__init__, which does not run here, enters the outputs that can be collected (hidden states).
_TRANSFORMERS_REGISTRIES = ("transformers.utils.output_capturing", "transformers.utils.generic")


def _special(value: Any) -> tuple[Callable[..., Any], tuple[Any, ...]] | None:
    """How values travel that belong to a process: locks, files, random generators."""
    if isinstance(value, _LOCKS):
        return (threading.Lock if isinstance(value, _LOCKS[0]) else threading.RLock), ()
    if isinstance(value, weakref.ref):
        return _weak, (value(),)
    if isinstance(value, io.IOBase) and not isinstance(value, (io.BytesIO, io.StringIO)):
        standard = next((name for name in ("stdin", "stdout", "stderr") if value is getattr(sys, name)), None)
        return (getattr, (sys, standard)) if standard else (_sink, (isinstance(value, io.TextIOBase),))
    if isinstance(value, torch.Generator):
        return _generator, (value.device.type, value.initial_seed())
    if isinstance(value, (torch.cuda.Stream, torch.cuda.Event)):
        return (torch.cuda.Stream if isinstance(value, torch.cuda.Stream) else torch.cuda.Event), ()
    numpy = sys.modules.get("numpy")
    if numpy is not None and type(value) is numpy.ndarray and value.nbytes > MOST_BYTES and not value.dtype.hasobject:
        return _zeros, (value.shape, value.dtype)
    return None


def _is_copied_of_a_library(function: types.FunctionType) -> bool:
    """Whether this is a copy of what importing gives: it travels by its name, as a library's own functions do."""
    if is_the_users(function.__code__.co_filename):
        return False
    try:
        found = _named(function.__module__, function.__qualname__)
    except (ImportError, AttributeError, TypeError):
        return False
    return found is not function and getattr(found, "__code__", None) is function.__code__


def _has_been_renamed(cls: type) -> bool:
    """Whether a class is to be had by its short name alone, as torch.nn.attention.SDPBackend is."""
    home = sys.modules.get(cls.__module__)
    return cls.__name__ != cls.__qualname__ and vars(home or cls).get(cls.__name__) is cls


def _named(module: str, name: str) -> Any:
    return attrgetter(name)(importlib.import_module(module))


def _function_of(module: str, code: types.CodeType, closure: tuple[Any, ...] | None) -> types.FunctionType:
    return types.FunctionType(code, vars(importlib.import_module(module)), None, None, closure)


def _weak(target: Any) -> Any:
    return weakref.ref(target if target is not None else types.SimpleNamespace())


def _proxy(target: Any) -> Any:
    return weakref.proxy(target if target is not None else types.SimpleNamespace())


def _sink(is_text: bool) -> Any:
    return open(os.devnull, "r+" if is_text else "rb+")


def _generator(device: str, seed: int) -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)


def _zeros(shape: tuple[int, ...], dtype: Any) -> Any:
    import numpy

    return numpy.zeros(shape, dtype)


def _can_travel(value: Any) -> bool:
    """False for objects of C code that have no way of being pickled: sockets, iterators, handles of libraries."""
    if hasattr(value, "__qualname__"):  # classes and functions travel by name
        return True
    cls: Any = type(value)
    if cls.__reduce_ex__ is not object.__reduce_ex__ or cls.__reduce__ is not object.__reduce__:
        return True
    try:
        value.__reduce_ex__(4)
    except TypeError:
        return False
    return True


class NotSent:
    """Stands for an object of the user's that belongs to the process it was made in."""

    def __init__(self, kind: str) -> None:
        self.__dict__["_kind"] = kind

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise JobError(
            f"the training step uses a {self.__dict__['_kind']}, which cannot be sent to the process that emulates "
            "the GPU: keep it out of the step, or give a TARGET on the command line, which that process imports"
        )

    def __reduce__(self) -> Any:
        return NotSent, (self.__dict__["_kind"],)

    def __deepcopy__(self, memo: Any) -> NotSent:
        return self
