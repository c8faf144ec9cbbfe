"""Which values there are, how many and where they belong: unique, count_nonzero, bincount, searchsorted and isin.

Sources, in aten/src/ATen/native: unique_cuda_template in cuda/UniqueCub.cu; BucketizationUtils.h; bincount_cuda in
cuda/SummaryOps.cu; isin_default_kernel_gpu in cuda/TensorCompare.cu; count_nonzero_cuda in TensorAdvancedIndexing.cpp.
"""

from __future__ import annotations

from typing import Any

import torch

from willfit._trace.cuda import cub
from willfit._trace.cuda.composing import contiguous, empty, operate
from willfit._trace.cuda.sorting import radix_sort, smallest_and_largest
from willfit._trace.cuda.values import largest_counted, number_unique
from willfit._trace.fake import FakeCudaTensor
from willfit._trace.kernels import Call, kernel

_aten = torch.ops.aten
_OWN_TYPES = (torch.float16, torch.bfloat16)  # classes of PyTorch's, which CUB does not know as primitive


# -- unique ------------------------------------------------------------------------------------------------------------


@kernel("_unique", "_unique2", "unique_consecutive")
def unique(call: Call) -> Any:
    """unique_cuda_template; its outputs are cut to their lengths without giving memory back."""
    tensor = call.args[0]
    dim = call.argument("dim")
    if dim is not None:
        return unique_dim(call)
    items, consecutive = tensor.numel(), call.func is _aten.unique_consecutive.default
    with_inverse, with_counts = call.argument("return_inverse"), call.argument("return_counts", False)
    if not items:
        outputs = [empty(call, shape, dtype) for shape, dtype in (((0,), tensor.dtype), (tensor.shape, torch.int64))]
        return (*outputs, empty(call, (0,), torch.int64))[: len(call.func._schema.returns)]
    held = [contiguous(call, tensor)]
    if tensor.dtype == torch.bool and not consecutive:
        return _unique_of_two(call, tensor, with_inverse)[: len(call.func._schema.returns)]
    if not consecutive:
        held += _sorted(call, held[0], with_inverse)
    inverse = empty(call, tensor.shape if with_inverse else (0,), torch.int64)
    if with_inverse:
        locations = empty(call, (items,), torch.int32 if consecutive else torch.int64)
        with call.temporary(cub.scan(items, 4)):
            pass
        del locations
    values = empty(call, (items,), tensor.dtype)
    kept = number_unique(call.recorder, tensor, consecutive=consecutive)
    with call.temporary(8):
        counts = empty(call, (items if with_counts else 0,), torch.int64)
        selecting = cub.unique(
            items, tensor.element_size(), call.recorder.compute_capability, primitive=tensor.dtype not in _OWN_TYPES
        )
        with call.temporary(cub.run_length_encode(items) if with_counts else selecting):
            pass
    del held
    values = operate(call, "slice.Tensor", values, 0, 0, kept)
    if with_counts:
        counts = operate(call, "slice.Tensor", counts, 0, 0, kept)
    return (values, inverse, counts)[: len(call.func._schema.returns)]


def _unique_of_two(call: Call, tensor: torch.Tensor, with_inverse: bool) -> tuple[torch.Tensor, ...]:
    """unique_cuda_template<bool>: true values are counted, nothing is sorted."""
    recorder = call.recorder
    with call.temporary(4):
        with call.temporary(cub.reduce(tensor.numel(), 4, recorder.compute_capability, recorder.multiprocessors)):
            pass
        kept = min(2, number_unique(recorder, tensor))
        found = empty(call, (2,), torch.bool), empty(call, (2,), torch.int64)
        values, counts = (operate(call, "slice.Tensor", each, 0, 0, kept) for each in found)
        return values, empty(call, tensor.shape if with_inverse else (0,), torch.int64), counts


def _sorted(call: Call, tensor: torch.Tensor, with_order: bool) -> list[torch.Tensor]:
    """The values in order, and where they were."""
    items, key = tensor.numel(), tensor.element_size()
    held = [empty(call, (items,), tensor.dtype)]
    if not with_order:
        with call.temporary(radix_sort(call, items, key, 0)):
            pass
        return held
    counted = empty(call, (items,), torch.int64)
    held.append(empty(call, (items,), torch.int64))
    with call.temporary(radix_sort(call, items, key, 8)):
        pass
    del counted
    return held


