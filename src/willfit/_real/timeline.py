"""What torch.profiler saw of a run, in order of time: memory given and taken, and the follower's notes between."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

NOTE = "willfit:"
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

    address: int
    size: int
    """Bytes of the block; negative when it is taken back."""
    allocated: int
    """What the allocator had given out afterwards."""
    reserved: int
    """What the allocator held afterwards; 0 on the CPU."""
    op: str
    """The operator: ``"aten.mm"``; "" outside of all."""
    call: int
    """Tells one call of an operator from the next."""
    thread: int
    node: int | None
    """The sequence number of the autograd node that ran; None in forward."""
    nested: bool
    """The node belongs to a backward pass within another."""


@dataclass(slots=True)
class NoteEvent:
    """Where the follower noted something."""

    number: int
    thread: int


def timeline(results: Any, device_type: str) -> list[MemoryEvent | NoteEvent]:
    """The events of one kind of device ("cuda", "cpu"), in order, from ``profile.profiler.kineto_results``."""
    found: list[tuple[int, MemoryEvent | NoteEvent]] = []
    for root in results.experimental_event_tree():
        found.extend(_events(root, device_type))
    found.sort(key=lambda pair: pair[0])
    return [event for _, event in found]


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
                        fields.total_allocated,
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
    if name in _FACTORIES and context.op:
        return context
    return _Context(name.replace("::", "."), event.id, context.node, context.nested)
