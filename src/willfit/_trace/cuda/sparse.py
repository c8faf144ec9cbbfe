"""Sparse gradients, which ``nn.Embedding(sparse=True)`` makes, and what optimizers do with them.

A sparse tensor has no memory of its own: it holds two dense ones, indices and values. How many rows a coalesced one
keeps depends on the indices, which are known where they come from the batch.

Source: in aten/src/ATen/native/sparse, SparseTensor.cpp; cuda/SparseCUDATensor.cu (_coalesce_sparse_cuda);
cuda/SparseCUDATensorMath.cu (add_out_dense_sparse_cuda, add_out_sparse_cuda); SparseTensorMath.cpp
(intersection_binary_op_sparse_dense_out, of which sparse_mask and products with a number are made).
embedding_sparse_backward in aten/src/ATen/native/Embedding.cpp, _embedding_bag_sparse_backward in EmbeddingBag.cpp.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from willfit._trace.cuda import cub
from willfit._trace.cuda.composing import contiguous, empty, operate
from willfit._trace.cuda.values import number_unique
from willfit._trace.fake import CUDA, FakeCudaTensor
from willfit._trace.kernels import Call, kernel

_aten = torch.ops.aten
_MEAN = 1  # EmbeddingBagMode


def is_sparse(tensor: Any) -> bool:
    """Whether this is a sparse tensor on the GPU."""
    return isinstance(tensor, FakeCudaTensor) and tensor.layout == torch.sparse_coo


def _indices_and_values(call: Call, tensor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return operate(call, "_indices", tensor), operate(call, "_values", tensor)


@kernel("_sparse_coo_tensor_with_dims_and_tensors")
def made(call: Call) -> Any:
    """What is known of a sparse tensor is what is known of its indices."""
    out = call.run()
    call.recorder.known.put_indices(call.argument("indices"), out)
    return out


@kernel("_indices")
def indices_of(call: Call) -> Any:
    """They keep the values that they had when the sparse tensor was made."""
    out = call.run()
    call.recorder.known.take_indices(call.args[0], out)
    return out


def _sparse(
    call: Call, indices: torch.Tensor, values: torch.Tensor, size: Sequence[int], is_coalesced: bool = False
) -> torch.Tensor:
    """_sparse_coo_tensor_unsafe: takes no memory."""
    sparse_dim = indices.size(0)
    options = {"dtype": values.dtype, "layout": torch.sparse_coo, "device": CUDA, "is_coalesced": is_coalesced}
    args = (sparse_dim, len(size) - sparse_dim, list(size), indices, values)
    return operate(call, "_sparse_coo_tensor_with_dims_and_tensors", *args, **options)  # type: ignore[no-any-return]


def _become(call: Call, tensor: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """alias_into_sparse: the tensor holds what the other does."""
    with torch._C._DisableTorchDispatch():
        tensor.data = other
    call.recorder.known.put_indices(operate(call, "_indices", other), tensor)
    return tensor


@kernel("_coalesce")
def coalesce(call: Call) -> Any:
    """The indices sorted with where they were, what is the same counted once, and the values of each added up."""
    tensor = call.args[0]
    indices, values = _indices_and_values(call, tensor)
    count = indices.size(1)
    if count < 2:
        copied = operate(call, "clone", tensor)
        return _sparse(call, *_indices_and_values(call, copied), tensor.shape, is_coalesced=True)
    flat = _flattened(call, indices, tensor.shape, copied=True)
    origins, offsets = (empty(call, (count,), torch.int64) for _ in range(2))
    with call.temporary(cub.merge_sort(count, 8, 8)):
        pass
    with call.temporary(cub.thrust_unique_by_key(count, 8, 8, call.recorder.compute_capability)):
        pass
    kept = number_unique(call.recorder, indices, dim=1)
    flat = operate(call, "slice.Tensor", flat, 0, 0, kept)
    summed = empty(call, (kept, *values.shape[1:]), values.dtype)
    if summed.numel():
        values = contiguous(call, values)
    if indices.size(0) == 1:
        unique = operate(call, "unsqueeze", flat, 0)
    else:
        unique = empty(call, (indices.size(0), kept), torch.int64)
    del origins, offsets
    return _sparse(call, unique, summed, tensor.shape, is_coalesced=True)


def _flattened(call: Call, indices: torch.Tensor, size: Sequence[int], *, copied: bool) -> torch.Tensor:
    """flatten_indices: one number for the indices of each element."""
    if indices.size(0) == 1:
        flat = operate(call, "squeeze.dim", indices, 0)
        return operate(call, "clone", flat) if copied else flat  # type: ignore[no-any-return]
    return empty(call, (indices.size(1),), torch.int64)


@kernel("sparse_mask")
def sparse_mask(call: Call) -> Any:
    """Of a dense tensor, the rows that the mask has: gathered, and multiplied by ones."""
    dense, mask = call.args
    if is_sparse(dense):
        return call.run()
    indices, values = _indices_and_values(call, mask)
    ones = empty(call, (1,), values.dtype)
    gathered = empty(call, values.shape, dense.dtype)
    copied = operate(call, "clone", indices)
    product = empty(call, values.shape, dense.dtype)
    del gathered, ones
    return _sparse(call, copied, product, mask.shape, operate(call, "is_coalesced", mask))


def add(call: Call) -> Any:
    """A sum with a sparse tensor: into a dense one at its rows, or the rows of two sparse ones after one another."""
    first, second = call.args[:2]
    in_place = call.func is _aten.add_.Tensor
    if not is_sparse(first):
        return _added_to_dense(call, first, second, in_place)
    if not is_sparse(second):
        return _added_to_dense(call, second, first, False)
    ours, theirs = _indices_and_values(call, first), _indices_and_values(call, second)
    scaled = theirs[1]
    if call.argument("alpha", 1) != 1:
        scaled = operate(call, "mul.Tensor", scaled, call.argument("alpha"))
    indices = operate(call, "cat", [ours[0], theirs[0]], 1)
    values = operate(call, "cat", [ours[1], scaled])
    total = _sparse(call, indices, values, first.shape)
    if indices.size(1) > total.numel():  # sums upon sums would grow without end
        del indices, values
        total = operate(call, "_coalesce", total)
    return _become(call, first, total) if in_place else total


def _added_to_dense(call: Call, dense: torch.Tensor, sparse: torch.Tensor, in_place: bool) -> torch.Tensor:
    indices, values = _indices_and_values(call, sparse)
    total = dense if in_place else operate(call, "empty_like", dense)
    if values.numel():
        if operate(call, "is_coalesced", sparse):
            values = contiguous(call, values)
        else:
            _flattened(call, indices, sparse.shape, copied=False)
    return total


@kernel("add_.Tensor")
def add_(call: Call) -> Any:
    """In place."""
    return add(call) if any(map(is_sparse, call.args[:2])) else call.run()


@kernel("mul_.Tensor", "mul_.Scalar")
def mul_(call: Call) -> Any:
    """Momentum: new indices and new values take the place of the old ones."""
    tensor = call.args[0]
    if not is_sparse(tensor):
        return call.run()
    indices, values = _indices_and_values(call, tensor)
    indices = operate(call, "clone", indices)
    product = operate(call, "mul.Tensor", values, call.args[1])
    return _become(call, tensor, _sparse(call, indices, product, tensor.shape, operate(call, "is_coalesced", tensor)))


@kernel("_foreach_mul_.Scalar", "_foreach_add_.List")
def foreach_in_place(call: Call) -> Any:
    """Lists with sparse tensors are gone through one by one (foreach_tensor_mul_scalar_kernel_slow_ and its like)."""
    if not any(map(is_sparse, call.args[0])):
        return call.run()
    if call.func is _aten._foreach_mul_.Scalar:
        for tensor in call.args[0]:
            operate(call, "mul_.Scalar", tensor, call.args[1])
    else:
        for tensor, other in zip(*call.args[:2], strict=True):
            operate(call, "add_.Tensor", tensor, other, alpha=call.argument("alpha"))
    return None


@kernel("clone")
def clone(call: Call) -> Any:
    """Values, then indices (copy_into_sparse). A gradient that only autograd holds is kept as it is."""
    tensor = call.args[0]
    if not is_sparse(tensor):
        return call.run()
    indices, values = _indices_and_values(call, tensor)
    if _is_accumulating() and indices.is_contiguous() and values.is_contiguous():
        return _sparse(call, indices, values, tensor.shape)
    values = operate(call, "clone", values, memory_format=torch.contiguous_format)
    indices = operate(call, "clone", indices, memory_format=torch.contiguous_format)
    return _sparse(call, indices, values, tensor.shape, operate(call, "is_coalesced", tensor))


def _is_accumulating() -> bool:
    """Whether AccumulateGrad calls, which counts as holders of a gradient those of its fake ones too."""
    node = torch._C._current_autograd_node()
    return node is not None and "AccumulateGrad" in node.name() and not torch.is_grad_enabled()


@kernel("neg")
def neg(call: Call) -> Any:
    """A copy whose values change in place."""
    return clone(call) if is_sparse(call.args[0]) else call.run()


@kernel("zero_")
def zero_(call: Call) -> Any:
    """A sparse tensor of zeros has no elements."""
    tensor = call.args[0]
    if not is_sparse(tensor):
        return call.run()
    indices, values = _indices_and_values(call, tensor)
    none = empty(call, (indices.size(0), 0), torch.int64), empty(call, (0, *values.shape[1:]), values.dtype)
    return _become(call, tensor, _sparse(call, *none, tensor.shape, is_coalesced=True))


@kernel("_to_dense")
def to_dense(call: Call) -> Any:
    """Zeros, to which the values are added."""
    tensor = call.args[0]
    return empty(call, tensor.shape, tensor.dtype) if is_sparse(tensor) else call.run()


# -- bags --------------------------------------------------------------------------------------------------------------


@kernel("_embedding_bag_sparse_backward")
def embedding_bag_sparse_backward(call: Call) -> Any:
    """The gradient of each index: its bag's, divided by the bag's size for a mean, times its own weight."""
    gradient, indices, _, bag_of_index, bag_size, rows, _, mode, weights = call.args[:9]
    each = operate(call, "index_select", gradient, 0, bag_of_index)
    if mode == _MEAN:
        sizes = operate(call, "_to_copy", bag_size, dtype=gradient.dtype)
        shares = operate(call, "reciprocal", sizes)
        of_index = operate(call, "index_select", operate(call, "unsqueeze", shares, 1), 0, bag_of_index)
        del of_index, shares, sizes
    elif weights is not None:
        operate(call, "mul_.Tensor", each, operate(call, "unsqueeze", weights, 1))
    index = operate(call, "view", contiguous(call, indices), [1, indices.numel()])
    return _sparse(call, index, each, (rows, gradient.size(1)))
