"""Comparisons that a job reads: ``if loss > limit``, ``if labels.max() >= classes: raise``.

They are taken to be false: most of them guard against the exception, or ask whether an iteration has converged.
"""

from __future__ import annotations

from typing import Any

from willfit._trace.cuda.values import remember
from willfit._trace.kernels import Call, kernel

COMPARISONS = tuple(f"{name}.{kind}" for name in ("ge", "gt", "le", "lt", "eq", "ne") for kind in ("Scalar", "Tensor"))


@kernel(*COMPARISONS)
def comparison(call: Call) -> Any:
    """One that is read as a whole is remembered as such."""
    out = call.run()
    if out.numel() == 1:
        remember(call.recorder, out, call.func._schema.name.removeprefix("aten::"))
    return out
