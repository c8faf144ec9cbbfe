"""Whether a prediction is within what its test allows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from willfit._peaks import PEAKS
from willfit._pytest.outcome import Problem
from willfit._units import format_size

if TYPE_CHECKING:
    from willfit._footprint import Footprint
    from willfit._pytest.settings import Settings


def over_limits(settings: Settings, footprint: Footprint) -> Problem | None:
    """What is wrong if the job does not fit the GPU or its peak is over the limit; exactly the limit is within it.

    With a limit alone, the GPU that happens to be here does not count.
    """
    limit, device, model = settings.limit, footprint.device, footprint.job.model
    peak = getattr(footprint, PEAKS[settings.peak])
    over = ""
    if limit is not None and peak > limit:
        excess = f"{format_size(peak - limit)} over the limit of {format_size(limit)}"
        over = f"needs {format_size(peak)} ({settings.peak}), {excess}"
    if footprint.verdict == "does not fit" and device is not None and (settings.on is not None or limit is None):
        needs = f"needs {format_size(footprint.required)}, {format_size(footprint.missing)} more than it has"
        return Problem("DOES NOT FIT", f"{model} does not fit on {device.name} and {over or needs}")
    return Problem("OVER THE LIMIT", f"{model} {over}") if over else None
