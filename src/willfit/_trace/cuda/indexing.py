"""Indexing by tensors: the copies of indices, and the sorting that adds up without races.

Sources: make_info, AdvancedIndex, _index_put_impl_ and masked_scatter_backward in
aten/src/ATen/native/TensorAdvancedIndexing.cpp; index_put_with_sort_kernel and makeLinearIndex in
aten/src/ATen/native/cuda/Indexing.cu; masked_select_cuda_impl and masked_scatter__cuda in cuda/IndexKernel.cpp;
expandTensors in aten/src/ATen/native/IndexingUtils.h; repeat_interleave_cuda in cuda/Repeat.cu.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from willfit._trace.cuda import cub
from willfit._trace.cuda.composing import contiguous, empty, empty_like, operate
from willfit._trace.cuda.sorting import smallest_and_largest
from willfit._trace.cuda.values import nonzero_indices, number_repeated
from willfit._trace.fake import CUDA, FakeCudaTensor
from willfit._trace.kernels import Call, kernel, nbytes

_aten = torch.ops.aten
_MASKS = (torch.bool, torch.uint8)
_DENSE = torch.contiguous_format

Indices = list[torch.Tensor | None]


def _positions(call: Call, indices: Sequence[torch.Tensor | None]) -> Indices:
    """expandTensors: masks become the positions of what is true in them, a tensor for each dimension."""
    found: Indices = []
    for index in indices:
        if index is None or index.dtype not in _MASKS:
            found.append(index)
        elif isinstance(index, FakeCudaTensor):
            positions = nonzero_indices(call, index)
            found.extend(operate(call, "select.int", positions, 1, dim) for dim in range(index.dim()))
        else:
            found.extend(index.nonzero().unbind(1))
    return found


def _of_one_shape(call: Call, indices: Indices) -> Indices:
    """expand_outplace."""
    shape = torch.broadcast_shapes(*(index.shape for index in indices if index is not None))
    return [
        index
        if index is None or index.shape == shape
        else operate(call, "expand", index, list(shape))
        if isinstance(index, FakeCudaTensor)
        else index.expand(shape)
        for index in indices
    ]


def _as_int64(call: Call, index: torch.Tensor | None) -> torch.Tensor | None:
    """On the GPU, as int64."""
    if index is None or (index.dtype == torch.int64 and isinstance(index, FakeCudaTensor)):
        return index
    options = {"dtype": torch.int64, "device": CUDA}
    return call.recorder.run(_aten._to_copy.default, (index,), options)  # type: ignore[no-any-return]


def copied_indices(call: Call, indices: Sequence[torch.Tensor | None]) -> Indices:
    """make_info: the indices that the kernel reads. Where their strides differ, all are made contiguous."""
    found = [_as_int64(call, index) for index in _of_one_shape(call, _positions(call, indices))]
    if len({index.stride() for index in found if index is not None}) > 1:
        return [index if index is None else contiguous(call, index) for index in found]
    return found


@kernel("index.Tensor", "_unsafe_index.Tensor")
def index(call: Call) -> Any:
    """The output, made while the copies of the indices are held."""
    indices = copied_indices(call, call.args[1])
    return call.recorder.run(_aten.index.Tensor, (call.args[0], indices), {})


# -- index_put ---------------------------------------------------------------------------------------------------------


@kernel("_index_put_impl_", "index_put_")
def index_put_(call: Call) -> Any:
    """In place."""
    tensor, indices, values = call.args[:3]
    return _put(call, tensor, indices, values, call.argument("accumulate"), call.argument("unsafe", False))


@kernel("index_put", "_unsafe_index_put")
def index_put(call: Call) -> Any:
    """On a copy; the backward of indexing adds into the zeros that it has just made.

    index_backward in torch/csrc/autograd/FunctionsManual.cpp leaves that to functions without side effects for tensor
    subclasses, which a fake tensor is one of.
    """
    tensor, indices, values = call.args[:3]
    node = torch._C._current_autograd_node()
    if node is not None and node.name() == "IndexBackward0":
        return operate(call, "detach", _put(call, tensor, indices, values, True, True))
    unsafe = call.func is _aten._unsafe_index_put.default
    copy = call.recorder.run(_aten.clone.default, (tensor,), {})
    return _put(call, copy, indices, values, call.argument("accumulate"), unsafe)


def _put(
    call: Call,
    tensor: torch.Tensor,
    indices: Sequence[torch.Tensor | None],
    values: torch.Tensor,
    accumulate: bool,
    unsafe: bool,
) -> torch.Tensor:
    """_index_put_impl_."""
    if not accumulate and _is_masked_fill(tensor, indices, values):
        return tensor
    if values.dim() == 0 and not isinstance(values, FakeCudaTensor):
        values = call.recorder.run(_aten._to_copy.default, (values,), {"device": CUDA})
    deterministic = torch.are_deterministic_algorithms_enabled() and values.numel() > 1
    if accumulate or deterministic:
        _put_sorted(call, tensor, indices, values, unsafe)
    else:
        copied_indices(call, indices)
    return tensor


def _is_masked_fill(tensor: torch.Tensor, indices: Sequence[torch.Tensor | None], values: torch.Tensor) -> bool:
    """canDispatchToMaskedFill: one number from the host, where a single mask says."""
    if values.numel() != 1 or isinstance(values, FakeCudaTensor):
        return False
    given = [index for index in indices if index is not None]
    return len(given) == 1 and given[0].dtype in _MASKS


def _put_sorted(
    call: Call, tensor: torch.Tensor, indices: Sequence[torch.Tensor | None], values: torch.Tensor, unsafe: bool
) -> None:
    """index_put_with_sort_kernel: positions are sorted, so that one warp adds all values of one position."""
    dense = contiguous(call, tensor)
    source = dense
    found = [
        index
        if index is None or index.dtype != torch.int32 or not isinstance(index, FakeCudaTensor)
        else _as_int64(call, index)
        for index in _positions(call, indices)
    ]
    found = _of_one_shape(call, found)
    found += [None] * (tensor.dim() - len(found))
    given = [dim for dim, index in enumerate(found) if index is not None]
    if given[-1] - given[0] + 1 != len(given):  # transposeToFront
        order = given + [dim for dim in range(len(found)) if dim not in given]
        source = operate(call, "permute", source, order)
        found = [found[dim] for dim in order]
        given = list(range(len(given)))
    linear = _linear_index(call, source, found, unsafe)
    del found
    before, after = list(source.shape[: given[0]]), list(source.shape[given[-1] + 1 :])
    spread = operate(call, "expand", values, [*before, *linear.shape, *after])
    spread = contiguous(call, spread)
    slice_size = torch.Size(after).numel()
    if linear.numel() == 0 or slice_size == 0:
        return
    added = contiguous(call, source)
    flat = operate(call, "reshape", linear, [-1]) if linear.dim() != 1 else linear
    count = flat.numel()
    largest = sum((size - 1) * stride for size, stride in zip(dense.shape, dense.stride(), strict=True))
    results = [empty_like(call, flat, _DENSE) for _ in range(2)]
    bits = cub.number_of_bits(largest // slice_size)
    recorder = call.recorder
    with call.temporary(
        8 * count, cub.radix_sort(count, 8, 8, recorder.compute_capability, recorder.multiprocessors, bits)
    ):
        pass
    del results, added, spread


def _linear_index(call: Call, tensor: torch.Tensor, indices: Indices, unsafe: bool) -> torch.Tensor:
    """computeLinearIndex: each index wrapped into its dimension, times that dimension's stride, all added up."""
    linear: torch.Tensor | None = None
    for dim, index in enumerate(indices):
        if index is None:
            continue
        if isinstance(index, FakeCudaTensor):
            if not unsafe and index.numel():
                _check_range(call, index)
            wrapped = operate(call, "remainder.Scalar", index, tensor.size(dim))
            scaled = _as_int64(call, operate(call, "mul.Tensor", wrapped, 2))
            del wrapped
        else:  # computed on the CPU
            scaled = _as_int64(call, index)
        linear = scaled if linear is None else operate(call, "add_.Tensor", linear, scaled)
        del scaled
    if linear is None:
        raise AssertionError("indexing without an index")
    return linear


