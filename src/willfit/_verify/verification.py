"""What was predicted beside what was measured. Plain data, free of torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from willfit._devices import Device
from willfit._errors import UsageError, VerificationFailed
from willfit._footprint import SCHEMA, Footprint, job_dict
from willfit._replay import OutOfMemoryPlace, PhasePeak
from willfit._trace.trace import Phase, Trace


@dataclass(frozen=True, slots=True)
class Figures:
    """What memory came to in one phase of one step, in bytes."""

    peak_allocated: int
    """The most that tensors held."""
    peak_reserved: int | None
    """The most that the caching allocator held; None where there is none, or where it is not the job's alone."""
    allocated_at_end: int
    """What tensors held when the phase was over."""


@dataclass(frozen=True, slots=True)
class PhaseComparison:
    """One phase of one step."""

    step: int
    """0 is placement; the steps count from 1."""
    phase: Phase
    predicted: Figures
    measured: Figures

    @property
    def error(self) -> float:
        """Of its figures' relative errors the largest, with its sign: 0.01 where 1 % too much was predicted."""
        return self.errors()[self.worst]

    @property
    def worst(self) -> str:
        """The figure with the largest error: ``"peak_allocated"``."""
        errors = self.errors()
        return max(errors, key=lambda figure: abs(errors[figure]))

    def errors(self) -> dict[str, float]:
        """The relative error of each figure, predicted against measured."""
        return {
            name: relative(getattr(self.predicted, name), measured)
            for name in Figures.__slots__
            if (measured := getattr(self.measured, name)) is not None
        }


@dataclass(frozen=True, slots=True)
class Difference:
    """Where prediction and measurement part: the first allocation, or the first one given back, that differs."""

    step: int
    phase: Phase
    module: str
    """The module that ran, or whose backward did; "" outside of all."""
    op: str
    """The operator, as measured where it was: "aten.mm"; "" outside of all."""
    source: str
    """The user's line that led to it; "" where none is known."""
    predicted: int
    """Bytes that were predicted there; negative where they are given back, 0 where nothing was predicted. Without a
    module and an operator, the phase's figure that differs most."""
    measured: int
    """Bytes that were measured there, in the same way."""


@dataclass(frozen=True)
class Measurement:
    """What a verifier measured, and the prediction of the same run."""

    predicted: Footprint
    """Of the very run that was measured: its device, steps and choices."""
    phases: tuple[PhasePeak, ...]
    """As the allocator counted, without limit; ``peak_reserved`` 0 where there is no caching allocator."""
    how: str
    """What ran where, as an end of a sentence: "PyTorch's own CUDA code on an emulated T4"."""
    trace: Trace | None = None
    """Every allocation, to say where a difference begins; None where that was not recorded."""
    out_of_memory: OutOfMemoryPlace | None = None
    """Where memory ran out at the device's capacity; None if it did not."""
    measured_context: int | None = None
    """What the process took outside of the allocator, in bytes; None where that was not measured."""
    driver: str = ""
    """The driver's version; "" without one."""
    versions: tuple[tuple[str, str], ...] = ()
    """Of the packages that ran: ``(("torch", "2.13.0"), ...)``."""
    notes: tuple[str, ...] = ()
    """What is to be known of the measurement, in sentences."""
    has_reserved: bool = True
    """False where there is no caching allocator, as on the CPU, or where tensors beside the job are in its segments."""
    cumulative: bool = False
    """True where the peaks of a phase are those of all phases up to it, as a running program shows them."""
    comparable: frozenset[tuple[int, Phase]] | None = None
    """Steps and phases that were measured; None: all."""
    seconds: dict[str, float] = field(default_factory=dict)
    """What took how long."""


