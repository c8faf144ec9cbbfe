"""What can be wrong with a training job, in sentences: what was wrong, what was found, what to do."""

from __future__ import annotations

import inspect
import traceback
from collections import Counter
from collections.abc import Container
from typing import Any

import torch
from torch import nn

from willfit._errors import JobError, TraceError, UsageError
from willfit._globals import is_the_users
from willfit._placement import check_tensor, optimizers_of
from willfit._trace.following import Follower
from willfit._trace.recorder import Recorder
from willfit._units import format_size

_DISPATCH = Recorder.__torch_dispatch__.__code__
# Where PyTorch's messages turn from what is wrong to tables of its dispatcher and advice for its developers.
_ENDS_OF_MESSAGES = (
    " You may have run into this message",
    " This could be because",
    " Please see the following",
    ", but there was no fake impl",
    "\nException raised from",
    "\nTo fix this,",
    " is only available for these backends",
)
_LONGEST_MESSAGE = 600


def check_step(step: Any, loss: Any, steps: Any) -> None:
    """Refuse a step or a loss that cannot be called as they will be."""
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
        raise UsageError(f"steps must be a number of optimizer steps, 1 or more: found {steps!r}")
    if step is not None and loss is not None:
        raise UsageError("step= and loss= are both given: a step has its own loss; leave out one of them")
    for name, value, arguments in (("step", step, "model, optimizer, batch"), ("loss", loss, "model, batch")):
        if value is None:
            continue
        if not callable(value) or isinstance(value, torch.Tensor):
            raise UsageError(f"{name} must be a function {name}({arguments}): found {type(value).__name__}")
        function = inspect.unwrap(value)
        if any(ask(function) for ask in _NOT_PLAIN):
            raise JobError(
                f"{name} is a generator or coroutine function, so that a call runs nothing of it: "
                f"pass a plain function {name}({arguments})"
            )
        try:
            inspect.signature(value).bind(*arguments.split(", "))
        except TypeError as error:
            raise JobError(
                f"{name} is called as {name}({arguments}), which {_name(value)}{inspect.signature(value)} "
                f"does not take: {error}"
            ) from None
        except ValueError:
            continue  # written in C: it does not say what it takes


_NOT_PLAIN = (inspect.isgeneratorfunction, inspect.iscoroutinefunction, inspect.isasyncgenfunction)


def check_model(model: Any) -> None:
    """Refuse what is no module, and modules that cannot be followed."""
    if not isinstance(model, nn.Module):
        found = f"the class {model.__name__}" if isinstance(model, type) else type(model).__name__
        raise JobError(
            f"the model is not a torch.nn.Module: found {found}; pass the module itself, as in "
            "predict(model, optimizer, batch)"
        )
    _check_in_one_place(model)
    for kind, named in (("parameter", model.named_parameters()), ("buffer", model.named_buffers())):
        for name, tensor in named:
            check_tensor(f"{kind} {name!r}", tensor)
    for name, module in model.named_modules():
        what = f"module {name!r}" if name else "the model"
        if isinstance(module, torch.jit.ScriptModule):
            raise JobError(
                f"{what} is TorchScript, whose operators cannot be followed: pass the module it was made from"
            )
        if isinstance(module, nn.parallel.DistributedDataParallel):
            raise JobError(
                f"{what} is wrapped in DistributedDataParallel, whose buckets cannot be followed: pass its .module; "
                "on each GPU the buckets take as much again as the gradients, unless gradient_as_bucket_view=True"
            )


def _check_in_one_place(model: nn.Module) -> None:
    """Refuse a model that Accelerate spreads over devices, or whose weights it brings to the GPU as they are used."""
    held: Counter[str] = Counter()
    for path, place in (getattr(model, "hf_device_map", None) or {}).items():
        held[str(place)] += sum(tensor.nbytes for tensor in _module_at(model, path).parameters())
    if len(held) > 1:
        places = ", ".join(f"{place}: {format_size(size)}" for place, size in sorted(held.items()))
        raise JobError(
            f"the model is spread over several devices (hf_device_map has weights on {places}), which is not "
            "predicted: load it with device_map={'': 0}"
        )
    for name, module in model.named_modules():
        hook = getattr(module, "_hf_hook", None)
        if any(getattr(each, "offload", False) for each in (hook, *getattr(hook, "hooks", ()))):
            raise JobError(
                f"the weights of module {name!r} are offloaded by Accelerate, which brings them to the GPU for each "
                "forward pass and gives them no gradients: that is not predicted; take its hooks off with "
                "accelerate.hooks.remove_hook_from_submodules(model)"
            )


