"""Activation checkpointing: what a block computes is dropped in forward, and computed again in backward."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from willfit._remedies.remedy import Change, NotApplicable, Situation

_COST = "computes the forward pass of {} a second time in backward: about {} % more time for each step"


def checkpointing(situation: Situation) -> Iterator[Change]:
    """By the model's own switch where it has one, else around its repeated blocks; every second of them, or all."""
    model: Any = situation.job.model
    if any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
        raise NotApplicable("it is on already")
    if getattr(model, "supports_gradient_checkpointing", False):
        kind = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"  # its name since 5.23
        switch = f'model.{kind}_checkpointing_enable({kind}_checkpointing_kwargs={{"use_reentrant": False}})\n'
        every, second = switch, switch + _SWITCHED_BACK
    else:
        path = repeated_blocks(model)
        every, second = (_AROUND_BLOCKS.format(blocks=f"model.{path}{part}") for part in ("", "[::2]"))
    # A forward pass is a third of the work of a step, as backward takes two products of matrices for one in forward.
    yield Change(
        name="checkpointing-half",
        title="activation checkpointing of every second block",
        disruption="slower",
        cost=_COST.format("every second block", 15),
        code=second,
        order=50,
        lighter="checkpointing",
    )
    yield Change(
        name="checkpointing",
        title="activation checkpointing",
        disruption="slower",
        cost=_COST.format("all blocks", 30),
        code=every,
        order=50,
    )


def repeated_blocks(model: nn.Module) -> str:
    """The path of the list whose blocks are alike and hold most of the parameters.

    Raises `NotApplicable` where no two blocks follow each other.
    """
    found: dict[str, int] = {}
    for name, module in model.named_modules():
        blocks = list(module.children()) if isinstance(module, (nn.ModuleList, nn.Sequential)) else []
        if len(blocks) > 1 and len({type(block) for block in blocks}) == 1 and any(blocks[0].children()):
            found[name] = sum(parameter.numel() for parameter in module.parameters())
    if not found:
        raise NotApplicable("the model has no blocks that repeat")
    return max(found, key=found.__getitem__)


_SWITCHED_BACK = """\
blocks = [module for module in model.modules() if hasattr(module, "gradient_checkpointing")]
for block in blocks[1::2]:
    block.gradient_checkpointing = False
"""
_AROUND_BLOCKS = """\
from functools import partial
from torch.utils.checkpoint import checkpoint

for block in {blocks}:
    block.forward = partial(checkpoint, block.forward, use_reentrant=False)
"""
