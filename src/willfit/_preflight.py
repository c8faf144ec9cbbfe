"""What every front end does with a training job before it runs: predict it, and refuse it or warn if it won't fit."""

from __future__ import annotations

import os
import sys
import warnings
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from willfit._errors import JobError, UnavailableError, UsageError, WillNotFit

if TYPE_CHECKING:
    from willfit._devices import Device
    from willfit._footprint import Footprint
    from willfit._verify.verification import Verification

ENVIRONMENT = "WILLFIT"
_ACTIONS = ("raise", "warn")


class WillfitWarning(UserWarning):
    """What the guard says where it does not refuse: a tight fit, a job that it could not follow, action="warn"."""


@dataclass(frozen=True, slots=True)
class Job:
    """The arguments of `willfit.predict` that are the job, and what people call it."""

    name: str
    """What would run: "train()"."""
    model: Any
    optimizer: Any
    batch: Any
    step: Any = None
    loss: Any = None
    taken: str = ""
    """What was taken for what, in a sentence or none."""

    @property
    def lacks_an_optimizer(self) -> bool:
        """Whether optimizer states are left out."""
        return self.optimizer is None and self.step is None

    @property
    def notes(self) -> str:
        """What was taken for what, and what is left out."""
        if not self.lacks_an_optimizer:
            return self.taken
        left_out = "Optimizer states are not counted: if there will be some, pass the optimizer, or make it in step=."
        return f"{self.taken} {left_out}".strip()


@dataclass(frozen=True, slots=True, kw_only=True)
class Preflight:
    """What is asked of every job, in the words of `willfit.guard`. Raises `UsageError` for what cannot be."""

    on: Any = None
    capacity: Any = None
    action: Any = "raise"
    advise: Any = True
    steps: Any = 3
    engine: Any = "symbolic"
    verify: Any = False
    tolerance: Any = "2%"

    def __post_init__(self) -> None:
        if self.action not in _ACTIONS:
            raise UsageError(f'action must be "raise" or "warn": found {self.action!r}')
        if not isinstance(self.advise, bool):
            raise UsageError(f"advise must be True or False: found {self.advise!r}")
        if not isinstance(self.steps, int) or isinstance(self.steps, bool) or self.steps < 1:
            raise UsageError(f"steps must be a number of optimizer steps, 1 or more: found {self.steps!r}")
        from willfit._trace.trace import check_engine  # here, as the pytest plugin is to start fast

        check_engine(self.engine)
        self._check_device()
        self._check_verification()

    def _check_verification(self) -> None:
        if self.verify is False:
            return
        from willfit._verify.verification import parse_tolerance
        from willfit._verify.verifier import check_verifier

        parse_tolerance(self.tolerance)
        if self.verify not in (True, "watch"):
            check_verifier(self.verify)

    def _check_device(self) -> None:
        from willfit._devices import Device, resolve_device
        from willfit._units import parse_size

        if self.capacity is not None:
            parse_size(self.capacity, "capacity")
        here = self.on is None or str(self.on).startswith("cuda")  # looked for when the job is
        if isinstance(self.on, Device) or not here:
            resolve_device(self.on, self.capacity)

    def action_now(self) -> str:
        """The action, or what the environment says in its place: "raise", "warn" or "off"."""
        action = os.environ.get(ENVIRONMENT) or None
        if action not in (None, "off", *_ACTIONS):
            raise UsageError(f"{ENVIRONMENT}={action} in the environment: it must be off, warn or raise")
        return action or str(self.action)

    def device(self, name: str) -> Device:
        """The GPU that a job is predicted for. Raises `UsageError` if none is named and none is here."""
        from willfit._devices import resolve_device

        device = resolve_device(self.on, self.capacity)
        if device is None:
            raise UsageError(
                f"{name} is guarded for the GPU of this process, and none is here: "
                f'name one as in guard(on="T4"), or set {ENVIRONMENT}=off'
            )
        return device

    def check(self, job: Job, device: Device) -> str | None:
        """Predict a job. Returns what to warn of, if anything.

        Raises what `willfit.predict` raises, and `WillNotFit`, unless the action is "warn".
        """
        from willfit._predict import predict

        try:
            footprint = predict(
                *(job.model, job.optimizer, job.batch, job.step),
                loss=job.loss,
                on=device,
                steps=self.steps,
                capacity=self.capacity,
                engine=self.engine,
            )
        except (JobError, UnavailableError) as error:
            return self.unpredicted(job.name, error)
        if footprint.verdict == "does not fit" and self.action_now() == "raise":
            raise self._refusal(job, device, footprint)
        if footprint.verdict != "fits":
            verdict = "will not fit" if footprint.verdict == "does not fit" else "is a tight fit"
            return f"{job.name} {verdict} on {device.name}. {job.notes}\n\n{footprint}"
        return f"{job.name} fits on {device.name}. {job.notes}" if job.lacks_an_optimizer else None

    def unpredicted(self, name: str, error: Exception) -> str:
        """What to warn of where a job could not be predicted; raises the error unless the action is "warn"."""
        if self.action_now() == "warn":
            return f"{name} runs unchecked, as it could not be predicted: {error}"
        if sys.version_info >= (3, 11):
            error.add_note(f"Raised by the guard of {name}, which runs all the same with {ENVIRONMENT}=warn.")
        raise error

    def _refusal(self, job: Job, device: Device, footprint: Footprint) -> WillNotFit:
        message = f"{job.name} was not run: it will not fit on {device.name}. {job.notes}\n\n{footprint}"
        if not self.advise:
            return WillNotFit(message, footprint)
        from willfit._advise import advise
        from willfit._commands.streams import progress_line

        with progress_line() as progress:
            advice = advise(
                *(job.model, job.optimizer, job.batch, job.step),
                loss=job.loss,
                on=device,
                capacity=self.capacity,
                steps=self.steps,
                engine=self.engine,
                progress=progress,
            )
        return WillNotFit(f"{message}\n\n{advice}", footprint, advice)

    def verified(self, job: Job) -> AbstractContextManager[Any]:
        """Verify now, and warn of what differs; or return what will, while the job runs."""
        if self.verify is False:
            return nullcontext()
        from willfit._verify.verifier import JobToVerify
        from willfit._verify.verify import verify_job
        from willfit._verify.watch import watch

        parts = (job.model, job.optimizer, job.batch, job.step)

        def warn_of(verification: Verification) -> None:
            if not verification.agrees:
                text = f"what {job.name} needs is not what was predicted.\n\n{verification}"
                warnings.warn(text, WillfitWarning, 5)

        try:
            if self.verify == "watch":
                on = self.on if str(self.on).startswith("cuda") else None
                watched = watch(*parts, loss=job.loss, on=on, steps=self.steps, tolerance=self.tolerance)
                watched.when_done(warn_of)
                return watched
            to_verify = JobToVerify(*parts, job.loss, self.on, self.capacity, self.steps)
            warn_of(verify_job(to_verify, self.tolerance, None if self.verify is True else self.verify))
        except (JobError, UnavailableError) as error:
            warnings.warn(f"what {job.name} needs could not be verified: {error}", WillfitWarning, 4)
        return nullcontext()
