"""What torch.profiler saw of a run, in order of time: memory given and taken, and the follower's notes between."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

NOTE = "willfit:"
RUN = "willfit run"
"""What all of the run happens in, on its thread: the tree has nothing that happens outside of all."""
_MEMORY = "[memory]"
_NODE = "autograd::engine::evaluate_function"
# What makes a tensor for another operator: the operator that asked for it says more.
_FACTORIES = frozenset(
    f"aten::{name}"
    for name in ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "empty_permuted", "resize_")
)


@dataclass(slots=True)
class MemoryEvent:
    """Memory given by an allocator, or taken back."""

    address: int | None
    """None where the profiler does not say."""
    size: int
    """Bytes of the block; negative when it is taken back."""
    reserved: int = 0
    """What the allocator held afterwards; 0 on the CPU, or where the profiler does not say."""
    op: str = ""
    """The operator: ``"aten.mm"``; "" outside of all."""
    call: int = 0
    """Tells one call of an operator from the next."""
    thread: int = 0
    node: int | None = None
    """The sequence number of the autograd node that ran; None in forward."""
    nested: bool = False
    """The node belongs to a backward pass within another."""


@dataclass(slots=True)
class NoteEvent:
    """Where the follower noted something."""

    number: int
    thread: int


@dataclass(slots=True)
class FailureEvent:
    """Where an allocation failed: in the operator that began last."""

    op: str


Event = MemoryEvent | NoteEvent | FailureEvent


def timeline(results: Any, device_type: str, failed: bool = False) -> list[Event]:
    """The events of one kind of device ("cuda", "cpu"), in order, from ``profile.profiler.kineto_results``.

    The tree of events tells which operator was running, but lacks what happened outside of all on autograd's thread;
    the flat list has that, without addresses.
    """
    known: dict[tuple[int, int], MemoryEvent] = {}
    found: list[tuple[int, Event]] = []
    for root in results.experimental_event_tree():
        for time, event in _events(root, device_type):
            if isinstance(event, NoteEvent):
                found.append((time, event))
            else:
                known[time, event.size] = event
    kind = getattr(torch._C._autograd.DeviceType, device_type.upper())
    for flat in results.events():
        if flat.name() == _MEMORY and flat.device_type() == kind and flat.nbytes():
            time, size = flat.start_ns(), flat.nbytes()
            found.append((time, known.get((time, size)) or MemoryEvent(None, size)))
    if failed:
        begun, op = _last_operator(results)
        given = (time for time, event in found if isinstance(event, MemoryEvent) and event.size > 0)
        found.append((max(begun, *given), FailureEvent(op)))
    found.sort(key=lambda pair: pair[0])  # of the same time, in the order that they were found
    return [event for _, event in found]


def _last_operator(results: Any) -> tuple[int, str]:
    """When the operator began that began last, and its name."""
    last, name = 0, ""
    stack = [(root, _Context()) for root in results.experimental_event_tree()]
    while stack:
        event, context = stack.pop()
        inner = _inside(event, event.name, context)
        stack.extend((child, inner) for child in event.children)
        is_operator = "::" in event.name and not event.name.startswith("autograd::")
        if is_operator and event.start_time_ns > last:
            last, name = event.start_time_ns, inner.op
    return last, name


@dataclass(slots=True)
class _Context:
    op: str = ""
    call: int = 0
    node: int | None = None
    nested: bool = False


def _events(root: Any, device_type: str) -> Iterator[tuple[int, MemoryEvent | NoteEvent]]:
    stack = [(root, _Context())]
    while stack:
        event, context = stack.pop()
        name = event.name
        if name == _MEMORY:
            fields = event.typed[1]
            if fields.device.type == device_type and fields.alloc_size:
                yield (
                    event.start_time_ns,
                    MemoryEvent(
                        fields.ptr,
                        fields.alloc_size,
                        fields.total_reserved,
                        context.op,
                        context.call,
                        event.start_tid,
                        context.node,
                        context.nested,
                    ),
                )
            continue
        if name.startswith(NOTE):
            yield event.start_time_ns, NoteEvent(int(name[len(NOTE) :]), event.start_tid)
            continue
        if event.children:
            inner = _inside(event, name, context)
            stack.extend((child, inner) for child in event.children)


def _inside(event: Any, name: str, context: _Context) -> _Context:
    """What holds within an operator."""
    if name.startswith(_NODE):
        return _Context(context.op, context.call, event.typed[1].sequence_number, context.node is not None)
    if name == RUN or (name in _FACTORIES and context.op):
        return context
    return _Context(name.replace("::", "."), event.id, context.node, context.nested)
