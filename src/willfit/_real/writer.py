"""From the profiler's and the allocator's records to a trace: each allocation with its role, phase, module and line."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from willfit._real.history import History, HistoryEntry, OutOfMemoryEntry
from willfit._real.timeline import Event, MemoryEvent, NoteEvent
from willfit._replay import OutOfMemoryPlace, PhasePeak
from willfit._trace.cuda.gemm import lt_workspace_size, workspace_size
from willfit._trace.trace import Allocation, Mark, Phase, Role

Note = tuple[Any, ...]
"""What happened, and what belongs to it: ("phase", step, phase), ("module", path, sequence number), ..."""

# Operators that call cuBLAS, which takes its workspaces through PyTorch's allocator.
_PRODUCTS = frozenset(
    f"aten.{name}"
    for name in (
        *("mm", "addmm", "_addmm_activation", "bmm", "baddbmm", "mv", "addmv", "dot", "vdot"),
        *("addmm_", "baddbmm_", "addmv_", "_scaled_mm", "_int_mm"),
        *("_slow_conv2d_forward", "_slow_conv2d_backward", "slow_conv3d_forward", "slow_conv_transpose2d"),
        *("slow_conv_transpose3d", "slow_conv_dilated2d", "slow_conv_dilated3d", "convolution_backward"),
    )
)


@dataclass
class Recording:
    """What an allocator did while a job ran."""

    allocations: list[Allocation]
    events: array[int]
    marks: list[Mark]
    phases: list[PhasePeak]
    """Of each phase of each step, by the allocator's own count; phases in which nothing happened are left out."""
    out_of_memory: OutOfMemoryPlace | None = None
    """Where memory ran out; None if it did not."""


@dataclass(frozen=True, slots=True)
class Before:
    """What was on the device before a run, in bytes."""

    others: int = 0
    """What tensors outside of the job hold."""
    reserved: int = 0
    """What the allocator holds for the job's own tensors."""
    capacity: int | None = None
    """What the allocator may hold; None where it is not known."""


@dataclass(slots=True)
class _Born:
    size: int
    role: Role
    step: int
    phase: Phase
    module: str
    op: str
    source: str
    stream: int


@dataclass(slots=True)
class _PhaseFigures:
    step: int
    phase: Phase
    peak_allocated: int
    peak_reserved: int
    allocated: int
    reserved: int
    events: int = 0


@dataclass
class _Boundaries:
    """Which module ran when autograd numbered its nodes, on one thread."""

    numbers: list[int] = field(default_factory=lambda: [0])
    names: list[str] = field(default_factory=lambda: [""])

    def module(self, node: int) -> str:
        """The module in whose forward a node was made."""
        return self.names[bisect_right(self.numbers, node) - 1] if 0 <= node < self.numbers[-1] else ""


