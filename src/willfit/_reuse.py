"""Predictions kept, so that the same job is followed once in a process and not each time that it is asked for."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from willfit._errors import UsageError
from willfit._footprint import Footprint
from willfit._libraries import Watch
from willfit._same_job import Description, describe

# So many allocations are kept in all, at about 430 bytes each (measured on Llama-3-8B, which makes 17,000): 86 MB.
_MOST_ALLOCATIONS: Final = 200_000
_ENVIRONMENT: Final = "WILLFIT_REUSE"


def predicted_before(predict: Callable[[], Footprint], *job: Any) -> Footprint:
    """The footprint of a job: of the same job before if there was one, else of ``predict()``.

    ``WILLFIT_REUSE=off`` in the environment predicts anew each time.

    Args:
        predict: makes the footprint.
        job: all that the footprint depends on: model, optimizer, batch, and the rest.
    """
    if not _is_on():
        return predict()
    description = describe(*job)
    if description is None:
        return predict()
    footprint = _kept.get(description)
    if footprint is None:
        footprint = predict()
        _kept.put(description, footprint)
    return footprint


def _is_on() -> bool:
    setting = os.environ.get(_ENVIRONMENT) or "on"
    if setting not in ("on", "off"):
        raise UsageError(f"{_ENVIRONMENT}={setting} in the environment: it must be on or off")
    return setting == "on"


class _Kept:
    """The footprints of the last jobs, as long as nothing in the libraries that they use is replaced."""

    def __init__(self) -> None:
        self._footprints: OrderedDict[tuple[Any, ...], tuple[Footprint, Description]] = OrderedDict()
        self._watch = Watch()

    def get(self, description: Description) -> Footprint | None:
        if description.key not in self._footprints:
            return None
        if not self._watch.is_unchanged():
            self._footprints.clear()
            return None
        footprint, made_of = self._footprints[description.key]
        if footprint._trace.reads_batch and made_of.batch != description.batch:
            return None
        self._footprints.move_to_end(description.key)
        return _copied(footprint)

    def put(self, description: Description, footprint: Footprint) -> None:
        if not self._watch.is_unchanged():  # since the last footprint, or by the job itself, which imports and caches
            self._footprints.clear()
        if not footprint._trace.is_repeatable:
            return
        self._watch.add(description.classes)
        self._footprints[description.key] = _copied(footprint), description
        while sum(len(kept._trace.allocations) for kept, _ in self._footprints.values()) > _MOST_ALLOCATIONS:
            self._footprints.popitem(last=False)


def _copied(footprint: Footprint) -> Footprint:
    """A footprint of its own: the bill is a dict, which its owner may change."""
    return replace(footprint, bill=dict(footprint.bill))


_kept = _Kept()
