"""Changes applied to a copy of a job: their lines are run as a user would run them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch

from willfit._changing import Job, batch_size, held_back, with_batch_size
from willfit._remedies.remedy import Change, NotApplicable
from willfit._remedies.step_code import step_code

_FILE = "<remedy>"


def applied(job: Job, changes: Sequence[Change]) -> Job:
    """The changed job. The one given is changed on the way, so it has to be a copy.

    Raises whatever the lines of a change raise on this job.
    """
    for change in in_order(changes):
        job = change.apply(job) if change.apply is not None else ran(change.code, job, change.makes_weights)
    count, scaled = _step_options(changes)
    if job.step is None:
        return ran(step_code(job, count, scaled), job) if count > 1 or scaled else job
    return _accumulating(job, count) if count > 1 else job


def code_of(job: Job, changes: Sequence[Change]) -> str:
    """All lines to add for these changes, imports first."""
    parts = [change.code.strip("\n") for change in in_order(changes) if change.code]
    count, scaled = _step_options(changes)
    if job.step is None and (count > 1 or scaled):
        parts.append(step_code(job, count, scaled))
    lines = [line for part in parts for line in (*part.split("\n"), "")]
    imports = sorted({line for line in lines if line.startswith(("import ", "from "))})
    rest = [line for line in lines if not line.startswith(("import ", "from "))]
    if "torch." in "\n".join(rest):
        imports = ["import torch", *imports]
    text = "\n".join([*imports, "", *rest] if imports else rest).strip("\n")
    while "\n\n\n" in text:
        text = text.replace("\n\n\n", "\n\n")
    return text


def in_order(changes: Sequence[Change]) -> list[Change]:
    """As they are to be applied."""
    return sorted(changes, key=lambda change: change.order)


def _step_options(changes: Sequence[Change]) -> tuple[int, bool]:
    return math.prod(change.micro_batches for change in changes), any(change.loss_scaling for change in changes)


def ran(code: str, job: Job, makes_weights: bool = False) -> Job:
    """The job of the names that the code leaves, where it begins with those of this one; weights it makes on meta."""
    names: dict[str, Any] = {
        "torch": torch, "model": job.model, "optimizer": job.optimizer, "batch": job.batch, "step": job.step,
        "loss": job.loss, "__name__": _FILE,
    }  # fmt: skip
    with torch.device("meta") if makes_weights else nullcontext():
        exec(compile(code, _FILE, "exec"), names)
    step = names["step"]
    return Job(names["model"], names["optimizer"], names["batch"], step, None if step is not None else names["loss"])


def _accumulating(job: Job, count: int) -> Job:
    """The user's own step on a smaller batch, so many times, of which the last one alone steps the optimizer."""
    own, samples = job.step, batch_size(job.batch)
    if own is None or samples is None or samples % count:
        raise NotApplicable(f"a batch of {samples} samples cannot be divided by {count}")

    def step(model: Any, optimizer: Any, batch: Any) -> Any:
        kept = None
        for number in range(count):
            with held_back(optimizer) if number < count - 1 else nullcontext():
                kept = own(model, optimizer, batch)
        return kept

    return job.but(batch=with_batch_size(job.batch, samples // count), step=step)
