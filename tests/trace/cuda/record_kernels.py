"""Calls of operators at random shapes, and what PyTorch's own CUDA code allocates for them.

Run under a CUDA build of PyTorch, on a GPU or with a stand-in for the CUDA driver, it writes that truth to a file:
``python record_kernels.py FILE SEED COUNT FAMILY [NAME ...]`` keeps COUNT calls of each operator of a family
("indexing", "sorting"). The tests of those families compare willfit's trace with it.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from record_attention import events

Draw = Callable[[random.Random], dict[str, Any]]
Prepare = Callable[..., Callable[[], Any]]

CALLS: dict[str, dict[str, tuple[Draw, Prepare]]] = {}
"""By family and name: what draws the arguments (plain values), and what makes the inputs and returns the call."""

DTYPES = ("float32", "float16", "bfloat16")


def call(family: str, draw: Draw) -> Callable[[Prepare], Prepare]:
    """Register a call."""

    def register(prepare: Prepare) -> Prepare:
        CALLS.setdefault(family, {})[prepare.__name__] = (draw, prepare)
        return prepare

    return register


def empty(*shape: int, dtype: str = "float32", grad: bool = False) -> torch.Tensor:
    """A tensor on the GPU."""
    return torch.empty(shape, dtype=getattr(torch, dtype), device="cuda", requires_grad=grad)


def zeros(*shape: int, dtype: str = "int64") -> torch.Tensor:
    """Indices: in bounds wherever they point."""
    return torch.zeros(shape, dtype=getattr(torch, dtype), device="cuda")


def laid(tensor: torch.Tensor, layout: str) -> torch.Tensor:
    """The tensor as one that does not lie in memory in its own order: transposed, or part of a longer one."""
    if layout == "transposed" and tensor.dim() > 1:
        return torch.empty_like(tensor.transpose(0, -1).contiguous()).transpose(0, -1)
    if layout == "part" and tensor.dim():
        return torch.empty((*tensor.shape[:-1], tensor.size(-1) + 3), dtype=tensor.dtype, device="cuda")[..., :-3]
    return tensor


def layout(rng: random.Random) -> str:
    """A way to lie in memory."""
    return rng.choice(("", "", "transposed", "part"))


def shape(rng: random.Random, most: int = 4, elements: int = 200_000, least: int = 1) -> list[int]:
    """A random shape."""
    dims = [round(2 ** rng.uniform(0, 9)) for _ in range(rng.randint(least, most))]
    while torch.Size(dims).numel() > elements:
        dims[dims.index(max(dims))] //= 3
    return dims


def differentiated(inputs: list[torch.Tensor], function: Callable[..., Any]) -> Callable[[], Any]:
    """The function's forward and backward."""

    def run() -> Any:
        out = function()
        outs = [o for o in (out if isinstance(out, (tuple, list)) else [out]) if o.requires_grad]
        if not outs:
            return out
        wanted = [tensor for tensor in inputs if tensor.requires_grad]
        return out, torch.autograd.grad(outs, wanted, [torch.empty_like(o) for o in outs], allow_unused=True)

    return run


# -- indexing ----------------------------------------------------------------------------------------------------------


def _embedding(rng: random.Random) -> dict[str, Any]:
    tokens = shape(rng, 3, rng.choice((3000, 20_000)))
    return {
        "vocabulary": round(10 ** rng.uniform(0, 5)),
        "width": rng.choice((1, 16, 33, 64, 100)),
        "tokens": tokens,
        "index": rng.choice(("int64", "int64", "int32")),
        "dtype": rng.choice(DTYPES),
        "layout": layout(rng),
        "padding": rng.choice((None, None, 0)),
        "by_frequency": rng.random() < 0.25,
        "turned": rng.random() < 0.3,
    }


@call("indexing", _embedding)
def embedding(
    vocabulary: int,
    width: int,
    tokens: list[int],
    index: str,
    dtype: str,
    layout: str,
    padding: int | None,
    by_frequency: bool,
    turned: bool,
) -> Callable[[], Any]:
    weight = empty(vocabulary, width, dtype=dtype, grad=True)
    where = laid(zeros(*tokens, dtype=index), layout)

    def run() -> torch.Tensor:
        out = torch.nn.functional.embedding(where, weight, padding, scale_grad_by_freq=by_frequency)
        return out.transpose(0, -1).mul(2) if turned else out

    return differentiated([weight], run)


