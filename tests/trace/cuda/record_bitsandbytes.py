"""Calls of bitsandbytes, for record_kernels.py: its family "bitsandbytes"."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from record_kernels import DTYPES, call, differentiated, empty, laid, layout, main, shape

BLOCKS = (32, 64, 128, 256, 512, 1024, 2048, 4096)


def library() -> Any:
    """bitsandbytes, with the table in place that it makes on the GPU the first time that it needs it."""
    with torch.device("cpu"):
        import bitsandbytes

    bitsandbytes.functional.quantize_blockwise(empty(8))
    return bitsandbytes


# -- packing -----------------------------------------------------------------------------------------------------------


def packing(rng: random.Random) -> dict[str, Any]:
    return {
        "dims": shape(rng, 3),
        "dtype": rng.choice(DTYPES),
        "blocksize": rng.choice(BLOCKS),
        "quant_type": rng.choice(("nf4", "fp4")),
        "compress_statistics": rng.random() < 0.5,
        "storage": rng.choice(("uint8", "uint8", "bfloat16", "float32")),
    }


def packed(dims: list[int], dtype: str, storage: str, **options: Any) -> tuple[torch.Tensor, Any]:
    functional = library().functional
    return functional.quantize_4bit(empty(*dims, dtype=dtype), quant_storage=getattr(torch, storage), **options)


@call("bitsandbytes", packing)
def quantize_4bit(dims: list[int], dtype: str, storage: str, **options: Any) -> Callable[[], Any]:
    functional, tensor = library().functional, empty(*dims, dtype=dtype)
    return lambda: functional.quantize_4bit(tensor, quant_storage=getattr(torch, storage), **options)


@call("bitsandbytes", packing)
def dequantize_4bit(**given: Any) -> Callable[[], Any]:
    tensor, state = packed(**given)
    functional = library().functional
    return lambda: functional.dequantize_4bit(tensor, state)


@call(
    "bitsandbytes",
    lambda rng: {
        "dims": shape(rng, 3),
        "dtype": rng.choice(DTYPES),
        "blocksize": rng.choice(BLOCKS[1:]),
        "nested": rng.random() < 0.5,
    },
)
def blockwise_8bit(dims: list[int], dtype: str, blocksize: int, nested: bool) -> Callable[[], Any]:
    functional, tensor = library().functional, empty(*dims, dtype=dtype)

    def run() -> Any:
        small, state = functional.quantize_blockwise(tensor, blocksize=blocksize, nested=nested)
        return functional.dequantize_blockwise(small, state)

    return run


# -- layers ------------------------------------------------------------------------------------------------------------


def layer(rng: random.Random) -> dict[str, Any]:
    return {
        "rows": [rng.choice((1, 1, 2, 17, 150)) for _ in range(rng.randint(1, 2))],
        "inputs": rng.choice((64, 100, 256, 777)),
        "outputs": rng.choice((32, 64, 333, 1024)),
        "dtype": rng.choice(DTYPES),
        "bias": rng.random() < 0.5,
        "layout": layout(rng),
        "grad": rng.random() < 0.8,
        "autocast": rng.choice(("", "float16", "bfloat16")),
    }


def applied(multiply: Callable[..., Any], given: dict[str, Any]) -> Callable[[], Any]:
    """A layer's forward and backward."""
    dtype, mixed = given["dtype"], given["autocast"]
    x = laid(empty(*given["rows"], given["inputs"], dtype=dtype), given["layout"]).requires_grad_(given["grad"])
    bias = empty(given["outputs"], dtype=dtype) if given["bias"] else None

    def run() -> Any:
        with torch.autocast("cuda", dtype=getattr(torch, mixed)) if mixed else nullcontext():
            return multiply(x, bias)

    return differentiated([x], run)


@call(
    "bitsandbytes",
    lambda rng: {
        **layer(rng),
        "blocksize": rng.choice((64, 128)),
        "quant_type": rng.choice(("nf4", "fp4")),
        "compress_statistics": rng.random() < 0.5,
    },
)
def matmul_4bit(blocksize: int, quant_type: str, compress_statistics: bool, **given: Any) -> Callable[[], Any]:
    weight, state = packed(
        [given["outputs"], given["inputs"]],
        given["dtype"],
        "uint8",
        blocksize=blocksize,
        quant_type=quant_type,
        compress_statistics=compress_statistics,
    )
    own = library().matmul_4bit
    return applied(lambda x, bias: own(x, weight.t(), quant_state=state, bias=bias), given)


@call("bitsandbytes", lambda rng: {**layer(rng), "threshold": rng.choice((0.0, 6.0)), "whole": rng.random() < 0.4})
def matmul_8bit(threshold: float, whole: bool, **given: Any) -> Callable[[], Any]:
    bitsandbytes = library()
    state = bitsandbytes.MatmulLtState()
    state.threshold, state.has_fp16_weights, state.is_training = threshold, whole, True
    weight = empty(given["outputs"], given["inputs"], dtype="float16", grad=whole)
    if not whole:
        state.CB, state.SCB, _ = bitsandbytes.functional.int8_vectorwise_quant(weight)
        weight = state.CB
    return applied(lambda x, bias: bitsandbytes.matmul(x, weight, bias=bias, state=state), given)


# -- optimizers --------------------------------------------------------------------------------------------------------

OPTIMIZERS = {
    "Adam": {},
    "AdamW": {},
    "AdEMAMix": {},
    "Lion": {},
    "SGD": {"momentum": 0.9, "lr": 0.1},
    "RMSprop": {},
    "Adagrad": {},
    "LAMB": {},
    "LARS": {"momentum": 0.9, "lr": 0.1},
}


@call(
    "bitsandbytes",
    lambda rng: {
        "name": rng.choice(list(OPTIMIZERS)),
        "bits": rng.choice((8, 8, 32)),
        "sizes": [shape(rng, 2) for _ in range(rng.randint(1, 4))],
        "dtype": rng.choice(DTYPES),
        "is_paged": rng.random() < 0.3,
    },
)
def optimizer(name: str, bits: int, sizes: list[list[int]], dtype: str, is_paged: bool) -> Callable[[], Any]:
    options: dict[str, Any] = dict(OPTIMIZERS[name])
    if is_paged and name in ("Adam", "AdamW", "AdEMAMix", "Lion"):
        options["is_paged"] = True
    kind = getattr(library().optim, name + ("8bit" if bits == 8 else "32bit" if name != "AdEMAMix" else ""))
    parameters = [empty(*size, dtype=dtype, grad=True) for size in sizes]
    for parameter in parameters:
        parameter.grad = torch.empty_like(parameter)
    made = kind(parameters, **options)

    def run() -> Any:
        made.step()
        made.step()
        return made

    return run


if __name__ == "__main__":
    main()
