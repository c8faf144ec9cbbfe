"""A training job: model, optimizer, batch and how one step runs; run on fake tensors without leaving a trace."""

from __future__ import annotations

import dataclasses
import functools
import gc
import inspect
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

import willfit._trace.cuda  # noqa: F401 - its import registers the rules
from willfit._devices import Device
from willfit._errors import JobError, WillfitError
from willfit._globals import exchanged_globals
from willfit._placement import Placement, optimizers_of, tensors_of
from willfit._trace.made_before import enable_scaler
from willfit._trace.recorder import Recorder
from willfit._trace.runtime import cuda_runtime
from willfit._trace.surroundings import Dice, nothing_left_behind
from willfit._trace.trace import JobSummary, Phase, Trace
from willfit._wrong_jobs import (
    check_loss,
    check_model,
    check_optimizer,
    check_optimizer_is_for,
    check_step,
    raised_by_the_step,
)

# So many calls of the user's step may pass without an optimizer step before each call counts as one.
_MOST_MICRO_STEPS = 256
Step = Callable[[Any, Any, Any], Any]
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
) -> Trace:
    """Run a few steps of the job on fake tensors, as on ``device``, and return every allocation.

    Raises:
        UsageError: an argument is of the wrong kind.
        JobError: the parts do not belong together, or the step raised; nothing of the user's was changed.
        TraceError: an operator cannot run on fake tensors.
    """
    check_step(step, loss, steps)
    check_model(model)
    check_optimizer(optimizer)
    with nothing_left_behind():
        dice = Dice()
        recorder = Recorder(device.compute_capability, device.multiprocessors)
        try:
            with cuda_runtime(recorder, device):
                trace = _Copy(recorder, model, optimizer, batch, step or _default_step(loss)).run(steps)
        finally:
            recorder.restore_gradients()
            recorder.release_all()
        return dataclasses.replace(trace, is_repeatable=trace.is_repeatable and not dice.were_cast())


