"""Dropout on CUDA: one fused kernel that keeps a bool mask.

Source: is_fused_kernel_acceptable and _dropout in aten/src/ATen/native/Dropout.cpp; native_dropout_cuda in
aten/src/ATen/native/cuda/Dropout.cu.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from willfit._trace.fake import FakeCudaTensor
from willfit._trace.kernels import Call, kernel
from willfit._trace.overrides import override


@override("dropout")
def fused_dropout(own: Callable[..., Any], input: torch.Tensor, p: float, train: bool) -> Any:
    """Fused where 0 < p < 1 and there is something to drop."""
    if train and 0 < p < 1 and input.numel() > 0 and isinstance(input, FakeCudaTensor):
        return torch.ops.aten.native_dropout(input, p, train)[0]
    return own(input, p, train)


@kernel("native_dropout")
def mask_before_output(call: Call) -> Any:
    """The mask is allocated before the output."""
    return call.run(order=(1, 0))
