"""The largest batch as text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from willfit._render import sentences
from willfit._render.paper import Paper
from willfit._units import format_size

if TYPE_CHECKING:
    from willfit._largest import Largest


def largest_text(largest: Largest, *, color: bool = False, width: int | None = None) -> str:
    """What fits, and by how much the next size up does not."""
    paper = Paper(color=color, width=width)
    either = largest.footprint or largest.beyond
    name = either.device.name if either is not None and either.device is not None else "this GPU"
    unit = "samples in a batch" if largest.what == "batch size" else "tokens in a sequence"
    if largest.footprint is None:
        smallest = "one sample" if largest.what == "batch size" else "the shortest sequence"
        paper.paragraph(("0", "bold red"), f": not even {smallest} fits on {name}.")
        return paper.text()
    has = sentences.room(largest.footprint)
    takes = format_size(has - sentences.left_over(largest.footprint))
    paper.paragraph(
        (f"{largest.size} {unit}", "bold green"),
        f" fit on {name} ({largest.footprint.verdict}): it takes {takes} of {format_size(has)}.",
    )
    if largest.beyond is None:
        paper.paragraph("Larger ones were not looked for.")
    else:
        paper.paragraph(f"{largest.next_size} do not: they need {format_size(largest.beyond.required)}.")
    return paper.text()
