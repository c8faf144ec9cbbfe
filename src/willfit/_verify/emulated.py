"""Verification by PyTorch's own CUDA code on an emulated GPU, in a process of its own."""

from __future__ import annotations

import os
from unittest.mock import patch

from willfit._emulator.build import check_tools
from willfit._emulator.interpreter import cuda_interpreter
from willfit._emulator.launch import CHOICES, check_device, run_emulated
from willfit._errors import UnavailableError
from willfit._verify.verification import Measurement
from willfit._verify.verifier import JobToVerify, Verifier

_LIMITS = (
    "what lies outside of PyTorch's allocator, and what cuDNN takes for itself, is not measured on an emulated GPU; "
    "both sides take cuDNN's older interface and no attention of cuDNN's"
)


class EmulatedVerifier(Verifier):
    """Whole steps, at the card's capacity."""

    name = "emulated"
    faithfulness = 20

    def unavailable(self, job: JobToVerify) -> str:
        """Not Linux, no CUDA build of PyTorch, no compiler, a card that is not NVIDIA's."""
        from willfit._devices import resolve_device

        try:
            if (device := resolve_device(job.on, job.capacity)) is not None:
                check_device(device)
            check_tools(cuda_interpreter())
        except UnavailableError as error:
            return str(error)
        return ""

    def measure(self, job: JobToVerify) -> Measurement:
        """One run without limit, and one at the card's capacity where that is not enough."""
        from willfit._emulator.engine import run_job, trace_of
        from willfit._predict import UNNAMED, predict, target_device

        parts = (job.model, job.optimizer, job.batch, job.step)
        device = target_device(*parts[:3], job.on, job.capacity)
        card = device if device is not None else UNNAMED
        with patch.dict(os.environ, CHOICES):
            predicted = predict(*parts, loss=job.loss, on=job.on, capacity=job.capacity, steps=job.steps)
        capacity = None if device is None else device.capacity
        if job.target is not None:
            emulated = run_emulated(None, job.target, card, job.steps, capacity)
        else:
            emulated = run_job(*parts, job.loss, card, job.steps, capacity)
        trace, interpreter = trace_of(emulated, card), emulated.interpreter
        limited = emulated.limited
        differing = [each for each in trace.assumptions if each not in (*emulated.notes, *predicted.assumptions)]
        return Measurement(
            predicted,
            emulated.free.phases,
            f"PyTorch's own CUDA code on an emulated {card.name}",
            trace,
            out_of_memory=None if limited is None else limited.out_of_memory,
            versions=(("torch", interpreter.torch), ("cuda", interpreter.cuda), *interpreter.packages),
            notes=(*emulated.notes, *differing, _LIMITS),
            seconds=emulated.seconds,
        )