def _bag(rng: random.Random) -> dict[str, Any]:
    mode = rng.choice(("sum", "mean", "max"))
    flat = rng.random() < 0.5
    return {
        "vocabulary": round(10 ** rng.uniform(0, 4)),
        "width": rng.choice((1, 16, 33, 64)),
        "tokens": [rng.randint(1, 5000)] if flat else [rng.randint(1, 100), rng.randint(1, 50)],
        "bags": rng.randint(1, 40) if flat else 0,
        "mode": mode,
        "dtype": rng.choice(DTYPES),
        "weighted": mode == "sum" and rng.random() < 0.5,
        "padding": rng.choice((None, None, 0)),
        "by_frequency": mode != "max" and rng.random() < 0.25,
    }


@call("indexing", _bag)
def embedding_bag(
    vocabulary: int,
    width: int,
    tokens: list[int],
    bags: int,
    mode: str,
    dtype: str,
    weighted: bool,
    padding: int | None,
    by_frequency: bool,
) -> Callable[[], Any]:
    weight = empty(vocabulary, width, dtype=dtype, grad=True)
    where = zeros(*tokens)
    offsets = zeros(bags) if bags else None
    scales = empty(*tokens, dtype=dtype, grad=True) if weighted else None
    inputs = [weight, scales] if scales is not None else [weight]
    return differentiated(
        inputs,
        lambda: torch.nn.functional.embedding_bag(
            where,
            weight,
            offsets,
            mode=mode,
            scale_grad_by_freq=by_frequency,
            per_sample_weights=scales,
            padding_idx=padding,
        ),
    )


def _index(rng: random.Random) -> dict[str, Any]:
    dims = shape(rng)
    common = shape(rng, 3, 500)
    indices: list[Any] = []
    left = len(dims)
    while left and (not any(isinstance(index, list) for index in indices) or rng.random() < 0.6):
        kind = rng.choice(("index", "index", "index", "slice", "none", "mask"))
        if kind == "index":
            drop = rng.randint(0, len(common) - 1)
            indices.append([1 if rng.random() < 0.3 else size for size in common[drop:]])
        elif kind == "mask":
            wide = rng.randint(1, min(2, left))
            at = len(dims) - left
            indices.append(["mask", *dims[at : at + wide]])
            left -= wide - 1
        else:
            indices.append(kind)
            left += kind == "none"
        left -= 1
    if not any(isinstance(index, list) for index in indices):
        indices = [common]
    if any(isinstance(index, list) and index[0] == "mask" for index in indices):  # none of it is true: 0 indices
        indices = [[1] if isinstance(index, list) and index[0] != "mask" else index for index in indices]
    return {
        "dims": dims,
        "indices": indices,
        "index": rng.choice(("int64", "int64", "int64", "int32")),
        "dtype": rng.choice(DTYPES),
        "layout": layout(rng),
        "grad": rng.random() < 0.7,
    }


def _taken(indices: list[Any], index: str) -> tuple[Any, ...]:
    made: list[Any] = []
    for item in indices:
        if item == "slice":
            made.append(slice(None))
        elif item == "none":
            made.append(None)
        elif item[0] == "mask":
            made.append(zeros(*item[1:], dtype="bool"))
        else:
            made.append(zeros(*item, dtype=index))
    return tuple(made)


@call("indexing", _index)
def index(dims: list[int], indices: list[Any], index: str, dtype: str, layout: str, grad: bool) -> Callable[[], Any]:
    source = laid(empty(*dims, dtype=dtype), layout).requires_grad_(grad)
    where = _taken(indices, index)
    return differentiated([source], lambda: source[where])


