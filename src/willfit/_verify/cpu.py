"""Verification in this machine's memory."""

from __future__ import annotations

from willfit._verify.verification import Measurement
from willfit._verify.verifier import JobToVerify, Verifier


class CpuVerifier(Verifier):
    name = "cpu"
    faithfulness = 10

    def unavailable(self, job: JobToVerify) -> str:
        return "later"

    def measure(self, job: JobToVerify) -> Measurement:
        raise NotImplementedError
