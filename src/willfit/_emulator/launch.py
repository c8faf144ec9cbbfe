"""Run a job on an emulated GPU, in a process of its own: started, watched, and gone when it is over."""

from __future__ import annotations

import importlib.util
import os
import pickle
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import willfit
from willfit._children import paths_imported_from, result_of, start, watch
from willfit._devices import Device
from willfit._emulator.build import LIBRARY, runtime_for
from willfit._emulator.interpreter import Interpreter, cuda_interpreter
from willfit._emulator.messages import FREE, JOB, LIMITED, REQUEST, Ran, Request
from willfit._errors import EmulatorError, UnavailableError

# What the process is told, so that PyTorch does what the runtime can stand in for: cuDNN's older interface, and flash
# attention in place of cuDNN's.
CHOICES = {"TORCH_CUDNN_V8_API_DISABLED": "1", "TORCH_CUDNN_SDPA_DEPRIORITIZED": "1"}
_SETTINGS = {
    **CHOICES,
    "PYTORCH_SKIP_CUDNN_COMPATIBILITY_CHECK": "1",
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # asking whether there is a GPU leaves CUDA uninitialised, for the forks
    "TORCHINDUCTOR_COMPILE_THREADS": "1",  # else torch.compile starts processes, though nothing is compiled
    "KINETO_LOG_LEVEL": "99",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "WILLFIT": "off",  # guards in the user's code stand aside
    "PYTHONWARNINGS": "ignore",
}
# Light packages that willfit needs there and that a Python with a CUDA build may not have.
_PACKAGES = ("packaging", "pluggy", "cloudpickle")


@dataclass(frozen=True)
class Emulated:
    """What the process found."""

    interpreter: Interpreter
    free: Ran
    """The run without limit."""
    limited: Ran | None
    """The run at the card's capacity, where that without limit takes more."""
    notes: tuple[str, ...]
    """What differs between this process and that one, in sentences for people."""
    seconds: dict[str, float]


def check_device(device: Device) -> None:
    """Raise `UnavailableError` for a GPU that is not emulated."""
    if device.vendor != "nvidia":
        raise UnavailableError(
            f"{device.name} is not a GPU of NVIDIA's: the emulator runs PyTorch's CUDA code; use the symbolic engine"
        )


def run_emulated(
    job: bytes | None,
    target: str | None,
    device: Device,
    steps: int,
    capacity: int | None = None,
    script: tuple[str, ...] = (),
) -> Emulated:
    """Run a packed job, a target of the command line, or a script with its arguments: without limit and, where that
    takes more than the capacity that is given, once more with this limit.

    Raises:
        UnavailableError: this machine cannot: not Linux, no CUDA build of PyTorch, no compiler.
        EmulatorError: the process ended before it was done.
        JobError: as `willfit.predict` raises it.
    """
    seconds: dict[str, float] = {}
    begin = time.perf_counter()
    check_device(device)
    interpreter = cuda_interpreter()
    notes = _differences(interpreter, travels=job is not None)
    runtime = runtime_for(interpreter)
    seconds["find or build the runtime"] = time.perf_counter() - begin
    with tempfile.TemporaryDirectory(prefix="willfit-") as folder:
        where = Path(folder)
        request = Request(target, device, steps, capacity, tuple(_own_path(interpreter)), script)
        (where / REQUEST).write_bytes(pickle.dumps(request))
        if job is not None:
            (where / JOB).write_bytes(job)
        module = "willfit._emulator.child"
        ended = watch(start(interpreter.python, module, folder, _packages(), environment(runtime, device)))
        if ended:
            raise EmulatorError(f"the process that ran the job on an emulated GPU {ended}")
        free: Ran = result_of(where / FREE, notes)
        limited: Ran | None = result_of(where / LIMITED, notes) if (where / LIMITED).exists() else None
    seconds["process, in all"] = time.perf_counter() - begin
    return Emulated(interpreter, free, limited, notes, {**seconds, **free.seconds})


def _packages() -> dict[str, str]:
    packages = {"willfit": str(Path(willfit.__file__).parent)}
    for name in _PACKAGES:
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.submodule_search_locations is not None
        packages[name] = spec.submodule_search_locations[0]
    return packages


def environment(runtime: Path, device: Device) -> dict[str, str]:
    """In which a process finds this GPU."""
    environment = {**os.environ, **_SETTINGS}
    environment.pop("CUDA_VISIBLE_DEVICES", None)
    for name, value in (("LD_PRELOAD", str(runtime / LIBRARY)), ("LD_LIBRARY_PATH", str(runtime))):
        environment[name] = os.pathsep.join(filter(None, (value, os.environ.get(name))))
    major, minor = device.compute_capability
    return environment | {
        "WILLFIT_GPU_NAME": device.driver_name or device.name,
        "WILLFIT_GPU_TOTAL": str(device.total),
        "WILLFIT_GPU_CONTEXT": str(device.total - device.capacity),
        "WILLFIT_GPU_CAPABILITY": str(major * 10 + minor),
        "WILLFIT_GPU_MULTIPROCESSORS": str(device.multiprocessors),
    }


def _own_path(interpreter: Interpreter) -> list[str]:
    """Where the user's modules are: all that this process imports from, for another Python without its packages."""
    paths = paths_imported_from()
    if interpreter.is_this_one:
        return paths
    return [path for path in paths if not path.startswith(sys.prefix) and not path.startswith(sys.base_prefix)]


def _differences(interpreter: Interpreter, travels: bool) -> tuple[str, ...]:
    """What differs between the two Pythons. Raises `UnavailableError` where the job cannot travel."""
    if interpreter.is_this_one:
        return ()
    if travels and interpreter.version != sys.version_info[:2]:
        theirs, ours = ".".join(map(str, interpreter.version)), ".".join(map(str, sys.version_info[:2]))
        raise UnavailableError(
            f"{interpreter.python} is Python {theirs} and this is {ours}: functions cannot travel between the two. "
            "Name a Python of the same version, or give a TARGET on the command line, which it imports itself"
        )
    import importlib.metadata

    found = []
    for name, version in (("torch", interpreter.torch), *interpreter.packages):
        if name not in sys.modules:
            continue
        try:
            ours = importlib.metadata.version(name) if name != "torch" else _torch_version()
        except importlib.metadata.PackageNotFoundError:
            continue
        if ours.partition("+")[0] != version.partition("+")[0]:
            found.append(f"{name} {version} ran on the emulated GPU; this process has {name} {ours}")
    return tuple(found)


def _torch_version() -> str:
    import torch

    return torch.__version__
