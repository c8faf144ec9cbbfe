"""How close predictions came, as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from willfit._render.paper import Paper
from willfit._render.verification import signed

if TYPE_CHECKING:
    from willfit._verify.records import Accuracy


def accuracy_text(rows: Sequence[Accuracy], *, color: bool = False, width: int | None = None) -> str:
    """A table, without a newline at the end.

    Args:
        rows: what `willfit._verify.records.accuracy` returned.
        color: True puts in ANSI codes, for a terminal; else the text is plain.
        width: columns, at least 64; 80 by default.
    """
    paper = Paper(color=color, width=width)
    if not rows:
        paper.paragraph("No verification is recorded: `willfit verify --record` does so.")
        return paper.text()
    paper.paragraph(("How close predictions came to what was measured", "bold"))
    head = ("measured by", "figure", "runs", "exact", "median", "worst", "below")
    cells = [
        (
            row.verifier,
            row.figure,
            str(row.count),
            str(row.exact),
            f"{row.median:.2%}".replace("%", " %"),
            signed(row.worst),
            str(row.below),
        )
        for row in rows
    ]
    paper.columns(cells, head, right=5)
    worst = [row for row in rows if row.worst_job]
    if worst:
        paper.title("The worst")
        for row in worst:
            paper.item(f"{row.figure}, {row.verifier}: {signed(row.worst)}, {row.worst_job}")
    return paper.text()
