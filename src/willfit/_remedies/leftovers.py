"""What a step leaves behind for the next one: gradients of zeros, and outputs that it returns."""

from __future__ import annotations

from collections.abc import Iterator

from willfit._remedies.remedy import Change, NotApplicable, Situation


def gradients_set_to_none(situation: Situation) -> Iterator[Change]:
    """``zero_grad(set_to_none=True)``, so that gradients take no memory in the next forward pass."""
    if situation.job.step is None or situation.job.optimizer is None:
        raise NotApplicable("gradients are set to None already")
    yield Change(
        name="set-to-none",
        title="gradients set to None after the step",
        disruption="same results",
        cost="the same results",
        code=_SET_TO_NONE,
        order=70,
    )


def outputs_dropped(situation: Situation) -> Iterator[Change]:
    """A step that returns nothing, so that no output stays in memory until the next one is there."""
    if situation.job.step is None:
        raise NotApplicable("the step returns nothing")
    yield Change(
        name="drop-outputs",
        title="outputs dropped at the end of the step",
        disruption="same results",
        cost="the same results; return loss.item() if the loop wants the number",
        code=_NOTHING_RETURNED,
        order=95,
    )


_SET_TO_NONE = """\
zero_grad = optimizer.zero_grad
optimizer.zero_grad = lambda set_to_none=True: zero_grad(set_to_none=True)
"""
_NOTHING_RETURNED = """\
own_step = step

def step(model, optimizer, batch):
    own_step(model, optimizer, batch)
"""
