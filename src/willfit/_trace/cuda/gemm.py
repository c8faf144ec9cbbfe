"""cuBLAS and cuBLASLt: the workspaces that matrix products take through the caching allocator.

Source: getCurrentCUDABlasHandle, getChosenWorkspaceSize and getCUDABlasLtWorkspaceSize in
aten/src/ATen/cuda/CublasHandlePool.cpp; isInputCompliesAddmmCudaLt in aten/src/ATen/native/cuda/Blas.cpp.

Up to torch 2.14 cuBLAS has one workspace for each (handle, stream), a handle for each thread, kept for the life of the
process. Backward runs on autograd's own thread for the device, so a training step takes two. Torch 2.15 takes one at
each call and gives it back at once. cuBLASLt's own went from one at each call (to 2.8) to one that is kept (pull
request 156495, to 2.10) to cuBLAS's (pull request 168175). Measured: 2.6, 2.9, 2.13, 2.14 and 2.15.
"""

from __future__ import annotations

import os
import re
from typing import Any

import torch
from packaging.version import Version

from willfit._trace.cuda.composing import operate
from willfit._trace.kernels import Call, kernel, nbytes
from willfit._trace.recorder import Recorder

_TORCH = Version(Version(torch.__version__).base_version)
PER_CALL = Version("2.15") <= _TORCH
_HAS_OUTER_PRODUCTS = Version("2.13") <= _TORCH

_DEFAULT = 4096 * 1024 * 2 + 16 * 1024 * 8  # ":4096:2:16:8", in KiB times count
_SM90 = 4096 * 8 * 1024  # 32 MiB on sm_90, and on sm_100 and newer
_LT_DEFAULT = 1024  # KiB


def workspace_size(compute_capability: tuple[int, int]) -> int:
    """Bytes of one cuBLAS workspace; CUBLAS_WORKSPACE_CONFIG is honoured as PyTorch reads it."""
    configured = re.findall(r":(\d+):(\d+)", os.environ.get("CUBLAS_WORKSPACE_CONFIG", ""))
    if configured:
        return sum(int(size) * 1024 * int(count) for size, count in configured)
    return _SM90 if compute_capability[0] >= 9 else _DEFAULT


def lt_workspace_size() -> int:
    """Bytes of one cuBLASLt workspace; CUBLASLT_WORKSPACE_SIZE, in KiB, is honoured as PyTorch reads it."""
    configured = os.environ.get("CUBLASLT_WORKSPACE_SIZE", "")
    return 1024 * (int(configured) if configured.isdigit() else _LT_DEFAULT)


@kernel("dot", "dot.out", "vdot", "vdot.out")
def dot(call: Call) -> Any:
    """A product of vectors by cuBLAS: the output, then the workspace."""
    return _product(call, call.args[1], [])


@kernel("mv", "mv.out")
def mv(call: Call) -> Any:
    """A product with a vector."""
    return _product(call, call.args[1], _unreadable_for_gemv(*call.args[:2]))


@kernel("addmv", "addmv_", "addmv.out")
def addmv(call: Call) -> Any:
    """A product with a vector, and a bias."""
    return _product(call, call.args[2], _unreadable_for_gemv(*call.args[1:3]))


@kernel("mm", "mm.out", "mm.dtype", "mm.dtype_out")
def mm(call: Call) -> Any:
    """A product by cuBLAS: the output, copies of operands that cuBLAS cannot read, the workspace."""
    first, second = call.args[:2]
    return _product(call, second, _unreadable_matrices(first, second, call.kwargs.get("out")))


@kernel("addmm", "addmm_", "addmm.out", "addmm.dtype", "addmm.dtype_out", "_addmm_activation", "_addmm_activation.out")
def addmm(call: Call) -> Any:
    """A product and a bias, which cuBLASLt adds as it goes where it can."""
    bias, first, second = call.args[:3]
    out = bias if call.func is torch.ops.aten.addmm_.default else call.kwargs.get("out")
    lt = _is_for_lt(bias, first, second, call.argument("beta"))
    return _product(call, second, _unreadable_matrices(first, second, out), lt=lt)


@kernel("addbmm")
def addbmm(call: Call) -> Any:
    """A product after the other, added up (addbmm_impl_ in aten/src/ATen/native/LinearAlgebra.cpp)."""
    out = call.run()
    for number in range(call.args[1].size(0) if call.args[1].size(2) else 0):
        first, second = (operate(call, "select.int", batch, 0, number) for batch in call.args[1:3])
        with call.temporary(*map(nbytes, _unreadable_matrices(first, second))):
            take_workspace(call, _is_for_lt(out, first, second, call.argument("beta")))
    return out


@kernel("bmm", "bmm.out", "bmm.dtype", "bmm.dtype_out")
def bmm(call: Call) -> Any:
    """Products of a batch of matrices; of columns and rows by a kernel in Triton, which comes with PyTorch since 2.13.

    Source: torch/_native/ops/bmm_outer_product/triton_impl.py.
    """
    first, second = call.args[:2]
    if first.size(2) == 1 and _HAS_OUTER_PRODUCTS and not first.is_complex():
        return call.run()
    return _product(call, second, _unreadable_batches(first, second))


