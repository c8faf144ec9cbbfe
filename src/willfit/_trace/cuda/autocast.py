"""Autocast as CUDA does it: its op lists, its cast cache and what therefore is kept for backward.

Source: aten/src/ATen/autocast_mode.h (AT_FORALL_LOWER_PRECISION_FP, AT_FORALL_FP32, AT_FORALL_FP32_SET_OPT_DTYPE,
AT_FORALL_DIFFERENT_REDISPATCH_SIGNATURE, AT_FORALL_PROMOTE; WrapFunction_ for each policy) and autocast_mode.cpp
(cached_cast; binary_cross_entropy is banned). The lists are those of 2.13; operators that an older version does not
have are left out there, and an operator that it has but does not cast is checked with the dispatcher's own table.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._pytree import tree_map_only

from willfit._trace.fake import FakeCudaTensor
from willfit._trace.overrides import overload, override

LOWER_PRECISION = [
    "_convolution.deprecated",
    "_convolution",
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_tbc",
    "conv_transpose1d",
    "conv_transpose2d.input",
    "conv_transpose3d.input",
    "convolution",
    "prelu",
    "addmm",
    "addmv",
    "addr",
    "matmul",
    "einsum",
    "mm",
    "mv",
    "linalg_vecdot",
    "linear",
    "addbmm",
    "baddbmm",
    "bmm",
    "chain_matmul",
    "linalg_multi_dot",
    "_thnn_fused_lstm_cell",
    "_thnn_fused_gru_cell",
    "lstm_cell",
    "gru_cell",
    "rnn_tanh_cell",
    "rnn_relu_cell",
    "_scaled_dot_product_flash_attention",
    "scaled_dot_product_attention",
]
FP32 = [
    "acos",
    "asin",
    "cosh",
    "erfinv",
    "exp",
    "expm1",
    "log",
    "log10",
    "log2",
    "log1p",
    "reciprocal",
    "rsqrt",
    "sinh",
    "tan",
    "pow.Tensor_Scalar",
    "pow.Tensor_Tensor",
    "pow.Scalar",
    "softplus",
    "layer_norm",
    "native_layer_norm",
    "rms_norm",
    "group_norm",
    "frobenius_norm.dim",
    "nuclear_norm",
    "nuclear_norm.dim",
    "cosine_similarity",
    "poisson_nll_loss",
    "cosine_embedding_loss",
    "nll_loss",
    "nll_loss2d",
    "hinge_embedding_loss",
    "kl_div",
    "l1_loss",
    "smooth_l1_loss",
    "huber_loss",
    "mse_loss",
    "margin_ranking_loss",
    "multilabel_margin_loss",
    "soft_margin_loss",
    "triplet_margin_loss",
    "multi_margin_loss",
    "binary_cross_entropy_with_logits",
    "dist",
    "pdist",
    "cdist",
    "renorm",
    "logsumexp",
    "upsample_nearest1d",
    "_upsample_nearest_exact1d",
    "upsample_nearest2d",
    "_upsample_nearest_exact2d",
    "upsample_nearest3d",
    "_upsample_nearest_exact3d",
    "upsample_linear1d",
    "upsample_bilinear2d",
    "_upsample_bilinear2d_aa",
    "upsample_trilinear3d",
    "upsample_bicubic2d",
    "_upsample_bicubic2d_aa",
]
FP32_SET_DTYPE = [
    "prod",
    "prod.dim_int",
    "softmax.int",
    "log_softmax.int",
    "cumprod",
    "cumsum",
    "linalg_vector_norm",
    "linalg_matrix_norm",
    "linalg_matrix_norm.str_ord",
    "sum",
    "sum.dim_IntList",
]
FP32_APPEND_DTYPE = ["norm.Scalar", "norm.ScalarOpt_dim"]
PROMOTE = [
    "addcdiv",
    "addcmul",
    "atan2",
    "bilinear",
    "cross",
    "dot",
    "vdot",
    "grid_sampler",
    "index_put",
    "tensordot",
    "scatter_add",
]

_cache: dict[int, tuple[Any, torch.Tensor]] = {}


def clear_cache() -> None:
    """Drop the casts of weights, as leaving the outermost autocast region does."""
    _cache.clear()


def clearing(own: Callable[[], None]) -> Callable[[], None]:
    """torch.clear_autocast_cache, for this cache too."""

    def clear() -> None:
        clear_cache()
        own()

    return clear


def _cast_arguments(
    args: tuple[Any, ...], kwargs: dict[str, Any], dtype: torch.dtype
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Cast every argument, the last one first, as GCC evaluates the arguments of WrapFunction_'s call."""
    cast_kwargs = {name: cast(kwargs[name], dtype) for name in reversed(kwargs)}
    cast_args = [cast(arg, dtype) for arg in reversed(args)]
    return tuple(reversed(cast_args)), cast_kwargs


