"""Will it fit? Predict what a PyTorch training step needs on a GPU, before it runs, without one."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from willfit.guard import WillfitWarning, guard

if TYPE_CHECKING:
    from willfit._advice import Advice
    from willfit._advise import advise
    from willfit._devices import Device, all_devices, find_device
    from willfit._errors import (
        EmulatorError,
        JobError,
        TargetError,
        TraceError,
        UnavailableError,
        UsageError,
        VerificationFailed,
        WillfitError,
        WillNotFit,
    )
    from willfit._footprint import Footprint
    from willfit._largest import Largest, largest_batch, largest_sequence
    from willfit._predict import predict
    from willfit._quantizing import quantize
    from willfit._replay import PhasePeak
    from willfit._sweep import Sweep, sweep
    from willfit._verify.verification import Measurement, Verification
    from willfit._verify.verifier import JobToVerify, Verifier
    from willfit._verify.verify import verify
    from willfit._verify.watch import Watch, watch
    from willfit.hookspecs import hookimpl
    from willfit.integrations.accelerate import find_batch_size

__all__ = [
    "Advice",
    "Device",
    "EmulatorError",
    "Footprint",
    "JobError",
    "JobToVerify",
    "Largest",
    "Measurement",
    "PhasePeak",
    "Sweep",
    "TargetError",
    "TraceError",
    "UnavailableError",
    "UsageError",
    "Verification",
    "VerificationFailed",
    "Verifier",
    "Watch",
    "WillNotFit",
    "WillfitError",
    "WillfitWarning",
    "advise",
    "all_devices",
    "find_batch_size",
    "find_device",
    "guard",
    "hookimpl",
    "largest_batch",
    "largest_sequence",
    "predict",
    "quantize",
    "sweep",
    "verify",
    "watch",
]

# Imported at first use, so that importing willfit costs a few milliseconds and brings in no torch. The guard alone is
# imported at once: it is light, and its name is that of its module.
_HOMES = {
    "Advice": "_advice",
    "Device": "_devices",
    "EmulatorError": "_errors",
    "Footprint": "_footprint",
    "JobError": "_errors",
    "JobToVerify": "_verify.verifier",
    "Largest": "_largest",
    "Measurement": "_verify.verification",
    "PhasePeak": "_replay",
    "Sweep": "_sweep",
    "TargetError": "_errors",
    "TraceError": "_errors",
    "UnavailableError": "_errors",
    "UsageError": "_errors",
    "Verification": "_verify.verification",
    "VerificationFailed": "_errors",
    "Verifier": "_verify.verifier",
    "Watch": "_verify.watch",
    "WillNotFit": "_errors",
    "WillfitError": "_errors",
    "advise": "_advise",
    "all_devices": "_devices",
    "find_batch_size": "integrations.accelerate",
    "find_device": "_devices",
    "hookimpl": "hookspecs",
    "largest_batch": "_largest",
    "largest_sequence": "_largest",
    "predict": "_predict",
    "quantize": "_quantizing",
    "sweep": "_sweep",
    "verify": "_verify.verify",
    "watch": "_verify.watch",
}

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'willfit' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"willfit.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
