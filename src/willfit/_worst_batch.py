"""The batch that decides whether a job fits: the largest that a loader can give, found without using anything up."""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, SequentialSampler

from willfit._twins import bare_loader, twin_of

SAMPLES = 1_000
"""So many samples of a dataset are read at most, spread evenly over it."""
BATCHES = 100
"""So many batches are drawn at most where samples cannot be asked for by their index."""
# So many samples of a dataset that makes them are read before their shapes are taken to be all the same.
_PROBES = 64
# So many batches of a sampler that makes them itself are put together to see which is the largest.
_CLOSEST = 3

# So deep objects of classes of their own are looked into, as they may hold each other.
_DEPTH = 4

Sizes = dict[tuple[Any, ...], int]


def batch_of(loader: Any, shapes: str | None = None) -> tuple[Any, str]:
    """A batch of a loader, and which it is: "the first".

    ``shapes`` is "longest", "first", or None for the longest where the dataset can be indexed, else the first.

    Raises StopIteration for an empty loader, and whatever its dataset, sampler and collate_fn raise.

    >>> rows = [torch.ones(length) for length in (3, 1, 9, 2)]
    >>> loader = DataLoader(rows, batch_size=2, shuffle=True, collate_fn=torch.nn.utils.rnn.pad_sequence)
    >>> batch, which = batch_of(loader)
    >>> batch.shape, which
    (torch.Size([9, 2]), 'the longest (of 4 samples)')
    >>> batch_of(DataLoader(range(6), batch_size=2), "first")
    (tensor([0, 1]), 'the first')
    """
    loader = bare_loader(loader)
    if shapes == "first":
        return first_batch(loader), "the first"
    if _is_indexed(loader):
        try:
            found = _longest(loader)
        except Exception:  # a dataset that minds being read out of turn
            if shapes == "longest":
                raise
            found = None
        return found or (first_batch(loader), "the first")
    if shapes is None:
        return first_batch(loader), "the first"
    with twin_of(loader) as twin:
        batches = list(itertools.islice(twin, BATCHES))
    if not batches:
        raise StopIteration
    return largest(batches), f"the largest (of the first {len(batches)})"


def first_batch(loader: Any) -> Any:
    """The first batch that a loader would give next.

    >>> first_batch(DataLoader(range(6), batch_size=2))
    tensor([0, 1])
    """
    with twin_of(loader) as twin:
        return next(iter(twin))


def largest(batches: Sequence[Any]) -> Any:
    """The batch with the most elements; the first of those that are alike."""
    return max(batches, key=lambda batch: elements(sizes(batch)))


def _is_indexed(loader: Any) -> bool:
    dataset = getattr(loader, "dataset", None)
    return (
        isinstance(loader, DataLoader)
        and not isinstance(dataset, IterableDataset)
        and hasattr(dataset, "__getitem__")
        and hasattr(dataset, "__len__")
        and isinstance(getattr(loader, "batch_sampler", None), Iterable)
    )


