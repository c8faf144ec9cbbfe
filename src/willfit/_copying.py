"""Copies of what a training step reaches, so that the user's own objects are never touched."""

from __future__ import annotations

import copy
import enum
import functools
import io
import os
import sys
import threading
import types
import weakref
from collections.abc import Callable, Iterator
from typing import Any, cast
from unittest.mock import patch

import torch
from torch.utils.data import DataLoader, Dataset

from willfit._standins import NotDrawn, Silent, is_logger

_ATOMIC = (
    *(type(None), bool, int, float, complex, str, bytes, type, range, slice, types.ModuleType),
    *(types.BuiltinFunctionType, torch.dtype, torch.device, torch.layout, torch.memory_format, torch.Size),
    *(enum.Enum, threading.Thread),
)
# Data rather than part of the step, and shared: containers with more entries than this, arrays with more bytes, ...
_MOST_ENTRIES = 100_000
MOST_BYTES = 2**20
COMPILED_IS_EAGER = "what torch.compile compiles is predicted as it runs without being compiled"
# ... datasets of torch, and objects of these packages.
_DATA_PACKAGES = ("datasets", "pandas", "polars", "pyarrow", "scipy")
# What says that it is its own copy or not to be pickled, or is kept in globals: copied by its attributes all the same.
_BY_ATTRIBUTES = (
    *("accelerate.accelerator.Accelerator", "accelerate.utils.operations.ConvertOutputsToFp32"),
    *("lightning.fabric.fabric.Fabric", "lightning_fabric.fabric.Fabric"),
)

_IN_C = (types.WrapperDescriptorType, types.MethodDescriptorType, types.ClassMethodDescriptorType)
_BUILTIN = types.BuiltinFunctionType
# ... and where transformers.TrainingArguments and Lightning's strategies keep what their property ``device`` says.
_DEVICE_NAMES = ("device", "device_type", "dev", "setup_devices", "cached__setup_devices", "root_device")
_Generator = torch.Generator


