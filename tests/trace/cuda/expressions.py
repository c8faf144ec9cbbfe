"""Calls written as expressions, and what PyTorch's own CUDA code allocates for them, forward and backward.

In an expression ``t(2, 3)`` makes a leaf, ``F`` is torch.nn.functional. Under a CUDA build of PyTorch, on a GPU or with
a stand-in for the CUDA driver, ``python expressions.py FILE < EXPRESSIONS`` records that truth;
test_expressions.py compares willfit's trace with it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch


def t(
    *shape: int, of: str = "float32", grad: bool = True, order: str = "", step: int = 1, top: int = 0
) -> torch.Tensor:
    """A leaf; ``order`` is how its dimensions follow one another in memory, ``step`` a gap between columns."""
    dtype = getattr(torch, of)
    places = [int(place) for place in order] or list(range(len(shape)))
    sizes = [shape[place] for place in places]
    if step > 1:
        sizes[-1] *= step
    leaf = torch.empty(sizes, dtype=dtype, device="cuda")
    if step > 1:
        leaf = leaf[..., ::step]
    leaf = leaf.permute([places.index(dim) for dim in range(len(shape))])
    return leaf.detach().requires_grad_(grad and dtype.is_floating_point)


def run(expression: str, keep: list[Any]) -> None:
    """Forward and backward, inside autocast where the expression begins with ``bfloat16:`` or ``float16:``."""
    autocast, _, rest = expression.rpartition(": ")

    def leaf(*shape: int, **options: Any) -> torch.Tensor:
        keep.append(t(*shape, **options))
        return keep[-1]

    names = {"F": torch.nn.functional, "t": leaf, "torch": torch}
    with torch.autocast("cuda", getattr(torch, autocast)) if autocast else nullcontext():
        out = eval(rest, names)
    found = [out] if isinstance(out, torch.Tensor) else list(out)
    found = [each for each in found if isinstance(each, torch.Tensor) and each.requires_grad]
    del out
    if found:
        torch.autograd.backward(found, [torch.empty_like(each) for each in found])


def numbered(events: Iterable[tuple[int, int]]) -> list[int]:
    """Sizes of allocations, and for each free minus the number of what it frees; from (key, size or -1).

    Frees that follow one another are sorted: their order changes nothing.
    """
    numbers: dict[int, int] = {}
    out: list[int] = []
    freed: list[int] = []
    for key, size in events:
        if size >= 0:
            out += sorted(freed)
            freed.clear()
            numbers[key] = len(numbers) + 1
            out.append(size)
        elif key in numbers:
            freed.append(-numbers[key])
    return out + sorted(freed)


def recorded(expression: str) -> list[int]:
    """What a CUDA build of PyTorch allocates."""
    memory = torch.cuda.memory
    memory._record_memory_history(enabled=None)
    memory._record_memory_history(context=None, max_entries=10**6)
    keep: list[Any] = []
    run(expression, keep)
    kinds = {"alloc": 1, "free_requested": 0}
    seen = [e for e in memory._snapshot()["device_traces"][0] if e["action"] in kinds]
    born: dict[int, int] = {}
    events = []
    for number, event in enumerate(seen):
        if kinds[event["action"]]:
            born[event["addr"]] = number
            events.append((number, event["size"]))
        elif event["addr"] in born:
            events.append((born.pop(event["addr"]), -1))
    return numbered(events)


def main() -> None:
    """Record expressions from standard input into FILE."""
    x = torch.empty(8, 8, device="cuda", requires_grad=True)
    torch.autograd.grad((x @ x).sum(), x)
    torch.cuda.is_bf16_supported()
    device = torch.cuda.get_device_properties(0)
    rows = []
    for line in map(str.strip, sys.stdin):
        try:
            rows.append([line, recorded(line)])
        except Exception as error:
            print(line, error, file=sys.stderr)
    rows_text = ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows)
    gpu = [device.major, device.minor, device.multi_processor_count]
    head = json.dumps({"torch": torch.__version__.split("+")[0], "gpu": gpu})[:-1]
    Path(sys.argv[1]).write_text(f'{head}, "cases": [\n{rows_text}\n]}}\n')


if __name__ == "__main__":
    main()
