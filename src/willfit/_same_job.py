"""When two training jobs are the same, so that the prediction of one is that of the other.

A job is written down in full: its objects, the code that they run, what that code reads by name, and what the process
is set to. Two jobs are the same if their descriptions are equal. Whatever is met that cannot be written down (an open
file, a generator, a clock) ends the attempt: such a job is like no other, and is predicted anew each time.

The user's code is followed wherever it leads. That of libraries is not (`_libraries` says which): of them it is noticed
what was replaced. What remains unseen is a change deep inside of an object that such a library alone holds.
"""

from __future__ import annotations

import builtins
import hashlib
import os
import types
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import nn

from willfit._code import reads
from willfit._libraries import is_trusted
from willfit._placement import optimizers_of, tensors_of
from willfit._plugins import plugins
from willfit._same_values import ATOMS, NotComparable, content, is_known, write
from willfit._trace.surroundings import callers_hooks_stay, global_hooks, settings_in_force

# Builtins by which code sees what is not written down.
_UNSEEN: Final = frozenset({"__import__", "compile", "eval", "exec", "globals", "id", "input", "locals", "open"})
# By these, code may ask a module for a name that it makes up.
_MADE_UP: Final = frozenset(
    {"__dict__", "__getattribute__", "attrgetter", "getattr", "methodcaller", "setattr", "vars"}
)
# By these, libraries that are not followed read files, clocks, seeds, or what somebody set in passing.
_FROM_OUTSIDE: Final = frozenset(
    {
        *("load", "from_file", "from_pretrained", "fromfile", "genfromtxt", "loadtxt", "memmap", "read_image"),
        *("RandomState", "SeedSequence", "datetime64", "default_rng", "getLogger", "get_rng_state", "initial_seed"),
    }
)
_PYTEST: Final = "PYTEST_CURRENT_TEST"  # where pytest says which test runs


@dataclass(frozen=True, slots=True)
class Description:
    """All that the prediction of a job depends on."""

    key: tuple[Any, ...]
    """Equal for jobs that are the same, but for what the batch's tensors hold."""
    batch: bytes
    """A digest of that, as far as it is known to the step."""
    kept: tuple[Any, ...]
    """What the key knows by its address: it must live as long as the key does."""
    classes: frozenset[type]
    """Classes of libraries that were met: the key holds as long as nothing in them is replaced."""


def describe(model: Any, optimizer: Any, batch: Any, *rest: Any) -> Description | None:
    """The description of a job; None if there is something to it that cannot be compared.

    ``rest`` is what else the prediction depends on: step, loss, target.
    """
    try:
        return Writer().describe(model, optimizer, batch, rest)
    except Exception:  # NotComparable, or an object of the user's that minds being looked at
        return None


class Writer:
    """Writes values down as tokens, in the order in which they are met; what is met again is a reference."""

    def __init__(self) -> None:
        self.tokens: list[Any] = []
        self.placed: set[int] = set()
        """Tensors that will be on the GPU, so that the step does not read what they hold on the host."""
        self.storages: dict[int, int] = {}
        self.classes: set[type] = set()
        self.modules: list[types.ModuleType] = []
        """Those of the user's, of which code may ask for any name."""
        self._numbers: dict[int, int] = {}
        self._met: list[Any] = []  # so that no address is used twice meanwhile
        self._kept: dict[int, Any] = {}
        self._read: set[tuple[int, str]] = set()
        self._names: set[str] = set()

    def describe(self, model: nn.Module, optimizer: Any, batch: Any, rest: tuple[Any, ...]) -> Description:
        """Write down a job."""
        if callers_hooks_stay():
            raise NotComparable("hooks that torch tells nobody of")
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
        self._names_in_modules()
        inputs = list(tensors_of(batch))  # last, as code that holds one of them reads what it holds
        self.placed.update(map(id, inputs))
        self.value(batch)
        self._names_in_modules()
        held = hashlib.blake2b()
        for tensor in filter(is_known, inputs):
            held.update(content(tensor))
        return Description(tuple(self.tokens), held.digest(), tuple(self._kept.values()), frozenset(self.classes))

    def value(self, value: Any) -> None:
        """Write down any value."""
        kind = type(value)
        if kind in ATOMS:
            self.tokens += (kind, value)
        elif (number := self._numbers.setdefault(id(value), len(self._numbers))) < len(self._met):
            self.tokens += ("again", number)
        else:
            self._met.append(value)
            write.dispatch(kind)(value, self)

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
        if read.names & _FROM_OUTSIDE or not all(map(is_trusted, read.imports)):
            raise NotComparable(function)
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
            raise NotComparable(name)
        else:
            self.keep(getattr(builtins, name, None))

    def _names_in_modules(self) -> None:
        """Write down what any code of the user's may ask of the user's modules that it can reach."""
        before = -1
        while before != len(self._read):
            before = len(self._read)
            for module in list(self.modules):
                for name in sorted(self._names & vars(module).keys()):
                    self._name(vars(module), name)
        if self.modules and self._names & _MADE_UP:
            raise NotComparable(self.modules)
