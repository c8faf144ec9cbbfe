"""Sorting and what rests on it: sort, topk, median, mode, and the extremes with their places.

Sources, in aten/src/ATen/native: sort_cuda_kernel in cuda/Sort.cpp; cuda/SortStable.cu; topk_out_cuda in
cuda/TensorTopK.cpp and mbtopk::launch in TensorTopK.cu; cuda/Sorting.cpp (kthvalue, median); cuda/TensorModeKernel.cpp;
cuda/TensorCompare.cpp and cuda/ReduceMinMaxKernel.cu.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from willfit._trace.cuda import cub
from willfit._trace.cuda.composing import contiguous, empty, empty_like, operate
from willfit._trace.cuda.reduction import iteration, parts, workspace
from willfit._trace.kernels import Call, kernel

_aten = torch.ops.aten
_SMALL = 4096  # should_use_small_sort


def _dim(call: Call, name: str = "dim") -> int:
    tensor = call.args[0]
    return call.argument(name) % tensor.dim() if tensor.dim() else 0


def _length(tensor: torch.Tensor, dim: int) -> int:
    return tensor.size(dim) if tensor.dim() else 1


def radix_sort(call: Call, items: int, key: int, value: int, bits: int | None = None) -> int:
    """CUB's temporary storage on this GPU."""
    recorder = call.recorder
    return cub.radix_sort(items, key, value, recorder.compute_capability, recorder.multiprocessors, bits)


# -- sort --------------------------------------------------------------------------------------------------------------


@kernel("sort", "sort.stable")
def sort(call: Call) -> Any:
    """Values and indices; short runs are sorted where they lie, after the indices were counted up."""
    tensor = call.args[0]
    values, indices = call.run()
    if not tensor.dim() or not tensor.numel():
        return values, indices
    dim = _dim(call)
    if tensor.size(dim) <= _SMALL:
        with call.temporary(8 * tensor.size(dim)):
            pass
    else:
        _sort_long(call, tensor, dim, values, indices)
    return values, indices


def _sort_long(call: Call, tensor: torch.Tensor, dim: int, values: torch.Tensor, indices: torch.Tensor) -> None:
    """The runs next to each other in memory, in copies where they are not."""
    held: list[torch.Tensor] = []
    strides = tensor.stride()
    if tensor.stride(dim) != 1 or not _aten.is_non_overlapping_and_dense(tensor):
        strides = _dim_last(tensor, dim)
        held.append(_strided(call, tensor, strides, tensor.dtype))
    if values.stride() != strides:
        held.append(_strided(call, tensor, strides, tensor.dtype))
    if indices.stride() != strides:
        held.append(_strided(call, tensor, strides, torch.int64))
    length, elements, key = tensor.size(dim), tensor.numel(), tensor.element_size()
    segments = elements // length
    if segments == 1 or length >= 1_000_000:
        with call.temporary(8 * length):
            for _ in range(segments):
                with call.temporary(radix_sort(call, length, key, 8)):
                    pass
    elif segments < 128:  # sorted as a whole, then by the segment
        pairs = [call.take(8 * elements), call.take(8 * elements)]
        with call.temporary(key * elements, radix_sort(call, elements, key, 8)):
            pass
        bits = max(1, math.ceil(math.log2(segments)))
        with call.temporary(radix_sort(call, elements, 8, 0, bits)):
            pass
        call.give_back(*reversed(pairs))
    else:
        with call.temporary(8 * elements, cub.segmented_sort(elements, key, 8)):
            pass
    del held


def _dim_last(tensor: torch.Tensor, dim: int) -> tuple[int, ...]:
    """infer_dense_strides_dim_last: the sorted dimension innermost, the others in their order of strides."""
    order = sorted(range(tensor.dim()), key=lambda d: (d != dim, tensor.stride(d)))
    strides, step = [0] * tensor.dim(), 1
    for d in order:
        strides[d] = step
        step *= max(1, tensor.size(d))
    return tuple(strides)


