"""Calls on sparse tensors and sparse gradients, for record_kernels.py: its family "sparse"."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
from record_kernels import call, empty, main, zeros


def table(rng: random.Random) -> dict[str, Any]:
    return {
        "rows": round(10 ** rng.uniform(1, 5)),
        "width": rng.choice((1, 8, 33, 64)),
        "count": rng.choice((1, 2, 17, rng.randint(3, 5000), rng.randint(5000, 300_000))),
        "is_coalesced": rng.random() < 0.5,
    }


def sparse(rows: int, width: int, count: int, is_coalesced: bool) -> torch.Tensor:
    indices, values = zeros(1, count), empty(count, width)
    return torch.sparse_coo_tensor(indices, values, (rows, width), is_coalesced=is_coalesced, check_invariants=False)


@call("sparse", table)
def coalesce(**given: Any) -> Callable[[], Any]:
    tensor = sparse(**given)
    return tensor.coalesce


@call("sparse", table)
def sparse_mask(**given: Any) -> Callable[[], Any]:
    tensor = sparse(**given)
    dense = empty(*tensor.shape)
    return lambda: dense.sparse_mask(tensor)


@call("sparse", table)
def added_to_dense(**given: Any) -> Callable[[], Any]:
    tensor = sparse(**given)
    dense = empty(*tensor.shape)
    return lambda: dense.add_(tensor, alpha=-0.1)


@call("sparse", table)
def dense_sum(**given: Any) -> Callable[[], Any]:
    tensor = sparse(**given)
    dense = empty(*tensor.shape)
    return lambda: dense + tensor


@call("sparse", lambda rng: {**table(rng), "alpha": rng.choice((1, 0.5))})
def added_to_sparse(alpha: float, **given: Any) -> Callable[[], Any]:
    first, second = sparse(**given), sparse(**given)
    return lambda: first.add_(second, alpha=alpha)


@call("sparse", table)
def sparse_sum(**given: Any) -> Callable[[], Any]:
    first, second = sparse(**given), sparse(**given)
    return lambda: first + second


@call("sparse", table)
def scaled_in_place(**given: Any) -> Callable[[], Any]:
    tensor = sparse(**given)
    return lambda: tensor.mul_(0.9)


@call("sparse", table)
def copied(**given: Any) -> Callable[[], Any]:
    tensor = sparse(**given)
    return tensor.clone


@call("sparse", table)
def negated(**given: Any) -> Callable[[], Any]:
    tensor = sparse(**given)
    return lambda: -tensor


@call("sparse", table)
def zeroed(**given: Any) -> Callable[[], Any]:
    tensor = sparse(**given)
    return tensor.zero_


@call("sparse", table)
def made_dense(**given: Any) -> Callable[[], Any]:
    tensor = sparse(**given)
    return tensor.to_dense


def gradient(rng: random.Random) -> dict[str, Any]:
    return {
        "rows": round(10 ** rng.uniform(1, 4)),
        "width": rng.choice((1, 16, 33)),
        "tokens": [rng.randint(1, 40), rng.randint(1, 60)],
        "turned": rng.random() < 0.3,
        "passes": rng.choice((1, 1, 2)),
        "dtype": rng.choice(("float32", "float16")),
    }


@call("sparse", gradient)
def embedding(rows: int, width: int, tokens: list[int], turned: bool, passes: int, dtype: str) -> Callable[[], Any]:
    weight, where = empty(rows, width, dtype=dtype, grad=True), zeros(*tokens)

    def run() -> Any:
        for _ in range(passes):
            out = torch.nn.functional.embedding(where, weight, sparse=True)
            out = out.transpose(0, -1).mul(2) if turned else out
            out.backward(torch.empty_like(out))
        return weight.grad

    return run


@call("sparse", lambda rng: {**gradient(rng), "mode": rng.choice(("sum", "mean")), "weighted": rng.random() < 0.3})
def bags(
    rows: int, width: int, tokens: list[int], turned: bool, passes: int, dtype: str, mode: str, weighted: bool
) -> Callable[[], Any]:
    del turned
    weight, where = empty(rows, width, dtype=dtype, grad=True), zeros(*tokens)
    weights = empty(*tokens, dtype=dtype) if weighted and mode == "sum" else None

    def run() -> Any:
        for _ in range(passes):
            out = torch.nn.functional.embedding_bag(where, weight, mode=mode, sparse=True, per_sample_weights=weights)
            out.backward(torch.empty_like(out))
        return weight.grad

    return run


if __name__ == "__main__":
    main()