def _eligible(value: torch.Tensor) -> bool:
    return isinstance(value, FakeCudaTensor) and value.is_floating_point() and value.dtype != torch.float64


def cast(value: Any, dtype: torch.dtype) -> Any:
    """cached_cast: eligible tensors to this dtype; the cast of a leaf that is fp32 and needs a gradient is kept."""
    return tree_map_only(torch.Tensor, lambda tensor: _cached_cast(tensor, dtype), value)


def _cached_cast(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    if not _eligible(tensor) or tensor.dtype == dtype:
        return tensor
    cacheable = (
        dtype == torch.get_autocast_dtype("cuda")
        and tensor.dtype == torch.float32
        and tensor.requires_grad
        and tensor.is_leaf
        and not tensor._is_view()
        and torch.is_autocast_cache_enabled()
    )
    if not cacheable:
        return tensor.to(dtype)
    entry = _cache.get(id(tensor))
    if entry is None or entry[0]() is not tensor:
        entry = _cache[id(tensor)] = (weakref.ref(tensor), tensor.to(dtype))
    return entry[1]


def _guarded(function: Callable[..., Any]) -> Callable[..., Any]:
    """Only inside ``torch.autocast("cuda")``; operators called within are not cast again."""

    @functools.wraps(function)
    def guarded(own: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if not torch.is_autocast_enabled("cuda"):
            return own(*args, **kwargs)
        with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCUDA)):
            return function(own, *args, **kwargs)

    return guarded


def _is_cast(name: str) -> bool:
    """Whether this version of PyTorch casts the operator under CUDA's autocast."""
    op = overload(name)
    return op is not None and torch._C._dispatch_has_kernel_for_dispatch_key(op.name(), "AutocastCUDA")


def _casting(names: list[str]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return lambda function: override(*filter(_is_cast, names))(_guarded(function))


@_casting(LOWER_PRECISION)
def lower_precision(own: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Policy lower_precision_fp."""
    args, kwargs = _cast_arguments(args, kwargs, torch.get_autocast_dtype("cuda"))
    return own(*args, **kwargs)


@_casting(FP32)
def fp32(own: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Policy fp32."""
    args, kwargs = _cast_arguments(args, kwargs, torch.float32)
    return own(*args, **kwargs)


def _first_is_eligible(args: tuple[Any, ...]) -> bool:
    return isinstance(args[0], torch.Tensor) and _eligible(args[0])


@_casting(FP32_SET_DTYPE)
def fp32_set_dtype(own: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Policy fp32_set_opt_dtype: the output's dtype is fp32 unless one is given; the input is not cast."""
    if _first_is_eligible(args) and kwargs.get("dtype") is None and not any(isinstance(a, torch.dtype) for a in args):
        kwargs = {**kwargs, "dtype": torch.float32}
    return own(*args, **kwargs)


@_casting(FP32_APPEND_DTYPE)
def fp32_append_dtype(own: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Policy fp32_append_dtype: norm computes and answers in fp32."""
    if not _first_is_eligible(args):
        return own(*args, **kwargs)
    return torch.norm(*args, **{**kwargs, "dtype": torch.float32})


@_casting(PROMOTE)
def promote(own: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Policy promote: all arguments to the widest of their dtypes."""
    found = {torch.get_autocast_dtype("cuda")}
    tree_map_only(torch.Tensor, lambda t: found.add(t.dtype) if _eligible(t) else None, (args, kwargs))
    dtype = torch.float32 if torch.float32 in found else torch.get_autocast_dtype("cuda")
    args, kwargs = _cast_arguments(args, kwargs, dtype)
    return own(*args, **kwargs)
