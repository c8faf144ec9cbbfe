"""Cases of scaled_dot_product_attention, and what PyTorch's own CUDA code allocates for them.

Run under a CUDA build of PyTorch, on a GPU or with a stand-in for the CUDA driver, it adds that truth to a file:
``python record_attention.py FILE SEED COUNT``. test_attention.py compares willfit's trace with it.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention


@dataclass(frozen=True)
class Case:
    """One call, forward and backward."""

    dtype: str = "float32"
    batch: int = 2
    heads: int = 4
    kv_heads: int = 4
    queries: int = 64
    keys: int = 64
    head: int = 64
    value_head: int = 64
    layout: str = "bhsd"
    """How q, k and v lie in memory: bhsd, bshd, packed (one projection for all three), wide (part of longer rows),
    hsd (bhsd with the batch of one dropped)."""
    mask: str = ""
    """Nothing, or a dtype ("bool", "float32", "same") and the dimensions that it has: "bool:b1qk"."""
    mask_grad: bool = False
    causal: bool = False
    dropout: float = 0.0
    gqa: bool = False
    grads: str = "qkv"
    """Which of q, k and v need a gradient; a "-" in front: under no_grad."""
    gradient: str = "bhsd"
    """How the output's gradient lies in memory: bhsd, bshd, wide."""
    autocast: str = ""
    backends: str = ""
    """What sdpa_kernel allows: MATH,FLASH_ATTENTION; with "!" at the end in that order of priority."""
    deterministic: bool = False
    reduced_math: bool = False


def placed(case: Case) -> tuple[list[torch.Tensor], torch.Tensor | None, torch.Tensor]:
    """Leaves that q, k and v are made of, the mask, and the gradient of the output."""
    dtype = getattr(torch, case.dtype)

    def empty(*shape: int, of: torch.dtype = dtype) -> torch.Tensor:
        return torch.empty(*shape, dtype=of, device="cuda")

    def rows(heads: int, length: int, width: int) -> torch.Tensor:
        if case.layout in ("bhsd", "hsd"):
            return empty(case.batch, heads, length, width)
        return empty(case.batch, length, heads, width + (8 if case.layout == "wide" else 0))

    if case.layout == "packed":
        leaves = [empty(case.batch, case.queries, 3, case.heads, case.head).requires_grad_("q" in case.grads)]
    else:
        shapes = (
            ("q", case.heads, case.queries, case.head),
            ("k", case.kv_heads, case.keys, case.head),
            ("v", case.kv_heads, case.keys, case.value_head),
        )
        leaves = [rows(*shape).requires_grad_(name in case.grads) for name, *shape in shapes]
    mask = None
    if case.mask:
        kind, _, dims = case.mask.partition(":")
        sizes = {"b": case.batch, "h": case.heads, "q": case.queries, "k": case.keys, "1": 1}
        mask = empty(*(sizes[d] for d in dims), of=dtype if kind == "same" else getattr(torch, kind))
        mask.requires_grad_(case.mask_grad)
    out_dtype = getattr(torch, case.autocast) if case.autocast else dtype
    shape = (case.batch, case.heads, case.queries, case.value_head)
    if case.gradient == "bhsd":
        gradient = empty(*shape, of=out_dtype)
    elif case.gradient == "bshd":
        gradient = empty(shape[0], shape[2], shape[1], shape[3], of=out_dtype).transpose(1, 2)
    else:
        gradient = empty(shape[0], shape[2], shape[1], shape[3] + 8, of=out_dtype)[..., :-8].transpose(1, 2)
    return leaves, mask, gradient


def run(case: Case, leaves: list[torch.Tensor], mask: torch.Tensor | None, gradient: torch.Tensor) -> None:
    """Forward and backward."""
    if case.layout == "packed":
        q, k, v = (part.transpose(1, 2) for part in leaves[0].unbind(2))
    elif case.layout == "bhsd":
        q, k, v = leaves
    elif case.layout == "hsd":
        q, k, v, gradient = (tensor.squeeze(0) for tensor in (*leaves, gradient))
    else:
        widths = (case.head, case.head, case.value_head)
        q, k, v = (leaf[..., :w].transpose(1, 2) for leaf, w in zip(leaves, widths, strict=True))
    with ExitStack() as stack:
        if case.grads.startswith("-"):
            stack.enter_context(torch.no_grad())
        if case.autocast:
            stack.enter_context(torch.autocast("cuda", getattr(torch, case.autocast)))
        if case.backends:
            names = case.backends.removesuffix("!").split(",")
            allowed = [getattr(SDPBackend, name) for name in names]
            stack.enter_context(sdpa_kernel(allowed, set_priority=case.backends.endswith("!")))
        out = scaled_dot_product_attention(
            q, k, v, mask, dropout_p=case.dropout, is_causal=case.causal, enable_gqa=case.gqa
        )
    if out.requires_grad:
        wanted = [t for t in (*leaves, mask) if t is not None and t.requires_grad]
        torch.autograd.grad(out, wanted, gradient, allow_unused=True)


def settings(case: Case, stack: ExitStack) -> None:
    """Global settings of the case, until the stack closes."""
    if case.deterministic:
        torch.use_deterministic_algorithms(True)
        stack.callback(torch.use_deterministic_algorithms, False)
    if case.reduced_math:
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
        stack.callback(torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp, False)