def _check_range(call: Call, index: torch.Tensor) -> None:
    """wrapIndexOnce: the smallest and the largest index are compared with the dimension's size."""
    with smallest_and_largest(call, index):
        for _ in range(2):
            with call.temporary(1):
                pass


@kernel("scatter_reduce.two")
def scatter_reduce(call: Call) -> Any:
    """A mean divides by how many were added, counted where they are."""
    out = call.run()
    if call.argument("reduce") == "mean":
        with call.temporary(nbytes(call.argument("src")), nbytes(out), out.numel()):
            pass
    return out


# -- masks -------------------------------------------------------------------------------------------------------------


@kernel("masked_select")
def masked_select(call: Call) -> Any:
    """Indexing by the mask, both expanded to one shape."""
    tensor, mask = call.args[:2]
    shape = list(torch.broadcast_shapes(tensor.shape, mask.shape, (1,) * (not tensor.dim() and not mask.dim())))
    indices = copied_indices(call, [operate(call, "expand", mask, shape)])
    return call.recorder.run(_aten.index.Tensor, (operate(call, "expand", tensor, shape), indices), {})


@kernel("masked_scatter")
def masked_scatter(call: Call) -> Any:
    """On a copy."""
    tensor, mask, source = call.args
    node = torch._C._current_autograd_node()
    if node is not None and node.name() == "MaskedSelectBackward0":  # the zeros made for it, as in index_put
        return operate(call, "detach", _scatter_masked(call, tensor, mask, source))
    shape = list(torch.broadcast_shapes(tensor.shape, mask.shape))
    tensor = operate(call, "expand", tensor, shape)
    out = call.recorder.run(_aten.clone.default, (tensor,), {"memory_format": _DENSE})
    return _scatter_masked(call, out, mask, source)