def _strided(call: Call, tensor: torch.Tensor, strides: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    options = {"dtype": dtype, "device": tensor.device}
    return call.recorder.run(_aten.empty_strided.default, (list(tensor.shape), list(strides)), options)  # type: ignore[no-any-return]


# -- topk --------------------------------------------------------------------------------------------------------------

_BLOCK = 256
_REGISTERS = 40 * _BLOCK  # of a block of mbtopk
_MULTIBLOCK = ((20, 20_000), (40, 10_000), (80, 8000), (199, 5000), (799, 3000), (4000, 800))


@kernel("topk")
def topk(call: Call) -> Any:
    """Long slices are read by several blocks, which count digits in memory; a long result is sorted afterwards."""
    values, indices = call.run()
    select_largest(call, call.args[0], _dim(call), values, indices, in_order=call.argument("sorted"))
    return values, indices


def select_largest(
    call: Call, tensor: torch.Tensor, dim: int, values: torch.Tensor, indices: torch.Tensor, *, in_order: bool
) -> None:
    """topk_out_cuda, into outputs that are there."""
    if not values.numel():
        return
    length = _length(tensor, dim)
    slices = tensor.numel() // length
    least = next((length for most, length in _MULTIBLOCK if slices <= most), 400)
    copy = contiguous(call, tensor)
    if length >= least:
        _select_by_blocks(call, slices, length, tensor.dtype)
    del copy
    if in_order and _length(values, dim) > _SMALL:
        sorted_indices, sorted_values = empty_like(call, indices), empty_like(call, values)
        _sort_long(call, values, dim, sorted_values, sorted_indices)
        gathered = empty(call, indices.shape, torch.int64)
        del gathered, sorted_indices, sorted_values


def _select_by_blocks(call: Call, slices: int, length: int, dtype: torch.dtype) -> None:
    """mbtopk::launch."""
    recorder = call.recorder
    blocks_at_once = recorder.multiprocessors * (65536 // _REGISTERS)
    each = min(64, max(4, cub.ceil_div(length * slices, blocks_at_once * _BLOCK))) * _BLOCK
    blocks = slices * cub.ceil_div(length, each)
    digit = 8 if dtype.itemsize == 8 else 4
    by_key = cub.scan_by_key(blocks, 4, 4, recorder.compute_capability)
    with call.temporary(
        *(slices * dtype.itemsize, slices * 2 * 4, slices * 2 * digit),
        *(blocks * 256 * 2, slices * 256 * 4, blocks * 4, blocks * 4),
    ):
        for _ in range(2):
            with call.temporary(by_key):
                pass


# -- one value of each slice -------------------------------------------------------------------------------------------


@kernel("kthvalue", "median.dim", "nanmedian.dim")
def selected(call: Call) -> Any:
    """A contiguous copy is read."""
    copy = contiguous(call, call.args[0])
    out = call.run()
    del copy
    return out


@kernel("median", "nanmedian")
def median_of_all(call: Call) -> Any:
    """median_impl: everything sorted; then its last value decides whether there was a NaN."""
    tensor = call.args[0]
    if tensor.numel() == 0:
        return empty(call, (), tensor.dtype)
    flat = operate(call, "reshape", tensor, [-1])
    ordered, indices = operate(call, "sort", flat)
    del flat, indices
    if call.func is _aten.median.default:
        last = operate(call, "select.int", ordered, 0, -1)
        middle = operate(call, "select.int", ordered, 0, (tensor.numel() - 1) // 2)
        return operate(call, "where.self", operate(call, "isnan", last), last, middle)
    missing = operate(call, "isnan", ordered)
    count = operate(call, "sum", missing)
    with call.temporary(8):  # the place of the median, found on the GPU
        half = call.take(4)
        place = call.take(8)
        call.give_back(half)
        del count
    del missing
    out = call.run()
    call.give_back(place)
    return out


@kernel("mode")
def mode(call: Call) -> Any:
    """The slices next to each other in memory."""
    tensor = call.args[0]
    out = call.run()
    if tensor.dim() and tensor.numel():
        copy = contiguous(call, operate(call, "transpose.int", tensor, _dim(call), -1))
        del copy
    return out


@contextmanager
def smallest_and_largest(call: Call, tensor: torch.Tensor) -> Iterator[None]:
    """What aminmax takes over all of it: two numbers, and the reduction's buffer (cuda/ReduceMinMaxKernel.cu)."""
    size = tensor.element_size()
    with call.temporary(size, size):
        copy = contiguous(call, tensor)
        _reduce(call, copy, range(tensor.dim()), size, 2 * size)
        del copy
        yield


def _reduce(call: Call, tensor: torch.Tensor, dims: Iterable[int], out_size: int, accumulator: int) -> None:
    """What a reduction takes that is split across blocks."""
    recorder = call.recorder
    for part in parts(iteration(tensor, list(dims), out_size)):
        sizes = workspace(
            part, tensor.element_size(), accumulator, recorder.compute_capability, recorder.multiprocessors
        )
        with call.temporary(*sizes):
            pass


_VALUE_AND_INDEX = 16  # bytes of a pair of a number and its place, as the kernels of max and argmax hold it


@kernel("max.dim", "min.dim")
def extreme_and_index(call: Call) -> Any:
    """One reduction to pairs (max_kernel_impl in cuda/TensorCompare.cpp)."""
    tensor = call.args[0]
    values, indices = call.run()
    if tensor.dim() and tensor.numel():
        _reduce(call, tensor, [_dim(call)], values.element_size(), _VALUE_AND_INDEX)
    return values, indices


@kernel("argmax", "argmin")
def index_of_extreme(call: Call) -> Any:
    """Of all in the order of a contiguous copy, where no dimension is named."""
    tensor = call.args[0]
    if call.argument("dim") is not None:
        out = call.run()
        if tensor.dim() and tensor.numel():
            _reduce(call, tensor, [_dim(call)], out.element_size(), _VALUE_AND_INDEX)
        return out
    copy = contiguous(call, tensor)
    out = call.run()
    if tensor.numel():
        _reduce(call, copy, range(tensor.dim()), out.element_size(), _VALUE_AND_INDEX)
    del copy
    return out
