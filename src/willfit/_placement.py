"""A job's fake copy, placed on the GPU as ``model.to("cuda")`` and ``batch.to("cuda")`` would."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from willfit._copying import MOST_BYTES, Copier
from willfit._errors import JobError
from willfit._placement_bitsandbytes import is_quantized_weight, parameter_class, place_state, place_weight
from willfit._trace.bitsandbytes import paged_tensor
from willfit._trace.fake import META, FakeCudaTensor
from willfit._trace.following import Follower
from willfit._trace.trace import Role


@dataclasses.dataclass(frozen=True)
class OnHost:
    """A batch that is on the GPU no earlier and no longer than the step has it there."""

    batch: Any
    move: Callable[[], Any] | None = None
    """Gives the batch on the GPU. It is there in the step alone."""


class Placement:
    """Places the parts of a job, in the order of the calls."""

    def __init__(self, recorder: Follower) -> None:
        self.recorder = recorder
        self._storages: dict[int, torch.Tensor] = {}
        self._modules: set[int] = set()
        self.copier = Copier(self._found, self._place_modules, recorder.is_gpu)
        """What copies everything but the batch; its memo holds what is placed."""

    def model(self, model: nn.Module) -> None:
        """The model's parameters and buffers."""
        self._place_modules(model)

    def modules_of(self, step: Any) -> None:
        """Modules that a step holds: a teacher, a discriminator, a criterion with weights."""
        for module in _modules_of(step, set()):
            self._place_modules(module)

    def optimizer(self, optimizer: Any) -> None:
        """State that the optimizers have already, and parameters that belong to no module."""
        for each in optimizers_of(optimizer):
            counts_on_gpu = set()
            for group in each.param_groups:
                for parameter in group["params"]:
                    if group.get("fused") or group.get("capturable"):
                        counts_on_gpu.add(id(parameter))
                    if id(parameter) not in self.copier.memo:
                        self.recorder.assume(
                            "the optimizer holds parameters that are not the model's: placed beside them"
                        )
                        self._place_parameter(parameter)
            for parameter, state in each.state.items():
                for tensor in tensors_of(state):
                    if getattr(tensor, "is_paged", False):
                        self.remember(tensor, paged_tensor(tuple(tensor.shape), tensor.dtype))
                    # load_state_dict leaves step counts on the CPU (Optimizer._process_value_according_to_param_policy)
                    on_gpu = tensor.dim() or tensor.device.type == "cuda" or id(parameter) in counts_on_gpu
                    if on_gpu and id(tensor) not in self.copier.memo:
                        self.remember(tensor, self.placed(tensor, "optimizer states"))

    def batch(self, batch: Any) -> Any:
        """The batch's copy, with all of its tensors placed; or, of one `OnHost`, what the step moves it by.

        Raises:
            JobError: it holds no tensors, or others than dense ones.
        """
        if isinstance(batch, OnHost):
            return OnHost(self.copier.copy(batch.batch), functools.partial(self.batch, batch.batch))
        placed: list[torch.Tensor] = []

        def place(tensor: torch.Tensor) -> torch.Tensor:
            check_tensor("a tensor of the batch", tensor)
            placed.append(self.placed(tensor, "inputs").requires_grad_(tensor.requires_grad))
            self.recorder.known.give(placed[-1], tensor, of_the_batch=True)
            return placed[-1]

        copied = Copier(place).copy(batch)
        if not placed:
            raise JobError(
                f"the batch holds no tensors: found {_described(batch)}; "
                "pass one batch as the model takes it, in tensors"
            )
        return copied

    # -- modules and parameters -------------------------------------------------------------------------------

    def _place_modules(self, module: nn.Module, path: str = "") -> None:
        """As ``module.to("cuda")``: children first, each parameter with its gradient, then buffers."""
        if id(module) in self._modules:
            return
        self._modules.add(id(module))
        for name, child in module.named_children():
            self._place_modules(child, own_path(f"{path}.{name}".lstrip(".")))
        for parameter in module._parameters.values():
            if parameter is not None and id(parameter) not in self.copier.memo:
                self._place_parameter(parameter, path)
        place_state(module, self, path)
        for name, buffer in module._buffers.items():
            if buffer is not None and id(buffer) not in self.copier.memo:
                check_tensor(f"buffer {name!r}", buffer)
                placed = self.remember(buffer, self.placed(buffer, "buffers", path))
                if not buffer.is_floating_point():  # positions, masks, counters
                    self.recorder.known.give(placed, buffer)

    def _place_parameter(self, parameter: torch.Tensor, module: str = "") -> torch.Tensor:
        copier = self.copier
        attributes: dict[str, Any] = {}
        kind: Any = nn.Parameter
        if is_quantized_weight(parameter):
            kind = parameter_class(parameter)
            fake, attributes = place_weight(parameter, self, module)
        else:
            fake = self.placed(parameter, "parameters", module)
        fake = self.recorder.as_parameter(fake, kind, parameter.requires_grad)
        self.remember(parameter, fake)
        if parameter.grad is not None:
            check_tensor("a gradient", parameter.grad)
            fake.grad = self.remember(parameter.grad, self.placed(parameter.grad, "gradients", module))
        for name, value in vars(parameter).items():
            if name != "_is_param":
                setattr(fake, name, attributes[name] if name in attributes else copier.copy(value))
        for hook in (parameter._backward_hooks or {}).values():
            fake.register_hook(copier.copy(hook))
        for hook in (getattr(parameter, "_post_accumulate_grad_hooks", None) or {}).values():
            fake.register_post_accumulate_grad_hook(copier.copy(hook))
        return fake

    def remember(self, tensor: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
        """Let copies have the fake one in place of the tensor."""
        self.copier.memo[id(tensor)] = fake
        self.copier.kept.append(tensor)
        return fake

    # -- tensors ----------------------------------------------------------------------------------------------

    def placed_once(self, tensor: torch.Tensor, role: Role, module: str = "") -> torch.Tensor:
        """A tensor's fake on the GPU, which every other holder of the tensor gets too."""
        if id(tensor) not in self.copier.memo:
            self.remember(tensor, self.placed(tensor, role, module))
        return self.copier.memo[id(tensor)]  # type: ignore[no-any-return]

    def placed(self, tensor: torch.Tensor, role: Role, module: str = "") -> torch.Tensor:
        """A new fake on the GPU for a tensor."""
        if tensor.device.type == "cuda" and not isinstance(tensor, FakeTensor):
            return self._already_there(tensor, role, module)
        with torch._C._DisableTorchDispatch():
            meta = torch.empty_like(tensor.detach(), device=META, memory_format=torch.preserve_format)
        return self.recorder.place(meta, role, module, tensor)

    def on_the_way(self, tensor: torch.Tensor, dtype: torch.dtype, module: str) -> torch.Tensor:
        """A fake on the GPU of a tensor's shape, which is dropped again before the placement ends."""
        with torch._C._DisableTorchDispatch():
            meta = torch.empty(tensor.shape, dtype=dtype, device=META)
        return self.recorder.place(meta, "temporaries", module, tensor)

    def _already_there(self, tensor: torch.Tensor, role: Role, module: str) -> torch.Tensor:
        """A CUDA tensor of the user's: its storage, which others may share, as it is."""
        storage = tensor.untyped_storage()
        if storage._cdata not in self._storages:
            with torch._C._DisableTorchDispatch():
                base = torch.empty(storage.nbytes(), dtype=torch.uint8, device=META)
            self._storages[storage._cdata] = base
        base = self._storages[storage._cdata]
        with torch._C._DisableTorchDispatch():
            meta = torch.empty(0, dtype=tensor.dtype, device=META)
            meta.set_(base.untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride())
        return self.recorder.place(meta, role, module, tensor)

    def _found(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor that is no parameter, buffer or state: the copy stays on the CPU if the user's is there."""
        if isinstance(tensor, FakeCudaTensor):
            return tensor
        if isinstance(tensor, nn.Parameter):
            return self._place_parameter(tensor)
        if tensor.device.type == "meta":
            # the model is on meta in place of the CPU, and model.to("cuda") moves parameters and buffers alone
            tensor = torch.zeros(tensor.shape, dtype=tensor.dtype).requires_grad_(tensor.requires_grad)
        if tensor.device.type != "cpu":
            return self.placed(tensor, "inputs").requires_grad_(tensor.requires_grad)
        large = tensor.layout == torch.strided and tensor.untyped_storage().nbytes() > MOST_BYTES
        if large and self.recorder.shares_data:
            return tensor
        return self.recorder.copy_on_cpu(tensor).requires_grad_(tensor.requires_grad)


_WRAPPED = ("_orig_mod", "_forward_module")
"""Where torch.compile and Fabric keep the module that they wrap."""


def own_path(path: str) -> str:
    """The path of a module in the user's model, whatever that is wrapped in.

    >>> own_path("_forward_module._orig_mod.layers.0"), own_path("layers.0")
    ('layers.0', 'layers.0')
    """
    first, _, rest = path.partition(".")
    return own_path(rest) if first in _WRAPPED and rest else path


def own_class(model: nn.Module) -> str:
    """The class of the user's model, whatever that is wrapped in."""
    inner = next((model._modules[name] for name in _WRAPPED if model._modules.get(name) is not None), None)
    return type(model).__name__ if inner is None else own_class(inner)


def check_tensor(what: str, tensor: torch.Tensor) -> None:
    """Raise a JobError if this is a tensor that cannot be predicted."""
    if isinstance(tensor, nn.parameter.UninitializedTensorMixin):  # type: ignore[attr-defined]
        raise JobError(f"{what} is lazy and has no shape yet: run the model once on a small batch first")
    if tensor.is_quantized:
        raise JobError(f"{what} is quantized ({tensor.dtype}): only dense tensors can be predicted; use .dequantize()")
    if tensor.is_nested:
        raise JobError(f"{what} is a nested tensor: only dense ones can be predicted; use .to_padded_tensor(0.0)")
    if tensor.layout != torch.strided:
        raise JobError(f"{what} is sparse ({tensor.layout}): only dense tensors can be predicted; use .to_dense()")
    own = type(tensor)
    if own.__torch_dispatch__ is not torch.Tensor.__torch_dispatch__ and not isinstance(tensor, FakeTensor):
        raise JobError(
            f"{what} is a {own.__name__}, a kind of tensor that replaces PyTorch's operators by its own: "
            "only plain tensors can be predicted; build the model before it is sharded or quantized"
        )


def optimizers_of(value: Any) -> Iterator[torch.optim.Optimizer]:
    """The optimizers in an optimizer, a wrapper of one (accelerate's), a tuple, list or dict."""
    if isinstance(value, torch.optim.Optimizer):
        yield value
    elif isinstance(inner := getattr(value, "optimizer", None), torch.optim.Optimizer):
        yield inner
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from optimizers_of(item)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for item in value:
            yield from optimizers_of(item)


def tensors_of(value: Any) -> Iterator[torch.Tensor]:
    """The tensors in nested containers and dataclasses."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_of(item)
    elif isinstance(value, (list, tuple, set)):
        for item in value:
            yield from tensors_of(item)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from tensors_of(getattr(value, field.name))


def _modules_of(step: Any, seen: set[int]) -> Iterator[nn.Module]:
    """Modules that a step holds: in its closure, in what it is bound to, in the arguments of a partial."""
    if id(step) in seen:
        return
    seen.add(id(step))
    for item in _held_by(step):
        if isinstance(item, nn.Module):
            yield item
        elif isinstance(item, (functools.partial, types.MethodType, types.FunctionType)):
            yield from _modules_of(item, seen)


def _held_by(step: Any) -> Iterator[Any]:
    if isinstance(step, functools.partial):
        yield from (step.func, *step.args, *step.keywords.values())
    elif isinstance(step, types.MethodType):
        yield from (step.__func__, *getattr(step.__self__, "__dict__", {}).values())
    elif isinstance(step, types.FunctionType):
        for cell in step.__closure__ or ():
            with contextlib.suppress(ValueError):  # an empty cell
                yield cell.cell_contents
    else:
        yield from getattr(step, "__dict__", {}).values()


def _described(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"{type(value).__name__} of {', '.join(map(repr, list(value)[:5])) or 'nothing'}"
    return type(value).__name__
