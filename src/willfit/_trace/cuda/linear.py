"""``F.linear`` with a bias on inputs that are not flattened: the bias is added in place.

Source: linear in aten/src/ATen/native/Linear.cpp. PyTorch adds out of place for tensor subclasses, which a fake tensor
is one of, hence this override.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from willfit._trace.overrides import override


@override("linear")
def linear(
    own: Callable[..., Any], input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """By addmm for matrices and for contiguous inputs, which are flattened; else a product and an addition in place."""
    if bias is None or input.dim() == 2 or input.is_contiguous():
        return own(input, weight, bias)  # type: ignore[no-any-return]
    return torch.matmul(input, weight.t()).add_(bias)
