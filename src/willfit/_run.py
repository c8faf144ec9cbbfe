"""The steps of a training job: its copy placed, called as a training loop calls it, and followed by an engine."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from willfit._errors import JobError, WillfitError
from willfit._globals import exchanged_globals
from willfit._placement import OnHost, Placement, optimizers_of, own_class, own_path, tensors_of
from willfit._placement_bitsandbytes import copy_managers, elements, is_quantized_weight
from willfit._placement_recurrent import flatten_when_run
from willfit._trace.following import Follower
from willfit._trace.made_before import enable_fp16, enable_scaler
from willfit._trace.trace import JobSummary, Phase, Trace
from willfit._wrong_jobs import check_optimizer_is_for, raised_by_the_step

# So many calls of the user's step may pass without an optimizer step before each call counts as one.
_MOST_MICRO_STEPS = 256
Step = Callable[[Any, Any, Any], Any]


class Run:
    """A copy of a job on a follower's device, and its steps.

    Without ``optimizer_steps`` a step goes as far as to its optimizer: its state is not made, its parameters stay.
    """

    def __init__(
        self,
        follower: Follower,
        model: nn.Module,
        optimizer: Any,
        batch: Any,
        step: Step,
        optimizer_steps: bool = True,
    ) -> None:
        self._follower = follower
        self._makes_optimizer_steps = optimizer_steps
        self._model, self._optimizer, self._batch, self._step = model, optimizer, batch, step
        self._optimizer_steps = 0
        self._never_steps = False
        self._stepped_in: list[Phase] = []
        self._owners: dict[int, str] = {}
        """Paths of the modules that parameters are in, by id."""
        self._kept: Any = None
        """What the last call of the step returned: kept until the next returns, as ``loss = step(...)`` keeps it."""

    def steps(self, count: int, enough: Callable[[Trace], bool] | None = None) -> Trace:
        """Place the copy, run it for so many optimizer steps, and return what the follower recorded.

        ``enough``, asked after each step but the last with the trace so far, may end it there.
        """
        follower, summary = self._follower, summary_of(self._model, self._optimizer, self._batch)
        placement = Placement(follower)
        placement.model(self._model)
        placement.modules_of(self._step)
        for each in optimizers_of(self._optimizer):
            check_optimizer_is_for(each, self._model, placement.copier.memo)
        placement.optimizer(self._optimizer)
        copier = placement.copier
        model = copier.copy(self._model)
        for each in optimizers_of(self._optimizer):
            copy_managers(each, copier)
        optimizer = copier.copy(self._optimizer)
        batch = placement.batch(self._batch)
        if not self._makes_optimizer_steps:
            for each in optimizers_of(optimizer):
                each.__dict__["step"] = self._no_step
        call = functools.partial(self._call, copier.copy(self._step), model, optimizer, batch)
        with exchanged_globals(copier):
            for original in copier.kept:
                self._adapt(original, copier.memo.get(id(original)))
            for note in copier.notes:
                follower.assume(note)
            copier.forget()
            self._follow(model)
            hooks = [
                register_optimizer_step_pre_hook(self._steps_now),
                register_optimizer_step_post_hook(self._stepped),
            ]
            try:
                for number in range(1, count + 1):
                    follower.enter("forward", number)
                    self._until_the_optimizer_steps(call, optimizer)
                    if enough is not None and number < count and enough(follower.trace(number, summary)):
                        break
            finally:
                for hook in hooks:
                    hook.remove()
            trace = follower.trace(number, summary)
            self._kept = None
        return trace

    def _follow(self, model: nn.Module) -> None:
        follower, parameters = self._follower, list(model.parameters())
        names = {id(module): own_path(name) for name, module in model.named_modules()}
        follower.name_modules({key: name or own_class(model) for key, name in names.items()})
        for module in model.modules():
            for parameter in module.parameters(recurse=False):
                self._owners.setdefault(id(parameter), follower.name_of(module))
        follower.after_backward = lambda: follower.mark_role((p.grad for p in parameters), "gradients")
        follower.follow_sources_up_to(Run._call.__code__)

    def _until_the_optimizer_steps(self, call: Callable[[], Any], optimizer: Any) -> None:
        """Call once, or more often while gradients are accumulated, as inside of Accelerate."""
        before, calls = self._optimizer_steps, 0
        while True:
            self._kept = call()
            calls += 1
            self._follower.collect_garbage()
            if self._optimizer is None or self._optimizer_steps > before:
                return
            self._never_steps = self._never_steps or calls >= _MOST_MICRO_STEPS
            if self._never_steps or not _holds_gradients(optimizer):  # none are left where it updates by hand
                self._follower.assume("the step makes no optimizer step: each call is counted as one")
                return
            self._follower.enter("forward")

    def _no_step(self, closure: Any = None) -> Any:
        self._follower.enter("optimizer step")
        self._optimizer_steps += 1
        return None if closure is None else closure()

    def _steps_now(self, *_: Any) -> None:
        if self._follower.is_followed_here():
            self._stepped_in.append(self._follower.phase)
            self._follower.enter("optimizer step")

    def _stepped(self, optimizer: Any, *_: Any) -> None:
        if self._follower.is_followed_here():
            self._optimizer_steps += 1
            for parameter, state in optimizer.state.items():
                self._follower.mark_role(tensors_of(state), "optimizer states", self._owners.get(id(parameter)))
            if self._stepped_in.pop() == "backward":  # a hook on a gradient steps, and the backward pass goes on
                self._follower.enter("backward")

    def _call(self, step: Step, model: Any, optimizer: Any, batch: Any) -> Any:
        follower = self._follower
        try:
            returned = step(model, optimizer, batch)
        except WillfitError:
            raise
        except Exception as error:
            raise raised_by_the_step(error, follower) from error
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
            enable_scaler(copied, self._follower)
        if isinstance(copied, getattr(sys.modules.get("accelerate.accelerator"), "Accelerator", ())):
            enable_fp16(copied, self._follower)
        if isinstance(copied, nn.RNNBase) and not any(parameter.is_cuda for parameter in original.parameters()):
            flatten_when_run(copied, self._follower)
        if isinstance(copied, nn.DataParallel):
            copied.device_ids = []
            self._follower.assume("DataParallel is predicted on one GPU, which gets the whole batch")


def _holds_gradients(optimizer: Any) -> bool:
    groups = (group for each in optimizers_of(optimizer) for group in each.param_groups)
    return any(parameter.grad is not None for group in groups for parameter in group["params"])


# -- what kind of job it is ----------------------------------------------------------------------------------


def summary_of(model: nn.Module, optimizer: Any, batch: Any) -> JobSummary:
    counts: Counter[str] = Counter()
    for parameter in model.parameters():
        dtype, number = str(parameter.dtype).removeprefix("torch."), parameter.numel()
        if is_quantized_weight(parameter):
            dtype, number = elements(parameter)
        counts[dtype] += number
    return JobSummary(
        model=own_class(model),
        optimizer=" + ".join(type(getattr(each, "optimizer", each)).__name__ for each in optimizers_of(optimizer)),
        parameters=counts.total(),
        trainable=sum(p.numel() for p in model.parameters() if p.requires_grad),
        dtypes=tuple(counts.most_common()),
        batch=", ".join(_shapes("", batch.batch if isinstance(batch, OnHost) else batch)),
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
