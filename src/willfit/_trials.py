"""Changes tried on copies of a job: what remedies propose for it, and what it needs then."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

from willfit._allocator_settings import AllocatorSettings
from willfit._changing import Job, copied, quiet
from willfit._devices import Device
from willfit._errors import WillfitError
from willfit._footprint import Footprint, footprint_of
from willfit._predict import followed
from willfit._remedies import remedies
from willfit._remedies.applying import applied
from willfit._remedies.remedy import Change, NotApplicable, Situation
from willfit._replay import replay
from willfit._trace.trace import Engine, Trace

_STEPS_THAT_SHOW = 2  # the first makes the optimizer's states, the second finds them there


def proposals(
    job: Job, device: Device, predict: Callable[[], Footprint]
) -> tuple[dict[str, list[Change]], list[tuple[str, str]]]:
    """What each remedy proposes for a job, and why others propose nothing: (remedy, reason).

    ``predict`` tells what the job needs as it is, to those that ask.
    """
    proposed: dict[str, list[Change]] = {}
    reasons: list[tuple[str, str]] = []
    with quiet(), copied(job) as copy:
        situation = Situation(copy, device, predict)
        for name, remedy in remedies().items():
            changes = proposed.setdefault(name, [])
            try:
                for change in remedy(situation):
                    changes.append(change)
            except Exception as error:  # one remedy that fails must not hide the others
                reasons.append((name, _why_not(error)))
    return proposed, reasons


@dataclass(frozen=True, slots=True)
class Trials:
    """Predicts changed copies of a job."""

    job: Job
    device: Device
    steps: int
    engine: Engine

    def footprint(
        self, changes: Sequence[Change], steps: int, enough: Callable[[Trace], bool] | None = None
    ) -> Footprint:
        """The prediction of the job with these changes."""
        with _environment(changes), quiet(), copied(self.job) as copy:
            settings = AllocatorSettings.from_environment()
            changed = applied(copy, changes)
            parts = changed.model, changed.optimizer, changed.batch, changed.step
            trace = followed(
                *parts, loss=changed.loss, device=self.device, steps=steps, engine=self.engine, enough=enough
            )
        return footprint_of(trace, self.device, settings)

    def attempt(self, changes: Sequence[Change], steps: int) -> Footprint | str:
        """The prediction, or why there is none."""
        try:
            return self.footprint(changes, steps)
        except Exception as error:
            return _why_not(error)

    def whether_it_fits(self, changes: Sequence[Change]) -> Footprint | str:
        """As `attempt`, of all steps only where the first ones do not show that it cannot fit."""
        try:
            return self.footprint(changes, self.steps, self._cannot_fit)
        except Exception as error:
            return _why_not(error)

    def _cannot_fit(self, trace: Trace) -> bool:
        if trace.steps < _STEPS_THAT_SHOW:
            return False
        settings = AllocatorSettings.from_environment()
        return replay(trace, self.device.capacity, settings, self.device.total).out_of_memory is not None


def replayed(before: Footprint, device: Device, changes: Sequence[Change]) -> Footprint:
    """The same job under other settings of the allocator, which change nothing of what it asks for."""
    with _environment(changes):
        return footprint_of(before._trace, device, AllocatorSettings.from_environment())


def concerns_the_allocator_alone(changes: Sequence[Change]) -> bool:
    """Whether these changes are variables of the environment, and no code."""
    return all(
        change.environment and change.apply is None and all(line.startswith("#") for line in change.code.split("\n"))
        for change in changes
    )


def _environment(changes: Sequence[Change]) -> Any:
    return patch.dict(os.environ, {name: value for change in changes for name, value in change.environment.items()})


def _why_not(error: Exception) -> str:
    """Why a change cannot be made, in one line."""
    if isinstance(error, ImportError):
        return f"{error.name or 'a package'} is not installed"
    message = str(error).split("\n")[0]
    return message if isinstance(error, (NotApplicable, WillfitError)) else f"{type(error).__name__}: {message}"
