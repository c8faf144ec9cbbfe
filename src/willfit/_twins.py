"""Copies of a loader, its samplers and datasets, to be looked through in their place."""

from __future__ import annotations

import copy
import functools
import io
import itertools
import random
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from willfit._trace.runtime import nothing_left_behind

# A container with more entries than this is data: it is not looked through for iterators and random generators.
_DATA = 100_000


@contextmanager
def twin_of(loader: Any) -> Iterator[Any]:
    """A copy of a loader that runs in this process and with no workers.

    The loader then gives the same batches in the same order as if nobody had looked, and every random generator is as
    it was. Datasets and samplers are copied with their attributes, not with the data that they hold.
    """
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with nothing_left_behind(), torch.random.fork_rng(gpus):
        twins = _Twins()
        try:
            yield twins.of_loader(bare_loader(loader))
        finally:
            twins.put_back()


def bare_loader(loader: Any) -> Any:
    """A loader without what accelerate wraps around it, which keeps count of the loaders in use, or Fabric."""
    if type(loader).__name__ == "_FabricDataLoader":
        return loader._dataloader
    return getattr(loader, "base_dataloader", loader)


def is_iterator(value: Any) -> bool:
    """Whether items are used up by looking at them."""
    not_meant = (io.IOBase, DataLoader, torch.nn.Module, torch.optim.Optimizer)
    return isinstance(value, Iterator) and not isinstance(value, not_meant)


class _Recording:
    """An iterator that keeps what it has given."""

    def __init__(self, source: Iterator[Any]) -> None:
        self.source = source
        self.drawn: list[Any] = []

    def __iter__(self) -> _Recording:
        return self

    def __next__(self) -> Any:
        item = next(self.source)
        self.drawn.append(item)
        return item


class _Twins:
    """Copies of a loader, its samplers and datasets, to be iterated over in their place.

    Attributes are copied one level deep; random generators in full. One-shot iterators, as datasets over a generator
    hold, cannot be copied: `put_back` gives them back what was drawn.
    """

    def __init__(self) -> None:
        self._twins: dict[
            int, tuple[Any, Any]
        ] = {}  # by the id of an object: it, so that the id stays its own, and its twin
        self._recordings: list[tuple[_Recording, Any, Any]] = []

    def of_loader(self, loader: Any) -> Any:
        for part in ("dataset", "sampler", "batch_sampler"):
            self._object(getattr(loader, part, None))
        return self._object(loader)

    def put_back(self) -> None:
        for recording, owner, key in self._recordings:
            if recording.drawn:
                owner[key] = itertools.chain(recording.drawn, recording.source)

    def _remember(self, value: Any, twin: Any) -> Any:
        return self._twins.setdefault(id(value), (value, twin))[1]

    def _of(self, value: Any) -> Any:
        if isinstance(value, torch.Generator):
            twin = torch.Generator(value.device)
            twin.set_state(value.get_state())
            return self._remember(value, twin)
        if isinstance(value, _random_generators()):
            return self._remember(value, copy.deepcopy(value))
        return self._object(value) if isinstance(value, (DataLoader, Dataset, Sampler)) else value

    def _object(self, value: Any) -> Any:
        if id(value) in self._twins:
            return self._twins[id(value)][1]
        if not hasattr(value, "__dict__"):
            return value
        try:
            twin = self._remember(value, object.__new__(type(value)))
        except TypeError:  # derived from a type written in C: shared
            return value
        for name in filter(functools.partial(hasattr, value), _slots(type(value))):
            object.__setattr__(twin, name, self._of(getattr(value, name)))
        attributes = vars(twin)
        self._fill(attributes, vars(value))
        for name, item in vars(value).items():
            if type(item) in (list, dict, deque, set) and len(item) <= _DATA:
                attributes[name] = copy.copy(item)
                if not isinstance(item, set):
                    self._fill(attributes[name], item)
            elif type(item) is tuple and len(item) <= _DATA:
                attributes[name] = tuple(map(self._of, item))
        if isinstance(value, DataLoader):
            no_workers = {"num_workers": 0, "prefetch_factor": None, "persistent_workers": False, "_iterator": None}
            attributes.update(no_workers, timeout=0, pin_memory=False)
        return twin

    def _fill(self, twin: Any, own: Any) -> None:
        for key in own if isinstance(own, dict) else range(len(own)):
            item = own[key]
            if is_iterator(item) and not isinstance(item, (Dataset, Sampler)):
                twin[key] = self._remember(item, _Recording(item))
                self._recordings.append((twin[key], own, key))
            else:
                twin[key] = self._of(item)


def _slots(kind: type) -> Iterator[str]:
    for each in kind.__mro__:
        names = vars(each).get("__slots__", ())
        yield from (names,) if isinstance(names, str) else names


def _random_generators() -> tuple[type, ...]:
    numpy = sys.modules.get("numpy")
    return (random.Random, *((numpy.random.Generator, numpy.random.RandomState) if numpy else ()))
