"""The fused attention kernels of CUDA: outputs and temporaries, in the order in which they are allocated.

Source: aten/src/ATen/native/transformers/cuda/attention.cu and attention_backward.cu, mha_fwd and mha_bwd in
flash_attn/flash_api.cpp, and aten/src/ATen/native/cudnn/MHA.cpp. Memory-efficient attention is in
attention_efficient.py.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from packaging.version import Version

from willfit._trace.cuda.attention_choice import VERSION, is_deterministic
from willfit._trace.kernels import Call, kernel
from willfit._trace.overrides import overload

_aten = torch.ops.aten
_NO_KERNELS_FOR_160 = Version("2.11")
HALF = (torch.float16, torch.bfloat16)


def empty(call: Call, *shape: int, dtype: torch.dtype) -> torch.Tensor:
    """at::empty on the GPU."""
    return call.recorder.run(_aten.empty.memory_format, (shape,), {"dtype": dtype, "device": call.args[0].device})  # type: ignore[no-any-return]


def like(call: Call, tensor: torch.Tensor) -> torch.Tensor:
    """at::empty_like: dense, with the dimensions in the tensor's order."""
    return call.recorder.run(_aten.empty_like.default, (tensor,), {})  # type: ignore[no-any-return]


def view(call: Call, op: Any, tensor: torch.Tensor, *args: Any) -> torch.Tensor:
    return call.recorder.run(op, (tensor, *args), {})  # type: ignore[no-any-return]


def swap(call: Call, tensor: torch.Tensor) -> torch.Tensor:
    """Between (batch, heads, length, head) and (batch, length, heads, head)."""
    return view(call, _aten.transpose.int, tensor, 1, 2)


def contiguous(call: Call, tensor: torch.Tensor) -> torch.Tensor:
    if tensor.is_contiguous():
        return tensor
    return call.recorder.run(_aten.clone.default, (tensor,), {"memory_format": torch.contiguous_format})  # type: ignore[no-any-return]


def host_scalars() -> tuple[torch.Tensor, torch.Tensor]:
    """Seed and offset of the random numbers, on the CPU."""
    return torch.empty((), dtype=torch.int64, device="cpu"), torch.empty((), dtype=torch.int64, device="cpu")


def gpu_scalars(call: Call) -> tuple[torch.Tensor, torch.Tensor]:
    """Seed and offset of the random numbers, on the GPU."""
    return empty(call, dtype=torch.int64), empty(call, dtype=torch.int64)


def up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


# -- flash attention ---------------------------------------------------------------------------------------------------


def _state_is_on_gpu() -> bool:
    """From 2.7 on the random state lies on the GPU: [Note] BC breaking change to flash seed/offset."""
    op = overload("_scaled_dot_product_flash_attention")
    return op is not None and op._schema.returns[6].name == "rng_state"


def _rounded(head: int) -> int:
    """head_size_rounded: wide heads come in steps of 64; 160 is among them since kernels for 160 were dropped."""
    widest = 128 if VERSION >= _NO_KERNELS_FOR_160 else 192 if _state_is_on_gpu() else 256
    return up(head, 64 if head > widest else 32)


