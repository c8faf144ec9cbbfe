"""What tests of the emulator need of a machine: a CUDA build of PyTorch and a C compiler. Skips say what is missing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import pytest

import willfit
from willfit._devices import Device, find_device
from willfit._emulator.build import check_tools, runtime_for
from willfit._emulator.interpreter import Interpreter, cuda_interpreter
from willfit._emulator.launch import environment

SOURCE = Path(willfit.__file__).parent.parent


@cache
def missing() -> str:
    """Why the emulator cannot run here; "" if it can."""
    try:
        check_tools(cuda_interpreter())
    except willfit.UnavailableError as error:
        return str(error)
    return ""


@cache
def interpreter() -> Interpreter:
    if missing():
        pytest.skip(missing())
    return cuda_interpreter()


def same_version() -> bool:
    """Whether the PyTorch that runs there is the version that predicts here."""
    import torch

    return interpreter().torch.partition("+")[0] == str(torch.__version__).partition("+")[0]


def on_emulated_gpu(
    script: str, *arguments: str, device: Device | None = None, more: Mapping[str, str] | None = None
) -> str:
    """Run a script as on a machine with that GPU; returns what it prints. For what needs a GPU in its own process."""
    device = device or find_device("T4")
    python = interpreter()
    paths = os.pathsep.join([str(SOURCE), *_packages_missing_there(python.python)])
    variables = {**environment(runtime_for(python), device), "PYTHONPATH": paths, **(more or {})}
    variables.pop("WILLFIT_CUDA_PYTHON", None)  # that is the one that runs
    ran = subprocess.run(
        [python.python, "-c", script, *arguments],
        env=variables,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


@cache
def _packages_missing_there(python: str) -> tuple[str, ...]:
    """Nothing, where that Python has what willfit depends on; the tests say so otherwise."""
    names = ("pluggy", "packaging", "cloudpickle", "rich", "pynvml", "psutil")
    code = f"import importlib.util as u; print(*[n for n in {names!r} if u.find_spec(n) is None])"
    lacking = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    if lacking:
        pytest.skip(f"{python} lacks {', '.join(lacking)}, which willfit depends on")
    return ()


if __name__ == "__main__":
    print(missing() or "ready", file=sys.stderr)
