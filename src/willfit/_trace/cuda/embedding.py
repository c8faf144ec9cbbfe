"""Embeddings: the gradient of a table, added up over sorted indices.

Sources: embedding_symint in aten/src/ATen/native/Embedding.cpp; embedding_dense_backward_cuda in cuda/Embedding.cu;
embedding_backward_cuda_kernel in cuda/EmbeddingBackwardKernel.cu; _embedding_bag_cuda,
embedding_bag_backward_cuda_sum_avg and _max in cuda/EmbeddingBag.cu.
"""

from __future__ import annotations

from typing import Any

import torch
from packaging.version import Version

from willfit._trace.cuda import cub
from willfit._trace.cuda.composing import accumulated, contiguous, empty, empty_like, operate
from willfit._trace.kernels import Call, kernel, nbytes

_DENSE = torch.contiguous_format
_TORCH = Version(Version(torch.__version__).base_version)
_ATOMIC = 3072  # as many indices are added without sorting
_ROWS_OF_A_PART = 10  # NROWS_PER_THREAD
_SUM, _MEAN, _MAX = range(3)  # EmbeddingBagMode


def is_flat_view(tensor: torch.Tensor) -> bool:
    """Whether ``tensor.reshape(-1)`` needs no copy: the strides of dimensions longer than 1 follow one another."""
    expected = None
    for size, stride in zip(reversed(tensor.shape), reversed(tensor.stride()), strict=True):
        if size == 1:
            continue
        if expected is not None and stride != expected:
            return False
        expected = size * stride
    return True


@kernel("embedding")
def embedding(call: Call) -> Any:
    """index_select over ``indices.reshape(-1)``, which copies indices that are not one flat run."""
    indices = call.args[1]
    copied = nbytes(indices) if indices.dim() != 1 and not is_flat_view(indices) else 0
    with call.temporary(copied):
        return call.run()


@kernel("embedding_dense_backward")
def embedding_dense_backward(call: Call) -> Any:
    """Few indices are added as they come, many in sorted order."""
    gradient, indices, rows, _, by_frequency = call.args
    indices = contiguous(call, indices)
    gradient = contiguous(call, gradient)
    if indices.numel() <= _ATOMIC and not by_frequency:
        return empty(call, (rows, gradient.size(-1)), gradient.dtype)
    return _summed(call, gradient, indices, rows, by_frequency, in_bags=False)


def _summed(
    call: Call, gradient: torch.Tensor, indices: torch.Tensor, rows: int, by_frequency: bool, *, in_bags: bool
) -> torch.Tensor:
    """The indices sorted, counted if their frequency matters, and the rows of each added up."""
    capability = call.recorder.compute_capability
    size, count = indices.element_size(), indices.numel()
    held = [empty_like(call, indices, _DENSE) for _ in range(2)]
    bits = cub.number_of_bits(rows) if Version("2.13") <= _TORCH else None  # pull request 183578
    with call.temporary(
        size * count, cub.radix_sort(count, size, size, capability, call.recorder.multiprocessors, bits)
    ):
        pass
    if by_frequency:
        held.append(empty_like(call, indices, _DENSE))
        for _ in range(2):
            with call.temporary(cub.scan_by_key(count, size, size, capability)):
                pass
    out = _scattered(call, gradient, indices, rows, in_bags)
    del held
    return out


def _scattered(call: Call, gradient: torch.Tensor, indices: torch.Tensor, rows: int, in_bags: bool) -> torch.Tensor:
    """embedding_backward_cuda_kernel: a segment for each row of the table, in parts of ten rows of the gradient."""
    size, count = indices.element_size(), indices.numel()
    width = gradient.size(-1)
    out = empty(call, (rows, width), gradient.dtype)
    segments = min(count, rows)
    parts = count // _ROWS_OF_A_PART + segments
    accumulator = accumulated(gradient.dtype)
    if not in_bags and _is_fused(segments, parts, width, call.recorder.multiprocessors):
        sums = [size * parts, rows * width * accumulator.itemsize if gradient.dtype != accumulator else 0]
    else:
        sums = [parts * width * accumulator.itemsize]
    offsets = [call.take(size * count), call.take(8)]
    with call.temporary(size * count, cub.unique_by_key(count, size, 4, call.recorder.compute_capability)):
        pass
    with call.temporary(size * segments, size * segments):
        with call.temporary(cub.scan(segments, size)):
            pass
        with call.temporary(8, size * parts, *sums):
            pass
    call.give_back(*reversed(offsets))
    return out


def _is_fused(segments: int, parts: int, width: int, multiprocessors: int) -> bool:
    """use_fused_kernel: few rows of the table with many indices each are added by atomic operations."""
    if Version("2.11") > _TORCH or torch.are_deterministic_algorithms_enabled():
        return False
    threads = cub.ceil_div(width, 32) * 32
    grid = cub.ceil_div(segments * threads, min(threads, 1024))
    return grid < multiprocessors * 4 and parts > grid * 4


# -- bags --------------------------------------------------------------------------------------------------------------


def _promoted(call: Call, *tensors: torch.Tensor) -> list[torch.Tensor]:
    """promoteIndicesAndOffsets: int64 where one of them is."""
    dtype = torch.int64 if any(tensor.dtype == torch.int64 for tensor in tensors) else torch.int32
    return [
        tensor
        if tensor.dtype == dtype
        else call.recorder.run(torch.ops.aten._to_copy.default, (tensor,), {"dtype": dtype})
        for tensor in tensors
    ]


@kernel("_embedding_bag", "_embedding_bag_forward_only")
def embedding_bag(call: Call) -> Any:
    """Sizes and bags of the indices, the output, and for the maximum which rows it is of."""
    weight = call.args[0]
    indices, offsets = _promoted(call, *call.args[1:3])
    bags = offsets.size(0) - bool(call.argument("include_last_offset"))
    bag_size = empty(call, offsets.shape, indices.dtype)
    bag_of_index = empty(call, (indices.size(0),), indices.dtype)
    out = empty(call, (bags, weight.size(1)), weight.dtype)
    largest = empty(call, out.shape if call.argument("mode") == _MAX else (0,), indices.dtype)
    return out, bag_of_index, bag_size, largest


@kernel("_embedding_bag_backward")
def embedding_bag_backward(call: Call) -> Any:
    """To the dense gradient or to the sparse one."""
    if call.argument("sparse"):
        without = [*call.args[:5], *call.args[6:9], *call.args[10:]]  # maximum_indices and sparse
        return operate(call, "_embedding_bag_sparse_backward", *without)
    return _dense_backward(call)


@kernel("_embedding_bag_dense_backward")
def _dense_backward(call: Call) -> Any:
    """The rows of the maxima alone, or all that were added."""
    gradient = contiguous(call, call.args[0])
    rows = call.argument("num_weights")
    indices = contiguous(call, call.args[1])
    if call.argument("mode") == _MAX or indices.numel() == 0:
        return empty(call, (rows, gradient.size(1)), gradient.dtype)
    return _summed(call, gradient, indices, rows, call.argument("scale_grad_by_freq"), in_bags=True)
