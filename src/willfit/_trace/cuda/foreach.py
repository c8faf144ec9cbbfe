"""Operators on lists of tensors: the norms of gradients, and fused optimizers that meta tensors lack.

Sources: _foreach_tensor_norm_cuda_impl and foreach_tensor_max_cuda in aten/src/ATen/native/cuda/ForeachReduceOp.cu;
can_use_fast_route in aten/src/ATen/native/ForeachUtils.h; kChunkSize in aten/src/ATen/native/cuda/MultiTensorApply.cuh.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from willfit._trace.cuda.composing import accumulated, empty, operate
from willfit._trace.kernels import Call, kernel
from willfit._trace.overrides import overload

_CHUNK = 65536
_GLOBAL = 320  # partial results of the norm of all tensors together, in versions that have _foreach_global_norm


def _is_fast(tensors: Sequence[torch.Tensor]) -> bool:
    """can_use_fast_route, for one list: one dtype, and no gaps in memory."""
    return all(t.dtype == tensors[0].dtype and torch.ops.aten.is_non_overlapping_and_dense(t) for t in tensors)


def _chunks(tensors: Sequence[torch.Tensor]) -> int:
    """Partial results: as many for each tensor as the largest one has chunks."""
    return len(tensors) * max(-(-tensor.numel() // _CHUNK) for tensor in tensors)


@kernel("_foreach_norm.Scalar")
def foreach_norm(call: Call) -> Any:
    """Partial results of all tensors at once, then a number for each; one by one for orders but 1, 2 and infinity."""
    tensors, order, dtype = call.args[0], call.argument("ord"), call.argument("dtype")
    fast = _is_fast(tensors) and all(t.is_floating_point() for t in tensors)
    if not fast or order not in (1, 2, math.inf):
        return [operate(call, "linalg_vector_norm", t, order, None, False, dtype=dtype) for t in tensors]
    dtype = dtype or tensors[0].dtype
    wide = accumulated(dtype)
    has_global = overload("_foreach_global_norm") is not None
    partial = call.take(_chunks(tensors) * wide.itemsize)
    of_all = call.take(_GLOBAL * wide.itemsize if has_global else 0)
    norms = [empty(call, (), dtype) for _ in tensors]
    norm_of_all = call.take(dtype.itemsize if has_global else 0)
    call.give_back(norm_of_all, of_all, partial)
    return norms


@kernel("_foreach_max")
def foreach_max(call: Call) -> Any:
    """As the norm; by themselves where the tensors are of different kinds."""
    tensors = call.args[0]
    if not _is_fast(tensors):
        return [operate(call, "max", t) for t in tensors]
    with call.temporary(_chunks(tensors) * tensors[0].itemsize):
        return [empty(call, (), tensors[0].dtype) for _ in tensors]


@kernel("_fused_adagrad_", "_fused_adagrad_.tensor_lr", "_fused_sgd_", "_fused_sgd_.tensor_lr")
def fused(call: Call) -> None:
    """In place (aten/src/ATen/native/cuda/FusedAdagradKernel.cu, FusedSgdKernel.cu)."""
