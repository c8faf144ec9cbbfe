"""Traces and footprints made by hand, of which every figure can be reckoned on paper."""

from __future__ import annotations

from array import array

from willfit import Device, Footprint, Measurement
from willfit._allocator_settings import AllocatorSettings
from willfit._footprint import footprint_of
from willfit._replay import PhasePeak, phase_peaks, replay
from willfit._trace.trace import Allocation, JobSummary, Mark, Phase, Trace

MIB = 2**20
JOB = JobSummary("Net", "SGD", 1000, 1000, (("float32", 1000),), "8 x 10")
ROOMY = Device(name="roomy", total=2**30, context=0, compute_capability=(8, 0), multiprocessors=108)

Event = tuple[int, int, Phase, int]
"""Number of the allocation, step, phase, and +1 for taken or -1 for given back."""


def trace_of(
    sizes: dict[str, int], *events: tuple[str, int, Phase], module: str = "layer", target: str = "cuda"
) -> Trace:
    """``("a", 1, "forward")`` takes the allocation named a; a second time it gives it back."""
    numbers: dict[str, int] = {}
    allocations: list[Allocation] = []
    marks: list[Mark] = []
    written = array("q")
    for name, step, phase in events:
        if not marks or (marks[-1].step, marks[-1].phase) != (step, phase):
            marks.append(Mark(len(written), step, phase))
        if name in numbers:
            written.append(-numbers.pop(name))
            continue
        allocations.append(
            Allocation(sizes[name], "temporaries", step, phase, module, f"aten.{name}", f"train.py:{len(allocations)}")
        )
        numbers[name] = len(allocations)
        written.append(len(allocations))
    return Trace(tuple(allocations), written, tuple(marks), JOB, steps=1, target=target)  # type: ignore[arg-type]


def footprint(trace: Trace, device: Device | None = ROOMY) -> Footprint:
    return footprint_of(trace, device, AllocatorSettings())


def measurement(predicted: Trace, measured: Trace, device: Device | None = ROOMY, **more: object) -> Measurement:
    """As if the allocator had done with ``measured`` what its replica does."""
    return Measurement(
        footprint(predicted, device),
        peaks_of(measured),
        "a test",
        measured,
        **more,  # type: ignore[arg-type]
    )


def peaks_of(trace: Trace) -> tuple[PhasePeak, ...]:
    return phase_peaks(trace, replay(trace))
