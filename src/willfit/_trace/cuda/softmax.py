"""softmax and log_softmax on CUDA: fp16 is read as it is where the result is fp32.

Source: softmax and log_softmax in aten/src/ATen/native/SoftMax.cpp (half_to_float), host_softmax and
host_softmax_backward in aten/src/ATen/native/cuda/SoftMax.cu.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from willfit._trace.cuda import autocast  # noqa: F401  # autocast asks for fp32 first
from willfit._trace.cuda.composing import contiguous
from willfit._trace.fake import FakeCudaTensor
from willfit._trace.kernels import Call, kernel, nbytes
from willfit._trace.overrides import override


def _reads_half(input: torch.Tensor, dtype: torch.dtype | None) -> bool:
    return isinstance(input, FakeCudaTensor) and input.dtype == torch.float16 and dtype == torch.float32


@override("softmax.int")
def softmax(own: Callable[..., Any], self: torch.Tensor, dim: int, dtype: torch.dtype | None = None) -> Any:
    """Without a copy of the input in fp32."""
    return torch.ops.aten._softmax(self, dim, True) if _reads_half(self, dtype) else own(self, dim, dtype)


@override("log_softmax.int")
def log_softmax(own: Callable[..., Any], self: torch.Tensor, dim: int, dtype: torch.dtype | None = None) -> Any:
    """As softmax."""
    return torch.ops.aten._log_softmax(self, dim, True) if _reads_half(self, dtype) else own(self, dim, dtype)


@kernel("_softmax", "_log_softmax")
def forward(call: Call) -> Any:
    """The output, and a contiguous copy of the input while it is read."""
    out = call.run()
    x = call.args[0]
    with call.temporary(0 if x.is_contiguous() else nbytes(x)):
        pass
    return out


@kernel("_log_softmax_backward_data")
def log_softmax_backward(call: Call) -> Any:
    """The gradient, and contiguous copies of what is read."""
    result = call.run()
    copies = [contiguous(call, tensor) for tensor in call.args[:2]]
    del copies
    return result
