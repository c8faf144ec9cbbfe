"""Reductions: the memory through which blocks of a kernel combine their parts, and copies of the input.

Source: setReduceConfig and gpu_reduce_kernel in aten/src/ATen/native/cuda/Reduce.cuh (a buffer and semaphores, taken
through the caching allocator, where the reduction is split across blocks); make_reduction in
aten/src/ATen/native/ReduceOpsUtils.h (an input of another dtype than the accumulation is copied first);
TensorIterator::reorder_dimensions and coalesce_dimensions in aten/src/ATen/TensorIterator.cpp.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch

from willfit._trace.fake import META, run_on_meta
from willfit._trace.kernels import Call, kernel, nbytes

_WARP = 32
_MOST_THREADS = 512  # mnt_wrapper<T>::MAX_NUM_THREADS
_INT32 = 2**31 - 1


class Dim(NamedTuple):
    """One dimension of the iteration: its length, and strides in bytes."""

    size: int
    input: int
    output: int  # 0 where it is reduced


def max_threads_per_multiprocessor(compute_capability: tuple[int, int]) -> int:
    """Threads that one multiprocessor holds (CUDA C++ Programming Guide, technical specifications)."""
    major, minor = compute_capability
    if (major, minor) == (7, 5):
        return 1024
    return 1536 if (major, minor) in ((8, 6), (8, 7), (8, 9)) or major == 12 else 2048


def iteration(tensor: torch.Tensor, reduced: Sequence[int], out_itemsize: int) -> list[Dim]:
    """The dimensions as TensorIterator orders and coalesces them: reduced ones first, each by rising stride."""
    dims, out_stride = [], out_itemsize
    for index in reversed(range(tensor.dim())):
        size, stride = tensor.size(index), tensor.stride(index) * tensor.itemsize
        dims.append(Dim(size, stride, 0 if index in reduced else out_stride))
        if index not in reduced:
            out_stride *= size
    ordered: list[Dim] = []
    for dim in dims:  # insertion sort, as there: an ambiguous pair neither moves nor stops the search
        place = len(ordered)
        for position in reversed(range(len(ordered))):
            order = _compare(ordered[position], dim)
            if order > 0:
                place = position
            elif order < 0:
                break
        ordered.insert(place, dim)
    merged: list[Dim] = []
    for dim in ordered:
        if merged and _coalesces(merged[-1], dim):
            last = merged[-1]
            kept = dim if last.size == 1 else last
            merged[-1] = Dim(last.size * dim.size, kept.input, kept.output)
        else:
            merged.append(dim)
    return merged


def _compare(first: Dim, second: Dim) -> int:
    """Positive where the second belongs before the first."""
    if (first.output == 0) != (second.output == 0):
        return 1 if second.output == 0 else -1
    for a, b in ((first.output, second.output), (first.input, second.input)):
        if a == 0 or b == 0:
            continue
        if a != b:
            return -1 if a < b else 1
        if first.size > second.size:
            return 1
    return 0


def _coalesces(first: Dim, second: Dim) -> bool:
    if first.size == 1 or second.size == 1:
        return True
    return first.size * first.input == second.input and first.size * first.output == second.output


def _last_power_of_2(number: int) -> int:
    return 1 << max(0, number.bit_length() - 1)


def _ceil(a: int, b: int) -> int:
    return -(-a // b)


def workspace(
    dims: list[Dim],
    itemsize: int,
    accumulator: int,
    compute_capability: tuple[int, int],
    multiprocessors: int,
    vector: int = 4,
) -> tuple[int, int]:
    """Bytes of the buffer and of the semaphores of one reduction; zeros where one block does an output by itself.

    ``accumulator`` is the size of the value that is accumulated, ``vector`` the elements that a thread loads at once.
    """
    elements = math.prod(dim.size for dim in dims)
    outputs = math.prod(dim.size for dim in dims if dim.output)
    inputs = elements // outputs
    reduce_dims = sum(dim.output == 0 for dim in dims)
    if not dims:
        return 0, 0
    on_fastest = reduce_dims == len(dims) or dims[0].input < dims[reduce_dims].input
    dim0, dim1 = (inputs, outputs) if on_fastest else (outputs, inputs)
    fastest = dims[0 if on_fastest else reduce_dims].input
    output_vector = 1
    if fastest == itemsize:
        if on_fastest and dim0 >= 128 and reduce_dims == 1:
            dim0 //= vector
        elif not on_fastest:
            output_vector = 4
            others = [dim.input // itemsize for dim in dims[:reduce_dims] + dims[reduce_dims + 1 :]]
            for number in (dims[reduce_dims].size, *others):
                while number % output_vector:
                    output_vector //= 2
            dim0 //= output_vector
    most = _MOST_THREADS // output_vector
    width_limit = _last_power_of_2(dim0) if dim0 < most else most
    height_limit = _last_power_of_2(dim1) if dim1 < most else most
    width = min(width_limit, _WARP)
    height = min(height_limit, most // width)
    width = min(width_limit, most // height)
    step_input, step_output = (width, 1) if on_fastest else (1, width)
    across_warps = _ceil(inputs, step_input) >= min(height * 16, 256)
    if across_warps:
        step_input *= height
    else:
        step_output *= height
    target = multiprocessors * (max_threads_per_multiprocessor(compute_capability) // (width * height))
    grid = _ceil(outputs // output_vector, step_output)
    values = _ceil(inputs, step_input)
    if not across_warps or values < 256 or grid > target:
        return 0, 0
    blocks = max(min(_ceil(target, grid), _ceil(values, 16)), _ceil(values, 256))
    if blocks <= 1:
        return 0, 0
    buffer = accumulator * outputs * blocks
    if not on_fastest:
        buffer *= width * output_vector
    return buffer, 4 * grid


def parts(dims: list[Dim]) -> Iterator[list[Dim]]:
    """The iteration cut until 32 bits index each part (TensorIterator::with_32bit_indexing)."""
    if math.prod(dim.size for dim in dims) <= _INT32 and all(
        1 + sum((dim.size - 1) * dim[column] for dim in dims) <= _INT32 for column in (1, 2)
    ):
        yield dims
        return
    widest = max(range(len(dims)), key=lambda i: ((dims[i].size - 1) * max(dims[i].input, dims[i].output), i))
    size = dims[widest].size
    for piece in (size // 2, size - size // 2):
        yield from parts([*dims[:widest], dims[widest]._replace(size=piece), *dims[widest + 1 :]])


def accumulate_type(dtype: torch.dtype) -> int:
    """Bytes of at::acc_type on CUDA: fp16 and bf16 accumulate in fp32, integers in int64."""
    return max(4, dtype.itemsize) if dtype.is_floating_point or dtype.is_complex else dtype.itemsize


def reduce(
    call: Call,
    reduced: Sequence[int],
    computed: torch.dtype,
    accumulator: int,
    *,
    vector: int = 4,
    contiguous: bool = False,
) -> Any:
    """Run a reduction: its output, the copy of an input that is not read as it is, then buffer and semaphores."""
    tensor: torch.Tensor = call.args[0]
    out = call.run()
    if tensor.numel() == 0 or out.numel() == 0:
        return out
    read = _dense_like(tensor, computed) if computed != tensor.dtype else tensor
    if contiguous and not read.is_contiguous():
        read = torch.empty(read.shape, dtype=computed, device=META)
    with call.temporary(nbytes(read) if read is not tensor else 0):
        for part in parts(iteration(read, reduced, out.itemsize)):
            sizes = workspace(
                part,
                read.itemsize,
                accumulator,
                call.recorder.compute_capability,
                call.recorder.multiprocessors,
                vector,
            )
            with call.temporary(*sizes):
                pass
    return out


def _dense_like(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What ``tensor.to(dtype)`` would be, on meta and unrecorded."""
    return run_on_meta(torch.ops.aten._to_copy.default, (tensor,), {"dtype": dtype})  # type: ignore[no-any-return]


