"""A training job: model, optimizer, batch and how one step runs; run on fake tensors without leaving a trace."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

import willfit._trace.cuda  # noqa: F401 - its import registers the rules
from willfit._devices import Device
from willfit._errors import JobError
from willfit._placement import optimizers_of, tensors_of
from willfit._placement_bitsandbytes import tensors_beside
from willfit._run import Run, Step
from willfit._trace.recorder import Recorder
from willfit._trace.runtime import cuda_runtime
from willfit._trace.surroundings import Dice, nothing_left_behind
from willfit._trace.trace import Trace
from willfit._wrong_jobs import check_loss, check_model, check_optimizer, check_step

Loss = Callable[[Any, Any], torch.Tensor]


def trace_job(
    model: nn.Module,
    optimizer: Any,
    batch: Any,
    step: Step | None = None,
    *,
    loss: Loss | None = None,
    device: Device,
    steps: int = 3,
    enough: Callable[[Trace], bool] | None = None,
) -> Trace:
    """Run a few steps of the job on fake tensors, as on ``device``, and return every allocation.

    Fewer steps where ``enough`` says so of the trace after one of them.

    Raises:
        UsageError: an argument is of the wrong kind.
        JobError: the parts do not belong together, or the step raised; nothing of the user's was changed.
        TraceError: an operator cannot run on fake tensors.
    """
    check_job(model, optimizer, step, loss, steps)
    with nothing_left_behind():
        dice = Dice()
        recorder = Recorder(device.compute_capability, device.multiprocessors)
        try:
            with cuda_runtime(recorder, device):
                trace = Run(recorder, model, optimizer, batch, step or default_step(loss)).steps(steps, enough)
        finally:
            recorder.restore_gradients()
            recorder.release_all()
        return dataclasses.replace(trace, is_repeatable=trace.is_repeatable and not dice.were_cast())


def check_job(model: Any, optimizer: Any, step: Any, loss: Any, steps: Any) -> None:
    """Refuse what cannot be a job. Raises `UsageError` and `JobError`."""
    check_step(step, loss, steps)
    check_model(model)
    check_optimizer(optimizer)


def tensors_outside(model: nn.Module, optimizer: Any, batch: Any, index: int) -> int:
    """Bytes that this process holds on the GPU of this index in tensors that are not the job's."""
    if not isinstance(model, nn.Module):
        return 0  # refused later, with a better message
    tensors = [*model.parameters(), *model.buffers(), *tensors_of(batch)]
    tensors += [p.grad for p in model.parameters() if p.grad is not None]
    tensors += [tensor for module in model.modules() for tensor in tensors_beside(module)]
    for each in optimizers_of(optimizer):
        tensors += tensors_of(list(each.state.values()))
    here = torch.device("cuda", index)
    storages = {t.untyped_storage()._cdata: t.untyped_storage() for t in tensors if t.device == here}
    inside = sum(-(-storage.nbytes() // 512) * 512 for storage in storages.values())
    return max(0, torch.cuda.memory_allocated(index) - inside)


# -- the step where the user gives none ----------------------------------------------------------------------


def default_step(loss: Loss | None, backward: Callable[[torch.Tensor], Any] = torch.Tensor.backward) -> Step:
    """What runs where no step is given: the loss, backward, the optimizers' steps, their gradients dropped."""

    def step(model: Any, optimizer: Any, batch: Any) -> None:
        backward(loss_of(loss, model, batch))
        each = list(optimizers_of(optimizer))
        for one in each:
            one.step()
        for one in each:
            one.zero_grad()
        if not each:
            model.zero_grad()

    return step


def loss_of(loss: Loss | None, model: Any, batch: Any) -> torch.Tensor:
    """The loss that a step begins with. Raises `JobError` for what is no loss."""
    value = loss(model, batch) if loss is not None else _huggingface_loss(model, batch)
    check_loss(value, "loss(model, batch)" if loss is not None else "the model's loss")
    return value


def _huggingface_loss(model: Any, batch: Any) -> Any:
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = {}
    if isinstance(batch, Mapping):
        kwargs = batch
    elif dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        kwargs = {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch)}
    else:
        args = tuple(batch) if isinstance(batch, (tuple, list)) else (batch,)
    try:
        inspect.signature(model.forward).bind(*args, **kwargs)
    except TypeError as error:
        raise JobError(
            f"the model does not take this batch as {'model(**batch)' if kwargs else 'model(*batch)'}: {error}; "
            "pass loss=lambda model, batch: ..., or step=..., to call it otherwise"
        ) from None
    out = model(*args, **kwargs)
    if isinstance(out, torch.Tensor):
        return out
    found = out.get("loss") if isinstance(out, Mapping) else getattr(out, "loss", None)
    if found is None:
        raise JobError(
            f"the model's output ({type(out).__name__}) has no loss: give labels in the batch, "
            "or pass loss=lambda model, batch: ... or step=..."
        )
    return found
