"""What a trainer's callback does when training begins and when it ends, whichever trainer it is."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from willfit._errors import JobError, UsageError
from willfit._preflight import Job, Preflight, WillfitWarning
from willfit._worst_batch import batch_of
from willfit.integrations._ranks import agreed, world_size


class TrainingCheck:
    """Checks a job when its training begins, and watches it until it ends.

    Takes the options of `Preflight`, and ``shapes`` as `willfit.guard` does. Raises `UsageError` for what cannot be.
    """

    def __init__(self, *, shapes: Any, **options: Any) -> None:
        if shapes not in (None, "longest", "first"):
            raise UsageError(f'shapes must be "longest", "first" or None: found {shapes!r}')
        self.shapes = shapes
        self._preflight = Preflight(**options)
        self._watched: AbstractContextManager[Any] = nullcontext()

    def is_off(self) -> bool:
        """Whether the environment says that nothing is to be checked."""
        return self._preflight.action_now() == "off"

    def begin(self, name: str, make_job: Callable[[], Job]) -> None:
        """Check the job that training is. Where several processes train, all raise or none.

        Raises what `Preflight.check` raises; a `JobError` of ``make_job`` is what could not be predicted.
        """
        preflight, jobs = self._preflight, []
        if world_size() > 1:  # the advice of one process would keep the others waiting
            preflight = dataclasses.replace(preflight, advise=False)

        def check() -> str | None:
            device = preflight.device(name)
            try:
                jobs.append(make_job())
            except JobError as error:
                return preflight.unpredicted(name, error)
            return preflight.check(jobs[0], device)

        if (warning := agreed(check)) is not None:
            warnings.warn(warning, WillfitWarning, 3)
        if jobs:
            self._watched = preflight.verified(jobs[0])

    def watch(self) -> None:
        """Training goes on: measure its first steps, if that was asked for."""
        self._watched.__enter__()

    def end(self) -> None:
        """Training is over, and with it what watches it."""
        self._watched.__exit__(None, None, None)
        self._watched = nullcontext()


def training_batch(name: str, loader: Any, shapes: str | None) -> tuple[Any, str]:
    """A batch of the training data, and which it is, as `batch_of` says.

    Raises `UsageError` where there is none, `JobError` where it cannot be made.
    """
    try:
        return batch_of(loader, shapes)
    except StopIteration:
        raise UsageError(f"{name}: the training data is empty, so there is no batch") from None
    except Exception as error:
        raise JobError(f"{name}: no batch could be made of its data: {type(error).__name__}: {error}") from error
