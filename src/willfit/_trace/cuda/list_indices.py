"""Lists as indices: ``x[..., [0, 2]]``.

Source: sequenceToVariable in torch/csrc/autograd/python_variable_indexing.cpp: the list becomes a tensor on the
indexed tensor's device before any operator is called. For a fake tensor that is a plain meta tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from willfit._trace.fake import CUDA, FakeCudaTensor
from willfit._trace.overrides import override


@override("index.Tensor", "index_put_", "index_put")
def on_the_gpu(
    own: Callable[..., Any], tensor: torch.Tensor, indices: Sequence[torch.Tensor | None], *args: Any, **kwargs: Any
) -> Any:
    """The list's tensor is allocated, and kept by whom the index is kept."""
    placed = [
        torch.empty(index.shape, dtype=index.dtype, device=CUDA)
        if index is not None and index.device.type == "meta" and not isinstance(index, FakeCudaTensor)
        else index
        for index in indices
    ]
    return own(tensor, placed, *args, **kwargs)
