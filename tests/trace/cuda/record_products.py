"""Matrix products and reductions at random shapes and layouts, for record_kernels.py's recorder.

``python record_products.py FILE SEED COUNT FAMILY`` with FAMILY "products" or "reductions".
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
from record_kernels import DTYPES, call, empty, main

LAYOUTS = ("plain", "transposed", "row expanded", "column expanded", "number expanded", "part", "strided")


def matrix(kind: str, batch: int, rows: int, columns: int) -> torch.Tensor:
    """A matrix, or a batch of them, that lies in memory in one of the ways above."""
    lead = (batch,) if batch else ()
    if kind == "transposed":
        return empty(*lead, columns, rows).transpose(-1, -2)
    if kind == "row expanded":
        return empty(*lead, 1, columns).expand(*lead, rows, columns)
    if kind == "column expanded":
        return empty(*lead, rows, 1).expand(*lead, rows, columns)
    if kind == "number expanded":
        return empty().expand(*lead, rows, columns)
    if kind == "part":
        return empty(*lead, rows, columns + 3)[..., :columns]
    if kind == "strided":
        return empty(*lead, rows, 2 * columns)[..., ::2]
    return empty(*lead, rows, columns)


def sides(rng: random.Random) -> dict[str, Any]:
    m, k, n = (rng.choice((1, 2, 3, 17, 64)) for _ in range(3))
    kinds = [rng.choice(LAYOUTS), rng.choice(LAYOUTS)]
    # an inner length of 1 goes to a Triton kernel, which no stand-in for the driver can launch
    return {"batch": rng.choice((1, 2, 5)), "m": m, "k": max(2, k), "n": n, "kinds": kinds}


@call("products", sides)
def mm(batch: int, m: int, k: int, n: int, kinds: list[str]) -> Callable[[], Any]:
    a, b = matrix(kinds[0], 0, m, k), matrix(kinds[1], 0, k, n)
    return lambda: torch.mm(a, b)


@call("products", sides)
def bmm(batch: int, m: int, k: int, n: int, kinds: list[str]) -> Callable[[], Any]:
    a, b = matrix(kinds[0], batch, m, k), matrix(kinds[1], batch, k, n)
    return lambda: torch.bmm(a, b)


@call("products", sides)
def addmm(batch: int, m: int, k: int, n: int, kinds: list[str]) -> Callable[[], Any]:
    a, b, bias = matrix(kinds[0], 0, m, k), matrix(kinds[1], 0, k, n), empty(n)
    return lambda: torch.addmm(bias, a, b)


@call("products", sides)
def baddbmm(batch: int, m: int, k: int, n: int, kinds: list[str]) -> Callable[[], Any]:
    a, b, bias = matrix(kinds[0], batch, m, k), matrix(kinds[1], batch, k, n), empty(batch, m, n)
    return lambda: torch.baddbmm(bias, a, b)


@call("products", sides)
def mv(batch: int, m: int, k: int, n: int, kinds: list[str]) -> Callable[[], Any]:
    a, b = matrix(kinds[0], 0, m, k), matrix(kinds[1], 0, k, n)
    return lambda: torch.mv(a, b[:, 0])


def reduced(rng: random.Random) -> dict[str, Any]:
    rank = rng.randint(1, 4)
    dims = [max(1, round(2 ** rng.uniform(0, 12))) for _ in range(rank)]
    while torch.Size(dims).numel() > 10**7:
        dims[dims.index(max(dims))] //= 2
    order = rng.sample(range(rank), rank) if rng.random() < 0.3 else list(range(rank))
    over = None if rng.random() < 0.2 else sorted(rng.sample(range(rank), rng.randint(1, rank)))
    return {"dims": dims, "order": order, "over": over, "dtype": rng.choice(DTYPES), "keep": rng.random() < 0.3}


def source(dims: list[int], order: list[int], dtype: str) -> torch.Tensor:
    return empty(*dims, dtype=dtype).permute(order)


@call("reductions", reduced)
def total(dims: list[int], order: list[int], over: list[int] | None, dtype: str, keep: bool) -> Callable[[], Any]:
    x = source(dims, order, dtype)
    return lambda: x.sum() if over is None else x.sum(over, keepdim=keep)


@call("reductions", reduced)
def counted(dims: list[int], order: list[int], over: list[int] | None, dtype: str, keep: bool) -> Callable[[], Any]:
    x = source(dims, order, "bool")
    return lambda: x.sum() if over is None else x.sum(over, keepdim=keep)


@call("reductions", reduced)
def mean(dims: list[int], order: list[int], over: list[int] | None, dtype: str, keep: bool) -> Callable[[], Any]:
    x = source(dims, order, dtype)
    return lambda: x.mean() if over is None else x.mean(over, keepdim=keep)


@call("reductions", reduced)
def largest(dims: list[int], order: list[int], over: list[int] | None, dtype: str, keep: bool) -> Callable[[], Any]:
    x = source(dims, order, dtype)
    return lambda: x.max() if over is None else x.amax(over, keepdim=keep)


@call("reductions", reduced)
def norm(dims: list[int], order: list[int], over: list[int] | None, dtype: str, keep: bool) -> Callable[[], Any]:
    x = source(dims, order, dtype)
    return lambda: torch.linalg.vector_norm(x, dim=over, keepdim=keep)


if __name__ == "__main__":
    main()
