"""Gradients that meet in one tensor: autograd adds into the first one where nobody else holds it.

Source: accumulate and can_accumulate_inplace in torch/csrc/autograd/input_buffer.cpp. Autograd does not do so for
tensor subclasses, which a fake tensor is one of, hence this rule.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from willfit._trace.cuda import sparse
from willfit._trace.fake import META, FakeCudaTensor, run_on_meta
from willfit._trace.kernels import Call, calling_frame, kernel

# Their derivatives add two gradients themselves, out of place (var_mean_backward and others in FunctionsManual.cpp).
_FORMULAS_THAT_ADD = ("VarMeanBackward", "StdMeanBackward", "LogcumsumexpBackward")


@kernel("add.Tensor")
def add(call: Call) -> Any:
    """The engine's own addition of two gradients becomes one in place; any other is as it stands."""
    if any(map(sparse.is_sparse, call.args[:2])):
        return sparse.add(call)
    if (
        len(call.args) == 2
        and not call.kwargs
        and call.recorder.phase == "backward"
        and not torch.is_grad_enabled()
        and isinstance(call.args[0], FakeCudaTensor)
        and isinstance(call.args[1], FakeCudaTensor)
        and call.args[0].shape == call.args[1].shape
        and called_by_the_engine()
        and _only_the_buffer_holds(call.args[0])
    ):
        total = call.recorder.run(torch.ops.aten.add_.Tensor, call.args, {})
        return call.recorder.run(torch.ops.aten.detach.default, (total,), {})
    return call.run()


def called_by_the_engine() -> bool:
    """Whether autograd itself adds two gradients, and not one of its formulas."""
    if calling_frame().f_code.co_name != "_engine_run_backward":
        return False
    node = torch._C._current_autograd_node()
    return node is None or not node.name().startswith(_FORMULAS_THAT_ADD)


def holders(tensor: torch.Tensor) -> tuple[int, int]:
    """How many hold the tensor, and its storage, as seen from inside an operator."""
    tensors = tensor._use_count() if hasattr(tensor, "_use_count") else 0  # from torch 2.8 on
    return tensors, torch._C._storage_Use_Count(tensor.untyped_storage()._cdata)


def _only_the_buffer_holds(tensor: torch.Tensor) -> bool:
    return holders(tensor) <= holders_of_an_unshared_gradient()


@cache
def holders_of_an_unshared_gradient() -> tuple[int, int]:
    """What `holders` says of a gradient that only the engine holds; versions of PyTorch differ in it.

    Found by a backward pass of its own, so it is asked for once before the trace.
    """
    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.ops.aten.add.Tensor and torch._C._current_graph_task_id() != -1:
                seen.append(holders(args[0]))
            out = run_on_meta(func, args, kwargs or {})
            return out if type(out) is FakeCudaTensor else FakeCudaTensor.wrap(out)

    with torch.enable_grad(), Watch():  # type: ignore[no-untyped-call]
        x = torch.empty(1, device=META).requires_grad_()
        (x.relu() + x.sigmoid()).backward(torch.empty(1, device=META))
    return seen[0]
