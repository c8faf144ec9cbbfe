"""Attention that does not keep the matrix of all tokens against all."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from willfit._remedies.remedy import Change, NotApplicable, Situation


def attention(situation: Situation) -> Iterator[Change]:
    """PyTorch's scaled_dot_product_attention in place of one written out, where Transformers can exchange it."""
    model: Any = situation.job.model
    implementation = getattr(getattr(model, "config", None), "_attn_implementation", None)
    if implementation is None:
        raise NotApplicable("the model is not one of Transformers', whose attention can be exchanged")
    if implementation != "eager":
        raise NotApplicable(f"attention is {implementation} already")
    if not getattr(model, "_supports_sdpa", False) or not hasattr(model, "set_attn_implementation"):
        raise NotApplicable(f"{type(model).__name__} has its own attention only")
    yield Change(
        name="sdpa",
        title="attention by scaled_dot_product_attention",
        disruption="same results",
        cost="the same results, up to rounding, and faster",
        code='model.set_attn_implementation("sdpa")',
        order=5,
    )
