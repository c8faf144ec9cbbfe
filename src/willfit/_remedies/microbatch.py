"""Gradient accumulation: the batch goes through the model in parts, and the optimizer steps once."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest

from torch.nn.modules.batchnorm import _BatchNorm

from willfit._changing import Job, batch_size
from willfit._remedies.remedy import Change, NotApplicable, Situation

_TRIED = 3  # sizes
_MOST_PARTS = 16  # each is followed; with more of them a step takes too long, here and on the GPU


def microbatch(situation: Situation) -> Iterator[Change]:
    """Half of the batch at a time, then less, down to one sample where these are few."""
    job = situation.job
    samples = batch_size(job.batch)
    if samples is None or samples < 2:
        raise NotApplicable("the batch is one sample" if samples else "the batch has no dimension of samples")
    counts = [count for count in range(2, min(samples, _MOST_PARTS) + 1) if samples % count == 0]
    if not counts:
        raise NotApplicable(f"{samples} samples cannot be divided into 2 to {_MOST_PARTS} equal parts")
    tried = list(dict.fromkeys([*counts[: _TRIED - 1], counts[-1]]))
    for count, more in zip_longest(tried, tried[1:]):
        yield Change(
            name=f"micro-batches-{count}",
            title=f"{count} micro-batches of {samples // count}",
            disruption="slower",
            cost="the same gradients, up to rounding; smaller products of matrices use the GPU less well" + _norms(job),
            code="" if job.step is None else _to_do(samples, count),
            micro_batches=count,
            order=90,
            lighter="" if more is None else f"micro-batches-{more}",
        )


def _norms(job: Job) -> str:
    has_batch_norm = any(isinstance(module, _BatchNorm) for module in job.model.modules())
    return "; batch norm sees fewer samples at a time" if has_batch_norm else ""


def _to_do(samples: int, count: int) -> str:
    """For a step of the user's own, whose lines are not known."""
    return (
        f"# DataLoader(..., batch_size={samples // count}) in place of {samples}; in the training step divide the\n"
        f"# loss by {count}, and call optimizer.step() and optimizer.zero_grad() with every {count}th batch only"
    )
