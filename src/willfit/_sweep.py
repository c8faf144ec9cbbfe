"""``willfit.sweep``: what fits where: methods, batch sizes and sequence lengths on several GPUs."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any

from willfit._changing import Job, batch_size, copied, sequence_length, with_batch_size, with_sequence_length
from willfit._devices import Device, resolve_device
from willfit._errors import JobError, UsageError
from willfit._footprint import Footprint
from willfit._parallel import each_of
from willfit._project import FULL
from willfit._remedies.remedy import Change
from willfit._trace.trace import Engine, check_engine
from willfit._trials import Trials, proposals
from willfit._which_fit import kind

if TYPE_CHECKING:
    import torch
    from torch import nn

    from willfit._job import Loss
    from willfit._run import Step

SCHEMA = 1
"""Version of ``Sweep.to_dict()``."""


@dataclass(frozen=True)
class Cell:
    """One method, with one batch, on one GPU."""

    method: str
    batch_size: int | None
    """Samples; None where the batch has no dimension of them."""
    sequence_length: int | None
    """Tokens in a sample; None where the batch has none."""
    device: Device
    footprint: Footprint | None
    """None where it could not be predicted."""
    error: str = ""
    """Why not."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON and CSV; sizes are bytes."""
        found = self.footprint
        return {
            "method": self.method,
            "batch_size": self.batch_size,
            "sequence_length": self.sequence_length,
            "device": self.device.name,
            "verdict": None if found is None else found.verdict,
            "required": None if found is None else found.required,
            "peak_allocated": None if found is None else found.peak_allocated,
            "peak_reserved": None if found is None else found.peak_reserved,
            "capacity": self.device.capacity,
            "error": self.error or None,
        }


@dataclass(frozen=True)
class Sweep:
    """What fits where."""

    cells: tuple[Cell, ...]
    """By method, batch size and sequence length, and within each by GPU, in the order asked for."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, as docs/schema.md describes them."""
        return {"schema": SCHEMA, "cells": [cell.to_dict() for cell in self.cells]}

    def to_csv(self) -> str:
        """A table of comma-separated values, with a line of names."""
        rows = [cell.to_dict() for cell in self.cells]
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()

    def __str__(self) -> str:
        from willfit._render.sweep import sweep_text

        return sweep_text(self)


def sweep(
    model: nn.Module,
    optimizer: Any,
    batch: Any,
    step: Step | None = None,
    *,
    on: Iterable[str | int | Device | torch.device],
    methods: Sequence[str] = (FULL,),
    batch_sizes: Sequence[int] = (),
    sequence_lengths: Sequence[int] = (),
    loss: Loss | None = None,
    steps: int = 3,
    engine: Engine = "symbolic",
    progress: Callable[[int, int, str], None] = lambda done, total, words: None,
) -> Sweep:
    """Predict a job in many ways on many GPUs, several at a time, and say what fits where.

    Args:
        model: as for `willfit.predict`.
        optimizer: likewise.
        batch: likewise; its samples are used over again in larger batches.
        step: likewise.
        on: the GPUs.
        methods: ``"full"`` for the job as it is, the names of changes that `willfit.advise` tries ("lora", "qlora",
            "checkpointing", "adamw8bit", ...), or several of these joined by "+".
        batch_sizes: samples; without any, the batch as it is.
        sequence_lengths: tokens in a sample; likewise.
        loss: as for `willfit.predict`.
        steps: likewise.
        engine: likewise.
        progress: is told how many predictions are done, of how many, and what comes next.

    Raises:
        UsageError: an unknown GPU or method, or a size that is not positive.
        JobError: the batch has no samples or tokens that there could be more or fewer of.

    Example:
        >>> import torch, willfit
        >>> model = torch.nn.Linear(1024, 1024, device="meta")
        >>> job = model, torch.optim.AdamW(model.parameters()), torch.zeros(1, 1024)
        >>> found = willfit.sweep(*job, on=["T4"], batch_sizes=[8, 10**7], loss=lambda model, batch: model(batch).sum())
        >>> [(cell.batch_size, cell.footprint.verdict) for cell in found.cells]
        [(8, 'fits'), (10000000, 'does not fit')]
    """
    check_engine(engine)
    job = Job(model, optimizer, batch, step, loss)
    devices = _devices(on)
    largest: dict[tuple[int, int], Device] = {}  # one prediction does for all GPUs with the same kernels
    for device in devices:
        if device.capacity >= largest.setdefault(kind(device), device).capacity:
            largest[kind(device)] = device
    rows = list(product(methods or (FULL,), _sizes(job, batch_sizes, 0), _sizes(job, sequence_lengths, 1)))
    wanted = list(product(rows, largest.values()))
    titles = [f"{method}, batch size {size}, on {device.name}" for (method, size, _), device in wanted]
    found = each_of(
        [partial(_predicted, job, row, device, steps, engine) for row, device in wanted],
        lambda number: progress(number, len(wanted), titles[number]),
    )
    by_kind = {(row, kind(device)): result for (row, device), result in zip(wanted, found, strict=True)}
    _check_methods(methods, rows, by_kind)
    return Sweep(tuple(_cell(row, device, by_kind[row, kind(device)]) for row in rows for device in devices))