def tensors_outside(model: nn.Module, optimizer: Any, batch: Any, index: int) -> int:
    """Bytes that this process holds on the GPU of this index in tensors that are not the job's."""
    if not isinstance(model, nn.Module):
        return 0  # refused later, with a better message
    tensors = [*model.parameters(), *model.buffers(), *tensors_of(batch)]
    tensors += [p.grad for p in model.parameters() if p.grad is not None]
    for each in optimizers_of(optimizer):
        tensors += tensors_of(list(each.state.values()))
    here = torch.device("cuda", index)
    storages = {t.untyped_storage()._cdata: t.untyped_storage() for t in tensors if t.device == here}
    inside = sum(-(-storage.nbytes() // 512) * 512 for storage in storages.values())
    return max(0, torch.cuda.memory_allocated(index) - inside)


# -- the step where the user gives none ----------------------------------------------------------------------


def _default_step(loss: Loss | None) -> Step:
    def step(model: Any, optimizer: Any, batch: Any) -> None:
        value = loss(model, batch) if loss is not None else _huggingface_loss(model, batch)
        check_loss(value, "loss(model, batch)" if loss is not None else "the model's loss")
        value.backward()
        each = list(optimizers_of(optimizer))
        for one in each:
            one.step()
        for one in each:
            one.zero_grad()
        if not each:
            model.zero_grad()

    return step


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


# -- the run -------------------------------------------------------------------------------------------------


class _Copy:
    """The job's fake copy, on the recorder's GPU."""

    def __init__(self, recorder: Recorder, model: nn.Module, optimizer: Any, batch: Any, step: Step) -> None:
        self._recorder = recorder
        self._model, self._optimizer, self._batch, self._step = model, optimizer, batch, step
        self._optimizer_steps = 0
        self._never_steps = False
        self._stepped_in: list[Phase] = []
        self._owners: dict[int, str] = {}
        """Paths of the modules that parameters are in, by id."""
        self._thread = threading.get_ident()
        self._kept: Any = None
        """What the last call of the step returned: kept until the next returns, as ``loss = step(...)`` keeps it."""

    def run(self, steps: int) -> Trace:
        recorder = self._recorder
        placement = Placement(recorder)
        placement.model(self._model)
        placement.modules_of(self._step)
        for each in optimizers_of(self._optimizer):
            check_optimizer_is_for(each, self._model, placement.copier.memo)
        placement.optimizer(self._optimizer)
        copier = placement.copier
        model, optimizer = copier.copy(self._model), copier.copy(self._optimizer)
        batch = placement.batch(self._batch)
        call = functools.partial(self._call, copier.copy(self._step), model, optimizer, batch)
        with exchanged_globals(copier):
            for original in copier.kept:
                self._adapt(original, copier.memo.get(id(original)))
            for note in copier.notes:
                recorder.assume(note)
            self._follow(model)
            hooks = [
                register_optimizer_step_pre_hook(self._steps_now),
                register_optimizer_step_post_hook(self._stepped),
            ]
            try:
                for number in range(1, steps + 1):
                    recorder.enter("forward", number)
                    self._until_the_optimizer_steps(call)
            finally:
                for hook in hooks:
                    hook.remove()
            trace = recorder.trace(steps, _summary(self._model, self._optimizer, self._batch))
            self._kept = None
        return trace

    def _follow(self, model: nn.Module) -> None:
        recorder, parameters = self._recorder, list(model.parameters())
        names = {id(module): name.removeprefix("_orig_mod.") for name, module in model.named_modules()}
        recorder.name_modules({key: name or type(model).__name__ for key, name in names.items()})
        for module in model.modules():
            for parameter in module.parameters(recurse=False):
                self._owners.setdefault(id(parameter), recorder.name_of(module))
        recorder.after_backward = lambda: recorder.mark_role((p.grad for p in parameters), "gradients")
        recorder.follow_sources_up_to(_Copy._call.__code__)

    def _until_the_optimizer_steps(self, call: Callable[[], Any]) -> None:
        before, calls = self._optimizer_steps, 0
        while True:
            self._kept = call()
            calls += 1
            gc.collect(1)
            if self._optimizer is None or self._optimizer_steps > before or self._never_steps:
                return
            if calls >= _MOST_MICRO_STEPS:
                self._never_steps = True
                self._recorder.assume("the step makes no optimizer step: each call is counted as one")
                return
            self._recorder.enter("forward")

    def _steps_now(self, *_: Any) -> None:
        if threading.get_ident() == self._thread:
            self._stepped_in.append(self._recorder.phase)
            self._recorder.enter("optimizer step")

    def _stepped(self, optimizer: Any, *_: Any) -> None:
        if threading.get_ident() == self._thread:
            self._optimizer_steps += 1
            for parameter, state in optimizer.state.items():
                self._recorder.mark_role(tensors_of(state), "optimizer states", self._owners.get(id(parameter)))
            if self._stepped_in.pop() == "backward":  # a hook on a gradient steps, and the backward pass goes on
                self._recorder.enter("backward")

    def _call(self, step: Step, model: Any, optimizer: Any, batch: Any) -> Any:
        recorder = self._recorder
        try:
            returned = step(model, optimizer, batch)
        except WillfitError:
            raise
        except Exception as error:
            raise raised_by_the_step(error, recorder) from error
        if inspect.iscoroutine(returned):
            returned.close()
        if inspect.iscoroutine(returned) or inspect.isgenerator(returned):
            raise JobError(
                f"the training step returned a {type(returned).__name__}, so that nothing of it ran: "
                "pass a plain function step(model, optimizer, batch)"
            )
        return returned

    def _adapt(self, original: Any, copied: Any) -> None:
        """Make a copy what it would be on a machine with a GPU."""
        if copied is original:
            return
        if isinstance(copied, torch.amp.GradScaler):
            enable_scaler(copied, self._recorder)
        if isinstance(copied, nn.DataParallel):
            copied.device_ids = []
            self._recorder.assume("DataParallel is predicted on one GPU, which gets the whole batch")


# -- what kind of job it is ----------------------------------------------------------------------------------


def _summary(model: nn.Module, optimizer: Any, batch: Any) -> JobSummary:
    elements: Counter[str] = Counter()
    for parameter in model.parameters():
        elements[str(parameter.dtype).removeprefix("torch.")] += parameter.numel()
    return JobSummary(
        model=type(model).__name__,
        optimizer=" + ".join(type(each).__name__ for each in optimizers_of(optimizer)),
        parameters=elements.total(),
        trainable=sum(p.numel() for p in model.parameters() if p.requires_grad),
        dtypes=tuple(elements.most_common()),
        batch=", ".join(_shapes("", batch)),
    )


def _shapes(name: str, value: Any) -> Iterable[str]:
    if isinstance(value, torch.Tensor):
        yield f"{name} {' x '.join(map(str, value.shape)) or 'scalar'}".strip()
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _shapes(str(key), item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _shapes(name, item)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from _shapes(field.name, getattr(value, field.name))
