"""The exceptions that willfit raises.

WillfitError                what the user gave cannot be predicted; says what was wrong, what was found and what to do
├── UsageError              an argument is wrong: an unknown GPU, "24 G", a negative capacity (also a ValueError)
│   └── TargetError         a TARGET of the command line that cannot be imported or called
├── JobError                model, optimizer, batch and step do not belong together, or the step itself raised
│   ├── TraceError          the step could not be followed on fake tensors; names the module and the op
│   └── EmulatorError       the process that ran the job on an emulated GPU ended before it was done
├── UnavailableError        an engine or a verifier cannot run on this machine; says what is missing
├── VerificationFailed      prediction and measurement disagree; carries .verification
└── WillNotFit              the prediction: the job does not fit; carries .footprint and .advice
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from willfit._advice import Advice
    from willfit._footprint import Footprint
    from willfit._verify.verification import Verification


class WillfitError(Exception):
    """What the user gave cannot be predicted. The message says what was wrong, what was found and what to do."""


class UsageError(WillfitError, ValueError):
    """An argument is wrong: an unknown GPU, a size without a unit, a negative capacity."""


class TargetError(UsageError):
    """A TARGET such as ``train.py:build`` cannot be imported, or does not return (model, optimizer, batch[, step])."""


class JobError(WillfitError):
    """Model, optimizer, batch and step do not belong together, or the user's step itself raised."""


class TraceError(JobError):
    """The step could not be followed on fake tensors; the message names the module and the op."""


class EmulatorError(JobError):
    """The process that ran the job on an emulated GPU ended before it was done: killed, or crashed in native code."""


class UnavailableError(WillfitError):
    """An engine or a verifier cannot run on this machine: no CUDA build of PyTorch, no compiler, too little memory."""


class VerificationFailed(WillfitError):  # noqa: N818 - that it failed is the finding, as with WillNotFit
    """A prediction and what was measured differ by more than the tolerance. The message explains where."""

    def __init__(self, message: str, verification: Verification) -> None:
        super().__init__(message)
        self.verification = verification
        """Predicted and measured, phase by phase, and where the first difference begins."""

    def __reduce__(self) -> tuple[type[VerificationFailed], tuple[str, Verification]]:
        return VerificationFailed, (self.args[0], self.verification)


class WillNotFit(WillfitError):  # noqa: N818 - the verdict itself is the name
    """The job does not fit. Raised by the guard before the guarded function's first line.

    Not a RuntimeError and without the words that accelerate's ``find_executable_batch_size`` looks for,
    so that nothing swallows it and tries again.
    """

    def __init__(self, message: str, footprint: Footprint, advice: Advice | None = None) -> None:
        super().__init__(message)
        self.footprint = footprint
        """The prediction behind the refusal: the bill, the peaks and where memory runs out."""
        self.advice = advice
        """What would make it fit; None where that was not asked for."""

    def __reduce__(self) -> tuple[type[WillNotFit], tuple[str, Footprint, Advice | None]]:
        return WillNotFit, (self.args[0], self.footprint, self.advice)
