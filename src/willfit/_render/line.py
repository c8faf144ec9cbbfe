"""A footprint in one line, for logs in which every test has but one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from willfit._render.paper import WIDTH
from willfit._units import format_size

if TYPE_CHECKING:
    from willfit._footprint import Footprint


def line_text(footprint: Footprint) -> str:
    """What is needed, and the largest roles of the bill, as many as the line has room for."""
    bill = sorted(footprint.bill.items(), key=lambda item: -item[1])
    roles = [f"{role} {format_size(size)}" for role, size in bill if size]
    needs, rest = f"needs {format_size(footprint.required)}: ", ", ..."
    line = needs + ", ".join(roles)
    while len(line) > WIDTH:
        line = needs + ", ".join(roles := roles[:-1]) + rest
    return line