def _splits(blocks: int, multiprocessors: int, key_blocks: int) -> int:
    """num_splits_heuristic with at most 128 splits."""
    if blocks >= 0.8 * multiprocessors:
        return 1
    most = min(128, multiprocessors, key_blocks)
    efficiency = {}
    for splits in range(1, most + 1):
        if splits == 1 or -(-key_blocks // splits) != -(-key_blocks // (splits - 1)):
            waves = blocks * splits / multiprocessors
            efficiency[splits] = waves / math.ceil(waves)
    best = max(efficiency.values(), default=0.0)
    return next((splits for splits, reached in efficiency.items() if reached >= 0.85 * best), 1)


@kernel("_scaled_dot_product_flash_attention")
def flash_attention(call: Call) -> Any:
    """mha_fwd. Split keys need accumulators; the random state is made without dropout too."""
    query, key = call.args[:2]
    dropout = call.argument("dropout_p")
    batch, heads, queries, head = query.shape
    kv_heads, keys = key.shape[1:3]
    q = swap(call, query)
    grouped = queries == 1 and heads > kv_heads and dropout == 0
    if grouped:  # seqlenq_ngroups_swapped
        q = swap(call, view(call, _aten.view.default, q, (batch, kv_heads, heads // kv_heads, head)))
        queries, heads = heads // kv_heads, kv_heads
    out = like(call, q)
    logsumexp = empty(call, batch, heads, queries, dtype=torch.float32)
    temporaries: list[int] = []
    if dropout == 0:
        block = 256 if head <= 64 else 128 if head <= 128 else 64
        blocks = batch * heads * -(-queries // 64)
        splits = _splits(blocks, 2 * call.recorder.multiprocessors, -(-keys // block))
        if splits > 1:
            rows = splits * batch * heads * queries * 4
            temporaries = [call.take(rows), call.take(rows * _rounded(head))]
    if _state_is_on_gpu():
        state, unused = empty(call, 2, dtype=torch.uint64), empty(call, dtype=torch.uint64)
        if dropout > 0:
            state = empty(call, 2, dtype=torch.uint64)
    else:
        state, unused = host_scalars()
    call.give_back(*temporaries)
    if grouped:
        out = view(call, _aten.view.default, swap(call, out), (batch, 1, heads * queries, head))
        logsumexp = view(call, _aten.view.default, logsumexp, (batch, heads * queries, 1))
    debug = empty(call, 0, dtype=query.dtype)
    length = 1 if grouped else queries
    return swap(call, out), logsumexp, None, None, length, keys, state, unused, debug


@kernel("_scaled_dot_product_flash_attention_backward")
def flash_attention_backward(call: Call) -> Any:
    """mha_bwd: an accumulator for dq in fp32 and, for grouped heads, dk and dv for each query head."""
    query, key = call.args[1:3]
    batch, heads, queries, head = query.shape
    kv_heads, keys = key.shape[1:3]
    gradient = contiguous(call, swap(call, call.args[0]))
    out = contiguous(call, swap(call, call.args[4]))
    gradients = [like(call, swap(call, tensor)) for tensor in call.args[1:4]]
    rows = batch * up(queries, 128) * heads * 4
    splits = 1
    if is_deterministic():
        splits = -(-call.recorder.multiprocessors // (batch * heads))
    sizes = [rows, splits * rows * _rounded(head)]
    if kv_heads != heads:
        sizes += [batch * keys * heads * head * query.dtype.itemsize] * 2
    with call.temporary(*sizes):
        pass
    del out, gradient
    return tuple(swap(call, tensor) for tensor in gradients)


# -- softmax of the math implementation --------------------------------------------------------------------------------


@kernel("_safe_softmax")
def safe_softmax(call: Call) -> Any:
    """_safe_softmax in attention.cpp: rows of which everything is masked become zeros."""
    out = call.run()
    weights, dim = call.args[:2]
    with call.temporary(weights.numel(), weights.numel() // weights.size(dim), out.element_size()):
        pass
    return out


@kernel("_softmax_backward_data")
def softmax_backward(call: Call) -> Any:
    """softmax_backward_cuda_out in SoftMax.cu: the product of gradient and output."""
    out = call.run()
    gradient = call.args[0]
    with call.temporary(gradient.numel() * gradient.element_size()):
        pass
    return out


# -- cuDNN -------------------------------------------------------------------------------------------------------------


@kernel("_scaled_dot_product_cudnn_attention")
def cudnn_attention(call: Call) -> Any:
    """_cudnn_attention_forward and run_cudnn_SDP_fprop: an output in the order of the query's dimensions."""
    query, key, value = call.args[:3]
    batch, heads, queries, _ = query.shape
    seed, offset = gpu_scalars(call)
    if value.size(-1) == query.size(-1):
        out = like(call, query)
    else:  # alloc_with_matching_layout
        order = sorted(range(4), key=lambda dim: -(query.stride(dim) or math.inf))
        out = empty(call, *((*query.shape[:3], value.size(-1))[dim] for dim in order), dtype=query.dtype)
        out = view(call, _aten.permute.default, out, [order.index(dim) for dim in range(4)])
    stats = None
    if call.argument("compute_log_sumexp"):
        stats = empty(call, batch, heads, queries, 1, dtype=torch.float32)
    return out, stats, None, None, queries, key.size(2), seed, offset, None


@kernel("_scaled_dot_product_cudnn_attention_backward")
def cudnn_attention_backward(call: Call) -> Any:
    """_cudnn_attention_backward and run_cudnn_SDP_bprop, with a workspace that cuDNN alone knows."""
    gradient, query, key, value, out = call.args[:5]
    batch, heads, queries, head = query.shape
    gradients = tuple(like(call, tensor) for tensor in (query, key, value))
    copies = []
    if gradient.stride(-1) != 1:  # permute_to_matching_layout
        copies = [call.take(out.numel() * out.element_size())]
    call.recorder.assume(
        "cuDNN attention is taken to need no workspace in forward, and in backward that of flash attention: "
        "the query's gradient in fp32 and a number for each row"
    )
    workspace = call.take(batch * heads * queries * (head + 1) * 4)
    call.give_back(workspace, *copies)
    return gradients
