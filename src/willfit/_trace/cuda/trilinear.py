"""``nn.Bilinear`` and its backward: a sum over products of three tensors, one slice of the output after another.

Source: _trilinear and sumproduct_pair in aten/src/ATen/native/Linear.cpp.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from willfit._trace.cuda.composing import empty, operate
from willfit._trace.kernels import Call, kernel


@kernel("_trilinear")
def trilinear(call: Call) -> Any:
    """Zeros, into which the products of slices are added."""
    tensors, expanded, summed = list(call.args[:3]), call.args[3:6], call.args[6]
    unrolled = call.args[7] if len(call.args) > 7 else call.kwargs.get("unroll_dim", 1)
    rank = tensors[0].dim() + len(expanded[0])
    sizes = [1] * rank
    for dim in range(rank):
        for i in range(3):
            if dim in expanded[i]:
                tensors[i] = operate(call, "unsqueeze", tensors[i], dim)
            else:
                sizes[dim] = tensors[i].size(dim)
    count = sizes[unrolled]
    first = [dim for dim in summed if dim != unrolled and dim in expanded[2]]
    second = [dim for dim in summed if dim != unrolled and dim not in expanded[2]]
    out = empty(call, [1 if dim in summed else size for dim, size in enumerate(sizes)], tensors[0].dtype)
    product = None
    if all(tensor.numel() for tensor in tensors):
        for k in range(count):
            one, two, three = (
                operate(call, "narrow", tensor, unrolled, k if unrolled not in expanded[i] else 0, 1)
                for i, tensor in enumerate(tensors)
            )
            product = _pair(call, one, two, first)
            product = _pair(call, product, three, second)
            product = None
    for dim in sorted(summed, reverse=True):
        out = operate(call, "squeeze.dim", out, dim)
    return out


def _pair(call: Call, left: torch.Tensor, right: torch.Tensor, summed: Sequence[int]) -> torch.Tensor:
    """sumproduct_pair with keepdim: a product of batches of matrices."""
    if not summed:
        return operate(call, "mul.Tensor", left, right)  # type: ignore[no-any-return]
    groups: dict[str, list[int]] = {"both": [], "left": [], "sum": [], "right": []}
    for dim in range(left.dim()):
        in_left, in_right = left.size(dim) != 1, right.size(dim) != 1
        if dim in summed:
            if in_left and not in_right:
                left = operate(call, "sum.dim_IntList", left, [dim], True)
            elif in_right and not in_left:
                right = operate(call, "sum.dim_IntList", right, [dim], True)
        else:
            groups["both" if in_left and in_right else "left" if in_left else "right"].append(dim)
    both, alone, others, dims = groups["both"], groups["left"], groups["right"], list(summed)
    shape = [left.size(dim) for dim in both + alone] + [1] * len(dims) + [right.size(dim) for dim in others]
    batch = math.prod(left.size(dim) for dim in both)
    inner = math.prod(left.size(dim) for dim in dims)
    rows = math.prod(left.size(dim) for dim in alone)
    columns = math.prod(right.size(dim) for dim in others)
    left = operate(call, "permute", left, both + alone + dims + others)
    right = operate(call, "permute", right, both + dims + others + alone)
    left = operate(call, "reshape", left, [batch, rows, inner])
    right = operate(call, "reshape", right, [batch, inner, columns])
    order = both + alone + dims + others
    out = operate(call, "view", operate(call, "bmm", left, right), shape)
    return operate(call, "permute", out, [order.index(dim) for dim in range(len(order))])  # type: ignore[no-any-return]