def reduced_dims(call: Call) -> list[int]:
    """The dimensions that the call reduces, counted from the front; all where none are named."""
    tensor = call.args[0]
    dims = call.argument("dim")
    if dims is None or (isinstance(dims, (list, tuple)) and not dims):
        return list(range(tensor.dim()))
    return [dim % tensor.dim() if tensor.dim() else 0 for dim in ([dims] if isinstance(dims, int) else dims)]


@kernel("sum", "sum.dim_IntList", "mean", "mean.dim", "nansum")
def sums(call: Call) -> Any:
    """Sum and mean: fp16 and bf16 are read as they are, other dtypes than the output's are copied first."""
    tensor = call.args[0]
    dtype = call.argument("dtype")
    if dtype is None:
        dtype = tensor.dtype if tensor.is_floating_point() or tensor.is_complex() else torch.int64
    low = tensor.dtype in (torch.float16, torch.bfloat16) and dtype == torch.float32
    computed = tensor.dtype if low else dtype
    is_sum = call.func._schema.name != "aten::mean"
    vector = 8 if is_sum and computed.itemsize == 2 else 4
    return reduce(call, reduced_dims(call), computed, accumulate_type(computed), vector=vector)


@kernel("amax", "amin")
def extremes(call: Call) -> Any:
    """Amax and amin."""
    return reduce(call, reduced_dims(call), call.args[0].dtype, call.args[0].itemsize)


@kernel("max", "min")
def extreme_of_all(call: Call) -> Any:
    """The whole tensor's max and min read a contiguous copy (max and min in ReduceAllOps.cpp)."""
    tensor = call.args[0]
    return reduce(call, range(tensor.dim()), tensor.dtype, tensor.itemsize, contiguous=True)


@kernel("linalg_vector_norm")
def vector_norm(call: Call) -> Any:
    """Norms accumulate in fp32, in fp64 for fp64."""
    tensor = call.args[0]
    return reduce(call, reduced_dims(call), tensor.dtype, accumulate_type(tensor.dtype))
