"""Verification in this machine's memory: whole steps on the CPU, against a prediction for the CPU.

What the CPU's allocator gave and took is told by torch.profiler's memory events. The prediction is made by the same
rules for placement, steps, phases and roles as one for a GPU, with the CPU's dispatcher and kernels. It verifies what
willfit understands of the model and the step, not what CUDA does otherwise.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from willfit._allocator_settings import AllocatorSettings
from willfit._errors import UnavailableError
from willfit._footprint import Footprint, footprint_of
from willfit._units import format_size
from willfit._verify.memory import available_memory
from willfit._verify.surroundings import versions
from willfit._verify.verification import Measurement
from willfit._verify.verifier import JobToVerify, Verifier

if TYPE_CHECKING:
    from willfit._replay import PhasePeak
    from willfit._trace.trace import Trace

_ROOM = 1.1  # of the predicted peak: memory that the C library does not give back at once
_NOTES = (
    "it is the CPU's memory: what CUDA takes besides (cuBLAS, its own kernels, the caching allocator) is not in it",
    "what oneDNN and MKL take past PyTorch's allocator is not measured; oneDNN's scratch for products of matrices in "
    "lower precision is measured and not predicted",
)


class CpuVerifier(Verifier):
    """Whole steps on a copy of the job, on the CPU."""

    name = "cpu"
    faithfulness = 10

    def unavailable(self, job: JobToVerify) -> str:
        """torch.profiler is in use already. Whether memory suffices is known when the job is predicted."""
        import torch

        if torch._C._autograd._profiler_enabled():
            return "torch.profiler is at work in this process already"
        return ""

    def measure(self, job: JobToVerify) -> Measurement:
        """Predict for the CPU, and run there.

        Raises `UnavailableError` if this machine has too little memory for the steps.
        """
        start = time.perf_counter()
        _refuse_beyond_memory(_tensors(job))  # so that nobody waits for what cannot be
        predicted = _predicted(job)
        _refuse_beyond_memory(predicted.peak_allocated)
        middle = time.perf_counter()
        trace, phases = _measured(job)
        return Measurement(
            predicted,
            phases,
            "real steps in this machine's memory",
            trace,
            versions=versions(),
            notes=_NOTES,
            has_reserved=False,
            seconds={"predict": middle - start, "run": time.perf_counter() - middle},
        )


def _refuse_beyond_memory(size: int) -> None:
    needed, available = round(size * _ROOM), available_memory()
    if needed > available:
        raise UnavailableError(
            f"the steps would take {format_size(needed)} or more of this machine's memory, of which "
            f"{format_size(available)} is available: verify a smaller batch or model, or on a larger machine"
        )


def _tensors(job: JobToVerify) -> int:
    """Bytes of the model's copy and of its gradients, which are there in any case."""
    parameters = [(p.numel() * p.itemsize, p.requires_grad) for p in job.model.parameters()]
    return sum(size * (2 if trained else 1) for size, trained in parameters)


def _predicted(job: JobToVerify) -> Footprint:
    from willfit._job import default_step
    from willfit._run import Run
    from willfit._trace.cpu.pointwise import holders_of_an_unshared_gradient
    from willfit._trace.cpu.recorder import CpuRecorder
    from willfit._trace.following import phases_and_modules
    from willfit._trace.surroundings import nothing_left_behind

    with nothing_left_behind():
        holders_of_an_unshared_gradient()  # asked for once, before a recorder is at work
        recorder = CpuRecorder()
        try:
            with phases_and_modules(recorder), recorder:
                step = job.step or default_step(job.loss)
                trace = Run(recorder, job.model, job.optimizer, job.batch, step).steps(job.steps)
        finally:
            recorder.release_all()
    return footprint_of(trace, None, AllocatorSettings())


def _measured(job: JobToVerify) -> tuple[Trace, tuple[PhasePeak, ...]]:
    import torch

    from willfit._job import default_step
    from willfit._real.follower import CopyingFollower
    from willfit._run import Run
    from willfit._trace.surroundings import nothing_left_behind

    with nothing_left_behind():
        follower = CopyingFollower(torch.device("cpu"))
        with follower.at_work():
            step = job.step or default_step(job.loss)
            trace = Run(follower, job.model, job.optimizer, job.batch, step).steps(job.steps)
            return trace, tuple(follower.record().phases)
