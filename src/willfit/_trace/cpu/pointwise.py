"""Element by element on the CPU.

Source: TensorIteratorBase::compute_types in aten/src/ATen/TensorIterator.cpp: operands of another dtype than the common
one are copied into it first, which CUDA's kernels do as they read; accumulate in torch/csrc/autograd/input_buffer.cpp:
autograd adds a gradient into the first one where nobody else holds that, unless a dispatch mode watches.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from willfit._trace.cpu.kernels import CpuCall, cpu_kernel
from willfit._trace.cuda.accumulation import called_by_the_engine, holders

_ARITHMETIC = ("sub", "mul", "div", "eq", "ne", "lt", "le", "gt", "ge")


@cpu_kernel(*(f"{name}.Tensor" for name in _ARITHMETIC), "maximum", "minimum", "atan2", "pow.Tensor_Tensor")
def arithmetic(call: CpuCall) -> Any:
    """The output, then copies of the operands whose dtype is not the common one."""
    out = call.run()
    common = torch.result_type(*call.args[:2])
    copied = [
        operand.numel() * common.itemsize
        for operand in call.args[:2]
        if isinstance(operand, torch.Tensor) and operand.dtype != common and operand.dim()
    ]
    with call.temporary(*copied):
        pass
    return out


@cpu_kernel("add.Tensor")
def add(call: CpuCall) -> Any:
    """The engine's own addition of two gradients is one in place where only it holds the first."""
    first, second = call.args[:2]
    if (
        call.recorder.phase == "backward"
        and not torch.is_grad_enabled()
        and not call.kwargs
        and isinstance(second, torch.Tensor)
        and first.shape == second.shape
        and called_by_the_engine()
        and holders(first) <= holders_of_an_unshared_gradient()
    ):
        return first.detach()
    return arithmetic(call)


@cache
def holders_of_an_unshared_gradient() -> tuple[int, int]:
    """What `holders` says of a gradient that only the engine holds, found by a backward pass of its own."""
    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.ops.aten.add.Tensor and torch._C._current_graph_task_id() != -1:
                seen.append(holders(args[0]))
            return func(*args, **(kwargs or {}))

    with torch.enable_grad(), Watch():  # type: ignore[no-untyped-call]
        x = torch.zeros(1, device="cpu").requires_grad_()
        (x.relu() + x.sigmoid()).backward(torch.zeros(1, device="cpu"))
    return seen[0]
