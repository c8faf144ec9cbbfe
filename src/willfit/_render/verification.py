"""A verification as text: predicted beside measured, phase by phase, and where they part."""

from __future__ import annotations

from typing import TYPE_CHECKING

from willfit._render import sentences
from willfit._render.paper import GLUE, Paper
from willfit._units import format_size

if TYPE_CHECKING:
    from willfit._replay import OutOfMemoryPlace
    from willfit._verify.verification import Difference, PhaseComparison, Verification


def verification_text(verification: Verification, *, color: bool = False, width: int | None = None) -> str:
    """The table of a verification, without a newline at the end.

    Args:
        verification: what `willfit.verify` returned.
        color: True puts in ANSI codes, for a terminal; else the text is plain.
        width: columns, at least 64; 80 by default.
    """
    paper = Paper(color=color, width=width)
    _header(paper, verification)
    _table(paper, verification)
    _difference(paper, verification)
    _outcome(paper, verification)
    _outside(paper, verification)
    notes = [*(f"not taken: {each}" for each in verification.passed_over), *verification.measurement.notes]
    if notes:
        paper.title("To be known")
        for sentence in notes:
            paper.item(sentence)
    return paper.text()


def _header(paper: Paper, verification: Verification) -> None:
    predicted, measurement = verification.predicted, verification.measurement
    word, style = ("AGREES", "bold green") if verification.agrees else ("DISAGREES", "bold red")
    allowed = _percent(verification.tolerance)
    figures = f"to the byte, in all {len(verification.phases)} phases"
    if verification.error:
        within = "at most" if abs(verification.error) <= verification.tolerance else "up to"
        figures = f"{within} {_percent(abs(verification.error))} apart in any phase, with {allowed} allowed"
    training = sentences.training(predicted).rstrip(",")
    paper.paragraph((f"{word}: ", style), f"{training}, as predicted and as measured by {measurement.how}: {figures}.")
    paper.line()
    paper.paragraph(sentences.job_line(predicted))


def _table(paper: Paper, verification: Verification) -> None:
    """A line for each phase; steps that are alike share theirs."""
    paper.title("As measured, and by how much the prediction differs")
    width = max((len(signed(error)) for each in verification.phases for error in each.errors().values()), default=0)
    steps: dict[int, list[tuple[str, ...]]] = {}
    for each in verification.phases:
        steps.setdefault(each.step, []).append(_row(each, width))
    runs: list[tuple[int, int, list[tuple[str, ...]]]] = []
    for step, rows in steps.items():
        if runs and step > 1 and runs[-1][2] == rows:
            runs[-1] = (runs[-1][0], step, rows)
        else:
            runs.append((step, step, rows))
    head = ("", "peak allocated", *(("peak reserved",) if verification.measurement.has_reserved else ()), "at end")
    table = []
    for first, last, rows in runs:
        if first:
            name = f"step {first}" if first == last else f"steps {first}-{last}"
            table.append((name, *("" for _ in head[1:])))
        table += rows
    paper.columns(table, head, right=len(head) - 1)


def _row(each: PhaseComparison, width: int) -> tuple[str, ...]:
    cells = [
        f"{format_size(getattr(each.measured, figure))} {signed(error):>{width}}"
        for figure, error in each.errors().items()
    ]
    name = each.phase.replace(" ", GLUE)
    return (name if each.step == 0 else f"  {name}", *cells)


def _difference(paper: Paper, verification: Verification) -> None:
    difference = verification.first_difference
    if difference is None:
        return
    beyond = abs(verification.error) > verification.tolerance
    paper.title("Where they part" if beyond else "Where they part first, within what is allowed")
    paper.paragraph(f"{_moment(difference)}: {_what(difference, verification)}.", indent=2)


def _what(difference: Difference, verification: Verification) -> str:
    if difference.op or difference.module:
        return f"{_change(difference.predicted, 'predicted')} and {_change(difference.measured, 'measured')}"
    phase = next(each for each in verification.phases if (each.step, each.phase) == (difference.step, difference.phase))
    figure = "allocated at its end" if phase.worst == "allocated_at_end" else phase.worst.replace("_", " ")
    known = "which allocation it is was not recorded"
    if verification.measurement.trace is not None:
        known = "the same allocations, in another order or of other block sizes"
    return f"{difference.predicted:,} B {figure} predicted and {difference.measured:,} B measured; {known}"


def _change(size: int, verb: str) -> str:
    if size == 0:
        return f"nothing {verb}"
    return f"{format_size(abs(size))} ({abs(size):,} B) {verb} to be {'taken' if size > 0 else 'given back'}"


def _moment(place: Difference | OutOfMemoryPlace) -> str:
    parts = [f"in {sentences.moment(place.step, place.phase)}"]
    parts += [f"module {place.module}"] if place.module else []
    parts += [f"operator {place.op}"] if place.op not in ("", place.phase) else []
    parts += [f"at {place.source}"] if place.source else []
    return ", ".join(parts)


def _outcome(paper: Paper, verification: Verification) -> None:
    predicted, measured = verification.predicted.out_of_memory, verification.measurement.out_of_memory
    device = verification.device
    if device is None or (predicted is None and measured is None):
        return
    paper.title(f"At the {format_size(device.capacity)} that the allocator has on this card")
    for verb, place in (("predicted", predicted), ("measured", measured)):
        where = "memory does not run out" if place is None else f"memory runs out {_moment(place)}"
        paper.paragraph(f"{verb}: {where}.", indent=2)


def _outside(paper: Paper, verification: Verification) -> None:
    measured = verification.measurement.measured_context
    if measured is not None:
        paper.title("Outside of PyTorch's allocator")
        expected = format_size(verification.predicted.context)
        paper.paragraph(
            f"{format_size(measured)} measured for CUDA context, kernels and libraries; {expected} predicted.", indent=2
        )


def signed(error: float) -> str:
    """A relative error for people: "+0.12 %", "exact", or "< 0.01 %" on either side."""
    if error == 0:
        return "exact"
    if abs(error) < 0.0001:
        return "< 0.01 %"
    digits = 2 if abs(error) < 0.1 else 1 if abs(error) < 1 else 0
    return f"{error:+.{digits}%}".replace("%", " %")


def _percent(share: float) -> str:
    return f"{share * 100:.3g} %"
