"""Pooling on the CPU.

Source: max_pool2d_backward_kernel_impl in aten/src/ATen/native/cpu/MaxPoolKernel.cpp: it works in the memory format of
the incoming gradient, into which indices and result are copied where they are in another.
"""

from __future__ import annotations

from typing import Any

import torch

from willfit._trace.cpu.kernels import CpuCall, cpu_kernel
from willfit._trace.kernels import nbytes


@cpu_kernel("max_pool2d_with_indices_backward")
def max_pool_backward(call: CpuCall) -> Any:
    """The gradient, then the copies."""
    gradient, x, indices = call.args[0], call.args[1], call.args[7]
    channels_last = not gradient.is_contiguous() and gradient.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    out = call.run()
    copied = [nbytes(each) for each in (x, indices) if each.dim() == 4 and not each.is_contiguous(memory_format=layout)]
    with call.temporary(*copied):
        pass
    return out
