"""The emulated engine: the trace of a job as PyTorch's own CUDA code and allocator run it, with no GPU."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from willfit._devices import Device
from willfit._emulator.launch import Emulated, run_emulated
from willfit._trace.trace import Trace

if TYPE_CHECKING:
    from torch import nn

    from willfit._job import Loss
    from willfit._run import Step

# PyTorch prefers cuDNN's attention there (attention_choice.py), which cannot be emulated.
_PREFERS_CUDNN = ((9, 0), (10, 0))
_FLASH = "cuDNN's attention, which PyTorch prefers on this GPU, cannot be emulated: another takes its place"


def run_job(
    model: nn.Module,
    optimizer: Any,
    batch: Any,
    step: Step | None,
    loss: Loss | None,
    device: Device,
    steps: int,
    capacity: int | None = None,
) -> Emulated:
    """Run a live job, as `run_emulated` does; nothing of the user's is changed.

    Raises what `run_emulated` raises, and `UsageError` and `JobError` for what cannot be a job.
    """
    import torch

    from willfit._emulator.wire import Job, pack
    from willfit._job import check_job
    from willfit._trace.surroundings import nothing_left_behind

    check_job(model, optimizer, step, loss, steps)
    with nothing_left_behind():
        job = pack(Job(model, optimizer, batch, step, loss, torch.cuda.is_available()))
    return run_emulated(job, None, device, steps, capacity)


def uses_attention(trace: Trace) -> bool:
    """Whether one of PyTorch's fused attention kernels ran."""
    return any("scaled_dot_product" in each.op for each in trace.allocations)


def trace_of(emulated: Emulated, device: Device) -> Trace:
    """The trace of a run without limit, with what has to be said of the engine."""
    trace = emulated.free.trace
    assert trace is not None
    notes = [*emulated.notes, *trace.assumptions]
    if (device.compute_capability[0], 0) in _PREFERS_CUDNN and uses_attention(trace):
        notes.append(_FLASH)
    return replace(trace, assumptions=tuple(notes), engine="emulated")
