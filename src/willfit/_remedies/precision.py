"""Fewer bytes for each number: autocast, and weights of half the size."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from willfit._remedies.remedy import Change, NotApplicable, Situation

_HALF = (torch.bfloat16, torch.float16)


def precision(situation: Situation) -> Iterator[Change]:
    """Autocast, in bf16 where the GPU computes in it, else in fp16 with a scaled loss; then the weights themselves."""
    model, device = situation.job.model, situation.device
    dtypes = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
    has_bf16 = device.compute_capability >= (8, 0)  # before Ampere there is no arithmetic for it
    if torch.float32 not in dtypes:
        slow = f"; {device.name} has no arithmetic for bfloat16" if torch.bfloat16 in dtypes and not has_bf16 else ""
        raise NotApplicable(f"the weights are of 16 bits already{slow}")
    name = "bfloat16" if has_bf16 else "float16"
    yield Change(
        name="amp",
        title=f"autocast to {name}",
        disruption="trains otherwise",
        cost="matrix products with less exact numbers, and faster; the weights stay in float32"
        + ("" if has_bf16 else f" ({device.name} has no bfloat16)"),
        code=f'model.forward = torch.autocast("cuda", dtype=torch.{name})(model.forward)'
        + ("" if has_bf16 or situation.job.step is None else "\n# and scale the loss with a torch.amp.GradScaler"),
        loss_scaling=not has_bf16,
        order=60,
    )
    if has_bf16:
        yield Change(
            name="bf16",
            title="weights in bfloat16",
            disruption="trains otherwise",
            cost="updates smaller than 1/256 of a weight are lost in rounding",
            code="model.to(torch.bfloat16)",
            order=10,
        )