_Row = tuple[str, int | None, int | None]


class _Unknown(str):
    """Why a method is none of the job's."""

    __slots__ = ()


def _devices(on: Any) -> list[Device]:
    names = [on] if isinstance(on, (str, int, Device)) else list(on)
    found = [resolve_device(each) for each in names]
    if not found or None in found:
        raise UsageError(f'on must name the GPUs, as in on=["T4", "A100-80GB"]: found {on!r}')
    return [device for device in found if device is not None]


def _sizes(job: Job, sizes: Sequence[int], dimension: int) -> list[int | None]:
    own = (batch_size, sequence_length)[dimension](job.batch)
    what = ("samples", "tokens in its samples")[dimension]
    if not sizes:
        return [own]
    if own is None:
        raise JobError(f"the batch has no {what}, so that there could be other numbers of them")
    for size in sizes:
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise UsageError(f"a number of {what} must be 1 or more: found {size!r}")
    return list(sizes)


def _predicted(job: Job, row: _Row, device: Device, steps: int, engine: Engine) -> Footprint | str:
    method, samples, tokens = row
    with copied(job) as resized:
        if samples is not None:
            resized = resized.but(batch=with_batch_size(resized.batch, samples))
        if tokens is not None and tokens != sequence_length(resized.batch):
            resized = resized.but(batch=with_sequence_length(resized.batch, tokens))
        trials = Trials(resized, device, steps, engine)
        changes: list[Change] = []
        if method != FULL:
            proposed, reasons = proposals(resized, device, lambda: trials.footprint((), steps))
            known = {change.name: change for each in proposed.values() for change in each}
            for name in method.split("+"):
                if name not in known:
                    return _Unknown(_no_method(name, known, reasons))
                changes.append(known[name])
        return trials.attempt(changes, steps)


def _no_method(name: str, known: Iterable[str], reasons: Iterable[tuple[str, str]]) -> str:
    because = "; ".join(f"{remedy}: {reason}" for remedy, reason in reasons if name.split("-")[0] in remedy.lower())
    return f"{name!r} is nothing that can be tried with this job{f' ({because})' if because else ''}: there are " + (
        ", ".join([FULL, *known])
    )


def _check_methods(methods: Iterable[str], rows: Iterable[_Row], found: dict[Any, Footprint | str]) -> None:
    """Raise `UsageError` for a method that is unknown wherever it was tried."""
    for method in methods:
        results = [result for (row, _), result in found.items() if row[0] == method]
        if results and all(isinstance(result, _Unknown) for result in results):
            raise UsageError(f"method {results[0]}")


def _cell(row: _Row, device: Device, result: Footprint | str) -> Cell:
    if isinstance(result, str):
        return Cell(*row, device, None, str(result))
    return Cell(*row, device, result.on(device))
