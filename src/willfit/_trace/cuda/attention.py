"""scaled_dot_product_attention on CUDA: what each implementation allocates and keeps for backward.

Source: scaled_dot_product_attention, _scaled_dot_product_attention_math, convert_boolean_attn_mask, preprocess_mask
and pad_last_dim in aten/src/ATen/native/transformers/attention.cpp. The choice is in attention_choice.py, the
kernels are in attention_kernels.py and attention_efficient.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.attention import SDPBackend

from willfit._trace.cuda import attention_efficient, attention_kernels, autocast  # noqa: F401  # autocast's casts come first
from willfit._trace.cuda.attention_choice import Inputs, choose
from willfit._trace.fake import FakeCudaTensor
from willfit._trace.overrides import override
from willfit._trace.recorder import Recorder

_aten = torch.ops.aten


@override("scaled_dot_product_attention")
def scaled_dot_product_attention(
    own: Callable[..., Any],
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """Choose the backend and call it, as CUDA would."""
    recorder = torch._C._get_dispatch_mode(Recorder._mode_key)  # also below a mode of the user's
    if not isinstance(query, FakeCudaTensor) or not isinstance(recorder, Recorder):
        return own(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
    given = Inputs(query, key, value, attn_mask, dropout_p, is_causal, enable_gqa)
    inputs = given.batched()
    backend = choose(inputs, recorder.compute_capability)
    if inputs is not given and backend != SDPBackend.MATH:
        batched = scaled_dot_product_attention(
            own, *inputs.qkv, inputs.mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
        return batched.squeeze(0)
    if backend == SDPBackend.MATH:
        mask = _additive(attn_mask, query.dtype)
        return _math(query, key, value, mask, dropout_p, is_causal, scale, enable_gqa)
    if backend == SDPBackend.FLASH_ATTENTION:
        scale = scale if scale is not None else 1 / math.sqrt(query.size(-1))
        padded = [_padded(tensor, 8) for tensor in inputs.qkv]
        out = _aten._scaled_dot_product_flash_attention(*padded, dropout_p, is_causal, False, scale=scale)[0]
        return out if out.size(-1) == query.size(-1) else out[..., : query.size(-1)]
    if backend == SDPBackend.EFFICIENT_ATTENTION:
        mask = _additive(attn_mask, query.dtype)
        if mask is not None:
            mask = _aligned(mask).expand(query.size(0), query.size(1), query.size(2), key.size(2))
        return _aten._scaled_dot_product_efficient_attention(
            query, key, value, mask, inputs.keeps_logsumexp, dropout_p, is_causal, scale=scale
        )[0]
    if backend == SDPBackend.CUDNN_ATTENTION:
        mask = _additive(attn_mask, query.dtype)
        return _aten._scaled_dot_product_cudnn_attention(
            query, key, value, mask, inputs.keeps_logsumexp, dropout_p, is_causal, False, scale=scale
        )[0]
    raise RuntimeError("No available kernel. Aborting execution.")  # what PyTorch says


def _additive(mask: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
    """convert_boolean_attn_mask."""
    if mask is None or mask.dtype != torch.bool:
        return mask
    filling = _aten.scalar_tensor(0.0, dtype=dtype, device=mask.device)
    return torch.where(mask, 0.0, filling)


def _padded(tensor: torch.Tensor, alignment: int) -> torch.Tensor:
    """pad_last_dim: the last dimension to the next multiple."""
    missing = -tensor.size(-1) % alignment
    return torch.constant_pad_nd(tensor, (0, missing)) if missing else tensor


def _aligned(mask: torch.Tensor) -> torch.Tensor:
    """preprocess_mask: rows that start at multiples of 8 elements, by padding the last dimension."""
    if mask.stride(-1) == 1 and all(stride % 8 == 0 for stride in mask.stride()[:-1]):
        return mask
    length = mask.size(-1)
    return torch.constant_pad_nd(mask, (0, 8 - length % 8))[..., :length]


def _math(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    dropout: float,
    causal: bool,
    scale: float | None,
    grouped: bool,
) -> torch.Tensor:
    """_scaled_dot_product_attention_math; PyTorch's own adds the mask out of place for tensor subclasses."""
    dtype = query.dtype
    held = [query, key, value]  # until the function returns, as C++ holds them
    if dtype in (torch.float16, torch.bfloat16) and not torch._C._get_math_sdp_allow_fp16_bf16_reduction():
        query, key, value = query.float(), key.float(), value.float()
        held += [query, key, value]
    factor = math.sqrt(abs(scale) if scale is not None else 1 / math.sqrt(query.size(-1)))
    scaled = query * (-factor if scale is not None and scale < 0 else factor)
    if causal:
        lower = torch.ones(query.size(-2), key.size(-2), dtype=torch.bool, device=query.device).tril()
        mask = _additive(lower, scaled.dtype)
        del lower
    if grouped and not query.size(-3) == key.size(-3) == value.size(-3):
        key = key.repeat_interleave(query.size(-3) // key.size(-3), -3)
        value = value.repeat_interleave(query.size(-3) // value.size(-3), -3)
    weights = torch.matmul(scaled, key.transpose(-2, -1) * factor)
    if mask is not None:
        weights.add_(mask)
    weights = _aten._safe_softmax(weights, -1)
    if dropout > 0:
        weights = torch.dropout(weights, dropout, True)
    held.append(weights.to(dtype))
    return torch.matmul(weights, value).to(dtype)
