"""Batch normalization on the CPU.

Its backward pass takes as much again as its input, in training and evaluation and in either memory format, as
torch.profiler shows with torch 2.6 to 2.13.
"""

from __future__ import annotations

from typing import Any

from willfit._trace.cpu.kernels import CpuCall, cpu_kernel
from willfit._trace.kernels import nbytes


@cpu_kernel("native_batch_norm_backward")
def batch_norm_backward(call: CpuCall) -> Any:
    """The gradients, then a temporary like the input."""
    out = call.run()
    if call.args[9][0]:
        with call.temporary(nbytes(call.args[1])):
            pass
    return out
