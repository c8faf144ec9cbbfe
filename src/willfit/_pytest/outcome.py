"""How a check ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import pytest

if TYPE_CHECKING:
    from willfit._footprint import Footprint
    from willfit._pytest.baseline import Baseline
    from willfit._pytest.settings import Settings

LETTER: Final = "W"
"""What a check that fails prints instead of F."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a check fails."""

    word: str
    """In the status line of -v: "DOES NOT FIT"."""
    sentence: str
    change: tuple[Baseline, Baseline] | None = None
    """What the check was held to and what it came to, where that is the problem."""
    remedy: str = ""
    """What to do if the change is right."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One check of one test."""

    test: str
    """The test's id."""
    name: str
    """What the check is called within its test."""
    settings: Settings
    footprint: Footprint
    problem: Problem | None = None

    def to_dict(self, *, with_footprint: bool) -> dict[str, Any]:
        """Plain values, as docs/pytest.md describes them for ``--willfit-json``; sizes are bytes."""
        footprint, problem = self.footprint, self.problem
        values = {
            "test": self.test,
            "name": self.name,
            "outcome": "passed" if problem is None else problem.word.lower(),
            "reason": None if problem is None else problem.sentence,
            "limit": self.settings.limit,
            "peak": self.settings.peak,
            "device": None if footprint.device is None else footprint.device.name,
            "verdict": footprint.verdict,
            "required": footprint.required,
            "peak_reserved": footprint.peak_reserved,
            "peak_allocated": footprint.peak_allocated,
        }
        return {**values, "footprint": footprint.to_dict()} if with_footprint else values


_Failed: Any = pytest.fail.Exception


class CheckFailed(_Failed):  # type: ignore[misc]
    """Fails a test; pytest shows it as it shows the failures of ``pytest.fail``."""

    def __init__(self, result: Result) -> None:
        assert result.problem is not None
        super().__init__(result.problem.sentence)
        self.result = result


CheckFailed.__module__, CheckFailed.__qualname__, CheckFailed.__name__ = "builtins", "Failed", "Failed"