@kernel("baddbmm", "baddbmm_", "baddbmm.out", "baddbmm.dtype", "baddbmm.dtype_out")
def baddbmm(call: Call) -> Any:
    """Products of a batch of matrices, and a bias."""
    return _product(call, call.args[2], _unreadable_batches(*call.args[1:3]))


def _product(call: Call, second: torch.Tensor, copied: list[torch.Tensor], lt: bool = False) -> Any:
    """Nothing is multiplied where a factor or the result has no elements."""
    out = call.run()
    if out.numel() and second.numel():
        with call.temporary(*map(nbytes, copied)):
            take_workspace(call, lt)
    return out


def _unreadable_matrices(
    first: torch.Tensor, second: torch.Tensor, out: torch.Tensor | None = None
) -> list[torch.Tensor]:
    """What prepare_matrix_for_cublas copies, as it is dense in neither order: the result, then the factors.

    A row-major result, as a new one is, turns the product around, and with it their order.
    """
    results = [] if out is None else [out]
    factors = (second, first) if out is None or _is_row_major(out) else (first, second)
    return [each for each in (*results, *factors) if not (_is_dense(each) or _has_leading_dimension(each))]


def _is_row_major(matrix: torch.Tensor) -> bool:
    (rows, _), (down, across) = matrix.shape, matrix.stride()
    if _is_dense(matrix):
        return matrix.is_contiguous()
    return not (down == 1 and across >= max(1, rows))


def _unreadable_for_gemv(matrix: torch.Tensor, vector: torch.Tensor) -> list[torch.Tensor]:
    """addmv_out_cuda: an expanded vector, and a matrix that no leading dimension describes."""
    copied = [vector] if vector.stride(0) == 0 and not vector.is_contiguous() else []
    contiguous = matrix.is_contiguous() or _has_leading_dimension(matrix)
    return copied if contiguous else [*copied, matrix]


def _is_dense(matrix: torch.Tensor) -> bool:
    (rows, columns), (down, across) = matrix.shape, matrix.stride()
    return matrix.is_contiguous() or ((down == 1 or rows == 1) and (across == rows or columns == 1))


def _has_leading_dimension(matrix: torch.Tensor) -> bool:
    (rows, columns), (down, across) = matrix.shape, matrix.stride()
    return (down == 1 and across >= max(1, rows)) or (across == 1 and down >= max(1, columns))


def _unreadable_batches(first: torch.Tensor, second: torch.Tensor) -> list[torch.Tensor]:
    """prepare_batch_matrix_for_cublas, for the row-major result of bmm."""
    rows, inner, columns = first.size(1), first.size(2), second.size(2)
    operands = ((second, columns, inner), (first, inner, rows))
    if columns == 1:  # such a result counts as column-major (bmm_out_cuda_impl)
        operands = ((first, rows, inner), (second, inner, columns))
    copied = []
    for batch, m, n in operands:
        fast, leading = (1, 2) if columns == 1 else (2, 1)
        stride = batch.stride()
        if stride[fast] == 1 and stride[leading] >= max(1, m):
            continue
        if stride[leading] == 1 and stride[fast] >= max(1, n):
            continue
        if not (batch.is_contiguous() and stride[1] and stride[2]):
            copied.append(batch)
    return copied


def _is_for_lt(bias: torch.Tensor, first: torch.Tensor, second: torch.Tensor, beta: float) -> bool:
    inner, columns = second.shape
    if not bias.is_contiguous() or inner <= 1 or columns <= 1:
        return False
    if bias.dim() == 1:
        return beta == 1 and bias.size(0) == columns
    if bias.dim() != 2 or Version("2.11") > _TORCH:
        return False
    if bias.size(0) == 1:
        return beta == 1 and bias.size(1) == columns
    return first.dtype in (torch.float16, torch.bfloat16)


def take_workspace(call: Call, lt: bool = False) -> None:
    """The workspace of a product: for this call, or of this thread and stream unless it is already there."""
    recorder = call.recorder
    size = workspace_size(recorder.compute_capability)
    if PER_CALL:
        recorder.free(recorder.allocate(lt_workspace_size() if lt else size, "workspaces"))
    elif lt and Version("2.9") > _TORCH:
        handle = recorder.allocate(lt_workspace_size(), "workspaces")
        _keep(recorder, "cublas", size)
        recorder.free(handle)
    else:
        _keep(recorder, "cublas", size)
        if lt and Version("2.11") > _TORCH:
            _keep(recorder, "cublaslt", lt_workspace_size())


def _keep(recorder: Recorder, library: str, size: int) -> None:
    key = (library, recorder.phase == "backward", recorder.stream)
    if key not in recorder.state:
        recorder.state[key] = recorder.allocate(size, "workspaces")
