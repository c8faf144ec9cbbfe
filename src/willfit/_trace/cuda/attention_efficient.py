"""Memory-efficient attention on CUDA: its outputs, and what its kernels take on the way.

Source: _efficient_attention_forward in aten/src/ATen/native/transformers/cuda/attention.cu and
_efficient_attention_backward in attention_backward.cu, mem_eff_attention/kernel_forward.h and kernel_backward.h, and
the kernels that cutlassF.h and cutlassB.h list.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from willfit._trace.cuda.attention_choice import GROUPS, VERSION, is_deterministic
from willfit._trace.cuda.attention_kernels import (
    HALF,
    contiguous,
    empty,
    gpu_scalars,
    host_scalars,
    swap,
    up,
    view,
)
from willfit._trace.kernels import Call, kernel

_aten = torch.ops.aten
_MOST_BATCHES = 65535


@kernel("_scaled_dot_product_efficient_attention")
def efficient_attention(call: Call) -> Any:
    """_efficient_attention_forward: halves accumulate in fp32 in memory where the heads are wider than 128."""
    query, key, value = call.args[:3]
    batch, heads, queries, _ = query.shape
    width = value.size(-1)
    if batch > _MOST_BATCHES:
        call.recorder.assume(
            f"attention over more than {_MOST_BATCHES} sequences is not modelled in chunks, as CUDA runs it"
        )
    on_gpu = VERSION >= GROUPS and call.argument("dropout_p") == 0
    seed, offset = gpu_scalars(call) if on_gpu else host_scalars()
    out = empty(call, batch, queries, heads, width, dtype=query.dtype)
    rows = up(queries, 32) if call.argument("compute_log_sumexp") else 0
    logsumexp = empty(call, batch, heads, rows, dtype=torch.float32)
    if query.dtype in HALF and max(width, key.size(-1)) > 128:
        with call.temporary(batch * queries * heads * width * 4):
            pass
    return swap(call, out), logsumexp, seed, offset


@dataclass(frozen=True, slots=True)
class _BackwardKernel:
    """AttentionBackwardKernel: its block sizes, and whether dk and dv stay in registers."""

    queries: int
    keys: int
    in_registers: bool


def _backward_kernel(capability: tuple[int, int], dtype: torch.dtype, head: int, dropout: bool) -> _BackwardKernel:
    """The first kernel of dispatch_cutlassB that takes these heads and whose shared memory the GPU has.

    On sm_80 and later the kernels for halves and heads of 65 to 128 need 134 to 163 kB, those for fp32 and more than
    64 need 121 kB (what they ask cudaFuncSetAttribute for); sm_86, sm_89 and sm_12x have 101 kB.
    """
    half = dtype in HALF
    if head <= 64 or capability < (7, 0):
        return _BackwardKernel(64, 64, half and head <= 64)
    if capability < (8, 0):
        return _BackwardKernel(128, 64, head <= 128) if half else _BackwardKernel(64, 64, False)
    if half and head > 128:
        return _BackwardKernel(128, 64, False)
    if capability in ((8, 6), (8, 9)) or capability[0] == 12:
        narrow = half and head <= 96 and not dropout and capability[0] == 8
        return _BackwardKernel(128, 64, True) if narrow else _BackwardKernel(64, 64, False)
    return _BackwardKernel(128, 128, True) if half else _BackwardKernel(128, 64, False)


@kernel("_scaled_dot_product_efficient_attention_backward")
def efficient_attention_backward(call: Call) -> Any:
    """_efficient_attention_backward: delta, and a workspace for the sums over blocks of keys."""
    query, key, value, bias = call.args[1:5]
    batch, heads, queries, head = query.shape
    keys, width = key.size(2), value.size(3)
    half = query.dtype in HALF
    gradient = contiguous(call, swap(call, call.args[0]))
    gradients = [
        empty(call, batch, tensor.size(2), tensor.size(1), tensor.size(3), dtype=tensor.dtype)
        for tensor in (query, key, value)
    ]
    grad_bias = None
    if call.argument("grad_input_mask")[3]:
        grad_bias = empty(call, *bias.shape[:-1], up(keys, 16), dtype=bias.dtype)
        grad_bias = view(call, _aten.slice.Tensor, grad_bias, -1, 0, keys)
    expanded: list[int] = []
    if key.size(1) != heads:  # a gradient for each query head, then their sums
        expanded = [call.take(batch * keys * heads * size * query.element_size()) for size in (head, width)]
    capability = call.recorder.compute_capability
    dropout = call.argument("dropout_p") > 0
    chosen = _backward_kernel(capability, query.dtype, max(head, width), dropout)
    delta = batch * heads * queries * 4
    if half and (chosen.in_registers or not (7, 0) <= capability <= (7, 4)):  # kKernelComputesDelta
        held = call.take(delta)
    else:  # (grad_out.to(kFloat) * out.to(kFloat)).sum(-1).transpose(-2, -1).contiguous()
        temporaries = [call.take(batch * queries * heads * width * 4) for _ in range(3 if half else 1)]
        held = call.take(delta)
        if queries > 1 and heads > 1:
            temporaries.append(held)
            held = call.take(delta)
        call.give_back(*temporaries)
    workspace = call.take(_workspace(chosen, capability, half, batch * heads, queries, keys, head, width))
    call.give_back(held, workspace, *expanded)
    del gradient
    return *(swap(call, tensor) for tensor in gradients), grad_bias


def _workspace(
    chosen: _BackwardKernel,
    capability: tuple[int, int],
    half: bool,
    parallel: int,
    queries: int,
    keys: int,
    head: int,
    width: int,
) -> int:
    """workspace_size() of kernel_backward.h, with the number of splits that attention_backward.cu settles on."""
    splits = -(-keys // chosen.keys)
    if parallel >= 256 and keys <= 2 * chosen.keys:
        splits = 1
    accumulates = half and not chosen.in_registers
    if accumulates:
        splits = min(splits, 200 // parallel)
    can_split = capability >= (7, 0)
    if not can_split or splits < 1 or is_deterministic():
        splits = 1
    elements = 0
    if accumulates:
        elements += splits * chosen.keys * (up(head, chosen.queries) + up(width, chosen.queries))
    if can_split or half:
        tile = 4 + chosen.queries * chosen.keys
        elements += -(-queries // chosen.queries) * -(-head // chosen.keys) * tile
    return parallel * up(elements, 4) * 4
