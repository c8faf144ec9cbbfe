"""Comparisons that a job reads: ``if loss > limit``, ``if labels.max() >= classes: raise``, ``norm.isnan() | ...``.

They are taken to be false: most of them guard against the exception, or ask whether an iteration has converged.
"""

from __future__ import annotations

from typing import Any

from willfit._trace.cuda.values import remember, remember_either
from willfit._trace.kernels import Call, kernel

COMPARISONS = tuple(f"{name}.{kind}" for name in ("ge", "gt", "le", "lt", "eq", "ne") for kind in ("Scalar", "Tensor"))

EITHER = ("logical_or", "bitwise_or.Tensor")


@kernel(*COMPARISONS)
def comparison(call: Call) -> Any:
    """One that is read as a whole is remembered as such."""
    out = call.run()
    if out.numel() == 1:
        remember(call.recorder, out, call.func._schema.name.removeprefix("aten::"))
    return out


@kernel("bitwise_or.Tensor")  # and logical_or, which has a rule of its own
def either(call: Call) -> Any:
    """False where both sides are taken to be, as when gradients are clipped with ``error_if_nonfinite=True``."""
    out = call.run()
    remember_either(call.recorder, out, *call.args[:2])
    return out
