"""Sums, products and maxima along a dimension: what CUB keeps for each tile where one run is scanned.

Sources: scan_dim in aten/src/ATen/native/cuda/ScanUtils.cuh; impl_func_cum_ops and cummax_cummin_helper in
aten/src/ATen/native/ReduceOps.cpp; cuda/ScanKernels.cpp.
"""

from __future__ import annotations

from typing import Any

import torch

from willfit._trace.cuda import cub
from willfit._trace.cuda.composing import contiguous
from willfit._trace.kernels import Call, kernel


@kernel("cumsum", "cumprod", "logcumsumexp")
def scan(call: Call) -> Any:
    """The output, the input in its dtype and in its order, and CUB's tiles if nothing but one run is there."""
    tensor = call.args[0]
    out = call.run()
    if not tensor.dim() or not tensor.numel():
        return out
    same = tensor
    if tensor.dtype != out.dtype:
        same = call.recorder.run(torch.ops.aten._to_copy.default, (tensor,), {"dtype": out.dtype})
    dense = contiguous(call, same)
    dim = call.args[1] % tensor.dim()
    if tensor.size(dim) == tensor.numel():
        with call.temporary(_one_run(call, tensor.numel(), out.dtype)):
            pass
    del dense, same
    return out


def _one_run(call: Call, elements: int, dtype: torch.dtype) -> int:
    """cub::inclusive_scan, or the sums of each block where the order of additions must not vary."""
    if call.func is torch.ops.aten.cumsum.default and dtype.is_floating_point and _deterministic():
        threads = 512 if dtype.itemsize < 8 else 256
        blocks = cub.ceil_div(elements, threads * 16)
        return min(blocks, call.recorder.multiprocessors) * dtype.itemsize
    return cub.scan(elements, dtype.itemsize, primitive=dtype not in (torch.float16, torch.bfloat16))


def _deterministic() -> bool:
    return torch.are_deterministic_algorithms_enabled()


@kernel("cummax", "cummin")
def extremes_so_far(call: Call) -> Any:
    """Values and indices, then the input in its order."""
    out = call.run()
    copy = contiguous(call, call.args[0])
    del copy
    return out
