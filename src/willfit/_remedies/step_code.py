"""The lines of a whole optimisation step, with what remedies ask of it."""

from __future__ import annotations

from collections.abc import Mapping
from textwrap import indent

import torch

from willfit._changing import Job, batch_size


def step_code(job: Job, micro_batches: int = 1, loss_scaling: bool = False) -> str:
    """A function ``step(model, optimizer, batch)`` for a job that has none of its own.

    >>> print(step_code(Job(torch.nn.Linear(2, 1), None, torch.zeros(8, 2)), micro_batches=4))
    def step(model, optimizer, batch):
        for part in batch.split(2):  # 4 micro-batches
            (model(part) / 4).backward()
        model.zero_grad()
    """
    parts, loss = _loss(job) if micro_batches == 1 else _loss_of_part(job, micro_batches)
    if micro_batches > 1:
        loss = f"({loss} / {micro_batches})"
    body = f"scaler.scale({loss}).backward()" if loss_scaling else f"{loss}.backward()"
    if parts:
        body = f"{parts}\n    {body}"
    if job.optimizer is None:
        body += "\nmodel.zero_grad()"
    elif loss_scaling:
        body += "\nscaler.step(optimizer)\nscaler.update()\noptimizer.zero_grad()"
    else:
        body += "\noptimizer.step()\noptimizer.zero_grad()"
    scaler = "scaler = torch.amp.GradScaler()\n\n" if loss_scaling else ""
    return f"{scaler}def step(model, optimizer, batch):\n{indent(body, '    ')}"


def _loss(job: Job) -> tuple[str, str]:
    if job.loss is not None:
        return "", "loss(model, batch)"
    if isinstance(job.batch, Mapping):
        return "", "model(**batch).loss"
    return "", "model(batch)" if isinstance(job.batch, torch.Tensor) else "model(*batch)"


def _loss_of_part(job: Job, count: int) -> tuple[str, str]:
    """The head of a loop over parts of the batch, and the loss of one."""
    size = (batch_size(job.batch) or count) // count
    note = f"  # {count} micro-batches"
    if isinstance(job.batch, Mapping):
        head = f"for values in zip(*(value.split({size}) for value in batch.values())):{note}"
        part, called = "dict(zip(batch, values))", "**dict(zip(batch, values))"
    elif isinstance(job.batch, torch.Tensor):
        head, part, called = f"for part in batch.split({size}):{note}", "part", "part"
    else:
        head, part, called = f"for part in zip(*(value.split({size}) for value in batch)):{note}", "part", "*part"
    if job.loss is not None:
        return head, f"loss(model, {part})"
    return head, f"model({called}).loss" if isinstance(job.batch, Mapping) else f"model({called})"
