"""The pytest plugin: ``@pytest.mark.willfit(on="T4", limit="14 GiB")`` and the fixture ``willfit``.

At start-up it imports nothing but pytest and the standard library.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from willfit._footprint import Footprint
    from willfit._job import Loss
    from willfit._run import Step

_PEAKS = {"required": "required", "reserved": "peak_reserved", "allocated": "peak_allocated"}


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known, for --strict-markers and --markers."""
    config.addinivalue_line(
        "markers",
        'willfit(on=None, limit=None, peak="required", steps=3): what willfit.check(model, optimizer, batch) holds the '
        'job to: it fits the GPU `on`, and its peak ("required", "reserved" or "allocated") is within `limit`.',
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuse wrong markers before any test runs."""
    for item in items:
        _settings_of(item)


@pytest.fixture(name="willfit")
def _willfit(request: pytest.FixtureRequest) -> Check:
    """Predicts training steps, and fails the test if they need more than its ``willfit`` marker allows."""
    return Check(request.node, _settings_of(request.node))


@dataclass(frozen=True, slots=True)
class _Settings:
    """What a test's markers say; the nearest marker goes first, argument by argument."""

    on: Any = None
    limit: Any = None
    peak: str = "required"
    steps: int = 3

    def but(self, changes: dict[str, Any]) -> _Settings:
        """With these changes. Raises `UsageError` for a name or a value that cannot be."""
        names = [field.name for field in fields(self)]
        if unknown := [name for name in changes if name not in names]:
            from willfit._errors import UsageError

            raise UsageError(f"unknown argument {unknown[0]!r}: there are {', '.join(names)}")
        changed = replace(self, **changes)
        changed._validate()
        return changed

    def _validate(self) -> None:
        from willfit._devices import Device, resolve_device
        from willfit._errors import UsageError
        from willfit._units import parse_size

        if self.limit is not None:
            parse_size(self.limit, "limit")
        if self.peak not in _PEAKS:
            raise UsageError(f"peak must be one of {', '.join(_PEAKS)}: found {self.peak!r}")
        if not isinstance(self.steps, int) or isinstance(self.steps, bool) or self.steps < 1:
            raise UsageError(f"steps must be a number of optimizer steps, 1 or more: found {self.steps!r}")
        if isinstance(self.on, Device) or not (self.on is None or str(self.on).startswith("cuda")):
            resolve_device(self.on)  # a GPU of this process is looked for when the test runs


def _settings_of(item: pytest.Item) -> _Settings:
    settings = _Settings()
    for marker in reversed(list(item.iter_markers("willfit"))):
        from willfit._errors import UsageError

        try:
            if marker.args:
                raise UsageError(f'arguments go by keyword, as in willfit(on="T4"): found {marker.args[0]!r}')
            settings = settings.but(dict(marker.kwargs))
        except UsageError as error:
            raise pytest.UsageError(f"{item.nodeid}: marker willfit: {error}") from None
    return settings


class Check:
    """The fixture ``willfit``."""

    def __init__(self, item: pytest.Item, settings: _Settings) -> None:
        self._item = item
        self._settings = settings

    def predict(
        self,
        model: Any,
        optimizer: Any,
        batch: Any,
        step: Step | None = None,
        *,
        loss: Loss | None = None,
        **overrides: Any,
    ) -> Footprint:
        """What `willfit.predict` returns for the marker's GPU and steps, unless ``overrides`` (``on=``, ...) differ."""
        return self._predict(self._settings.but(overrides), model, optimizer, batch, step, loss)

    def check(
        self,
        model: Any,
        optimizer: Any,
        batch: Any,
        step: Step | None = None,
        *,
        loss: Loss | None = None,
        **overrides: Any,
    ) -> Footprint:
        """Predict, and fail the test if the job does not fit the GPU or its peak is over the limit; exactly it passes.

        The bill is shown with the test's output. A tight fit passes with a warning.

        Raises:
            UsageError: an override that cannot be, or neither a GPU nor a limit to check against.
            JobError: the job could not be predicted.
        """
        __tracebackhide__ = True
        settings = self._settings.but(overrides)
        footprint = self._predict(settings, model, optimizer, batch, step, loss)
        self._item.add_report_section("call", "willfit", str(footprint))
        if settings.limit is None and footprint.device is None:
            from willfit._errors import UsageError

            raise UsageError('nothing to check against: mark the test with willfit(on="T4") or willfit(limit="14 GiB")')
        if reasons := _reasons(settings, footprint):
            pytest.fail(f"{footprint.job.model} {' and '.join(reasons)}")
        if footprint.verdict == "tight":
            from willfit.guard import WillfitWarning

            assert footprint.device is not None
            warnings.warn(f"{footprint.job.model} is a tight fit on {footprint.device.name}", WillfitWarning, 2)
        return footprint

    def _predict(self, settings: _Settings, *job: Any) -> Footprint:
        from willfit._predict import predict

        *parts, loss = job
        return predict(*parts, loss=loss, on=settings.on, steps=settings.steps)


def _reasons(settings: _Settings, footprint: Footprint) -> list[str]:
    from willfit._units import format_size, parse_size

    reasons = []
    held_to_device = (
        settings.on is not None or settings.limit is None
    )  # with a limit alone, the GPU here does not count
    if held_to_device and footprint.verdict == "does not fit" and footprint.device is not None:
        reasons.append(f"does not fit on {footprint.device.name}")
    if settings.limit is not None:
        peak, limit = getattr(footprint, _PEAKS[settings.peak]), parse_size(settings.limit, "limit")
        if peak > limit:
            over = f"{format_size(peak - limit)} over the limit of {format_size(limit)}"
            reasons.append(f"needs {format_size(peak)} ({settings.peak}), {over}")
    return reasons