class Copier:
    """Deep copies in which every tensor is replaced by what ``tensor`` makes of it; identities are kept.

    What cannot be copied (locks, sockets) is shared; files are replaced by ones that swallow what is written. Unlike
    ``copy.deepcopy`` it follows closures, since that is where training steps keep schedulers, scalers and teachers.
    A variable or attribute named ``device`` that says "cpu", as it does on a machine without a GPU, says "cuda" in a
    copy for one, and what was compiled is eager.
    """

    def __init__(
        self,
        tensor: Callable[[torch.Tensor], torch.Tensor],
        module: Callable[[torch.nn.Module], None] = lambda _: None,
        is_for_gpu: bool = True,
    ) -> None:
        self._tensor, self._module, self._is_for_gpu = tensor, module, is_for_gpu
        self.memo: dict[int, Any] = {}
        self.kept: list[Any] = []
        """Everything that was met, in order; this also keeps the ids in ``memo`` valid."""
        self.shared: list[tuple[type, str, dict[str, Any]]] = []
        """Attributes of classes in which all of their objects keep their own, and the copies of these."""
        self.notes: dict[str, None] = {}
        """What was decided on the way, in sentences for people."""
        self._weakly_held: list[Any] = []  # as who holds the original may have no copy

    def forget(self) -> None:
        """Let go of the copies, of which no more will be made: what their job drops is then dropped."""
        self.memo.clear()

    def copy(self, value: Any) -> Any:
        """The copy of a value; the same one each time."""
        if isinstance(value, _ATOMIC):
            return value
        if id(value) in self.memo:
            return self.memo[id(value)]
        self.kept.append(value)
        if isinstance(value, torch.Tensor):
            return self._remember(value, self._tensor(value))
        if isinstance(value, types.FunctionType):
            return self._function(value)
        if isinstance(value, types.MethodType):
            return types.MethodType(self.copy(value.__func__), self.copy(value.__self__))
        if isinstance(value, functools.partial):
            copied = functools.partial(self.copy(value.func), *self.copy(value.args), **self.copy(value.keywords))
            return self._remember(value, copied)
        if isinstance(value, (dict, list, set, tuple, frozenset)):
            return self._container(value)
        if isinstance(value, types.CellType):
            return self._cell(value, "")
        return self._object(value)

    def named(self, name: str, value: Any) -> Any:
        """The copy of a variable, attribute or entry of that name."""
        if name.lstrip("_").lower() in _DEVICE_NAMES and is_cpu(value) and self._is_for_gpu:
            self.notes["a variable `device` that says cpu, as on a machine without a GPU, is taken to say cuda"] = None
            return "cuda" if isinstance(value, str) else torch.device("cuda")
        return self.copy(value)

    def _remember(self, value: Any, copied: Any) -> Any:
        self.memo[id(value)] = copied
        return copied

    # -- containers -------------------------------------------------------------------------------------------

    def _container(self, value: Any) -> Any:
        if len(value) > _MOST_ENTRIES:
            return self._remember(value, value)
        if isinstance(value, dict):
            copied = self._remember(value, copy.copy(value))
            copied.clear()
            for key, item in value.items():
                copied[self.copy(key)] = self.named(key, item) if isinstance(key, str) else self.copy(item)
            return copied
        if isinstance(value, list):
            copied = self._remember(value, copy.copy(value))
            copied[:] = [self.copy(item) for item in value]
            return copied
        items = [self.copy(item) for item in value]
        if all(a is b for a, b in zip(items, value, strict=True)) and not isinstance(value, set):
            return self._remember(value, value)
        if hasattr(value, "_fields"):
            return self._remember(value, type(value)(*items))
        return self._remember(value, type(value)(items))

    # -- objects ----------------------------------------------------------------------------------------------

    def _object(self, value: Any) -> Any:
        cls = type(value)
        if is_data(value) or cls is object:  # a bare object is a mark, known by its identity
            return self._remember(value, value)
        if is_logger(cls.__module__):
            return self._remember(value, Silent())
        if isinstance(value, weakref.ref) or cls in weakref.ProxyTypes:
            return self._remember(value, self._weak(value))
        if isinstance(value, _Generator):
            return self._remember(value, _copied_generator(value))
        if isinstance(value, io.IOBase):
            return self._remember(value, _sink(value))
        if isinstance(value, types.GeneratorType):
            return self._remember(value, NotDrawn("a generator"))
        if isinstance(value, torch.nn.Module):
            self._module(value)
            if id(value) in self.memo:  # by way of a parameter that knows its module
                return self.memo[id(value)]
        elif not is_copied_by_attributes(cls) and (
            "__deepcopy__" in dir(cls) or has_c_state(cls) or _says_how_to_be_copied(cls)
        ):
            return self._remember(value, self._deepcopied(value))
        try:
            copied = object.__new__(cls)
        except TypeError:
            return self._remember(value, self._deepcopied(value))
        self._remember(value, copied)
        if (shared := shared_attributes(value)) is not None:
            copied.__dict__ = self._shared(cls, shared, vars(value))
            return copied
        for name, item in vars(value).items() if hasattr(value, "__dict__") else ():
            copied.__dict__[name] = self.named(name, item)
        for name in slots(cls):
            if hasattr(value, name):
                object.__setattr__(copied, name, self.named(name, getattr(value, name)))
        if isinstance(value, torch.optim.Optimizer):
            # an LR scheduler wraps step in a function that would step the user's own optimizer
            copied.__dict__.pop("step", None)
        if isinstance(value, torch.nn.Module):
            self._make_eager(copied)
        return copied

    def _weak(self, value: Any) -> Any:
        is_proxy = type(value) in weakref.ProxyTypes
        target = behind(value) if is_proxy else value()
        if target is None:
            return value
        self._weakly_held.append(self.copy(target))
        return (weakref.proxy if is_proxy else weakref.ref)(self._weakly_held[-1])

    def _shared(self, cls: type, name: str, attributes: dict[str, Any]) -> dict[str, Any]:
        if id(attributes) not in self.memo:
            self.kept.append(attributes)
            self.shared.append((cls, name, self._container(attributes)))
        return self.memo[id(attributes)]  # type: ignore[no-any-return]

    def _deepcopied(self, value: Any) -> Any:
        thread, own = threading.get_ident(), cast(Any, torch.Tensor.__deepcopy__)

        def tensor(self_: torch.Tensor, memo: Any) -> Any:
            return self.copy(self_) if threading.get_ident() == thread else own(self_, memo)

        with (
            patch.object(torch.Tensor, "__deepcopy__", tensor),
            patch.object(torch.nn.Parameter, "__deepcopy__", tensor),
        ):
            try:
                return copy.deepcopy(value, self.memo)
            except Exception:  # a lock, a socket: shared, as the docstring says
                return NotDrawn(f"an iterator ({type(value).__name__})") if hasattr(value, "__next__") else value

    def _make_eager(self, module: torch.nn.Module) -> None:
        """Undo ``module.compile()`` and ``torch.compile(module)`` in a copy."""
        compiled = module.__dict__.pop("_compiled_call_impl", None) is not None
        if type(module) is getattr(sys.modules.get("torch._dynamo.eval_frame"), "OptimizedModule", None):
            module.__dict__["forward"] = module.get_submodule("_orig_mod").__call__
            compiled = True
        if compiled:
            self._note_compiled()

    def _note_compiled(self) -> None:
        self.notes[COMPILED_IS_EAGER] = None

    # -- functions --------------------------------------------------------------------------------------------

    def _function(self, function: types.FunctionType) -> Any:
        eager = getattr(function, "_torchdynamo_orig_callable", None)
        if eager is not None:
            if not getattr(function, "_torchdynamo_disable", False):  # else one that is never to be compiled
                self._note_compiled()
            return self._remember(function, self.copy(eager))
        if not _holds_state(function):
            return self._remember(function, function)
        cells = function.__closure__ or ()
        copied = types.FunctionType(
            function.__code__,
            function.__globals__,
            function.__name__,
            None,
            tuple(self._shell(cell) for cell in cells),
        )
        self._remember(function, copied)
        for name, cell in zip(function.__code__.co_freevars, cells, strict=True):
            self._cell(cell, name)
        names = function.__code__.co_varnames[: function.__code__.co_argcount]
        defaults = function.__defaults__
        if defaults:
            copied.__defaults__ = tuple(map(self.named, names[-len(defaults) :], defaults))
        copied.__kwdefaults__ = self.copy(function.__kwdefaults__)
        copied.__dict__.update(self.copy(vars(function)))
        copied.__module__, copied.__qualname__ = function.__module__, function.__qualname__
        return copied

    def _shell(self, cell: types.CellType) -> types.CellType:
        if id(cell) not in self.memo:
            self.kept.append(cell)
            self._remember(cell, types.CellType())
        return self.memo[id(cell)]  # type: ignore[no-any-return]

    def _cell(self, cell: types.CellType, name: str) -> types.CellType:
        shell = self._shell(cell)
        empty = object()
        if _content(shell, empty) is empty and (content := _content(cell, empty)) is not empty:
            shell.cell_contents = self.named(name, content)
        return shell