@call("indexing", lambda rng: {**_index(rng), "accumulate": rng.random() < 0.5, "broadcast": rng.random() < 0.5})
def index_put(
    dims: list[int],
    indices: list[Any],
    index: str,
    dtype: str,
    layout: str,
    grad: bool,
    accumulate: bool,
    broadcast: bool,
) -> Callable[[], Any]:
    source = laid(empty(*dims, dtype=dtype), layout)
    where = _taken([item for item in indices if item not in ("slice", "none")], "int64")
    value = empty(dtype=dtype) if broadcast else torch.empty_like(source[where])
    value.requires_grad_(grad)
    return differentiated([value], lambda: source.index_put(where, value, accumulate=accumulate))


def _along(rng: random.Random) -> dict[str, Any]:
    dims = shape(rng)
    dim = rng.randrange(len(dims))
    return {
        "dims": dims,
        "dim": dim,
        "length": rng.randint(1, 300 if len(dims) < 3 else 20),
        "dtype": rng.choice(DTYPES),
        "layout": layout(rng),
        "index": rng.choice(("int64", "int64", "int32")),
    }


@call("indexing", _along)
def index_select(dims: list[int], dim: int, length: int, dtype: str, layout: str, index: str) -> Callable[[], Any]:
    source = laid(empty(*dims, dtype=dtype), layout).requires_grad_()
    where = zeros(length, dtype=index)
    return differentiated([source], lambda: source.index_select(dim, where))


@call("indexing", _along)
def index_add(dims: list[int], dim: int, length: int, dtype: str, layout: str, index: str) -> Callable[[], Any]:
    target = empty(*dims, dtype=dtype, grad=True)
    source = laid(empty(*dims[:dim], length, *dims[dim + 1 :], dtype=dtype), layout).requires_grad_()
    where = zeros(length, dtype=index)
    return differentiated([target, source], lambda: target.index_add(dim, where, source))


@call("indexing", _along)
def index_copy(dims: list[int], dim: int, length: int, dtype: str, layout: str, index: str) -> Callable[[], Any]:
    target = empty(*dims, dtype=dtype, grad=True)
    source = laid(empty(*dims[:dim], length, *dims[dim + 1 :], dtype=dtype), layout).requires_grad_()
    where = zeros(length)
    return differentiated([target, source], lambda: target.index_copy(dim, where, source))


@call("indexing", _along)
def index_fill(dims: list[int], dim: int, length: int, dtype: str, layout: str, index: str) -> Callable[[], Any]:
    target = laid(empty(*dims, dtype=dtype), layout).requires_grad_()
    where = zeros(length)
    return differentiated([target], lambda: target.index_fill(dim, where, 1.0))


@call("indexing", _along)
def gather(dims: list[int], dim: int, length: int, dtype: str, layout: str, index: str) -> Callable[[], Any]:
    source = laid(empty(*dims, dtype=dtype), layout).requires_grad_()
    where = zeros(*dims[:dim], length, *dims[dim + 1 :])
    return differentiated([source], lambda: source.gather(dim, where))


@call("indexing", _along)
def scatter(dims: list[int], dim: int, length: int, dtype: str, layout: str, index: str) -> Callable[[], Any]:
    target = empty(*dims, dtype=dtype, grad=True)
    sizes = [*dims[:dim], length, *dims[dim + 1 :]]
    source = laid(empty(*sizes, dtype=dtype), layout).requires_grad_()
    where = zeros(*sizes)
    return differentiated([target, source], lambda: target.scatter(dim, where, source))


@call("indexing", _along)
def scatter_add(dims: list[int], dim: int, length: int, dtype: str, layout: str, index: str) -> Callable[[], Any]:
    target = empty(*dims, dtype=dtype, grad=True)
    sizes = [*dims[:dim], length, *dims[dim + 1 :]]
    source = laid(empty(*sizes, dtype=dtype), layout).requires_grad_()
    where = zeros(*sizes)
    return differentiated([target, source], lambda: target.scatter_add(dim, where, source))


@call("indexing", lambda rng: {**_along(rng), "how": rng.choice(("sum", "mean", "amax", "amin"))})
def scatter_reduce(
    dims: list[int], dim: int, length: int, dtype: str, layout: str, index: str, how: str
) -> Callable[[], Any]:
    target = empty(*dims, dtype=dtype, grad=True)
    sizes = [*dims[:dim], length, *dims[dim + 1 :]]
    source = laid(empty(*sizes, dtype=dtype), layout).requires_grad_()
    where = zeros(*sizes)
    return differentiated([target, source], lambda: target.scatter_reduce(dim, where, source, how))


