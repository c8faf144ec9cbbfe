"""Sparse gradients, which ``nn.Embedding(sparse=True)`` makes: they are refused.

A fake tensor is followed by its storage, and a sparse tensor has none of its own; how many rows a coalesced one keeps
depends on values (aten/src/ATen/native/sparse/cuda/SparseCUDATensor.cu).
"""

from __future__ import annotations

from typing import Any

from willfit._errors import TraceError
from willfit._trace.kernels import Call, kernel

_MESSAGE = """\
sparse tensors are not modelled: their size depends on values.
Predict with sparse=False and a dense optimizer (SGD, Adam) instead: an upper bound, with the gradient of the whole \
table."""


@kernel("_sparse_coo_tensor_with_dims_and_tensors", "_sparse_coo_tensor_with_dims", "_to_sparse")
def refuse(call: Call) -> Any:
    """Say what to do instead."""
    raise TraceError(_MESSAGE)


@kernel("_embedding_bag_sparse_backward")
def refuse_bags(call: Call) -> Any:
    """Likewise for EmbeddingBag."""
    raise TraceError(_MESSAGE)
