"""Model, optimizer and batch among the arguments of a call, told apart by type; nothing is used up by looking."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from willfit._errors import JobError, UsageError
from willfit._twins import bare_loader, is_iterator
from willfit._worst_batch import BATCHES, batch_of, largest

_BATCH_NAMES = ("batch", "inputs", "data")


@dataclass(frozen=True, slots=True)
class Found:
    """The parts of a training job among a call's arguments, and the arguments to call the function with."""

    model: nn.Module
    optimizer: Any
    batch: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    """As they came, except that an iterator of which items were taken is replaced by one that yields them again."""
    taken: str
    """What was taken for what, for people: "model='net' (GPT2), optimizer='opt' (AdamW), batch='x' (Tensor)"."""


def find(
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    model: str | None = None,
    optimizer: str | None = None,
    batch: str | None = None,
    several: bool = False,
    shapes: str | None = None,
) -> Found:
    """Find model, optimizer and a batch among the arguments of a call.

    ``model``, ``optimizer`` and ``batch`` name the parameter to take, or an attribute of one ("self.loader"). With
    ``several``, modules that are not named go into an `nn.ModuleDict` by their parameters' names, optimizers into a
    dict; without it, two of a kind are refused. ``shapes`` says which batch of a loader: "longest", "first", or None
    for the longest where its dataset can be indexed.

    Raises:
        UsageError: no model or no batch, two of a kind, a name that is not there, an iterator with nothing left.
        JobError: a loader that cannot make a batch.
        TypeError: the arguments are not those of the function.

    >>> def train(net, lr, x): ...
    >>> found = find(train, (nn.Linear(2, 2), 0.1), {"x": torch.zeros(1, 2)})
    >>> found.batch.shape, found.optimizer, found.taken
    (torch.Size([1, 2]), None, "model='net' (Linear), no optimizer, batch='x' (Tensor)")
    """
    call = _Call(function, args, kwargs)
    named_model = call.slot(model) if model else None
    named_optimizer = call.slot(optimizer) if optimizer else None
    named_batch = call.slot(batch) if batch else None
    if named_model and not isinstance(named_model.value, nn.Module):
        raise UsageError(f"model={model!r} is not a torch.nn.Module: found {type(named_model.value).__name__}")

    modules = [named_model] if named_model else _models(call.slots) or call.of_self("model", nn.Module)
    optimizers = [named_optimizer] if named_optimizer else _distinct(call.slots, torch.optim.Optimizer)
    optimizers = optimizers or call.of_self("optimizer", torch.optim.Optimizer)
    if not modules:
        raise UsageError(f"no torch.nn.Module among the arguments: found {call}; name it with model=")
    if not several:
        _refuse_two("model", modules)
        _refuse_two("optimizer", optimizers)
    known = {id(slot.value) for slot in (*modules, *optimizers)}
    rest = [s for s in call.slots if id(s.value) not in known and not isinstance(s.value, _PARTS)]
    the_batch, where = _named_batch(named_batch, shapes) if named_batch else _batch(rest, call, shapes)
    return Found(
        model=modules[0].value if len(modules) == 1 else nn.ModuleDict({s.name: s.value for s in modules}),
        optimizer=None if not optimizers else optimizers[0].value if len(optimizers) == 1 else _by_name(optimizers),
        batch=the_batch,
        args=call.args,
        kwargs=call.kwargs,
        taken=f"model={_told(modules)}, {f'optimizer={_told(optimizers)}' if optimizers else 'no optimizer'}, {where}",
    )


_PARTS = (nn.Module, torch.optim.Optimizer)


@dataclass(frozen=True, slots=True)
class _Slot:
    """An argument: its name, what it is now, and how to put something else in its place."""

    name: str
    value: Any
    put: Callable[[Any], None]

    def __str__(self) -> str:
        return f"{self.name!r} ({type(self.value).__name__})"


