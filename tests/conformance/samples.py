"""Samples of PyTorch's own operator database, the same on both sides, and how one is run."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.testing._internal.common_methods_invocations import op_db
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

DTYPES = (torch.float32, torch.bfloat16, torch.int64)
SAMPLES = 3  # of each operator and dtype; the last one with its tensors turned in memory
LEFT_OUT = ("linalg.", "special", "jiterator", "_segment", "stft", "istft", "fft", "to_sparse", "svd", "sparse")
LEFT_OUT += ("cholesky", "lu", "qr", "geqrf", "ormqr", "pinverse", "torch.ops", "ops.", "empty", "new_empty")


def operators() -> Iterator[tuple[str, Any]]:
    """Names and entries, without those that need libraries the emulator lacks (cuSOLVER, cuFFT) or a jitted kernel."""
    for entry in op_db:
        if not entry.name.startswith(LEFT_OUT) and entry.name != "to":  # its samples depend on whether there is a GPU
            yield entry.name + (f".{entry.variant_test_name}" if entry.variant_test_name else ""), entry


def samples(entry: Any) -> Iterator[tuple[str, Any]]:
    """A few samples for each dtype, drawn by the operator's name, the last of them with its tensors turned."""
    for dtype in DTYPES:
        if dtype not in entry.supported_dtypes("cuda"):
            continue
        random.seed(0)
        torch.manual_seed(0)
        try:
            differentiable = entry.supports_autograd and dtype.is_floating_point
            found = list(entry.sample_inputs("cpu", dtype, requires_grad=differentiable))
        except Exception:  # the database cannot make them for this dtype
            continue
        found = [sample for sample in found if "device" not in described(sample)]
        found.sort(key=described)  # the database goes through sets, whose order varies
        random.Random(entry.name).shuffle(found)
        for number, sample in enumerate(found[:SAMPLES]):
            is_last = number == SAMPLES - 1
            yield f"{str(dtype).removeprefix('torch.')} {number}", sample.transform(turned) if is_last else sample


def turned(value: Any) -> Any:
    """The same tensor, whose first dimension is the innermost in memory; of what is no tensor, itself."""
    if not isinstance(value, torch.Tensor) or value.dim() < 2:
        return value
    dense = value.detach().transpose(0, -1).contiguous()
    return dense.transpose(0, -1).requires_grad_(value.requires_grad)


def described(sample: Any) -> str:
    """The sample's arguments, with the shapes, strides and dtypes of tensors."""
    given = tree_map_only(
        torch.Tensor,
        lambda t: f"{str(t.dtype).removeprefix('torch.')}{list(t.shape)}" + f"/{t.stride()}" * (not t.is_contiguous()),
        (sample.input, *sample.args, sample.kwargs),
    )
    return re.sub(r" at 0x[0-9a-f]+", "", repr(given))


def moved(sample: Any, move: Callable[[torch.Tensor], torch.Tensor]) -> tuple[Any, Any, Any]:
    """The sample's arguments on the GPU."""
    return tree_map(  # type: ignore[no-any-return]
        lambda value: move(value) if isinstance(value, torch.Tensor) else value,
        (sample.input, sample.args, sample.kwargs),
    )


def run(entry: Any, arguments: tuple[Any, Any, Any]) -> Any:
    """Forward and, where there is one, backward."""
    first, args, kwargs = arguments
    out = entry(first, *args, **kwargs)
    wanted = [t for t in tree_leaves(out) if isinstance(t, torch.Tensor) and t.requires_grad and not t.dtype.is_complex]
    if wanted:
        torch.autograd.backward(wanted, [torch.empty_like(t) for t in wanted])
    return out


def text(events: list[tuple[bool, int]]) -> str:
    """Allocations and frees in order; runs of frees sorted, as their order is that of a hash table or a thread."""
    words: list[str] = []
    freed: list[int] = []
    for is_allocation, size in events:
        if is_allocation:
            words += [f"-{n}" for n in sorted(freed)]
            freed = []
            words.append(f"+{size}")
        else:
            freed.append(size)
    return " ".join(words)  # what is freed after the last allocation changes no peak
