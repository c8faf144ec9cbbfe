"""One job on many GPUs, as text: which of them it fits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from willfit._render import sentences
from willfit._render.paper import GLUE, Paper
from willfit._units import format_size

if TYPE_CHECKING:
    from willfit._footprint import Footprint

_ROWS = 12  # cards shown that it fits; the rest is named
_NEAREST = 3  # cards shown where it fits none


def fits_text(answers: Mapping[str, Footprint | str], *, color: bool = False, width: int | None = None) -> str:
    """A table of the smallest GPUs that a job fits, and the names of all others; without a newline at the end.

    Args:
        answers: by the GPU's name, from small to large: the job's footprint on it, or why it could not be predicted.
        color: True puts in ANSI codes, for a terminal; else the text is plain.
        width: columns, at least 64; 80 by default.
    """
    paper = Paper(color=color, width=width)
    known = {name: answer for name, answer in answers.items() if not isinstance(answer, str)}
    fitting = {name: answer for name, answer in known.items() if answer.verdict != "does not fit"}
    if known:
        _header(paper, next(iter(known.values())), fitting, len(answers))
    shown = dict(list(fitting.items())[:_ROWS] if fitting else list(known.items())[-_NEAREST:])
    if shown:
        paper.columns([_row(*item) for item in shown.items()], ("GPU", "verdict", "needs", "has", "left"), right=3)
    _names(paper, "It fits these as well", [name for name in fitting if name not in shown])
    _names(paper, "It does not fit", [name for name in known if name not in fitting and name not in shown])
    reasons: dict[str, list[str]] = {}
    for name, answer in answers.items():
        if isinstance(answer, str):
            reasons.setdefault(answer, []).append(name)
    for reason, names in reasons.items():
        _names(paper, "Could not be predicted", names)
        paper.paragraph(reason, indent=2)
    return paper.text()


def _header(paper: Paper, first: Footprint, fitting: Mapping[str, Footprint], count: int) -> None:
    tight = sum(answer.verdict == "tight" for answer in fitting.values())
    tightly = f" ({tight} of them tightly)" if tight else ""
    verdict = f"FITS {len(fitting)} of the {count} GPUs that willfit knows{tightly}"
    what = sentences.training(first).rstrip(",")
    paper.paragraph((verdict, "bold green" if fitting else "bold red"), f": {what}.")
    paper.line()
    paper.paragraph(sentences.job_line(first))
    paper.line()


def _row(name: str, answer: Footprint) -> tuple[str, ...]:
    needs, has, left = answer.required, sentences.room(answer), sentences.left_over(answer)
    return (name, str(answer.verdict), format_size(needs), format_size(has), format_size(left))


def _names(paper: Paper, title: str, names: list[str]) -> None:
    if names:
        paper.title(title)
        paper.paragraph(", ".join(name.replace(" ", GLUE) for name in names), indent=2)
