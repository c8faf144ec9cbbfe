"""What a verifier is, which there are, and which of them is taken."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from willfit._devices import Device
from willfit._errors import UnavailableError, UsageError
from willfit._plugins import plugins
from willfit._verify.verification import Measurement

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class JobToVerify:
    """The arguments of `willfit.verify`: a training job and the card it is for."""

    model: Any
    optimizer: Any
    batch: Any
    step: Any = None
    loss: Any = None
    on: str | int | Device | torch.device | None = None
    capacity: str | int | None = None
    steps: int = 3
    target: str | None = None
    """The target of the command line that the job was made by, if it was."""


class Verifier(ABC):
    """A way of measuring what a training job really takes."""

    name: str
    """What ``using=`` and ``--with`` call it."""
    faithfulness: int
    """How close it is to a run on the card: of those that can be used, that with the most is taken. Willfit's own:
    cuda 30, emulated 20, cpu 10."""

    @abstractmethod
    def unavailable(self, job: JobToVerify) -> str:
        """Why it cannot measure this job on this machine, as a sentence without its full stop; "" if it can."""

    @abstractmethod
    def measure(self, job: JobToVerify) -> Measurement:
        """Run the job and measure; nothing of the user's is changed.

        Raises `UnavailableError` and `JobError`.
        """


def verifiers() -> dict[str, Verifier]:
    """Willfit's own and those of plugins, by name, the most faithful first."""
    from willfit._verify.cpu import CpuVerifier
    from willfit._verify.cuda import CudaVerifier
    from willfit._verify.emulated import EmulatedVerifier

    found: dict[str, Verifier] = {each.name: each for each in (CudaVerifier(), EmulatedVerifier(), CpuVerifier())}
    for several in plugins().hook.willfit_verifiers():
        found.update({each.name: each for each in several})
    return dict(sorted(found.items(), key=lambda item: -item[1].faithfulness))


def check_verifier(name: object) -> None:
    """Raise `UsageError` for a verifier that there is not."""
    if name is not None and name not in verifiers():
        raise UsageError(f"there is no verifier {name!r}: they are {', '.join(verifiers())}")


def choose(job: JobToVerify, name: str | None) -> tuple[Verifier, tuple[str, ...]]:
    """The verifier of that name, or the most faithful that can be used, and why more faithful ones cannot.

    Raises `UnavailableError` if it cannot be used, or none can.
    """
    check_verifier(name)
    passed_over: list[str] = []
    for each in verifiers().values():
        if name in (None, each.name):
            why = each.unavailable(job)
            if not why:
                return each, tuple(passed_over)
            passed_over.append(f"{each.name}: {why}")
    raise UnavailableError(
        "this prediction cannot be verified here" + "".join(f"\n  - {reason}" for reason in passed_over)
    )
