"""Kernels that CUDA composes of other operators: what their bodies in C++ call, on fake tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from willfit._trace.fake import CUDA, FakeCudaTensor
from willfit._trace.kernels import Call
from willfit._trace.overrides import overload


def operate(call: Call, name: str, *args: Any, **kwargs: Any) -> Any:
    """An operator that the kernel calls in turn, such as ``"mul.Tensor"``: by its own rule where it has one."""
    return call.recorder.__torch_dispatch__(overload(name), (FakeCudaTensor,), args, kwargs)


def empty(call: Call, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """at::empty on the GPU."""
    options = {"dtype": dtype, "device": CUDA}
    return call.recorder.run(torch.ops.aten.empty.memory_format, (list(shape),), options)  # type: ignore[no-any-return]


def empty_like(
    call: Call,
    tensor: torch.Tensor,
    memory_format: torch.memory_format = torch.preserve_format,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """at::empty_like."""
    options = {"memory_format": memory_format, "dtype": dtype}
    return call.recorder.run(torch.ops.aten.empty_like.default, (tensor,), options)  # type: ignore[no-any-return]


def contiguous(
    call: Call, tensor: torch.Tensor, memory_format: torch.memory_format = torch.contiguous_format
) -> torch.Tensor:
    """Tensor::contiguous: the tensor itself, or a copy."""
    if tensor.is_contiguous(memory_format=memory_format):
        return tensor
    return call.recorder.run(torch.ops.aten.clone.default, (tensor,), {"memory_format": memory_format})  # type: ignore[no-any-return]


def suggested_format(tensor: torch.Tensor) -> torch.memory_format:
    """Tensor::suggest_memory_format."""
    return torch._prims_common.suggest_memory_format(tensor)


def accumulated(dtype: torch.dtype) -> torch.dtype:
    """at::toAccumulateType on CUDA, for floating-point numbers."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