def _masked(rng: random.Random) -> dict[str, Any]:
    dims = shape(rng)
    return {
        "dims": dims,
        "mask": [1 if rng.random() < 0.3 else size for size in dims[rng.randrange(len(dims)) :]],
        "dtype": rng.choice(DTYPES),
        "layout": layout(rng),
    }


@call("indexing", _masked)
def masked_fill(dims: list[int], mask: list[int], dtype: str, layout: str) -> Callable[[], Any]:
    source = laid(empty(*dims, dtype=dtype), layout).requires_grad_()
    where = zeros(*mask, dtype="bool")
    return differentiated([source], lambda: source.masked_fill(where, 0.0))


@call("indexing", _masked)
def masked_scatter(dims: list[int], mask: list[int], dtype: str, layout: str) -> Callable[[], Any]:
    source, values = empty(*dims, dtype=dtype, grad=True), laid(empty(*dims, dtype=dtype), layout).requires_grad_()
    where = zeros(*mask, dtype="bool")
    return differentiated([source, values], lambda: source.masked_scatter(where, values))


@call("indexing", _masked)
def masked_select(dims: list[int], mask: list[int], dtype: str, layout: str) -> Callable[[], Any]:
    source = laid(empty(*dims, dtype=dtype), layout).requires_grad_()
    where = zeros(*mask, dtype="bool")
    return differentiated([source], lambda: source.masked_select(where))


@call("indexing", lambda rng: {"dims": shape(rng), "count": shape(rng, 2, 2000), "dtype": rng.choice(DTYPES)})
def take(dims: list[int], count: list[int], dtype: str) -> Callable[[], Any]:
    source = empty(*dims, dtype=dtype, grad=True)
    where = zeros(*count)
    return differentiated([source], lambda: source.take(where))


def _any(rng: random.Random) -> dict[str, Any]:
    return {"dims": shape(rng), "dtype": rng.choice((*DTYPES, "int64", "bool")), "layout": layout(rng)}


@call("indexing", _any)
def nonzero(dims: list[int], dtype: str, layout: str) -> Callable[[], Any]:
    source = laid(zeros(*dims, dtype=dtype), layout)
    return lambda: source.nonzero()


@call("indexing", lambda rng: {"dims": shape(rng), "count": rng.randint(0, 1000), "dtype": rng.choice(DTYPES)})
def repeat_interleave(dims: list[int], count: int, dtype: str) -> Callable[[], Any]:
    source = empty(*dims, dtype=dtype, grad=True)
    repeats = zeros(dims[0])
    return differentiated([source], lambda: source.repeat_interleave(repeats, 0, output_size=count))


# -- sorting -----------------------------------------------------------------------------------------------------------


def _sorted(rng: random.Random) -> dict[str, Any]:
    kind = rng.random()
    dims = shape(rng, 3)
    if kind < 0.3:
        dims = [rng.randint(1, 150_000)]
    elif kind < 0.6:
        dims = [rng.randint(1, 200), rng.randint(1, 9000)]
    return {
        "dims": dims,
        "dim": rng.randrange(len(dims)),
        "dtype": rng.choice((*DTYPES, *DTYPES, "int64", "int32", "bool", "uint8", "float64")),
        "layout": layout(rng),
    }


def _ordered(rng: random.Random) -> dict[str, Any]:
    return {**_sorted(rng), "stable": rng.choice((None, True, False)), "descending": rng.random() < 0.5}


@call("sorting", _ordered)
def sort(
    dims: list[int], dim: int, dtype: str, layout: str, stable: bool | None, descending: bool
) -> Callable[[], Any]:
    source = laid(empty(*dims, dtype=dtype), layout).requires_grad_("float" in dtype)
    return differentiated([source], lambda: source.sort(dim=dim, stable=stable, descending=descending))


@call("sorting", _sorted)
def argsort(dims: list[int], dim: int, dtype: str, layout: str) -> Callable[[], Any]:
    source = laid(empty(*dims, dtype=dtype), layout)
    return lambda: source.argsort(dim)


