"""A footprint in one line, for logs in which every test has but one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from willfit._render import sentences
from willfit._units import format_size

if TYPE_CHECKING:
    from willfit._footprint import Footprint


def line_text(footprint: Footprint) -> str:
    """What is needed of what is there, and the bill without its zeros, largest first."""
    device = footprint.device
    needs = f"needs {format_size(footprint.required)}"
    if device is not None:
        needs = f"{device.name}: {footprint.verdict}: {needs} of {format_size(sentences.room(footprint))}"
    bill = sorted(footprint.bill.items(), key=lambda item: -item[1])
    return f"{needs}: {', '.join(f'{role} {format_size(size)}' for role, size in bill if size)}"
