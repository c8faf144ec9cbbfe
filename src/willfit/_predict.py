"""``willfit.predict``: from a training job to its footprint."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from willfit._allocator_settings import AllocatorSettings
from willfit._devices import Device, resolve_device
from willfit._footprint import Footprint, footprint_of
from willfit._trace.trace import Engine, Trace, check_engine

if TYPE_CHECKING:
    import torch
    from torch import nn

    from willfit._job import Loss
    from willfit._run import Step


def predict(
    model: nn.Module,
    optimizer: Any,
    batch: Any,
    step: Step | None = None,
    *,
    loss: Loss | None = None,
    on: str | int | Device | torch.device | None = None,
    steps: int = 3,
    capacity: str | int | None = None,
    engine: Engine = "symbolic",
) -> Footprint:
    """Predict what training steps need on a GPU, before anything runs, and without one.

    The step runs as it is written on fake tensors (no memory, no computing), every allocation that CUDA would make is
    replayed through PyTorch's caching allocator. Nothing of the user's is changed.

    Args:
        model: on the CPU, on meta or on a GPU, in any mix of dtypes.
        optimizer: over the model's parameters; None predicts forward and backward only. Several may be given in a
            tuple or a dict, which ``step`` then gets.
        batch: a tensor, a mapping, a sequence or a dataclass of tensors; used again for each step.
        step: ``step(model, optimizer, batch)``, one whole optimisation step. Without it: the loss, backward,
            ``optimizer.step()``, ``optimizer.zero_grad()``.
        loss: ``loss(model, batch)``, a scalar tensor; without it ``model(**batch).loss``.
        on: a GPU's name ("A100-80GB"), a size ("24 GiB"), a device here ("cuda:1"), or a `willfit.Device`. None: the
            GPU that this process would use; with none here, there is no verdict.
        steps: how many optimizer steps; the first creates the optimizer's state, later ones are the steady state.
        capacity: what the allocator may hold, in bytes or as "14 GiB", in place of the device's own figure.
        engine: "symbolic" follows the step on fake tensors, in this process, anywhere. "emulated" runs it under
            PyTorch's own CUDA code on an emulated GPU, in a process of its own: on Linux, with a CUDA build of PyTorch
            (this Python's, or that of the one that ``WILLFIT_CUDA_PYTHON`` names) and a C compiler.

    Raises:
        UsageError: an unknown GPU, a size without a unit, a negative capacity, a wrong allocator setting.
        JobError: the parts do not belong together, or the step raised.
        TraceError: an operator of the step cannot run on fake tensors.
        UnavailableError: this machine lacks what the emulated engine needs.
        EmulatorError: the process of the emulated engine was killed, or crashed.

    Example:
        >>> import torch, willfit
        >>> model = torch.nn.Linear(1024, 1024, bias=False)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> batch = torch.zeros(8, 1024)
        >>> footprint = willfit.predict(model, optimizer, batch, loss=lambda m, x: m(x).sum(), on="T4")
        >>> footprint.bill["parameters"] == 1024 * 1024 * 4
        True
        >>> footprint.verdict
        'fits'
    """
    from willfit._reuse import predicted_before

    settings = AllocatorSettings.from_environment()
    check_engine(engine)
    device = target_device(model, optimizer, batch, on, capacity)
    target = device if device is not None else UNNAMED

    def predict_anew() -> Footprint:
        trace = followed(model, optimizer, batch, step, loss=loss, device=target, steps=steps, engine=engine)
        return footprint_of(trace, device, settings, target.context)

    return predicted_before(predict_anew, model, optimizer, batch, step, loss, steps, engine, device, settings)


def followed(
    model: nn.Module,
    optimizer: Any,
    batch: Any,
    step: Step | None = None,
    *,
    loss: Loss | None = None,
    device: Device,
    steps: int,
    engine: Engine,
    enough: Callable[[Trace], bool] | None = None,
) -> Trace:
    """The trace of a job by one of the engines. Raises what `predict` raises.

    ``enough``, asked after each step with the trace so far, may end it early; the emulated engine does not ask.
    """
    if engine == "emulated":
        from willfit._emulator.engine import run_job, trace_of

        return trace_of(run_job(model, optimizer, batch, step, loss, device, steps), device)
    from willfit._job import trace_job

    return trace_job(model, optimizer, batch, step, loss=loss, device=device, steps=steps, enough=enough)


def predict_target(
    target: str,
    *,
    on: str | int | Device | torch.device | None = None,
    steps: int = 3,
    capacity: str | int | None = None,
) -> Footprint:
    """Predict a target of the command line with the emulated engine, whose process imports it.

    Raises what `predict` raises, and `TargetError` for a target that cannot be imported or called.
    """
    from willfit._emulator.engine import trace_of
    from willfit._emulator.launch import run_emulated

    settings = AllocatorSettings.from_environment()
    device = resolve_device(on, capacity)
    card = device if device is not None else UNNAMED
    trace = trace_of(run_emulated(None, target, card, steps), card)
    return footprint_of(trace, device, settings, card.context)


def target_device(
    model: nn.Module,
    optimizer: Any,
    batch: Any,
    on: str | int | Device | torch.device | None,
    capacity: str | int | None,
) -> Device | None:
    """The GPU that a job is predicted for: of one here, what tensors outside the job leave."""
    from willfit._job import tensors_outside

    device = resolve_device(on, capacity)
    if device is not None and device.index is not None and capacity is None:
        device = device.less(tensors_outside(model, optimizer, batch, device.index))
    return device


UNNAMED = Device(name="a GPU of compute capability 8.0", total=80 * 10**9, compute_capability=(8, 0))