class _Call:
    """The arguments of a call by the names of the parameters, defaults included."""

    def __init__(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.args, self.kwargs = args, kwargs
        self._bound = inspect.signature(function).bind(*args, **kwargs)
        self._owner: Any = getattr(function, "__self__", None)
        self._all: dict[str, Any] = {}
        self.slots: list[_Slot] = []
        for parameter in self._bound.signature.parameters.values():
            self._take(parameter)

    def _take(self, parameter: inspect.Parameter) -> None:
        name, arguments = parameter.name, self._bound.arguments
        value = arguments.get(name, parameter.default)
        if value is parameter.empty:
            return
        self._all[name] = value
        if parameter.kind is parameter.VAR_POSITIONAL:
            self.slots += [_Slot(f"{name}[{i}]", v, self._putter(name, i)) for i, v in enumerate(value)]
        elif parameter.kind is parameter.VAR_KEYWORD:
            self._all |= value
            self.slots += [_Slot(key, v, self._putter(name, key)) for key, v in value.items()]
        elif name == "self" and len(self._all) == 1:
            self._owner = value
        else:
            self.slots.append(_Slot(name, value, self._putter(name)))

    def _putter(self, name: str, key: Any = None) -> Callable[[Any], None]:
        def put(value: Any) -> None:
            arguments = self._bound.arguments
            if isinstance(key, int):
                arguments[name] = (*arguments[name][:key], value, *arguments[name][key + 1 :])
            elif key is not None:
                arguments[name] = {**arguments[name], key: value}
            else:
                arguments[name] = value
            self.args, self.kwargs = self._bound.args, self._bound.kwargs

        return put

    def slot(self, path: str) -> _Slot:
        """The argument of this name, or the attribute: "self.loader"."""
        name, *attributes = path.split(".")
        for slot in self.slots:
            if slot.name == path:
                return slot
        if name not in self._all:
            raise UsageError(f"{path!r} names no argument of this call: found {self}")
        slot = _Slot(name, self._all[name], _keep)
        for attribute in attributes:
            if not hasattr(slot.value, attribute):
                raise UsageError(f"{path!r}: {type(slot.value).__name__} has no attribute {attribute!r}")
            slot = _Slot(path, getattr(slot.value, attribute), functools.partial(setattr, slot.value, attribute))
        return slot

    def of_self(self, attribute: str, kind: type) -> list[_Slot]:
        """``self`` if it is of this kind, else its attribute of that name if that one is."""
        found = {"self": self._owner, f"self.{attribute}": getattr(self._owner, attribute, None)}
        return [_Slot(name, value, _keep) for name, value in found.items() if isinstance(value, kind)][:1]

    def __str__(self) -> str:
        return ", ".join(f"{slot.name}: {type(slot.value).__name__}" for slot in self.slots) or "no arguments"


def _keep(_: Any) -> None:
    """How to put something else in the place of ``self``: not at all."""


def _distinct(slots: Iterable[_Slot], kind: type) -> list[_Slot]:
    return list({id(s.value): s for s in reversed(list(slots)) if isinstance(s.value, kind)}.values())[::-1]


def _models(slots: Iterable[_Slot]) -> list[_Slot]:
    """The modules; those without parameters, as losses are, do not count beside one that has some."""
    modules = _distinct(slots, nn.Module)
    return [s for s in modules if next(s.value.parameters(), None) is not None] or modules


def _refuse_two(what: str, slots: Sequence[_Slot]) -> None:
    if len(slots) > 1:
        raise UsageError(
            f"{len(slots)} arguments may be the {what}: {', '.join(map(str, slots))}; "
            f'say which with {what}="{slots[0].name}", or give step= to use them all'
        )


def _by_name(slots: Iterable[_Slot]) -> dict[str, Any]:
    return {slot.name: slot.value for slot in slots}


def _told(slots: Iterable[_Slot]) -> str:
    return " + ".join(map(str, slots))


# -- the batch ---------------------------------------------------------------------------------------------------------


def _named_batch(slot: _Slot, shapes: str | None) -> tuple[Any, str]:
    value = slot.value
    if value is None or isinstance(value, _PARTS):
        raise UsageError(f"batch={slot.name!r} is no batch and no loader: found {type(value).__name__}")
    if _is_loader(value) or is_iterator(value):
        return _drawn(slot, shapes)
    if isinstance(value, Iterable) and not isinstance(value, (str, bytes)) and not _holds_tensors(value, loose=True):
        return _drawn(slot, shapes)
    return value, f"batch={slot}"


def _batch(slots: Sequence[_Slot], call: _Call, shapes: str | None) -> tuple[Any, str]:
    sources = [s for s in slots if _is_loader(s.value)] or [s for s in slots if is_iterator(s.value)]
    if sources:
        return _drawn(sources[0], shapes)
    for slot in slots:
        if slot.name in _BATCH_NAMES and _holds_tensors(slot.value, loose=True):
            return slot.value, f"batch={slot}"
    left = [slot for slot in slots if _holds_tensors(slot.value)]
    if not left:
        raise UsageError(
            f"no batch among the arguments (a DataLoader, an iterator, or tensors): found {call}; name it with batch="
        )
    return left[0].value if len(left) == 1 else _by_name(left), f"batch={_told(left)}"


def _is_loader(value: Any) -> bool:
    return isinstance(bare_loader(value), DataLoader)


def _holds_tensors(value: Any, loose: bool = False) -> bool:
    """Whether it is a tensor or a container of some; ``loose``: or any object that has some for attributes."""
    if isinstance(value, torch.Tensor):
        return True
    if isinstance(value, Mapping):
        return any(map(_holds_tensors, value.values()))
    if isinstance(value, (list, tuple, set, frozenset, deque)):
        return any(map(_holds_tensors, value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return any(_holds_tensors(getattr(value, field.name, None)) for field in dataclasses.fields(value))
    return loose and not isinstance(value, type) and any(map(_holds_tensors, getattr(value, "__dict__", {}).values()))


def _drawn(slot: _Slot, shapes: str | None) -> tuple[Any, str]:
    if is_iterator(slot.value):
        count = BATCHES if shapes == "longest" else 1
        items = list(itertools.islice(slot.value, count))
        if not items:
            raise UsageError(f"{slot} has nothing left, so there is no batch: pass a loader or a new iterator")
        slot.put(itertools.chain(items, slot.value))
        return (
            (items[0], f"batch=the first of {slot}")
            if count == 1
            else (largest(items), f"batch=the largest of the first {len(items)} of {slot}")
        )
    try:
        batch, which = batch_of(slot.value, shapes)
    except StopIteration:
        raise UsageError(f"{slot} is empty, so there is no batch") from None
    except Exception as error:
        workers = " in this process, where no worker_init_fn has run" if getattr(slot.value, "num_workers", 0) else ""
        raise JobError(f"{slot} could not make a batch{workers}: {type(error).__name__}: {error}") from error
    return batch, f"batch={which} of {slot}"