@dataclass(frozen=True)
class Verification:
    """A prediction held against a measurement, phase by phase. Plain data: sizes are bytes."""

    verifier: str
    """What measured: "cuda", "emulated", "cpu", or another that a plugin adds."""
    measurement: Measurement = field(repr=False)
    """All that was measured."""
    tolerance: float
    """How far they may be apart: 0.02 for 2 %."""
    phases: tuple[PhaseComparison, ...]
    """Each phase of each step, in order."""
    first_difference: Difference | None
    """Where they part by more than the tolerance, or at all where it is kept; None where they do not."""
    passed_over: tuple[str, ...] = ()
    """More faithful verifiers that could not be used, and why."""

    @property
    def predicted(self) -> Footprint:
        """The prediction that was verified."""
        return self.measurement.predicted

    @property
    def device(self) -> Device | None:
        """The card that it is about."""
        return self.predicted.device

    @property
    def error(self) -> float:
        """The largest relative error of any figure in any phase, with its sign."""
        return max((each.error for each in self.phases), key=abs, default=0.0)

    @property
    def peak_error(self) -> float:
        """The relative error of the allocated peak of all phases."""
        predicted = max((each.predicted.peak_allocated for each in self.phases), default=0)
        return relative(predicted, max((each.measured.peak_allocated for each in self.phases), default=0))

    @property
    def same_outcome(self) -> bool:
        """Whether memory runs out at the device's capacity in both or in neither."""
        predicted, measurement = self.predicted.out_of_memory, self.measurement
        if self.predicted.device is None:
            return True
        if measurement.out_of_memory is not None:
            return predicted is not None
        measured = measurement.comparable
        return predicted is None or (measured is not None and (predicted.step, predicted.phase) not in measured)

    @property
    def agrees(self) -> bool:
        """Whether every figure of every phase is within the tolerance, and the outcome is the one predicted."""
        return abs(self.error) <= self.tolerance and self.same_outcome

    def check(self) -> Verification:
        """This, where it agrees. Raises `VerificationFailed` where it does not."""
        if not self.agrees:
            raise VerificationFailed(str(self), self)
        return self

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, as docs/schema.md describes them; sizes are bytes."""
        measurement, predicted = self.measurement, self.predicted
        return {
            "schema": SCHEMA,
            "verifier": self.verifier,
            "agrees": self.agrees,
            "tolerance": self.tolerance,
            "error": self.error,
            "peak_error": self.peak_error,
            "device": predicted.to_dict()["device"],
            "driver": measurement.driver,
            "versions": dict(measurement.versions),
            "job": job_dict(predicted.job),
            "steps": predicted.steps,
            "verdict": predicted.verdict,
            "context": {"predicted": predicted.context, "measured": measurement.measured_context},
            "phases": [
                {
                    "step": each.step,
                    "phase": each.phase,
                    "predicted": _figures(each.predicted),
                    "measured": _figures(each.measured),
                    "error": each.error,
                }
                for each in self.phases
            ],
            "first_difference": None if self.first_difference is None else _slots(self.first_difference),
            "out_of_memory": {
                "predicted": None if predicted.out_of_memory is None else _slots(predicted.out_of_memory),
                "measured": None if measurement.out_of_memory is None else _slots(measurement.out_of_memory),
            },
            "passed_over": list(self.passed_over),
            "notes": list(measurement.notes),
            "assumptions": list(predicted.assumptions),
        }

    def __str__(self) -> str:
        from willfit._render.verification import verification_text

        return verification_text(self)


def _figures(figures: Figures) -> dict[str, int | None]:
    return _slots(figures)


def _slots(value: Any) -> dict[str, Any]:
    return {name: getattr(value, name) for name in type(value).__slots__}


def relative(predicted: int, measured: int) -> float:
    """The relative error of a prediction: 0.02 where it is 2 % too much.

    >>> relative(102, 100), relative(0, 0)
    (0.02, 0.0)
    """
    if predicted == measured:
        return 0.0
    return (predicted - measured) / measured if measured else float("inf")


def parse_tolerance(value: object) -> float:
    """A share from "2%", "0.5 %" or 0.02.

    Raises `UsageError` for anything else, and for what is not within 0 and 100 %.

    >>> parse_tolerance("2%"), parse_tolerance("0.5 %"), parse_tolerance(0.01), parse_tolerance(0)
    (0.02, 0.005, 0.01, 0.0)
    """
    number: float | None = None
    if isinstance(value, str) and value.strip().endswith("%"):
        try:
            number = float(value.strip()[:-1]) / 100
        except ValueError:
            number = None
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        number = float(value)
    if number is None or not 0 <= number <= 1:
        raise UsageError(f'tolerance must be a share such as "2%" or 0.02, at most 100 %: found {value!r}')
    return number
