"""Other optimizers: the same one done otherwise, in backward, or one that keeps less."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch

from willfit._remedies.code import TRAINABLE, call, only_optimizer, optimizer_code
from willfit._remedies.remedy import Change, NotApplicable, Situation

ADAMS = ("Adam", "AdamW", "NAdam", "RAdam", "Adamax")
OPTIMIZER = "optimizer"
"""The kind of changes that exchange it."""


def optimizer(situation: Situation) -> Iterator[Change]:
    """From those that compute the same to those that do not."""
    own = only_optimizer(situation.job.optimizer)
    group = own.param_groups[0]
    takes = inspect.signature(type(own)).parameters
    if getattr(torch.optim, type(own).__name__, None) is not type(own):
        raise NotApplicable(f"what could take the place of {type(own).__name__} is not known")
    if "fused" in takes and not group.get("fused"):
        yield _change(
            "fused",
            f"fused {type(own).__name__}",
            "same results",
            "the same results, up to rounding, and faster",
            optimizer_code(own, fused=True, foreach=None),
        )
    if "foreach" in takes and group.get("foreach") is not False and not group.get("fused"):
        yield _change(
            "for-loop",
            f"{type(own).__name__} one parameter at a time",
            "slower",
            "the same results; some hundred kernels more for each optimizer step",
            optimizer_code(own, foreach=False),
        )
    if situation.job.step is None:
        yield _change(
            "in-backward",
            f"{type(own).__name__} within backward",
            "slower",
            "the same results; gradients cannot be accumulated, clipped by their norm or scaled",
            _in_backward(own),
        )
    if type(own).__name__ not in ADAMS:
        return
    lr, decay = group["lr"], group.get("weight_decay", 0)
    for name, title, made, cost in (
        (
            "adamw8bit",
            "8-bit AdamW",
            f"AdamW8bit({call(TRAINABLE, lr=lr, weight_decay=decay)})",
            "averages of 8 bits for each block",
        ),
        (
            "lion8bit",
            "8-bit Lion",
            f"Lion8bit({call(TRAINABLE, lr=lr / 3, weight_decay=decay * 3)})",
            "one average of 8 bits",
        ),
    ):
        yield _change(
            name,
            title,
            "trains otherwise",
            f"{cost}: close to the results with 32 bits",
            f"import bitsandbytes as bnb\n\noptimizer = bnb.optim.{made}",
            packages=("bitsandbytes",),
        )
    yield _change(
        "adafactor",
        "Adafactor",
        "trains otherwise",
        "variances by rows and columns, no momentum: other learning rates suit it",
        f"optimizer = torch.optim.Adafactor({call(TRAINABLE, lr=lr, weight_decay=decay)})",
    )
    yield _change(
        "sgd",
        "SGD with momentum",
        "trains otherwise",
        "one average for each weight; transformers train worse with it",
        f"optimizer = torch.optim.SGD({call(TRAINABLE, lr=lr * 10, momentum=0.9, weight_decay=decay)})",
    )


def _change(name: str, title: str, disruption: Any, cost: str, code: str, **more: Any) -> Change:
    return Change(name=name, title=title, disruption=disruption, cost=cost, code=code, order=70, kind=OPTIMIZER, **more)


def _in_backward(own: torch.optim.Optimizer) -> str:
    """Each parameter has an optimizer of its own, which steps as soon as the gradient is there."""
    made = optimizer_code(own).removeprefix("optimizer = ").replace(TRAINABLE, "[parameter]")
    return (
        f"optimizers = {{parameter: {made} for parameter in {TRAINABLE}}}\n\n"
        "def update(parameter):\n"
        "    optimizers[parameter].step()\n"
        "    optimizers[parameter].zero_grad()\n\n"
        "for parameter in optimizers:\n"
        "    parameter.register_post_accumulate_grad_hook(update)\n"
    )
