"""Products of matrices on the CPU: copies of operands that BLAS cannot read.

Source: addmm_impl_cpu_ in aten/src/ATen/native/LinearAlgebra.cpp.
"""

from __future__ import annotations

from typing import Any

import torch

from willfit._trace.cpu.kernels import CpuCall, cpu_kernel
from willfit._trace.kernels import nbytes


@cpu_kernel("mm")
def mm(call: CpuCall) -> Any:
    """The output, then the copies."""
    return _product(call, call.args[:2])


@cpu_kernel("addmm")
def addmm(call: CpuCall) -> Any:
    """As `mm`, with a bias."""
    return _product(call, call.args[1:3])


def _product(call: CpuCall, operands: tuple[torch.Tensor, ...]) -> Any:
    out = call.run()
    with call.temporary(*(nbytes(each) for each in operands if not _has_leading_dimension(each))):
        pass
    return out


def _has_leading_dimension(matrix: torch.Tensor) -> bool:
    (rows, columns), (down, across) = matrix.shape, matrix.stride()
    return (down == 1 and across >= max(1, rows)) or (across == 1 and down >= max(1, columns))
