"""The GPUs that willfit knows, as text."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from willfit._render.paper import Paper
from willfit._units import format_size

if TYPE_CHECKING:
    from willfit._devices import Device


def devices_text(devices: Iterable[Device], *, color: bool = False, width: int | None = None) -> str:
    """A table of GPUs: name, memory as the driver reports it, what of it tensors may hold, compute capability.

    Args:
        devices: in the order to show them.
        color: True puts in ANSI codes, for a terminal; else the text is plain.
        width: columns, at least 64; 80 by default.
    """
    paper = Paper(color=color, width=width)
    rows = [
        (
            device.name + (" *" if any(note.startswith("total") for note in device.assumptions) else ""),
            format_size(device.total),
            f"{device.total / 10**9:.2f} GB",
            format_size(device.capacity),
            ".".join(map(str, device.compute_capability)),
        )
        for device in devices
    ]
    paper.columns(rows, ("GPU", "memory", "in GB", "for tensors", "compute capability"), right=4)
    paper.line()
    paper.paragraph("Memory is what the driver reports; tensors may have what the CUDA context leaves of it.", indent=2)
    if any(row[0].endswith(" *") for row in rows):
        paper.paragraph("* No report of this card was found: its memory is assumed, on the low side.", indent=2)
    return paper.text()