def _module_at(model: nn.Module, path: str) -> nn.Module:
    """The module of this path, which may be that of a parameter in it."""
    try:
        return model.get_submodule(path)
    except AttributeError:
        return model.get_submodule(path.rpartition(".")[0])


def check_optimizer(optimizer: Any) -> None:
    """Refuse what holds no optimizer."""
    if optimizer is None or any(True for _ in optimizers_of(optimizer)):
        return
    found = f"the class {optimizer.__name__}" if isinstance(optimizer, type) else type(optimizer).__name__
    raise JobError(
        f"the optimizer is not a torch.optim.Optimizer: found {found}; pass the optimizer itself, as in "
        "predict(model, optimizer, batch), or None to predict forward and backward only"
    )


def _name(function: Any) -> str:
    return getattr(function, "__name__", type(function).__name__)


def check_optimizer_is_for(optimizer: torch.optim.Optimizer, model: nn.Module, known: Container[int]) -> None:
    """Refuse an optimizer none of whose parameters are known (by id): of the model, or of modules in the step."""
    held = [p for group in optimizer.param_groups for p in group["params"]]
    if held and not any(id(p) in known for p in held):
        raise JobError(
            f"the optimizer ({type(optimizer).__name__}) holds {len(held)} parameters, none of them of the model "
            f"({type(model).__name__}): it would train another model; build it from this model's parameters, "
            "after any change that replaces them"
        )


def check_loss(value: Any, what: str) -> None:
    """Refuse a loss without a backward pass."""
    if not isinstance(value, torch.Tensor):
        raise JobError(f"{what} must be a scalar tensor: found {type(value).__name__}")
    if value.numel() != 1:
        raise JobError(
            f"{what} must be a scalar: found shape {tuple(value.shape)}; "
            "reduce it (.mean()), or pass loss= or step= if this is not the loss"
        )
    if not value.requires_grad:
        raise JobError(
            f"{what} needs no gradient: no trainable parameter took part in it; "
            "check requires_grad, torch.no_grad() and .detach() on the way to the loss"
        )


def raised_by_the_step(error: Exception, recorder: Follower) -> JobError:
    """What to raise in place of an exception that came out of the user's step."""
    refused = cannot_be_followed(error, recorder, "the training step")
    where = _where(recorder, error, _is_in_operator(error))
    return refused or JobError(f"the training step raised {type(error).__name__}{where}: {shortened(error)}")


def cannot_be_followed(error: Exception, recorder: Follower, what: str) -> TraceError | None:
    """What to raise where an operator cannot run on fake tensors; None for an exception of another kind."""
    if not (_is_in_operator(error) and isinstance(error, NotImplementedError)):
        return None
    why = _why_not_followed(recorder, error)
    return TraceError(f"{what} cannot be followed{_where(recorder, error, in_operator=True)}: {why}")


def _is_in_operator(error: BaseException) -> bool:
    return any(frame.f_code is _DISPATCH for frame, _ in traceback.walk_tb(error.__traceback__))


def _where(recorder: Follower, error: BaseException, in_operator: bool) -> str:
    """Where an exception came from: " in module 'encoder.0' (train.py:12, aten.mm.default, forward of step 1)"."""
    source = module = ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        own = frame.f_locals.get("self")
        if isinstance(own, nn.Module):
            module = recorder.name_of(own)
        if is_the_users(frame.f_code.co_filename):
            source = f"{frame.f_code.co_filename.replace(chr(92), '/').rpartition('/')[2]}:{line}"
    operator = str(recorder.last_operator) if in_operator else ""
    place = ", ".join(filter(None, (source, operator, f"{recorder.phase} of step {recorder.step}")))
    return f"{f' in module {module!r}' if module else ''} ({place})"


def _why_not_followed(recorder: Follower, error: BaseException) -> str:
    operator = str(recorder.last_operator)
    if "Sparse" in str(error):
        return (
            "it works on a sparse tensor, of which only the gradients of embeddings are followed, as SGD, SparseAdam "
            "and Adagrad use them"
        )
    if operator.partition(".")[0] in ("aten", "prims"):
        return f"PyTorch does not say what it returns without running it ({shortened(error)})"
    return "it has no fake implementation; give it one with torch.library.register_fake"


def shortened(error: BaseException) -> str:
    """An exception's message without tables of the dispatcher and advice for developers of PyTorch."""
    text = str(error)
    for end in _ENDS_OF_MESSAGES:
        text = text.partition(end)[0]
    return text if len(text) <= _LONGEST_MESSAGE else f"{text[:_LONGEST_MESSAGE]}…"