def _largest(rng: random.Random) -> dict[str, Any]:
    part = round(rng.random(), 3)
    return {**_sorted(rng), "part": part, "largest": rng.random() < 0.7, "in_order": rng.random() < 0.7}


@call("sorting", _largest)
def topk(
    dims: list[int], dim: int, dtype: str, layout: str, part: float, largest: bool, in_order: bool
) -> Callable[[], Any]:
    dtype = "float32" if dtype == "bool" else dtype
    source = laid(empty(*dims, dtype=dtype), layout).requires_grad_("float" in dtype)
    count = 1 + int(part**4 * (dims[dim] - 1))
    return differentiated([source], lambda: source.topk(count, dim, largest, in_order))


def _of_numbers(rng: random.Random) -> dict[str, Any]:
    return {**_sorted(rng), "dtype": rng.choice((*DTYPES, "int64", "int32")), "keep": rng.random() < 0.5}


def _along_dim(name: str, *extra: Any) -> Prepare:
    def prepare(dims: list[int], dim: int, dtype: str, layout: str, keep: bool) -> Callable[[], Any]:
        source = laid(empty(*dims, dtype=dtype), layout).requires_grad_("float" in dtype)
        return differentiated([source], lambda: getattr(source, name)(*extra, dim, keep))

    prepare.__name__ = name
    return prepare


for _name, *_extra in (("kthvalue", 1), ("median",), ("nanmedian",), ("mode",), ("max",), ("min",)):
    call("sorting", _of_numbers)(_along_dim(_name, *_extra))


@call("sorting", _of_numbers)
def median_of_all(dims: list[int], dim: int, dtype: str, layout: str, keep: bool) -> Callable[[], Any]:
    source = laid(empty(*dims, dtype=dtype), layout).requires_grad_("float" in dtype)
    return differentiated([source], lambda: source.median())


def _bounds(rng: random.Random) -> dict[str, Any]:
    batch = shape(rng, 2, 200) if rng.random() < 0.5 else []
    return {
        "edges": [*batch, rng.randint(1, 3000)],
        "values": [*batch, rng.randint(1, 3000)],
        "dtype": rng.choice((*DTYPES, "int64")),
        "layout": layout(rng),
        "int32": rng.random() < 0.3,
        "right": rng.random() < 0.3,
        "other": rng.random() < 0.2,
    }


@call("sorting", _bounds)
def searchsorted(
    edges: list[int], values: list[int], dtype: str, layout: str, int32: bool, right: bool, other: bool
) -> Callable[[], Any]:
    sorted_, wanted = zeros(*edges, dtype=dtype), laid(zeros(*values, dtype="int32" if other else dtype), layout)
    return lambda: torch.searchsorted(sorted_, wanted, out_int32=int32, right=right)


def _unique(rng: random.Random) -> dict[str, Any]:
    return {
        "dims": shape(rng, 2) if rng.random() < 0.7 else [rng.randint(1, 50_000)],
        "dtype": rng.choice((*DTYPES, "int64", "int64", "bool")),
        "layout": layout(rng),
        "inverse": rng.random() < 0.5,
        "counts": rng.random() < 0.5,
    }


@call("sorting", _unique)
def unique(dims: list[int], dtype: str, layout: str, inverse: bool, counts: bool) -> Callable[[], Any]:
    source = laid(zeros(*dims, dtype=dtype), layout)
    return lambda: torch.unique(source, return_inverse=inverse, return_counts=counts)


@call("sorting", _unique)
def unique_consecutive(dims: list[int], dtype: str, layout: str, inverse: bool, counts: bool) -> Callable[[], Any]:
    source = laid(zeros(*dims, dtype=dtype), layout)
    return lambda: torch.unique_consecutive(source, return_inverse=inverse, return_counts=counts)


def _counted(rng: random.Random) -> dict[str, Any]:
    return {"count": rng.randint(0, 90_000), "bins": rng.randint(0, 50), "weighted": rng.random() < 0.5}


@call("sorting", _counted)
def bincount(count: int, bins: int, weighted: bool) -> Callable[[], Any]:
    source, weights = zeros(count), empty(count) if weighted else None
    return lambda: torch.bincount(source, weights, bins)


