"""The checks of a project's targets as text: a line for each, and what is wrong in sentences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from willfit._render.paper import Paper
from willfit._units import format_size

if TYPE_CHECKING:
    from willfit._checks import Check

_STYLES: Final = {"fits": "green", "tight": "yellow"}


def checks_text(checks: Sequence[Check], *, color: bool = False, width: int | None = None) -> str:
    """Each check in a line; then what failed, why, and of those that do not fit where memory runs out."""
    paper = Paper(color=color, width=width)
    failed = [check for check in checks if check.outcome not in _STYLES]
    count = f"{len(checks)} check{'' if len(checks) == 1 else 's'}"
    word, style = (f"{len(failed)} of {count} failed", "red") if failed else (f"{count} passed", "green")
    paper.paragraph((word, f"bold {style}"))
    paper.line()
    rows = [
        (check.target.name, check.target.method, check.device, check.outcome, _size(check.peak), limit_of(check))
        for check in checks
    ]
    paper.columns(rows, ("target", "method", "GPU", "", "needs", "limit"), right=2)
    for check in checks:
        if check.outcome != "fits":
            paper.line()
            paper.paragraph((check.sentence, _STYLES.get(check.outcome, "red")))
            if where := place_of(check):
                paper.paragraph(where, indent=2)
    return paper.text()


def limit_of(check: Check) -> str:
    """The limit as people read it; "" without one."""
    return _size(check.target.limit)


def place_of(check: Check) -> str:
    """Where memory runs out, in a sentence; "" where it does not."""
    footprint = check.footprint
    if footprint is None or footprint.out_of_memory is None:
        return ""
    from willfit._render.sentences import place_sentences

    return f"Memory runs out {place_sentences(footprint)[0]}."


def _size(size: int | None) -> str:
    return "" if size is None else format_size(size)
