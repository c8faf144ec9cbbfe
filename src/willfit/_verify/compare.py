"""Phases side by side, and where two traces part. Free of torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from willfit._replay import PhasePeak
from willfit._trace.trace import Phase, Trace
from willfit._verify.verification import Difference, Figures, Measurement, PhaseComparison, Verification

_Moment = tuple[int, Phase]


def compare(
    verifier: str, measurement: Measurement, tolerance: float, passed_over: tuple[str, ...] = ()
) -> Verification:
    """Hold a measurement against the prediction of the same run."""
    peaks = measurement.predicted.phases
    predicted = _by_moment(_accumulated(peaks) if measurement.cumulative else peaks)
    measured = _by_moment(measurement.phases)
    nothing = PhasePeak(0, "placement", 0, 0, 0)
    phases = tuple(
        PhaseComparison(
            step,
            phase,
            _figures(predicted.get((step, phase), nothing), measurement.has_reserved),
            _figures(measured.get((step, phase), nothing), measurement.has_reserved),
        )
        for step, phase in _merged(predicted, measured)
        if measurement.comparable is None or (step, phase) in measurement.comparable
    )
    difference = None
    apart = [each for each in phases if abs(each.error) > tolerance] or [each for each in phases if each.error]
    if apart:
        difference = _in_phase(measurement, apart[0])
    return Verification(verifier, measurement, tolerance, phases, difference, passed_over)


def _by_moment(peaks: Iterable[PhasePeak]) -> dict[_Moment, PhasePeak]:
    """A step that accumulates gradients comes to a phase more than once: peaks of all, and the end of the last."""
    found: dict[_Moment, PhasePeak] = {}
    for peak in peaks:
        before = found.get((peak.step, peak.phase), peak)
        found[peak.step, peak.phase] = PhasePeak(
            peak.step,
            peak.phase,
            max(before.peak_allocated, peak.peak_allocated),
            max(before.peak_reserved, peak.peak_reserved),
            peak.allocated_at_end,
        )
    return found


def _accumulated(peaks: Iterable[PhasePeak]) -> Iterator[PhasePeak]:
    """With the peaks of all phases up to each, in the order in which the job came to them."""
    allocated = reserved = 0
    for peak in peaks:
        allocated, reserved = max(allocated, peak.peak_allocated), max(reserved, peak.peak_reserved)
        yield PhasePeak(peak.step, peak.phase, allocated, reserved, peak.allocated_at_end)


def _merged(first: Iterable[_Moment], second: Iterable[_Moment]) -> list[_Moment]:
    """The moments of both, in order of steps, and within a step in the order of the first."""
    merged = list(first)
    for moment in second:
        if moment not in merged:
            position = max((i + 1 for i, each in enumerate(merged) if each[0] <= moment[0]), default=0)
            merged.insert(position, moment)
    return merged


def _figures(peak: PhasePeak, has_reserved: bool) -> Figures:
    return Figures(peak.peak_allocated, peak.peak_reserved if has_reserved else None, peak.allocated_at_end)


# -- where they part -----------------------------------------------------------------------------------------


def _in_phase(measurement: Measurement, phase: PhaseComparison) -> Difference:
    """The first event of a phase that differs; the figure that differs most where traces do not tell."""
    moment = (phase.step, phase.phase)
    where = Difference(*moment, "", "", "", *(getattr(side, phase.worst) for side in (phase.predicted, phase.measured)))
    if measurement.trace is None:
        return where
    predicted = list(_events_within(measurement.predicted._trace, moment))
    measured = list(_events_within(measurement.trace, moment))
    for (size, index), (other_size, other_index) in zip(predicted, measured, strict=False):
        if size != other_size:
            ours, theirs = measurement.predicted._trace.allocations[index], measurement.trace.allocations[other_index]
            module, source = theirs.module or ours.module, theirs.source or ours.source
            return Difference(*moment, module, theirs.op or ours.op, source, size, other_size)
    if len(predicted) == len(measured):
        return where
    longer, trace = (
        (predicted, measurement.predicted._trace) if len(predicted) > len(measured) else (measured, measurement.trace)
    )
    size, index = longer[min(len(predicted), len(measured))]
    extra = trace.allocations[index]
    sizes = (size, 0) if longer is predicted else (0, size)
    return Difference(*moment, extra.module, extra.op, extra.source, *sizes)


def _events_within(trace: Trace, moment: _Moment) -> Iterator[tuple[int, int]]:
    """Sizes given (positive) and given back (negative) in a phase, with the number of the allocation."""
    ends = [mark.event for mark in trace.marks[1:]] + [len(trace.events)]
    for mark, end in zip(trace.marks, ends, strict=True):
        if (mark.step, mark.phase) == moment:
            for event in trace.events[mark.event : end]:
                if event:
                    index = abs(event) - 1
                    yield trace.allocations[index].size * (1 if event > 0 else -1), index