class Writer:
    """Goes through the records once, in order.

    Args:
        notes: the follower's.
        compute_capability: of the GPU, by which cuBLAS's workspaces have their size.
        before: what was on the device before the run.
    """

    def __init__(self, notes: list[Note], compute_capability: tuple[int, int], before: Before) -> None:
        self._notes = notes
        self._before = before
        self._workspaces = {workspace_size(compute_capability), lt_workspace_size()}
        self._born: list[_Born] = []
        self._events = array("q")
        self._marks: list[Mark] = []
        self._figures: list[_PhaseFigures] = []
        self._live: dict[int, int] = {}
        self._boundaries: dict[int, _Boundaries] = {}
        self._main_thread = 0
        self._module = ""
        self._backward_source = ""
        self._calls: set[int] = set()
        """Calls of operators that have taken memory: the first that a product takes is its result."""
        self._enter(0, "placement")

    def write(self, events: list[Event], history: History | None) -> Recording:
        """Put the profiler's events and, on CUDA, the allocator's history together."""
        place = None
        for event, entry in _paired(events, None if history is None else history.entries):
            if isinstance(event, NoteEvent):
                self._read(self._notes[event.number], event.thread)
            elif isinstance(event, MemoryEvent):
                self._memory(event, entry)
            elif history is not None and history.out_of_memory is not None:
                place = self._place(history.out_of_memory, event.op)
        allocations = [
            Allocation(b.size, b.role, b.step, b.phase, b.module, b.op, b.source, b.stream) for b in self._born
        ]
        phases = [
            PhasePeak(f.step, f.phase, f.peak_allocated, f.peak_reserved, f.allocated)
            for f in self._figures
            if f.events
        ]
        return Recording(allocations, self._events, self._marks, phases, place)

    def _place(self, failed: OutOfMemoryEntry, op: str) -> OutOfMemoryPlace:
        figures = self._figures[-1]
        capacity = self._before.capacity or figures.reserved + failed.free
        return OutOfMemoryPlace(
            step=figures.step,
            phase=figures.phase,
            module=self._module,
            op=op,
            source=failed.source or (self._backward_source if figures.phase == "backward" else ""),
            requested=failed.requested,
            allocated=figures.allocated,
            reserved=capacity - failed.free,  # after cached blocks were given back in vain
            free=failed.free,
            capacity=capacity,
        )

    # -- notes ------------------------------------------------------------------------------------------------

    def _read(self, note: Note, thread: int) -> None:
        match note:
            case ("phase", step, phase):
                self._enter(step, phase)
            case ("module", path, sequence):
                self._main_thread = self._main_thread or thread
                boundaries = self._boundaries.setdefault(thread, _Boundaries())
                boundaries.numbers.append(sequence)
                boundaries.names.append(path)
                self._module = path
            case ("placed", role, module, address):
                if address in self._live:
                    born = self._born[self._live[address]]
                    born.role, born.module, born.op = role, module, "placement"
            case ("found", role, module, address, size, block):
                self._found(role, module, address, size, block)
            case ("role", role, addresses, module):
                for address in addresses:
                    if address in self._live:
                        born = self._born[self._live[address]]
                        born.role, born.module = role, born.module if module is None else module
            case ("live", role):
                for index in self._live.values():
                    if self._born[index].role == "temporaries":
                        self._born[index].role = role
            case ("source", source):
                self._backward_source = source
            case ("empty cache",):
                self._events.append(0)

    def _found(self, role: Role, module: str, address: int, size: int, block: int) -> None:
        """A tensor of the job that was on the device before."""
        self._live[address] = len(self._born)
        self._born.append(_Born(size, role, 0, "placement", module, "placement", "", 0))
        self._events.append(len(self._born))
        figures = self._figures[-1]
        figures.events += 1
        figures.allocated += block
        figures.reserved = figures.peak_reserved = max(figures.reserved, self._before.reserved)
        figures.peak_allocated = max(figures.peak_allocated, figures.allocated)

    def _enter(self, step: int, phase: Phase) -> None:
        before = self._figures[-1] if self._figures else _PhaseFigures(0, "placement", 0, 0, 0, 0)
        self._marks.append(Mark(len(self._events), step, phase))
        now = before.allocated, before.reserved
        self._figures.append(_PhaseFigures(step, phase, *now, *now))

    # -- memory -----------------------------------------------------------------------------------------------

    def _memory(self, event: MemoryEvent, entry: HistoryEntry | None) -> None:
        address = event.address if entry is None else entry.address
        assert address is not None, event
        if event.size > 0:
            self._live[address] = len(self._born)
            self._born.append(self._allocation(event, entry))
            self._events.append(len(self._born))
        else:
            index = self._live.pop(address, None)
            if index is None:  # of before the recording
                return
            self._events.append(-(index + 1))
        figures = self._figures[-1]
        figures.events += 1
        figures.allocated += event.size
        figures.reserved = max(0, event.reserved - self._before.others) if event.reserved else figures.reserved
        figures.peak_allocated = max(figures.peak_allocated, figures.allocated)
        figures.peak_reserved = max(figures.peak_reserved, figures.reserved)

    def _allocation(self, event: MemoryEvent, entry: HistoryEntry | None) -> _Born:
        mark = self._marks[-1]
        size = event.size if entry is None else entry.size
        source = "" if entry is None else entry.source
        if mark.phase == "backward" and not source:
            source = self._backward_source
        is_workspace = size in self._workspaces and event.op in _PRODUCTS and event.call in self._calls
        self._calls.add(event.call)
        role: Role = "workspaces" if is_workspace else "temporaries"
        stream = 0 if entry is None else entry.stream
        return _Born(size, role, mark.step, mark.phase, self._module_of(event), event.op, source, stream)

    def _module_of(self, event: MemoryEvent) -> str:
        if self._module or event.node is None:
            return self._module
        thread = event.thread if event.nested else self._main_thread
        return self._boundaries[thread].module(event.node) if thread in self._boundaries else ""


def _paired(events: list[Event], recorded: list[HistoryEntry] | None) -> Iterator[tuple[Event, HistoryEntry | None]]:
    """The profiler's events, each with its entry in the allocator's history.

    The profiler follows the job's thread and autograd's; what other threads did is in the history alone, and left out.
    """
    position = 0
    for event in events:
        if recorded is None or not isinstance(event, MemoryEvent):
            yield event, None
            continue
        while position < len(recorded) and not _same(event, recorded[position]):
            position += 1
        if position == len(recorded):
            raise AssertionError(f"the allocator's history lacks an event of the profiler's: {event}")
        yield event, recorded[position]
        position += 1


def _same(event: MemoryEvent, entry: HistoryEntry) -> bool:
    return event.address in (entry.address, None) and (event.size > 0) == (entry.size > 0)