@kernel("masked_scatter_")
def masked_scatter_(call: Call) -> Any:
    """In place."""
    return _scatter_masked(call, *call.args)


def _scatter_masked(call: Call, tensor: torch.Tensor, mask: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    """launch_masked_scatter_kernel: a sum over the mask says where each value comes from."""
    if tensor.numel() == 0:
        return tensor
    mask = operate(call, "expand", mask, list(tensor.shape))
    with call.temporary(8 * tensor.numel()):
        held = contiguous(call, mask)
        with call.temporary(cub.scan(tensor.numel(), 8)):
            pass
        copy = contiguous(call, source)
        del copy, held
    return tensor


@kernel("masked_scatter_backward")
def masked_scatter_backward(call: Call) -> Any:
    """The gradient where the mask is, and zeros for the values that were not used."""
    gradient, mask, sizes = call.args
    selected = operate(call, "masked_select", gradient, mask)
    missing = torch.Size(sizes).numel() - selected.numel()
    if missing > 0:
        zeros = empty(call, (missing,), gradient.dtype)
        selected = operate(call, "cat", [selected, zeros], 0)
        del zeros
    return operate(call, "view", selected, list(sizes))


# -- repetition --------------------------------------------------------------------------------------------------------


@kernel("repeat_interleave.Tensor")
def repeat_interleave(call: Call) -> Any:
    """Which element each one of the output is, found from the sums of repetitions."""
    repeats = call.args[0]
    size = call.argument("output_size")
    if repeats.numel() == 0:
        return empty_like(call, repeats)
    sums = operate(call, "cumsum", contiguous(call, repeats), 0)
    if size is None:
        size = number_repeated(call.recorder, repeats)
    out = empty(call, (size,), repeats.dtype)
    del sums
    return out
