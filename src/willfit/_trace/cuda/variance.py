"""var, std, var_mean and std_mean: one pass by Welford's algorithm.

Source: std_var_kernel_impl in aten/src/ATen/native/cuda/ReduceMomentKernel.cu (gpu_reduce_kernel<scalar_t, out_t, 2>
with WelfordOps) and WelfordData in aten/src/ATen/native/SharedReduceOps.h.
"""

from __future__ import annotations

from typing import Any

import torch

from willfit._trace.cuda.reduction import accumulate_type, iteration, parts, reduced_dims, workspace
from willfit._trace.kernels import Call, kernel

_VECTOR = 2  # vt0


def _welford_data(dtype: torch.dtype) -> int:
    """Bytes of WelfordData: mean, m2, an int32 and the count as a floating-point number."""
    number = accumulate_type(dtype)
    return 4 * number


def welford_temporaries(call: Call, tensor: torch.Tensor, reduced: list[int], itemsize: int) -> None:
    """What a reduction to mean and variance takes besides its outputs."""
    if tensor.numel() == 0:
        return
    recorder = call.recorder
    for part in parts(iteration(tensor, reduced, itemsize)):
        sizes = workspace(
            part,
            tensor.itemsize,
            _welford_data(tensor.dtype),
            recorder.compute_capability,
            recorder.multiprocessors,
            _VECTOR,
        )
        with call.temporary(*sizes):
            pass


@kernel("var.correction", "std.correction", "var_mean.correction", "std_mean.correction")
def variance(call: Call) -> Any:
    """The outputs, then buffer and semaphores where blocks share an output."""
    out = call.run()
    welford_temporaries(call, call.args[0], reduced_dims(call), call.args[0].itemsize)
    return out
