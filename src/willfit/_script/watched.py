"""What a script trains, found by hooks as it goes: models, optimizers, steps; whichever engine follows it."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, NoReturn
from unittest.mock import patch

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from willfit._errors import JobError
from willfit._placement import tensors_of
from willfit._run import summary_of
from willfit._trace.following import Follower
from willfit._trace.trace import JobSummary, Phase, Trace

# An optimizer that never steps, as one that is made for later, does not keep the script running for longer.
_MOST_STEPS = 16


class ScriptFollower(Follower):
    """Follows a script: a forward before any step begins the first, one after all optimizers have stepped the next."""

    watched: Watched | None = None

    def enter(self, phase: Phase, step: int | None = None) -> None:
        """The script enters a phase."""
        if phase == "forward" and step is None and self.watched is not None:
            step = self.watched.next_step()
        super().enter(phase, step)


class Watched:
    """What the script trains. ``done`` is called when each of its optimizers has made so many steps as ``wanted``."""

    def __init__(self, follower: ScriptFollower, wanted: int, done: Callable[[Trace], NoReturn]) -> None:
        self._follower = follower
        self._wanted = wanted
        self._done = done
        self._optimizers: list[weakref.ref[Any]] = []
        self._steps: Counter[int] = Counter()
        self._models: list[nn.Module] = []
        self._names: dict[int, str] = {}
        self._owners: dict[int, str] = {}
        self._batch = ""
        follower.watched = self
        follower.name_modules(self._names)
        follower.after_backward = lambda: follower.mark_role((p.grad for p in self._parameters()), "gradients")

    @contextmanager
    def by_hooks(self) -> Iterator[None]:
        """While the body runs, optimizers and models are found."""
        make, call = torch.optim.Optimizer.__init__, nn.Module.__call__

        def made(optimizer: Any, *args: Any, **kwargs: Any) -> None:
            make(optimizer, *args, **kwargs)
            self._optimizers.append(weakref.ref(optimizer))

        def called(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            self._forward(module, args, kwargs)
            return call(module, *args, **kwargs)

        with ExitStack() as stack:
            stack.enter_context(patch.object(torch.optim.Optimizer, "__init__", made))
            stack.enter_context(patch.object(nn.Module, "__call__", called))
            stack.callback(register_optimizer_step_pre_hook(self._steps_now).remove)
            stack.callback(register_optimizer_step_post_hook(self._stepped).remove)
            yield

    def next_step(self) -> int:
        """The number of the step that a forward is in now."""
        made = [self._steps[id(each)] for each in self._living()]
        most = max(made, default=0)
        return max(1, most + 1 if all(number == most for number in made) else most)

    def finish(self) -> Trace:
        """Stop recording, and put together what was recorded. Raises `JobError` where no optimizer stepped."""
        steps = max(self._steps.values(), default=0)
        if not steps:
            raise JobError("the script ended before any optimizer of PyTorch's stepped: there is nothing to predict")
        if steps < self._wanted:
            self._follower.assume(f"the script ended after optimizer step {steps}: later ones may need more")
        if any(not self._steps[id(each)] for each in self._living()):
            self._follower.assume("an optimizer that the script made has not stepped: what it will keep is not in")
        return self._follower.trace(steps, self._summary())

    def _summary(self) -> JobSummary:
        optimizers = tuple(each for each in self._living() if self._steps[id(each)])
        models = " + ".join(type(model).__name__ for model in self._models)
        return replace(
            summary_of(nn.ModuleList(self._models), optimizers, ()), model=models or "no module", batch=self._batch
        )

    def _living(self) -> list[Any]:
        return [optimizer for each in self._optimizers if (optimizer := each()) is not None]

    def _parameters(self) -> Iterator[nn.Parameter]:
        for optimizer in self._living():
            for group in optimizer.param_groups:
                yield from group["params"]
        for model in self._models:
            yield from model.parameters()

    def _forward(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        follower = self._follower
        if not follower.is_followed_here():
            return
        if id(module) not in self._names and next(module.parameters(), None) is not None:
            self._found(module)
            self._batch = self._batch or summary_of(module, (), kwargs or args).batch
        if module in self._models:
            follower.mark_role(tensors_of((args, kwargs)), "inputs", "")
            if follower.phase == "placement":
                follower.enter("forward")

    def _found(self, model: nn.Module) -> None:
        """A module that no other called, or that was made since: its tensors are parameters and buffers."""
        prefix = f"{type(model).__name__}." if self._models else ""
        for path, module in model.named_modules():
            name = f"{prefix}{path}".rstrip(".") or type(model).__name__
            self._names.setdefault(id(module), name)
            self._follower.mark_role(module.parameters(recurse=False), "parameters", name)
            self._follower.mark_role(module.buffers(recurse=False), "buffers", name)
            for parameter in module.parameters(recurse=False):
                self._owners.setdefault(id(parameter), name)
        self._models.append(model)

    def _steps_now(self, *_: Any) -> None:
        if self._follower.is_followed_here():
            self._follower.enter("optimizer step")

    def _stepped(self, optimizer: Any, *_: Any) -> None:
        if not self._follower.is_followed_here():
            return
        for parameter, state in optimizer.state.items():
            self._follower.mark_role(tensors_of(state), "optimizer states", self._owners.get(id(parameter)))
        self._steps[id(optimizer)] += 1
        made = [self._steps[id(each)] for each in self._living()]
        if min(made, default=0) >= self._wanted or max(made, default=0) >= _MOST_STEPS:
            self._done(self.finish())
