"""Samples of PyTorch's own operator database, the same on both sides, and how one is run.

Run with PYTHONHASHSEED=0: the database goes through sets of strings.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.testing._internal.common_methods_invocations import op_db
from torch.utils._pytree import tree_leaves, tree_map

DTYPES = (torch.float32, torch.bfloat16)
SAMPLES = 3  # of each operator and dtype
LEFT_OUT = ("linalg.", "special", "jiterator", "_segment", "stft", "istft", "fft", "to_sparse", "svd", "sparse")
LEFT_OUT += ("cholesky", "lu", "qr", "geqrf", "ormqr", "pinverse", "torch.ops", "ops.", "empty", "new_empty")


def operators() -> Iterator[tuple[str, Any]]:
    """Names and entries, without those that need libraries the emulator lacks (cuSOLVER, cuFFT) or a jitted kernel."""
    for entry in op_db:
        if not entry.name.startswith(LEFT_OUT):
            yield entry.name + (f".{entry.variant_test_name}" if entry.variant_test_name else ""), entry


def samples(entry: Any) -> Iterator[tuple[str, Any]]:
    """A few samples for each dtype, drawn by the operator's name."""
    for dtype in DTYPES:
        if dtype not in entry.supported_dtypes("cuda"):
            continue
        random.seed(0)
        torch.manual_seed(0)
        try:
            found = list(entry.sample_inputs("cpu", dtype, requires_grad=entry.supports_autograd))
        except Exception:  # the database cannot make them for this dtype
            continue
        found = [
            s for s in found if "device" not in s.kwargs and not any(isinstance(a, (str, torch.device)) for a in s.args)
        ]
        random.Random(entry.name).shuffle(found)
        for number, sample in enumerate(found[:SAMPLES]):
            yield f"{str(dtype).removeprefix('torch.')} {number}", sample


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