@kernel("unique_dim", "unique_dim_consecutive")
def unique_dim(call: Call) -> Any:
    """Rows by themselves (cuda/Unique.cu, through thrust): the outputs alone are modelled."""
    tensor, dim = call.args[0], call.argument("dim")
    consecutive = call.func is _aten.unique_dim_consecutive.default
    kept = number_unique(call.recorder, tensor, dim, consecutive)
    values = contiguous(call, operate(call, "clone", operate(call, "slice.Tensor", tensor, dim, 0, kept)))
    return values, empty(call, (tensor.size(dim),), torch.int64), empty(call, (kept,), torch.int64)


# -- search and count --------------------------------------------------------------------------------------------------


@kernel("searchsorted.Tensor", "bucketize.Tensor")
def searchsorted(call: Call) -> Any:
    """Both inputs in one order and of one dtype (searchsorted_maybe_trim_input_tensors)."""
    given = list(call.args[:2])
    held = []
    sorter = call.argument("sorter")
    if sorter is not None and sorter.numel():
        with smallest_and_largest(call, sorter):
            pass
    out = call.run()
    given = [contiguous(call, tensor) if isinstance(tensor, FakeCudaTensor) else tensor for tensor in given]
    if sorter is not None:
        held.append(contiguous(call, sorter))
    common = torch.result_type(*(torch.empty((1,) * tensor.dim(), dtype=tensor.dtype) for tensor in given))
    for tensor in given[:: -1 if call.func is _aten.searchsorted.Tensor else 1]:
        if tensor.dtype != common and isinstance(tensor, FakeCudaTensor):
            held.append(call.recorder.run(_aten._to_copy.default, (tensor,), {"dtype": common}))
    del held, given
    return out


@kernel("searchsorted.Scalar", "bucketize.Scalar")
def searchsorted_number(call: Call) -> Any:
    """The number as a tensor, then in the dtype of the others."""
    edges = call.args[0] if call.func is _aten.searchsorted.Scalar else call.args[1]
    sorter = call.argument("sorter")
    with call.temporary(8):
        if sorter is not None and sorter.numel():
            with smallest_and_largest(call, sorter):
                pass
        out = call.run()
        with call.temporary(edges.element_size() if edges.element_size() != 8 else 0):
            pass
    return out


@kernel("count_nonzero", "count_nonzero.dim_IntList")
def count_nonzero(call: Call) -> Any:
    """The sum of what is not zero."""
    tensor = call.args[0]
    dims = call.argument("dim")
    if dims is None or isinstance(dims, int):
        dims = range(tensor.dim()) if dims is None else [dims]
    return operate(call, "sum.dim_IntList", operate(call, "ne.Scalar", tensor, 0), list(dims))


@kernel("isin.Tensor_Tensor")
def isin(call: Call) -> Any:
    """Each element against each, where few are looked for (isin_default_kernel in cuda/TensorCompare.cu)."""
    elements, among = call.args[:2]
    out = call.run()
    if among.numel() < 10 * elements.numel() ** 0.145:
        with call.temporary(elements.numel() * among.numel(), out.numel()):
            pass
    return out


@kernel("bincount")
def bincount(call: Call) -> Any:
    """Weights in a floating-point dtype; the largest number is read to know how many bins there are."""
    tensor, weights = call.args[0], call.argument("weights")
    bins = call.argument("minlength", 0)
    if not tensor.numel():
        return empty(call, (bins,), torch.int64)
    dtype = torch.int64
    if weights is not None:
        dtype = torch.float32 if weights.dtype == torch.float32 else torch.float64
        if weights.dtype != dtype:
            weights = call.recorder.run(_aten._to_copy.default, (weights,), {"dtype": dtype})
    with smallest_and_largest(call, tensor):
        return empty(call, (max(bins, 1 + largest_counted(call.recorder, tensor)),), dtype)
