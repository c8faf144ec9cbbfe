"""Which implementation CUDA takes for scaled_dot_product_attention.

Source: select_sdp_backend and the checks that it calls in aten/src/ATen/native/transformers/cuda/sdp_utils.cpp and
sdp_utils_cpp.h, for dense tensors on NVIDIA GPUs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import torch
from packaging.version import Version
from torch.nn.attention import SDPBackend

_HALF = (torch.float16, torch.bfloat16)
GROUPS = Version("2.14")
"""From here on memory-efficient attention takes grouped heads, and its random state is on the GPU without dropout;
single heads of keys and values and unbatched inputs reach the fused kernels; cuDNN is asked for heads up to 256."""
VERSION = Version(Version(torch.__version__).base_version)
_DEFAULT_ORDER = (SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH)
_ALIGNMENT_CHECKED = Version("2.13")
_SIXTEENTHS = Version("2.12")  # check_cudnn_dropout
_CUDNN_SHIPPED = (
    (Version("2.15"), 92600),
    (Version("2.14"), 92400),
    (Version("2.12"), 92000),
    (Version("2.11"), 91900),
    (Version("2.9"), 91002),
    (Version("2.6"), 90100),
)
"""cuDNN in the default wheels of PyTorch, from that version on, by their metadata."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """What the choice depends on: sdp::sdp_params."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    mask: torch.Tensor | None
    dropout: float
    causal: bool
    grouped: bool

    @property
    def qkv(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Query, key and value."""
        return self.query, self.key, self.value

    @property
    def requires_grad(self) -> bool:
        """input_requires_grad."""
        return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in self.qkv)

    @property
    def keeps_logsumexp(self) -> bool:
        """should_compute_logsumexp: for backward."""
        bias = self.mask is not None and self.mask.requires_grad and torch.is_grad_enabled()
        return self.requires_grad or (bias and VERSION >= GROUPS)

    def batched(self) -> Inputs:
        """normalize_unbatched_input."""
        if VERSION < GROUPS or any(tensor.dim() != 3 for tensor in self.qkv):
            return self
        query, key, value = (tensor.unsqueeze(0) for tensor in self.qkv)
        mask = self.mask
        while mask is not None and mask.dim() < 4:
            mask = mask.unsqueeze(0)
        return Inputs(query, key, value, mask, self.dropout, self.causal, self.grouped)


def choose(inputs: Inputs, capability: tuple[int, int]) -> SDPBackend:
    """select_sdp_backend; SDPBackend.ERROR where CUDA would raise."""
    for backend in _priority_order(capability):
        if backend == SDPBackend.CUDNN_ATTENTION:
            fits = _can_use_cudnn(inputs, capability)
        elif backend == SDPBackend.FLASH_ATTENTION:
            fits = _can_use_flash(inputs, capability)
        elif backend == SDPBackend.EFFICIENT_ATTENTION:
            fits = _can_use_efficient(inputs, capability)
        else:
            fits = backend == SDPBackend.MATH and torch._C._get_math_sdp_enabled()
        if fits:
            return backend
    return SDPBackend.ERROR


def _priority_order(capability: tuple[int, int]) -> Iterator[SDPBackend]:
    """The user's order if one was set, else cuDNN first where PyTorch prefers it."""
    order = tuple(SDPBackend(int(number)) for number in torch._C._get_sdp_priority_order())
    if order[:3] == _DEFAULT_ORDER and _prefers_cudnn(capability):
        yield SDPBackend.CUDNN_ATTENTION
    yield from order


def _prefers_cudnn(capability: tuple[int, int]) -> bool:
    """check_prefer_cudnn_attention: opt-in before 2.9; from 2.10 on where cuDNN is newer than 9.15.0."""
    if Version("2.9") > VERSION or capability[0] not in (9, 10):
        return False
    if Version("2.10") > VERSION:
        return _flag("TORCH_CUDNN_SDPA_PREFERRED") is not False and capability[1] == 0
    return _flag("TORCH_CUDNN_SDPA_DEPRIORITIZED") is not True and capability[1] in (0, 3) and cudnn_version() > 91500


def _flag(name: str) -> bool | None:
    """c10::utils::check_env."""
    return {"0": False, "1": True}.get(os.environ.get(name, ""))


@cache
def cudnn_version() -> int:
    """The installed cuDNN, or in a build without CUDA the one that the default wheels of this version bring."""
    installed: int | None = torch.backends.cudnn.version() if torch.version.cuda else None
    return installed or next((cudnn for torch_, cudnn in _CUDNN_SHIPPED if torch_ <= VERSION), 0)


def is_deterministic() -> bool:
    """Whether the user asked for deterministic algorithms, and not only for warnings."""
    return torch.are_deterministic_algorithms_enabled() and not torch.is_deterministic_algorithms_warn_only_enabled()


def _low_precision(capability: tuple[int, int]) -> tuple[torch.dtype, ...]:
    return _HALF if capability[0] >= 8 else (torch.float16,)


# -- checks that backends share ----------------------------------------------------------------------------------------


def _are_four_dimensional(inputs: Inputs) -> bool:
    return all(tensor.dim() == 4 for tensor in inputs.qkv)


def _have_dtype(inputs: Inputs, allowed: tuple[torch.dtype, ...]) -> bool:
    return inputs.query.dtype in allowed and all(tensor.dtype == inputs.query.dtype for tensor in inputs.qkv)


def _have_lengths(inputs: Inputs) -> bool:
    return inputs.query.size(-2) != 0 and inputs.key.size(-2) != 0


def _last_dimensions_are_dense(inputs: Inputs, *, ignore_single: bool) -> bool:
    dense = all(tensor.stride(-1) == 1 for tensor in inputs.qkv) or (ignore_single and inputs.query.size(-1) == 1)
    return dense and (inputs.mask is None or inputs.mask.stride(-1) == 1)


def _heads_match(inputs: Inputs, *, grouped: bool, same_kv_heads: bool = True) -> bool:
    """check_batch_size_and_num_heads_dense."""
    if len({tensor.size(0) for tensor in inputs.qkv}) != 1:
        return False
    query, key, value = (tensor.size(-3) for tensor in inputs.qkv)
    if inputs.grouped and grouped:
        if same_kv_heads and key != value:
            return False
        return query % key == 0 and (same_kv_heads or query % value == 0)
    return query == key == value or (VERSION >= GROUPS and key == value == 1)


def _mask_fits(inputs: Inputs) -> bool:
    """check_attn_mask_shape."""
    mask = inputs.mask
    if mask is None:
        return True
    if mask.requires_grad or mask.dim() not in (2, 4):
        return False
    query = inputs.query
    target = (query.size(0), query.size(1), query.size(2), inputs.key.size(2))
    return all(size in (1, wanted) for size, wanted in zip(mask.shape, target[-mask.dim() :], strict=True))


# -- the backends ------------------------------------------------------------------------------------------------------


def _can_use_flash(inputs: Inputs, capability: tuple[int, int]) -> bool:
    """can_use_flash_attention."""
    if not torch._C._get_flash_sdp_enabled() or not (8, 0) <= capability <= (12, 1):
        return False
    head = inputs.query.size(-1)
    no_backward = (8, 6) <= capability <= (8, 9) or (12, 0) <= capability <= (12, 1)
    return (
        _are_four_dimensional(inputs)
        and inputs.mask is None
        and all(tensor.size(-1) == head for tensor in inputs.qkv)
        and head <= 256
        and not (inputs.requires_grad and no_backward and not (head <= 192 or (inputs.dropout == 0 and head > 224)))
        and not (inputs.causal and inputs.query.size(-2) != inputs.key.size(-2))
        and _have_dtype(inputs, _low_precision(capability))
        and _heads_match(inputs, grouped=True)
        and _have_lengths(inputs)
        and _last_dimensions_are_dense(inputs, ignore_single=True)
    )


def _minimum_gemm_alignment(dtype: torch.dtype, capability: tuple[int, int]) -> int:
    tensor_cores = capability[0] >= 8 or (capability[0] >= 7 and dtype in _HALF)
    alignment = 4 if capability[0] >= 8 else 1
    return max(alignment, 8 if dtype in _HALF else 4) if tensor_cores else alignment


def _is_aligned(tensor: torch.Tensor, alignment: int) -> bool:
    """check_data_ptr_alignment_mem_efficient, from 2.13 on; before, such a call raised."""
    return VERSION < _ALIGNMENT_CHECKED or tensor.numel() == 0 or tensor.storage_offset() % alignment == 0


def _can_use_efficient(inputs: Inputs, capability: tuple[int, int]) -> bool:
    """can_use_mem_efficient_attention."""
    if not torch._C._get_mem_efficient_sdp_enabled() or not (5, 0) <= capability <= (12, 1):
        return False
    if not _are_four_dimensional(inputs):
        return False
    head, value_head = inputs.query.size(-1), inputs.value.size(-1)
    alignment = _minimum_gemm_alignment(inputs.query.dtype, capability)
    return (
        head == inputs.key.size(-1)
        and head > 0
        and head % alignment == 0
        and value_head > 0
        and value_head % alignment == 0
        and (capability[0] < 8 or all(_is_aligned(tensor, alignment) for tensor in inputs.qkv))
        and _have_lengths(inputs)
        and _last_dimensions_are_dense(inputs, ignore_single=False)
        and _heads_match(inputs, grouped=VERSION >= GROUPS)
        and _have_dtype(inputs, (torch.float32, *_low_precision(capability)))
    )


def _can_use_cudnn(inputs: Inputs, capability: tuple[int, int]) -> bool:
    """can_use_cudnn_attention, for cuDNN 9."""
    if not torch._C._get_cudnn_sdp_enabled() or not (8, 0) <= capability <= (12, 1):
        return False
    cudnn = cudnn_version()
    if cudnn < 90000 or (inputs.dropout > 0 and 91100 < cudnn < 91400) or is_deterministic():
        return False
    if not _are_four_dimensional(inputs):
        return False
    head, value_head = inputs.query.size(-1), inputs.value.size(-1)
    return (
        _have_dtype(inputs, _low_precision(capability))
        and _mask_fits(inputs)
        and _have_lengths(inputs)
        and _last_dimensions_are_dense(inputs, ignore_single=True)
        and _heads_match(inputs, grouped=True, same_kv_heads=False)
        and max(inputs.query.size(0), inputs.query.size(1)) <= 65535
        and _cudnn_takes_heads(head, value_head, inputs.requires_grad, capability)
        and head % 8 == 0
        and value_head % 8 == 0
        and inputs.key.size(-2) != 1
        and not (inputs.query.size(-2) == 1 and inputs.dropout != 0)
        and (VERSION < _SIXTEENTHS or (inputs.dropout * 16).is_integer())
    )


def _cudnn_takes_heads(head: int, value_head: int, backward: bool, capability: tuple[int, int]) -> bool:
    """check_cudnn_tensor_shapes and check_cudnn_d256_bprop_head_dim."""
    widest = max(head, value_head)
    if widest <= 128:
        return True
    hopper, blackwell = capability == (9, 0), capability[0] == 10
    if VERSION < GROUPS:
        if hopper and cudnn_version() >= 91000:
            return widest <= 256
        return blackwell and cudnn_version() >= 91100 and (head, value_head) == (192, 128)
    if not hopper and not blackwell:
        return False
    if cudnn_version() > (92500 if capability == (10, 7) else 92200):
        return (head, value_head) in ((192, 128), (256, 256)) or (widest <= 256 and not backward)
    return (head, value_head) == (192, 128)
