"""Random numbers: what is drawn before the output is.

Sources, in aten/src/ATen/native: randperm_out_cuda in cuda/Randperm.cu; multinomial_out in Distributions.cpp and
multinomial_with_replacement_kernel_impl in cuda/MultinomialKernel.cu; bernoulli_tensor_cuda_kernel in
cuda/DistributionBernoulli.cu; normal_out_impl in DistributionTemplates.h.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from willfit._trace.cuda import cub
from willfit._trace.cuda.composing import empty, empty_like, operate
from willfit._trace.cuda.sorting import select_largest, smallest_and_largest
from willfit._trace.fake import CUDA
from willfit._trace.kernels import Call, kernel, nbytes

_aten = torch.ops.aten
_NEVER_TWICE = math.log(0.9) * 12  # [Algorithm of randperm]: keys differ with a probability of 0.9


@kernel("randperm")
def randperm(call: Call) -> Any:
    """Numbers counted up, sorted by random keys of as many bits as are needed for few of them to be equal."""
    count = call.args[0]
    out = call.run()
    size = out.element_size()
    with call.temporary(size):  # check_supported_max_int_with_precision
        pass
    if count:
        bits = min(64, math.ceil(math.log2(count - (6 * count * count + 1) / _NEVER_TWICE)))
        key = 4 if bits <= 32 else 8
        recorder = call.recorder
        sorting = cub.radix_sort(count, key, size, recorder.compute_capability, recorder.multiprocessors, bits)
        with call.temporary(size * count, key * count, key * count, sorting):
            pass
    return out


@kernel("multinomial")
def multinomial(call: Call) -> Any:
    """One draw, or without replacement: the largest of exponential noise; else a search in the sums."""
    weights, draws = call.args[:2]
    rows = weights.shape[:-1]
    out = empty(call, (*rows, draws), torch.int64)
    if not out.numel():
        return out
    if call.argument("replacement") and draws > 1:
        size = nbytes(weights)
        with call.temporary(size, size, size):
            if not rows or rows[0] == 1:
                primitive = weights.dtype not in (torch.float16, torch.bfloat16)
                with call.temporary(cub.scan(weights.numel(), weights.element_size(), primitive=primitive)):
                    pass
        return out
    with _checked(call, weights):
        noise = empty_like(call, weights)
        if draws > 1:
            values = empty(call, out.shape, weights.dtype)
            select_largest(call, noise, weights.dim() - 1, values, out, in_order=True)
            del values
        del noise
    return out


@contextmanager
def _checked(call: Call, weights: torch.Tensor) -> Iterator[None]:
    """Neither infinite nor negative, and not all zero: asserted on the GPU, with conditions that live to the end."""
    with smallest_and_largest(call, weights):
        conditions = [call.take(1) for _ in range(3)]
        call.give_back(*conditions[:2])
        by_row = weights.dim() > 1
        total = operate(call, "sum.dim_IntList", weights, [1]) if by_row else operate(call, "sum", weights)
        is_zero = [call.take(total.numel())]
        if by_row:
            is_zero.append(call.take(1))
            call.give_back(is_zero[0])
        del total
        with call.temporary(1):
            pass
        yield
        call.give_back(conditions[2], is_zero[-1])


@kernel("bernoulli", "bernoulli_.Tensor")
def bernoulli(call: Call) -> Any:
    """Probabilities in half precision are read in fp32."""
    out = call.run()
    chances = call.args[-1] if call.func is _aten.bernoulli_.Tensor else call.args[0]
    if chances.dtype in (torch.float16, torch.bfloat16):
        copy = call.recorder.run(_aten._to_copy.default, (chances,), {"dtype": torch.float32, "device": CUDA})
        del copy
    return out


@kernel("normal.Tensor_float")
def normal(call: Call) -> Any:
    """Noise is made in the output, and scaled beside it."""
    out = call.run()
    with call.temporary(nbytes(out)):
        pass
    return out