def events(sizes: Iterable[tuple[Any, int]]) -> list[int]:
    """Allocations (key, size) and frees (key, -1) as numbers: a size, or minus the number of the allocation freed.

    Frees with no allocation between them have no order: some come from hash tables. Those after the last allocation
    are left out, since autograd's thread may still hold something when the main thread goes on.
    """
    number: dict[Any, int] = {}
    found: list[int] = []
    freed: list[int] = []
    count = 0
    for key, size in sizes:
        if size >= 0:
            count += 1
            number[key] = count
            found += [*sorted(freed), size]
            freed = []
        elif key in number:
            freed.append(-number.pop(key))
    return found


def random_case(rng: random.Random) -> Case:
    """A case that CUDA may or may not be able to run."""
    head = rng.choice((8, 16, 32, 40, 64, 64, 80, 96, 128, 128, 160, 192, 224, 256, 20, 36, 50, 72, 100, 3, 272, 512))
    heads = rng.choice((1, 2, 4, 6, 8, 16))
    queries = rng.choice((1, 5, 17, 32, 64, 100, 128, 200, 256, 333, 512, 1024))
    gqa = rng.random() < 0.25
    kv_heads = rng.choice([h for h in (1, 2, 4, 8) if heads % h == 0]) if gqa else heads
    mask = ""
    if rng.random() < 0.45:
        kind = rng.choice(("bool", "bool", "float32", "same"))
        mask = f"{kind}:{rng.choice(('bhqk', 'b1qk', '11qk', 'qk', 'b11k', '1hqk', '1hqk', 'bqk', '1k', 'k'))}"
    case = Case(
        dtype=rng.choice(("float32", "float16", "bfloat16", "bfloat16")),
        batch=rng.choice((1, 2, 3, 8)),
        heads=heads,
        kv_heads=kv_heads,
        queries=queries,
        keys=queries if rng.random() < 0.7 else rng.choice((1, 7, 64, 77, 128, 300, 1000)),
        head=head,
        value_head=head if rng.random() < 0.9 else rng.choice((8, 32, 64, 128, 192)),
        layout=rng.choice(("bhsd", "bhsd", "bshd", "bshd", "packed", "wide")),
        mask=mask,
        mask_grad=mask.endswith("qk") and "bool" not in mask and rng.random() < 0.3,
        causal=not mask and queries != 64 and rng.random() < 0.5,
        dropout=rng.choice((0.0, 0.0, 0.0, 0.1, 0.125)),
        gqa=gqa or rng.random() < 0.05,
        grads=rng.choice(("qkv",) * 6 + ("kv", "q", "v", "", "-qkv")),
        gradient=rng.choice(("bhsd", "bshd", "bshd", "wide")),
        backends=rng.choice(
            ("",) * 12
            + (
                "MATH",
                "EFFICIENT_ATTENTION,MATH",
                "MATH,EFFICIENT_ATTENTION!",
                "EFFICIENT_ATTENTION,FLASH_ATTENTION,MATH!",
            )
        ),
        deterministic=not mask and queries == 64 and rng.random() < 0.5,
        reduced_math=rng.random() < 0.05,
    )
    if case.batch == 1 and mask.partition(":")[2] in ("", "qk", "1k") and rng.random() < 0.3:
        case = replace(case, layout="hsd")
    if case.layout == "packed":
        case = replace(case, kv_heads=heads, keys=queries, value_head=head)
    if case.dtype == "float32" and rng.random() < 0.3:
        case = replace(case, autocast=rng.choice(("float16", "bfloat16")))
    return case


def _allocated(case: Case) -> list[int]:
    leaves, mask, gradient = placed(case)
    torch.cuda.memory._record_memory_history(stacks="python")
    try:
        with ExitStack() as stack:
            settings(case, stack)
            run(case, leaves, mask, gradient)
        trace = torch.cuda.memory._snapshot()["device_traces"][0]
    finally:
        torch.cuda.memory._record_memory_history(enabled=None)
    return events(
        (entry["addr"], entry["size"] if entry["action"] == "alloc" else -1)
        for entry in trace
        if entry["action"] in ("alloc", "free_requested")
    )


def _warm_up() -> None:
    """Take the cuBLAS workspaces of both threads, and let autocast make its test for bfloat16."""
    x = torch.empty(8, 8, device="cuda", requires_grad=True)
    torch.autograd.grad((x @ x).sum(), x)
    torch.cuda.is_bf16_supported()


def main() -> None:
    """Add COUNT random cases to FILE."""
    path, seed, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    _warm_up()
    rng = random.Random(seed)
    found: list[dict[str, Any]] = json.loads(path.read_text())["cases"] if path.exists() else []
    device = torch.cuda.get_device_properties(0)
    while count:
        case = random_case(rng)
        try:
            seen = _allocated(case)
        except Exception:  # CUDA cannot run it, or the stand-in cannot (Triton kernels)
            continue
        count -= 1
        given = {f.name: value for f in fields(case) if (value := getattr(case, f.name)) != f.default}
        found.append({"gpu": [device.major, device.minor, device.multi_processor_count], "case": given, "events": seen})
    rows = ",\n".join(json.dumps(row, separators=(",", ":")) for row in found)
    path.write_text(f'{{"torch": "{torch.__version__.split("+")[0]}", "cases": [\n{rows}\n]}}\n')


if __name__ == "__main__":
    main()
