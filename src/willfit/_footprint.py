"""The answer: peaks, the bill at the peak, the timeline and the verdict."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple

from willfit._allocator_settings import AllocatorSettings
from willfit._devices import Device
from willfit._replay import OutOfMemoryPlace, PhasePeak, Replay, live_at, phase_peaks, replay
from willfit._trace.trace import ROLES, Engine, JobSummary, Role, Trace, Transfers

Verdict = Literal["fits", "tight", "does not fit"]

SCHEMA = 1
"""Version of ``Footprint.to_dict()``; grows when a key changes its meaning or goes away."""

# A run that leaves less than this share of the card's capacity is tight.
MARGIN = 0.02
_PAGE = 2 * 2**20  # the driver hands out memory in pages of 2 MiB
_LARGEST = 20  # modules and source lines kept
_TIMELINE_POINTS = 1000


@dataclass(frozen=True)
class Footprint:
    """What a few training steps need on a GPU. Plain data: sizes are bytes, nothing refers to a tensor.

    ``peak_allocated`` and ``peak_reserved`` are what ``torch.cuda.max_memory_allocated()`` and
    ``max_memory_reserved()`` would return after placement and ``steps`` steps on a card without limit.
    """

    device: Device | None
    """The card that the verdict is about; None where none was named and none was found."""
    job: JobSummary
    """What kind of job it is."""
    steps: int
    """Optimizer steps that were traced."""
    peak_allocated: int
    """The most that tensors hold at one time."""
    peak_reserved: int
    """The most that the caching allocator takes from the driver at one time."""
    context: int
    """What the process takes outside of the allocator: CUDA context, loaded kernels."""
    bill: dict[Role, int]
    """What holds the memory when allocated first equals its peak: every role, zeros too; sums to peak_allocated."""
    phases: tuple[PhasePeak, ...]
    """Peaks within each phase of each step."""
    modules: tuple[tuple[str, int], ...]
    """The modules that hold most at the peak, largest first."""
    sources: tuple[tuple[str, int], ...]
    """The source lines that hold most at the peak, largest first."""
    timeline: tuple[tuple[int, int, int], ...]
    """(event number, allocated, reserved), thinned out to about a thousand points; the peaks are among them."""
    verdict: Verdict | None
    """None without a device."""
    out_of_memory: OutOfMemoryPlace | None
    """Where the replay at the card's capacity runs out; None where it gets through."""
    retries: int
    """How often, at the card's capacity, cached memory had to be given back before an allocation succeeded."""
    reserved_at_capacity: int | None
    """Peak of reserved memory at the card's capacity, which may be less than peak_reserved; None if it runs out."""
    convolution_workspace: int
    """Upper bound on what cuDNN may take for a convolution, beside the peaks and not in them."""
    assumptions: tuple[str, ...]
    """All that was assumed, decided for values that are not known, or not modelled."""
    _trace: Trace = field(repr=False, compare=False)
    _settings: AllocatorSettings = field(repr=False, compare=False)

    @property
    def engine(self) -> Engine:
        """What followed the job: "symbolic", or "emulated" where PyTorch's own CUDA code ran."""
        return self._trace.engine

    @property
    def transfers(self) -> Transfers | None:
        """What the last step moves between the host and the GPU; None where the engine does not know."""
        return self._trace.transfers[-1] if self._trace.transfers else None

    @property
    def required(self) -> int:
        """Bytes for a comfortable run: peak_reserved and the process's context."""
        return self.peak_reserved + self.context

    @property
    def capacity(self) -> int | None:
        """What the card's allocator may hold; None without a device."""
        return None if self.device is None else self.device.capacity

    @property
    def missing(self) -> int:
        """Bytes that the comfortable run lacks on this card; 0 where it has them, or without a device."""
        return 0 if self.capacity is None else max(0, self.peak_reserved - self.capacity)

    @cached_property
    def minimum(self) -> int:
        """Bytes of the smallest card, context included, on which the run gets through by freeing cached memory.

        Found by bisecting replays, so the first look takes a few of them.
        """
        low, high = self.peak_allocated // _PAGE, -(-self.peak_reserved // _PAGE)
        while low < high:
            middle = (low + high) // 2
            if replay(self._trace, middle * _PAGE, self._settings).out_of_memory is None:
                high = middle
            else:
                low = middle + 1
        return high * _PAGE + self.context

    @cached_property
    def bill_by_module(self) -> dict[Role, dict[str, int]]:
        """The bill in bytes with the modules that hold each role, by path; "" is outside of all modules.

        The sizes of a role sum to its entry in ``bill``. The first look takes a replay.
        """
        sizes: dict[Role, Counter[str]] = {role: Counter() for role in ROLES}
        free = replay(self._trace, None, self._settings)
        for index in live_at(self._trace, free.peak_event):
            allocation = self._trace.allocations[index]
            sizes[allocation.role][allocation.module] += free.blocks[index]
        return {role: dict(modules) for role, modules in sizes.items()}

    def on(self, device: Device) -> Footprint:
        """The same trace on another card, where that does not change what is computed."""
        bounded = _at_capacity(self._trace, self._settings, device, self.peak_reserved)
        return replace(
            self,
            device=device,
            context=device.context,
            bill=dict(self.bill),
            verdict=_verdict(bounded, device.capacity, self._trace),
            out_of_memory=bounded.out_of_memory,
            retries=bounded.retries,
            reserved_at_capacity=None if bounded.out_of_memory else bounded.peak_reserved,
            assumptions=(*device.assumptions, *_assumptions(self._trace, self._settings)),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, as docs/schema.md describes them; sizes are bytes."""
        return {
            "schema": SCHEMA,
            "device": None if self.device is None else _device_dict(self.device),
            "job": job_dict(self.job),
            "steps": self.steps,
            "engine": self.engine,
            "verdict": self.verdict,
            "peak_allocated": self.peak_allocated,
            "peak_reserved": self.peak_reserved,
            "context": self.context,
            "required": self.required,
            "capacity": self.capacity,
            "missing": self.missing,
            "retries": self.retries,
            "reserved_at_capacity": self.reserved_at_capacity,
            "convolution_workspace": self.convolution_workspace,
            "transfers": None if self.transfers is None else _values(self.transfers),
            "bill": dict(self.bill),
            "phases": [
                {
                    "step": peak.step,
                    "phase": peak.phase,
                    "peak_allocated": peak.peak_allocated,
                    "peak_reserved": peak.peak_reserved,
                    "allocated_at_end": peak.allocated_at_end,
                }
                for peak in self.phases
            ],
            "modules": [{"module": name, "bytes": size} for name, size in self.modules],
            "sources": [{"source": name, "bytes": size} for name, size in self.sources],
            "timeline": [list(point) for point in self.timeline],
            "out_of_memory": None if self.out_of_memory is None else _values(self.out_of_memory),
            "assumptions": list(self.assumptions),
        }

    def __str__(self) -> str:
        state = random.getstate()
        try:
            from willfit._render.text import bill_text

            return bill_text(self)
        finally:
            random.setstate(state)  # importing rich draws from it (rich/style.py)


def job_dict(job: JobSummary) -> dict[str, Any]:
    """The key ``job`` of docs/schema.md."""
    return {
        "model": job.model,
        "optimizer": job.optimizer,
        "parameters": job.parameters,
        "trainable": job.trainable,
        "dtypes": dict(job.dtypes),
        "batch": job.batch,
    }


def _device_dict(device: Device) -> dict[str, Any]:
    return {
        "name": device.name,
        "total": device.total,
        "context": device.context,
        "capacity": device.capacity,
        "compute_capability": list(device.compute_capability),
    }


def _values(value: OutOfMemoryPlace | Transfers) -> dict[str, Any]:
    return {name: getattr(value, name) for name in type(value).__slots__}


def footprint_of(
    trace: Trace, device: Device | None, settings: AllocatorSettings, context: int | None = None
) -> Footprint:
    """Replay a trace without limit, and again at the device's capacity for the verdict."""
    free = replay(trace, None, settings)
    roles, modules, sources = _at_peak(trace, free)
    unlimited = Footprint(
        device=None,
        job=trace.job,
        steps=trace.steps,
        peak_allocated=free.peak_allocated,
        peak_reserved=free.peak_reserved,
        context=context or 0,
        bill=roles,
        phases=phase_peaks(trace, free),
        modules=tuple(modules.most_common(_LARGEST)),
        sources=tuple(sources.most_common(_LARGEST)),
        timeline=_timeline(free),
        verdict=None,
        out_of_memory=None,
        retries=0,
        reserved_at_capacity=None,
        convolution_workspace=trace.convolution_workspace,
        assumptions=_assumptions(trace, settings),
        _trace=trace,
        _settings=settings,
    )
    return unlimited if device is None else unlimited.on(device)


def _assumptions(trace: Trace, settings: AllocatorSettings) -> tuple[str, ...]:
    if settings.backend == "native":
        return trace.assumptions
    unmodelled = f"the allocator's backend {settings.backend} is not modelled: predicted with the native one"
    return (*trace.assumptions, unmodelled)


class _Bounded(NamedTuple):
    """How a trace gets along on a card."""

    peak_reserved: int
    retries: int
    out_of_memory: OutOfMemoryPlace | None


def _at_capacity(trace: Trace, settings: AllocatorSettings, device: Device, unlimited: int) -> _Bounded:
    """Replay a trace at a device's capacity, where that makes a difference: what it reserves without limit exceeds it.

    Under settings that are parts of the device's memory, and for segments of its size, it always may.
    """
    is_apart = settings.per_process_memory_fraction == 1 and not settings.expandable_segments
    if is_apart and unlimited <= device.capacity:
        return _Bounded(unlimited, 0, None)
    bounded = replay(trace, device.capacity, settings, device.total)
    return _Bounded(bounded.peak_reserved, bounded.retries, bounded.out_of_memory)


def _verdict(bounded: _Bounded, capacity: int, trace: Trace) -> Verdict:
    if bounded.out_of_memory is not None:
        return "does not fit"
    left = capacity - bounded.peak_reserved
    if bounded.retries or left < MARGIN * capacity or left < trace.convolution_workspace:
        return "tight"
    return "fits"


def _at_peak(trace: Trace, result: Replay) -> tuple[dict[Role, int], Counter[str], Counter[str]]:
    roles: dict[Role, int] = dict.fromkeys(ROLES, 0)
    modules: Counter[str] = Counter()
    sources: Counter[str] = Counter()
    for index in live_at(trace, result.peak_event):
        allocation, size = trace.allocations[index], result.blocks[index]
        roles[allocation.role] += size
        modules[allocation.module or f"({allocation.role})"] += size
        if allocation.source:
            sources[allocation.source] += size
    return roles, modules, sources


def _timeline(result: Replay) -> tuple[tuple[int, int, int], ...]:
    """In each of up to a thousand stretches, the moment at which most is allocated."""
    count = len(result.allocated)
    stretch = max(1, -(-count // _TIMELINE_POINTS))
    points = []
    for start in range(0, count, stretch):
        number = max(range(start, min(start + stretch, count)), key=result.allocated.__getitem__)
        points.append((number, result.allocated[number], max(result.reserved[start : start + stretch])))
    return tuple(points)
