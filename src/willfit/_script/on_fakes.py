"""A whole script on fake tensors. Beyond what a training step does, it builds its model and reads its data.

What is on the host is real: the script reads its data and draws its weights. A tensor becomes a fake one where it is
moved to the GPU.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch

from willfit._devices import Device
from willfit._script.devices import Devices, parsed
from willfit._script.files import checkpoints
from willfit._script.memory import memory_answers
from willfit._script.refusals import threads_watched
from willfit._script.watched import ScriptFollower
from willfit._trace.bitsandbytes import bitsandbytes_runtime
from willfit._trace.cuda.recurrent import MODES
from willfit._trace.fake import FakeCudaTensor
from willfit._trace.recorder import Recorder, without_pinning
from willfit._trace.runtime import cuda_runtime

_CUDNN_RNN = importlib.import_module("torch.backends.cudnn.rnn")  # an attribute of that name may be something else
_CUDNN = torch.backends.cudnn.m  # type: ignore[attr-defined]  # the module itself, behind one with properties


class ScriptRecorder(ScriptFollower, Recorder):
    """Follows a script: all tensors of the process are its own."""

    def run_on_cpu(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """For real, whatever it changes."""
        return func(*args, **without_pinning(kwargs))

    def own_cpu_tensor(self, tensor: torch.Tensor) -> None:
        """Nothing: all are."""

    def adopt(self, tensor: torch.Tensor) -> torch.Tensor:
        """Refused, as on a GPU; one without memory is of no device."""
        if tensor.is_meta:
            return tensor
        raise RuntimeError(
            "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! "
            f"(in {self.last_operator})"
        )


@contextmanager
def on_fake_gpu(recorder: ScriptRecorder, device: Device) -> Iterator[None]:
    """While the body runs, a script in this process finds the GPU, and what it does there is recorded."""
    own_save, own_data = torch.save, torch.Tensor.data
    own_compatible = torch._has_compatible_shallow_copy_type

    def are_compatible(tensor: torch.Tensor, other: torch.Tensor) -> bool:
        """Whether ``module.to`` keeps its parameters: for real ones on the CPU and on the GPU, it does."""
        one_is_fake = (type(tensor) is FakeCudaTensor) != (type(other) is FakeCudaTensor)
        if one_is_fake and isinstance(tensor, torch.nn.Parameter) and not (tensor.is_meta or other.is_meta):
            return True
        return bool(own_compatible(tensor, other))

    def set_data(tensor: torch.Tensor, other: torch.Tensor) -> None:
        if (type(tensor) is FakeCudaTensor) != (type(other) is FakeCudaTensor):
            _become(tensor, other)
        else:
            own_data.__set__(tensor, other)  # type: ignore[attr-defined]

    with ExitStack() as stack:
        stack.enter_context(cuda_runtime(recorder, device))
        for owner, name, answer in (
            *((torch.cuda, name, answer) for name, answer in memory_answers(recorder, device).items()),
            (torch, "save", own_save),
            (torch.Tensor, "data", property(own_data.__get__, set_data)),  # type: ignore[attr-defined]
            (torch, "_has_compatible_shallow_copy_type", are_compatible),
            (_CUDNN, "is_available", lambda: True),
            (_CUDNN, "_init", lambda: True),
            (_CUDNN_RNN, "get_cudnn_mode", lambda mode: MODES[mode.lower()]),
            (torch._C._nn, "_parse_to", parsed(torch._C._nn._parse_to)),
            (torch, "_use_cudnn_rnn_flatten_weight", lambda: True),
        ):
            stack.enter_context(patch.object(owner, name, answer))
        stack.enter_context(checkpoints(recorder))
        stack.enter_context(_bitsandbytes_met(recorder))
        stack.enter_context(threads_watched(recorder))
        stack.enter_context(patch.object(torch._C, "_scatter", _scatter, create=True))  # not in builds for the CPU
        stack.enter_context(Devices())
        yield


def _become(tensor: torch.Tensor, other: torch.Tensor) -> None:
    """``tensor.data = other`` where one is real and one fake: the object stays, as optimizers and ties hold it."""
    is_parameter, requires_grad = isinstance(tensor, torch.nn.Parameter), tensor.requires_grad
    hooks, after = tensor._backward_hooks, getattr(tensor, "_post_accumulate_grad_hooks", None)
    own = tensor.__class__ if type(tensor) is not FakeCudaTensor else tensor._willfit_class
    plain = torch.nn.Parameter if is_parameter else torch.Tensor
    with torch._C._DisableTorchDispatch():
        alias = torch.Tensor._make_subclass(type(other), other.detach(), requires_grad)
    tensor.grad = None
    torch._C._swap_tensor_impl(tensor, alias)
    if type(other) is FakeCudaTensor:
        _SET_CLASS(tensor, FakeCudaTensor)
        tensor._is_param = is_parameter  # what isinstance(x, nn.Parameter) looks at
        tensor._willfit_class = None if own is plain else own  # type: ignore[attr-defined]
    else:
        _SET_CLASS(tensor, own or plain)
    if hooks:
        tensor._backward_hooks = hooks
    if after:
        tensor._post_accumulate_grad_hooks = after


_SET_CLASS = object.__dict__["__class__"].__set__


@contextmanager
def _bitsandbytes_met(recorder: Recorder) -> Iterator[None]:
    """Where the script imports bitsandbytes in the body, it works as on the GPU; its library for CUDA is not loaded."""

    class Finder(MetaPathFinder):
        def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
            if name != "bitsandbytes":
                return None
            spec = PathFinder.find_spec(name, path)
            if spec is not None and spec.loader is not None:
                own = spec.loader.exec_module

                def execute(module: ModuleType) -> None:
                    with patch.object(torch.cuda, "is_available", lambda: False):
                        own(module)
                    stack.enter_context(bitsandbytes_runtime(recorder))

                vars(spec.loader)["exec_module"] = execute
            return spec

    finder = Finder()
    with ExitStack() as stack:
        sys.meta_path.insert(0, finder)
        stack.callback(sys.meta_path.remove, finder)
        yield


def _scatter(tensor: torch.Tensor, devices: Any, chunk_sizes: Any, dim: int, streams: Any) -> tuple[torch.Tensor]:
    """What DataParallel does on one GPU (scatter in torch/csrc/cuda/comm.cpp)."""
    with torch.cuda.stream(streams[0] if streams else None):
        return (tensor.to("cuda", non_blocking=True),)
