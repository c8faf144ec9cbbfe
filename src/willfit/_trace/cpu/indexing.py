"""Indexing by masks on the CPU: how much is taken depends on how many elements are true.

Source: expandTensors in aten/src/ATen/native/IndexingUtils.h, nonzero_out_cpu and masked_select_out_impl_cpu in
TensorAdvancedIndexing.cpp.
"""

from __future__ import annotations

from typing import Any

import torch

from willfit._trace.cpu.kernels import CpuCall, cpu_kernel
from willfit._trace.cuda.values import number_nonzero

_MASKS = (torch.bool, torch.uint8)


@cpu_kernel("nonzero")
def nonzero(call: CpuCall) -> Any:
    """A row for each element that is not zero."""
    tensor = call.args[0]
    return call.born(_meta((number_nonzero(call.recorder, tensor), tensor.dim()), torch.int64))


@cpu_kernel("index.Tensor", "index_put")
def index(call: CpuCall) -> Any:
    """A mask becomes the indices of its elements."""
    source, indices, *rest = call.args
    with call.recorder:
        expanded = [each for index in indices for each in _expanded(index)]
    return CpuCall(call.recorder, call.func, (source, expanded, *rest), call.kwargs).run()


@cpu_kernel("masked_select")
def masked_select(call: CpuCall) -> Any:
    """The elements; then the mask as numbers, and their sums."""
    tensor, mask = call.args
    out = call.born(_meta((number_nonzero(call.recorder, mask),), tensor.dtype))
    elements = torch.broadcast_shapes(tensor.shape, mask.shape).numel()
    with call.temporary(elements * 8, elements * 8):
        pass
    return out


def _expanded(index: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
    return torch.unbind(index.nonzero(), 1) if index is not None and index.dtype in _MASKS else (index,)


def _meta(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    with torch._C._DisableTorchDispatch():
        return torch.empty(shape, dtype=dtype, device="meta")