def _longest(loader: Any) -> tuple[Any, str] | None:
    """The longest batch, and of how many samples; None if all samples have one shape."""
    with twin_of(loader) as twin:
        dataset, batches = twin.dataset, _batches_of_indices(twin)
        if not batches:
            raise StopIteration
        drawn = sorted({index for batch in batches for index in batch})
        told = _lengths_told(twin)
        probes = drawn if isinstance(dataset, (list, tuple)) else _spread(drawn, _PROBES)
        if told is None and len({tuple(sizes(dataset[i]).items()) for i in _spread(probes, SAMPLES)}) == 1:
            return None
        if _mixes_samples(twin):
            read = drawn if told is not None else _spread(drawn, SAMPLES)
            found = {index: sizes(dataset[index]) if told is None else {(): told[index]} for index in read}
            batch = twin.collate_fn([dataset[i] for i in _worst(found, twin.batch_sampler.batch_size)])
        else:
            some = batches if told is not None else _spread(batches, max(1, SAMPLES // max(map(len, batches))))
            read = sorted({index for each in some for index in each})
            found = {index: sizes(dataset[index]) if told is None else {(): told[index]} for index in read}

            def padded(indices: Sequence[int]) -> int:
                return len(indices) * max((elements(found[index]) for index in indices), default=0)

            closest = sorted(some, key=padded, reverse=True)[:_CLOSEST]
            batch = largest([twin.collate_fn([dataset[i] for i in indices]) for indices in closest])
    of = f"{len(read):,}" if len(read) == len(drawn) else f"{len(read):,} of {len(drawn):,}"
    return batch, f"the longest (of {of} samples)"


def _batches_of_indices(loader: Any) -> list[list[int]]:
    """What the loader's sampler draws, up to as many samples as the dataset has."""
    batches, count = [], 0
    for batch in loader.batch_sampler:
        batches.append(list(batch))
        count += len(batches[-1])
        if count >= len(loader.dataset):
            break
    return batches


def _mixes_samples(loader: Any) -> bool:
    """Whether any samples may meet in a batch."""
    sampler = loader.batch_sampler
    return type(sampler) is BatchSampler and not isinstance(sampler.sampler, SequentialSampler)


def _lengths_told(loader: Any) -> Sequence[int] | None:
    """The lengths of the samples, where the sampler or the dataset keeps them, as those that group by length do."""
    for owner in (getattr(loader.batch_sampler, "sampler", None), loader.batch_sampler, loader.dataset):
        told = getattr(owner, "lengths", None)
        if isinstance(told, (torch.Tensor, Sequence)) and len(told) == len(loader.dataset):
            lengths = told.tolist() if isinstance(told, torch.Tensor) else told
            return lengths if all(isinstance(length, int) for length in lengths) else None
    return None


def _worst(found: Mapping[int, Sizes], count: int) -> list[int]:
    """So many samples that make the largest batch: the longest in each of their dimensions, then the largest."""
    by_elements = sorted(found, key=lambda index: -elements(found[index]))
    names = {name: None for each in found.values() for name in each}
    longest = {max(by_elements, key=lambda index: found[index].get(name, 0)): None for name in names}
    return list(dict.fromkeys([*longest, *by_elements]))[:count]


def _spread(items: Sequence[Any], count: int) -> Sequence[Any]:
    """So many of the items, evenly spread from the first to the last.

    >>> _spread(range(10), 4)
    [0, 3, 6, 9]
    """
    if len(items) <= count:
        return items
    return [items[round(i * (len(items) - 1) / max(1, count - 1))] for i in range(count)]


# -- how large a sample is -----------------------------------------------------------------------------------


def sizes(value: Any) -> Sizes:
    """The size of each dimension of each part of a sample or a batch.

    >>> sizes({"image": torch.zeros(3, 8, 8), "words": ["a", "few"]})
    {('image', 0): 3, ('image', 1): 8, ('image', 2): 8, ('words', 'len'): 2, ('words', 'each', 'len'): 3}
    """
    found: Sizes = {}
    for path, size in _sizes(value, ()):
        found[path] = max(size, found.get(path, 0))
    return found


def _sizes(value: Any, path: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], int]]:
    shape = getattr(value, "shape", None)
    if shape is None and not callable(getattr(value, "size", None)):
        shape = getattr(value, "size", None)  # an image of PIL
    if isinstance(shape, tuple):
        yield from (((*path, dimension), int(size)) for dimension, size in enumerate(shape))
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _sizes(item, (*path, key))
    elif isinstance(value, tuple):
        for position, item in enumerate(value):
            yield from _sizes(item, (*path, position))
    elif isinstance(value, (list, deque, str, bytes)):
        yield (*path, "len"), len(value)
        if not isinstance(value, (str, bytes)):
            for item in value if value and not isinstance(value[0], (int, float)) else ():
                yield from _sizes(item, (*path, "each"))
    elif hasattr(value, "__dict__") and not isinstance(value, type) and len(path) < _DEPTH:
        for name, item in vars(value).items():
            yield from _sizes(item, (*path, name))


def elements(found: Sizes) -> int:
    """How many elements parts of these sizes have."""
    parts: dict[tuple[Any, ...], list[int]] = {}
    for path, size in found.items():
        parts.setdefault(path[:-1], []).append(size)
    return sum(map(math.prod, parts.values()))
