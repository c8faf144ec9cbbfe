"""Verification on a GPU that is here: one forward and backward pass, before training, that leaves nothing changed.

The optimizer makes no step: its state, which may be most of what a step takes, is not made, and parameters stay what
they are. `willfit.watch` measures whole steps, as they happen.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from willfit._devices import Device
from willfit._verify.surroundings import OTHERS, context_of_this_process, driver_version, versions
from willfit._verify.verification import Measurement
from willfit._verify.verifier import JobToVerify, Verifier

if TYPE_CHECKING:
    from willfit._replay import OutOfMemoryPlace
    from willfit._trace.trace import Phase, Trace
    from willfit._verify.borrowing import Borrower

_PASS: tuple[tuple[int, Phase], ...] = ((0, "placement"), (1, "forward"), (1, "backward"))
_NO_STEP = "the optimizer's step was not run, so that nothing changes: `willfit.watch` measures it as it happens"


class CudaVerifier(Verifier):
    """A probe on the card itself."""

    name = "cuda"
    faithfulness = 30

    def unavailable(self, job: JobToVerify) -> str:
        """There is no GPU here, or it is not the one that the prediction is for."""
        import torch

        from willfit._real import history

        if not torch.cuda.is_available():
            return "this process has no GPU" if torch.version.cuda else "this build of PyTorch has no CUDA"
        if job.capacity is not None:
            return "a GPU that is here has the capacity that it has, and capacity is given"
        here = _here(job)
        if (other := _other_card(job, here)) is not None:
            return f"the GPU here is {here.name}, and the prediction is for {other.name}"
        if history.is_on():
            return "this process records the history of its memory already, by torch.cuda.memory"
        if torch._C._autograd._profiler_enabled():
            return "torch.profiler is at work in this process already"
        return ""

    def measure(self, job: JobToVerify) -> Measurement:
        """Forward and backward on the card that is here."""
        from willfit._predict import predict

        device = _here(job)
        parts = (job.model, job.optimizer, job.batch, job.step)
        predicted = predict(*parts, loss=job.loss, on=f"cuda:{device.index}", steps=1)
        start = time.perf_counter()
        follower, trace, notes = _probe(job, device)
        recording = follower.record()
        ran_out = recording.out_of_memory if trace is None else None
        assert device.index is not None
        return Measurement(
            predicted,
            tuple(recording.phases),
            f"a forward and backward pass on the {device.name} that is here",
            trace,
            out_of_memory=ran_out,
            measured_context=context_of_this_process(device.index),
            driver=driver_version(),
            versions=versions(),
            notes=(*notes, *((OTHERS,) if follower.before.others else ()), _NO_STEP),
            has_reserved=not follower.before.others,
            comparable=frozenset(_PASS) if ran_out is None else _before(ran_out),
            seconds={"probe": time.perf_counter() - start},
        )


def _before(place: OutOfMemoryPlace) -> frozenset[tuple[int, Phase]]:
    """The phases that were over when memory ran out."""
    return frozenset(_PASS[: _PASS.index((place.step, place.phase))])


def _here(job: JobToVerify) -> Device:
    """The GPU of this process that is meant, or that it would use."""
    from willfit._device_here import device_here
    from willfit._devices import resolve_device

    named = resolve_device(job.on) if job.on is not None else None
    return named if named is not None and named.index is not None else device_here()


def _other_card(job: JobToVerify, here: Device) -> Device | None:
    """The card that the prediction is for, if it is another than the one here."""
    from willfit._devices import resolve_device

    wanted = resolve_device(job.on) if job.on is not None else None
    if wanted is None or wanted.index is not None:
        return None
    return None if here.driver_name in (wanted.driver_name, wanted.name, *wanted.aliases) else wanted


# -- the pass ------------------------------------------------------------------------------------------------


def _probe(job: JobToVerify, device: Device) -> tuple[Borrower, Trace | None, list[str]]:
    """One step as far as to the optimizer. The trace is None where memory ran out."""
    import torch

    from willfit._job import default_step, tensors_outside
    from willfit._real.follower import until_memory_runs_out
    from willfit._real.writer import Before
    from willfit._run import Run
    from willfit._trace.surroundings import nothing_left_behind
    from willfit._verify.borrowing import Borrower

    assert device.index is not None
    index = device.index
    with ExitStack() as stack:
        stack.enter_context(torch.cuda.device(index))
        stack.enter_context(_allocator_as_at_the_start())
        stack.callback(torch.cuda.set_rng_state, torch.cuda.get_rng_state(index), index)
        stack.enter_context(nothing_left_behind())
        follower = Borrower(torch.device("cuda", index), device.compute_capability, device.multiprocessors)
        others = tensors_outside(job.model, job.optimizer, job.batch, index)
        reserved = max(0, torch.cuda.memory_reserved(index) - others)
        follower.before = Before(others, reserved, device.capacity)
        notes: list[str] = []
        stack.callback(lambda: notes.extend(follower.give_back()))
        with follower.at_work():
            step = job.step or default_step(job.loss)
            trace = until_memory_runs_out(
                lambda: Run(follower, job.model, job.optimizer, job.batch, step, optimizer_steps=False).steps(1)
            )
            follower.record()
    return follower, trace, notes


@contextmanager
def _allocator_as_at_the_start() -> Iterator[None]:
    """Without cached blocks and workspaces, before and afterwards."""
    _release()
    try:
        yield
    finally:
        _release()


def _release() -> None:
    import torch

    gc.collect()
    if hasattr(torch._C, "_cuda_clearCublasWorkspaces"):
        torch._C._cuda_clearCublasWorkspaces()
    torch.cuda.empty_cache()
