"""The peaks that a limit may be about."""

from __future__ import annotations

from typing import Final, Literal

Peak = Literal["required", "reserved", "allocated"]
PEAKS: Final[dict[str, str]] = {
    "required": "required",
    "reserved": "peak_reserved",
    "allocated": "peak_allocated",
}
"""What a limit may be about, and the attribute of a footprint that has it."""