# -- scans -------------------------------------------------------------------------------------------------------------


def _scanned(rng: random.Random) -> dict[str, Any]:
    dims = shape(rng, 3) if rng.random() < 0.5 else [rng.randint(1, 200_000)]
    if rng.random() < 0.2:
        dims = [1, *dims]
    return {
        "dims": dims,
        "dim": rng.randrange(len(dims)),
        "dtype": rng.choice((*DTYPES, *DTYPES, "int64", "int32", "bool", "float64")),
        "layout": layout(rng),
    }


def _scan(name: str) -> Prepare:
    def prepare(dims: list[int], dim: int, dtype: str, layout: str) -> Callable[[], Any]:
        dtype = "float32" if name == "logcumsumexp" and "float" not in dtype else dtype
        source = laid(empty(*dims, dtype=dtype), layout)
        source.requires_grad_("float" in dtype and name.startswith(("cumsum", "cumm")))
        return differentiated([source], lambda: getattr(source, name)(dim))

    prepare.__name__ = name
    return prepare


for _name in ("cumsum", "cumprod", "logcumsumexp", "cummax", "cummin"):
    call("scan", _scanned)(_scan(_name))


# -- random numbers ----------------------------------------------------------------------------------------------------


def _permuted(rng: random.Random) -> dict[str, Any]:
    dtype = rng.choice(("int64", "int64", "int32", "int16", "float32", "float16"))
    return {"count": round(10 ** rng.uniform(0, 6)), "dtype": dtype}


@call("random", _permuted)
def randperm(count: int, dtype: str) -> Callable[[], Any]:
    count = min(count, {"int16": 30_000, "float16": 2000}.get(dtype, count))
    return lambda: torch.randperm(count, dtype=getattr(torch, dtype), device="cuda")


def _drawn(rng: random.Random) -> dict[str, Any]:
    rows = rng.choice(([], [rng.randint(1, 600)]))
    choices = rng.randint(1, 5000)
    replacement = rng.random() < 0.5
    return {
        "dims": [*rows, choices],
        "count": rng.choice((1, rng.randint(1, choices))),
        "replacement": replacement,
        "dtype": rng.choice(DTYPES),
    }


@call("random", _drawn)
def multinomial(dims: list[int], count: int, replacement: bool, dtype: str) -> Callable[[], Any]:
    weights = empty(*dims, dtype=dtype)
    return lambda: torch.multinomial(weights, count, replacement)


def _plain(rng: random.Random) -> dict[str, Any]:
    return {"dims": shape(rng), "dtype": rng.choice(DTYPES), "layout": layout(rng), "grad": rng.random() < 0.5}


@call("random", _plain)
def bernoulli(dims: list[int], dtype: str, layout: str, grad: bool) -> Callable[[], Any]:
    source = laid(empty(*dims, dtype=dtype), layout).requires_grad_(grad)
    return differentiated([source], lambda: torch.bernoulli(source))


@call("random", _plain)
def bernoulli_in_place(dims: list[int], dtype: str, layout: str, grad: bool) -> Callable[[], Any]:
    target, chance = laid(empty(*dims, dtype=dtype), layout), empty(*dims)
    return lambda: target.bernoulli_(chance) if grad else target.bernoulli_(0.3)


@call("random", _plain)
def normal(dims: list[int], dtype: str, layout: str, grad: bool) -> Callable[[], Any]:
    mean = laid(zeros(*dims, dtype=dtype), layout).requires_grad_(grad)
    return differentiated([mean], lambda: torch.normal(mean, 1.0))


@call("random", _plain)
def alike(dims: list[int], dtype: str, layout: str, grad: bool) -> Callable[[], Any]:
    source = laid(empty(*dims, dtype=dtype), layout)
    return lambda: [torch.rand_like(source), torch.randn_like(source), torch.randint_like(source, 5)]


@call("random", _plain)
def filled(dims: list[int], dtype: str, layout: str, grad: bool) -> Callable[[], Any]:
    source = laid(empty(*dims, dtype=dtype), layout)
    names = ("uniform_", "normal_", "exponential_", "random_", "cauchy_")
    return lambda: [getattr(source, name)() for name in names]


