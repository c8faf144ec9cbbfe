"""Whether a prediction is within what its test allows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from willfit._pytest.outcome import Problem
from willfit._pytest.settings import PEAKS
from willfit._units import format_size

if TYPE_CHECKING:
    from willfit._footprint import Footprint
    from willfit._pytest.settings import Settings


def over_limits(settings: Settings, footprint: Footprint) -> Problem | None:
    """What is wrong if the job does not fit the GPU or its peak is over the limit; exactly the limit is within it.

    With a limit alone, the GPU that happens to be here does not count.
    """
    reasons, word = [], ""
    limit, device = settings.limit, footprint.device
    if footprint.verdict == "does not fit" and device is not None and (settings.on is not None or limit is None):
        reasons.append(f"does not fit on {device.name}")
        word = "DOES NOT FIT"
    peak = getattr(footprint, PEAKS[settings.peak])
    if limit is not None and peak > limit:
        over = f"{format_size(peak - limit)} over the limit of {format_size(limit)}"
        reasons.append(f"needs {format_size(peak)} ({settings.peak}), {over}")
        word = word or "OVER THE LIMIT"
    return Problem(word, f"{footprint.job.model} {' and '.join(reasons)}") if reasons else None
