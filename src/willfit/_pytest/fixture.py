"""The fixture ``willfit``."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pytest

from willfit._pytest.baseline import baseline_of
from willfit._pytest.limits import over_limits
from willfit._pytest.outcome import CheckFailed, Problem, Result
from willfit._pytest.report import RESULTS, properties
from willfit._pytest.run import Run, id_of, id_within_file
from willfit._pytest.settings import AS_MARKED, Settings
from willfit._units import format_size

if TYPE_CHECKING:
    from willfit._advice import Advice
    from willfit._devices import Device
    from willfit._footprint import Footprint
    from willfit._job import Loss
    from willfit._run import Step
    from willfit._verify.verification import Verification


class WillfitFixture:
    """What a test gets as ``willfit``: predictions, held to what its marker says.

    All methods take model, optimizer, batch and step as `willfit.predict` does. What is left out is as marked: by the
    test's ``willfit`` marker, else by the command line, the environment or the ini file.
    """

    def __init__(self, item: pytest.Item, settings: Settings, run: Run) -> None:
        self._item = item
        self._settings = settings
        self._run = run
        self._names: set[str] = set()

    def __repr__(self) -> str:
        settings = self._settings
        gpu = "the GPU here" if settings.on is None else getattr(settings.on, "name", settings.on)
        limit = "" if settings.limit is None else f", limit {format_size(settings.limit)}"
        return f"<willfit on {gpu}{limit}>"

    def predict(
        self,
        model: Any,
        optimizer: Any,
        batch: Any,
        step: Step | None = None,
        *,
        loss: Loss | None = None,
        on: str | int | Device | None = AS_MARKED,
        steps: int = AS_MARKED,
    ) -> Footprint:
        """What `willfit.predict` returns for the test's GPU and steps; never fails the test for what it says."""
        return self._predict(self._settings.but({"on": on, "steps": steps}), model, optimizer, batch, step, loss)

    def check(
        self,
        model: Any,
        optimizer: Any,
        batch: Any,
        step: Step | None = None,
        *,
        loss: Loss | None = None,
        name: str | None = None,
        on: str | int | Device | None = AS_MARKED,
        limit: str | int | None = AS_MARKED,
        peak: str = AS_MARKED,
        tolerance: str | Sequence[str] | None = AS_MARKED,
        steps: int = AS_MARKED,
        baseline: bool = AS_MARKED,
    ) -> Footprint:
        """Predict, and fail the test if the job does not fit the GPU, is over the limit, or is not as its baseline.

        A peak of exactly the limit is within it. A tight fit passes with a warning.

        Args:
            model: see `willfit.predict`, as for ``optimizer``, ``batch``, ``step``, ``loss``, ``on`` and ``steps``.
            optimizer: see there.
            batch: see there.
            step: see there.
            loss: see there.
            name: what this check is called in baselines and reports, where a test makes several.
            on: the GPU.
            limit: what the peak may be: "14 GiB", or bytes.
            peak: which peak: "required", "reserved" or "allocated".
            tolerance: by how much it may differ from its baseline: "total:2%", "activations:64MiB".
            steps: optimizer steps.
            baseline: whether to compare with the baseline in the file beside the test's.

        Raises:
            UsageError: an argument that cannot be, or nothing to check against: no GPU, no limit, no baseline.
            JobError: the job could not be predicted.
        """
        __tracebackhide__ = True
        settings = self._settings.but(
            {
                **{"on": on, "limit": limit, "peak": peak, "tolerance": tolerance},
                **{"steps": steps, "baseline": baseline},
            }
        )
        name = self._named(name)
        footprint = self._predict(settings, model, optimizer, batch, step, loss)
        if settings.limit is None and footprint.device is None and not settings.baseline:
            from willfit._errors import UsageError

            raise UsageError('nothing to check against: mark the test with willfit(on="T4") or willfit(limit="14 GiB")')
        problem = over_limits(settings, footprint)
        self._run.ledger.checked(self._item.path, (id_within_file(self._item), name))
        if problem is None and settings.baseline:
            problem = self._against_baseline(settings, footprint, model, optimizer, name)
        result = Result(test=id_of(self._item), name=name, settings=settings, footprint=footprint, problem=problem)
        self._run.add(result)
        self._item.stash.setdefault(RESULTS, []).append(result)
        if self._run.settings.junit:
            self._item.user_properties += properties(result)
        if problem is not None:
            raise CheckFailed(result)
        if footprint.verdict == "tight":
            from willfit.guard import WillfitWarning

            assert footprint.device is not None
            warnings.warn(f"{footprint.job.model} is a tight fit on {footprint.device.name}", WillfitWarning, 2)
        return footprint

    def verify(self, model: Any, optimizer: Any, batch: Any, step: Step | None = None, **options: Any) -> Verification:
        """What `willfit.verify` returns for the test's GPU and steps; fails the test where it disagrees.

        Args:
            model: see `willfit.verify`, as for the others.
            optimizer: see there.
            batch: see there.
            step: see there.
            options: its own: ``loss``, ``on``, ``steps``, ``tolerance`` and so on.
        """
        import willfit

        return willfit.verify(model, optimizer, batch, step, **self._as_marked(options)).check()

    def advise(self, model: Any, optimizer: Any, batch: Any, step: Step | None = None, **options: Any) -> Advice:
        """What `willfit.advise` returns for the test's GPU and steps; never fails the test for what it says.

        Args:
            model: see `willfit.advise`, as for the others.
            optimizer: see there.
            batch: see there.
            step: see there.
            options: its own: ``loss``, ``on``, ``steps``, ``combine`` and so on.
        """
        import willfit

        return willfit.advise(model, optimizer, batch, step, **self._as_marked(options))

    def _as_marked(self, options: dict[str, Any]) -> dict[str, Any]:
        settings = self._settings.but({name: options[name] for name in ("on", "steps") if name in options})
        return {**options, "on": self._device(settings), "steps": settings.steps}

    def _named(self, name: str | None) -> str:
        """The name of the next check: the one that is given, else one that counts."""
        if name is None:
            name = "check"
            while name in self._names:
                number = int(name.partition("-")[2] or 1) + 1
                name = f"check-{number}"
        elif not name or name in self._names:
            from willfit._errors import UsageError

            raise UsageError(f"the name of a check must be its own within the test, and not empty: found {name!r}")
        self._names.add(name)
        return name

    def _device(self, settings: Settings) -> Any:
        return self._item.ihook.pytest_willfit_generate_device(item=self._item, on=settings.on)

    def _predict(self, settings: Settings, *job: Any) -> Footprint:
        from willfit._predict import predict

        *parts, loss = job
        return predict(*parts, loss=loss, on=self._device(settings), steps=settings.steps)

    def _against_baseline(
        self, settings: Settings, footprint: Footprint, model: Any, optimizer: Any, name: str
    ) -> Problem | None:
        item = self._item
        facts = item.ihook.pytest_willfit_generate_fingerprint(
            item=item, model=model, optimizer=optimizer, footprint=footprint
        )
        item.ihook.pytest_willfit_update_fingerprint(item=item, footprint=footprint, fingerprint=facts)
        where = f" on {footprint.device.name}" if footprint.device is not None else ""
        key = id_within_file(item), name
        now = baseline_of(footprint, facts)
        return self._run.ledger.compare(item.path, key, now, settings, f"{footprint.job.model}{where}")