def behind(proxy: Any) -> Any:
    """The object that a `weakref.proxy` stands for; None if it is no more."""
    try:
        return proxy.__init__.__self__
    except ReferenceError:
        return None


def is_cpu(value: Any) -> bool:
    """Whether this names the CPU: "cpu" or torch.device("cpu")."""
    return value == "cpu" if isinstance(value, str) else isinstance(value, torch.device) and value.type == "cpu"


def is_data(value: Any) -> bool:
    """Whether this is data that a step reads, too large to be copied."""
    if isinstance(value, (Dataset, DataLoader)) or type(value).__module__.partition(".")[0] in _DATA_PACKAGES:
        return True
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.ndarray) and value.nbytes > MOST_BYTES


def _copied_generator(value: torch.Generator) -> torch.Generator:
    copied = _Generator()
    if value.device.type == "cpu":
        return copied.set_state(value.get_state())
    return copied.manual_seed(value.initial_seed())


def _sink(value: io.IOBase) -> Any:
    if value.closed or value in (sys.stdout, sys.stderr) or not value.writable():
        return value
    if isinstance(value, (io.BytesIO, io.StringIO)):
        return type(value)(value.getvalue())  # type: ignore[arg-type]
    return open(os.devnull, "w" if isinstance(value, io.TextIOBase) else "wb")


def is_copied_by_attributes(cls: type) -> bool:
    """Whether objects of a class are copied attribute by attribute, whatever they say."""
    return any(f"{base.__module__}.{base.__qualname__}" in _BY_ATTRIBUTES for base in cls.__mro__)


def shared_attributes(value: Any) -> str | None:
    """The class attribute in which all objects of a class keep their attributes, as accelerate's states do.

    >>> class State:
    ...     everywhere = {}
    ...     def __init__(self): self.__dict__ = self.everywhere
    >>> shared_attributes(State()), shared_attributes(torch.nn.Linear(1, 1))
    ('everywhere', None)
    """
    if isinstance(value, torch.nn.Module) or not hasattr(value, "__dict__"):
        return None
    own, classes = vars(value), type(value).__mro__
    return next((name for cls in classes for name, item in vars(cls).items() if item is own), None)


def has_c_state(cls: type) -> bool:
    """Whether the class is written in C, or inherits from one that is, so that attributes are not all there is.

    >>> import random
    >>> has_c_state(random.Random), has_c_state(type("Plain", (), {"__hash__": object.__hash__}))
    (True, False)
    """
    return any(is_written_in_c(base) for base in cls.__mro__ if base is not object)


def is_written_in_c(cls: type) -> bool:
    """Whether the class itself is written in C."""
    made_by_a_class_statement = 1 << 9  # Py_TPFLAGS_HEAPTYPE, which newer types in C have too
    return not cls.__flags__ & made_by_a_class_statement or any(
        (isinstance(item, _IN_C) and item.__objclass__ is cls) or (name == "__new__" and isinstance(item, _BUILTIN))
        for name, item in vars(cls).items()
    )


def _says_how_to_be_copied(cls: type) -> bool:
    return any(name in vars(base) for base in cls.__mro__[:-1] for name in ("__reduce_ex__", "__reduce__"))


def slots(cls: type) -> Iterator[str]:
    """The names under which a class keeps attributes in ``__slots__``."""
    for base in cls.__mro__:
        own = base.__dict__.get("__slots__", ())
        for slot in (own,) if isinstance(own, str) else own:
            if slot not in ("__dict__", "__weakref__"):
                is_private = slot.startswith("__") and not slot.endswith("__")
                yield f"_{base.__name__.lstrip('_')}{slot}" if is_private else slot


def _holds_state(function: types.FunctionType) -> bool:
    """Whether a function carries anything that it may change: in its closure, defaults or attributes."""
    contents = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values(), *vars(function).values()]
    return bool(function.__closure__) or any(not isinstance(item, _ATOMIC) or is_cpu(item) for item in contents)


def _content(cell: types.CellType, empty: object) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return empty