# -- recurrent networks without cuDNN ----------------------------------------------------------------------------------


def _recurrent(rng: random.Random) -> dict[str, Any]:
    kind = rng.choice(("LSTM", "LSTM", "GRU", "RNN"))
    return {
        "kind": kind,
        "inputs": rng.randint(1, 80),
        "hidden": rng.randint(1, 80),
        "layers": rng.randint(1, 2),
        "batch": rng.randint(1, 20),
        "length": rng.randint(1, 5),
        "bias": rng.random() < 0.8,
        "both_ways": rng.random() < 0.3,
        "dropout": rng.choice((0.0, 0.0, 0.2)),
        "batch_first": rng.random() < 0.5,
        "dtype": rng.choice(DTYPES),
        "projected": rng.randint(1, 3) if kind == "LSTM" and rng.random() < 0.15 else 0,
        "autocast": rng.random() < 0.2,
    }


@call("recurrent", _recurrent)
def recurrent(
    kind: str,
    inputs: int,
    hidden: int,
    layers: int,
    batch: int,
    length: int,
    bias: bool,
    both_ways: bool,
    dropout: float,
    batch_first: bool,
    dtype: str,
    projected: int,
    autocast: bool,
) -> Callable[[], Any]:
    extra = {"proj_size": projected} if 0 < projected < hidden else {}
    with torch.backends.cudnn.flags(enabled=False):
        network = getattr(torch.nn, kind)(
            inputs,
            hidden,
            layers,
            bias=bias,
            batch_first=batch_first,
            dropout=dropout,
            bidirectional=both_ways,
            device="cuda",
            dtype=getattr(torch, dtype),
            **extra,
        )
    x = empty(*((batch, length) if batch_first else (length, batch)), inputs, dtype=dtype, grad=True)

    def run() -> torch.Tensor:
        with torch.backends.cudnn.flags(enabled=False), torch.autocast("cuda", enabled=autocast):
            return network(x)[0]

    return differentiated([x, *network.parameters()], run)


def _packed(rng: random.Random) -> dict[str, Any]:
    lengths = sorted((rng.randint(1, 9) for _ in range(rng.randint(1, 6))), reverse=True)
    batch_first = rng.random() < 0.5
    return {"lengths": lengths, "width": rng.randint(1, 40), "batch_first": batch_first, "dtype": rng.choice(DTYPES)}


@call("recurrent", _packed)
def packed(lengths: list[int], width: int, batch_first: bool, dtype: str) -> Callable[[], Any]:
    size = (len(lengths), lengths[0]) if batch_first else (lengths[0], len(lengths))
    source = empty(*size, width, dtype=dtype, grad=True)

    def run() -> torch.Tensor:
        sequence = torch.nn.utils.rnn.pack_padded_sequence(source, torch.tensor(lengths), batch_first)
        return torch.nn.utils.rnn.pad_packed_sequence(sequence, batch_first)[0]

    return differentiated([source], run)


# -- recording ---------------------------------------------------------------------------------------------------------


def _allocated(run: Callable[[], Any]) -> list[int]:
    torch.cuda.memory._record_memory_history(stacks="python")
    try:
        kept = run()
        trace = torch.cuda.memory._snapshot()["device_traces"][0]
        del kept
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
    """Record COUNT random calls of each operator of a family, or of those named."""
    path, seed, count, family = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4]
    rows: list[Any] = json.loads(path.read_text())["calls"] if path.exists() else []
    _warm_up()
    device = torch.cuda.get_device_properties(0)
    gpu = [device.major, device.minor, device.multi_processor_count]
    for name, (draw, prepare) in CALLS[family].items():
        if len(sys.argv) > 5 and name not in sys.argv[5:]:
            continue
        rng = random.Random(f"{name} {seed}")
        for _ in range(count):
            given = draw(rng)
            try:
                seen = _allocated(prepare(**given))
            except Exception as problem:  # CUDA cannot run it, or the stand-in cannot
                print(name, given, repr(problem)[:200], file=sys.stderr)
                continue
            rows.append([name, gpu, given, seen])
    lines = ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows)
    path.write_text(f'{{"torch": "{torch.__version__.split("+")[0]}", "calls": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    main()
