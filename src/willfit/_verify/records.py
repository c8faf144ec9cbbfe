"""Measurements kept: a line of JSON for each verification, and how close predictions came in all of them."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from willfit._errors import UsageError
from willfit._verify.verification import Verification, relative

DEFAULT = Path(".willfit") / "measured.jsonl"

_KEPT = ("schema", "verifier", "agrees", "tolerance", "device", "driver", "versions", "job", "steps", "phases")


def record(verification: Verification, path: Path = DEFAULT) -> None:
    """Append a verification to a file of records, which is made if it is not there.

    Raises `UsageError` if it cannot be written.
    """
    import willfit

    found = verification.to_dict()
    line = {"willfit": willfit.__version__, **{key: found[key] for key in _KEPT}}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
    except OSError as error:
        raise UsageError(f"{path} cannot be written to: {error.strerror or error}") from None


def read(path: Path) -> list[dict[str, Any]]:
    """The records in a file.

    Raises `UsageError` if there is no such file, or a line of it is no record.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read: {error.strerror or error}; `willfit verify --record` makes it"
        ) from None
    records = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
            accuracy([found])
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{path}, line {number} is no record of a verification: {error!r}") from None
        records.append(found)
    return records


@dataclass(frozen=True, slots=True)
class Peaks:
    """Of one record, the peaks over all phases that were measured, in bytes."""

    predicted: int
    measured: int
    predicted_reserved: int | None
    measured_reserved: int | None

    @staticmethod
    def of(record: dict[str, Any]) -> Peaks:
        """From a record's phases."""
        phases = record["phases"]
        if not phases:
            raise ValueError("it has no phases")

        def peak(side: str, key: str) -> int:
            return max(int(each[side][key]) for each in phases)

        has_reserved = all(each["measured"]["peak_reserved"] is not None for each in phases)
        return Peaks(
            peak("predicted", "peak_allocated"),
            peak("measured", "peak_allocated"),
            peak("predicted", "peak_reserved") if has_reserved else None,
            peak("measured", "peak_reserved") if has_reserved else None,
        )


@dataclass(frozen=True, slots=True)
class Accuracy:
    """How close predictions came, over records of one verifier."""

    verifier: str
    figure: str
    """"peak allocated" or "peak reserved"."""
    count: int
    exact: int
    """How many to the byte."""
    median: float
    """Of the relative errors, without their signs."""
    worst: float
    """The relative error furthest from 0, with its sign."""
    worst_job: str
    """Whose it is."""
    below: int
    """How many predictions were less than what was measured."""


def accuracy(records: Iterable[dict[str, Any]]) -> tuple[Accuracy, ...]:
    """A row for each verifier and figure; the most faithful verifiers are not told from others."""
    errors: dict[tuple[str, str], list[tuple[float, str]]] = {}
    for each in records:
        peaks = Peaks.of(each)
        name = f"{each['job']['model']} with {each['job']['optimizer'] or 'no optimizer'}"
        pairs = {"peak allocated": (peaks.predicted, peaks.measured)}
        if peaks.predicted_reserved is not None and peaks.measured_reserved is not None:
            pairs["peak reserved"] = peaks.predicted_reserved, peaks.measured_reserved
        for figure, pair in pairs.items():
            errors.setdefault((each["verifier"], figure), []).append((relative(*pair), name))
    return tuple(_accuracy(verifier, figure, found) for (verifier, figure), found in errors.items())


def _accuracy(verifier: str, figure: str, found: list[tuple[float, str]]) -> Accuracy:
    worst, job = max(found, key=lambda pair: abs(pair[0]))
    return Accuracy(
        verifier=verifier,
        figure=figure,
        count=len(found),
        exact=sum(error == 0 for error, _ in found),
        median=statistics.median(abs(error) for error, _ in found),
        worst=worst,
        worst_job=job if worst else "",
        below=sum(error < 0 for error, _ in found),
    )
