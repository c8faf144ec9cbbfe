"""``willfit.verify``: a prediction held against a real forward and backward pass."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from willfit._verify.compare import compare
from willfit._verify.verification import Verification, parse_tolerance
from willfit._verify.verifier import JobToVerify, choose

if TYPE_CHECKING:
    import torch
    from torch import nn

    from willfit._devices import Device
    from willfit._job import Loss
    from willfit._run import Step

TOLERANCE = "2%"
"""What is asked for where nothing else is: the share of a card that a tight fit leaves."""


def verify(
    model: nn.Module,
    optimizer: Any,
    batch: Any,
    step: Step | None = None,
    *,
    loss: Loss | None = None,
    on: str | int | Device | torch.device | None = None,
    steps: int = 3,
    capacity: str | int | None = None,
    tolerance: str | float = TOLERANCE,
    using: str | None = None,
) -> Verification:
    """Predict a training job, run it for real, and compare the two phase by phase.

    The most faithful way that this machine has is taken, and the report says which:

    - "cuda": one forward and backward pass on the GPU that is here; the optimizer makes no step.
    - "emulated": whole steps of PyTorch's own CUDA code on an emulated GPU, in a process of its own; as
      ``predict(engine="emulated")`` needs it.
    - "cpu": whole steps in this machine's memory, against a prediction for the CPU.

    Nothing of the user's is changed. ``verify(...).check()`` raises `VerificationFailed` where they disagree.

    Args:
        model: as for `willfit.predict`, and so are optimizer, batch, step, loss, on and capacity.
        optimizer: over the model's parameters; None runs forward and backward only.
        batch: used again for each step.
        step: ``step(model, optimizer, batch)``, one whole optimisation step.
        loss: ``loss(model, batch)``, a scalar tensor; without it ``model(**batch).loss``.
        on: the GPU that it is for; None: that of this process.
        capacity: what the allocator may hold, in place of the device's own figure.
        steps: how many optimizer steps, where whole steps are run.
        tolerance: how far predicted and measured may be apart, in any figure of any phase: "2%", or 0.02.
        using: the verifier to use; None takes the most faithful.

    Raises:
        UsageError: an argument that cannot be.
        UnavailableError: the verifier, or each of them, cannot be used here; the message says what is missing.
        JobError: as `willfit.predict` raises it, or the real step raised.

    Example:
        >>> import torch, willfit
        >>> model = torch.nn.Linear(1024, 1024)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> verification = willfit.verify(
        ...     model, optimizer, torch.zeros(8, 1024), loss=lambda m, x: m(x).sum(), using="cpu"
        ... )
        >>> verification.agrees, verification.verifier
        (True, 'cpu')
    """
    job = JobToVerify(model, optimizer, batch, step, loss, on, capacity, steps)
    return verify_job(job, tolerance, using)


def verify_job(job: JobToVerify, tolerance: str | float, using: str | None) -> Verification:
    """As `verify`, for a job in one piece."""
    from willfit._devices import resolve_device
    from willfit._job import check_job

    allowed = parse_tolerance(tolerance)
    resolve_device(job.on, job.capacity)  # what is wrong is refused by a verifier too that does not ask
    check_job(job.model, job.optimizer, job.step, job.loss, job.steps)
    verifier, passed_over = choose(job, using)
    return compare(verifier.name, verifier.measure(job), allowed, passed_over)
