"""What tests of the emulator need of a machine: a CUDA build of PyTorch and a C compiler. Skips say what is missing."""

from __future__ import annotations

import os
import subprocess
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


def run_on_emulated_gpu(*arguments: str, device: Device | None = None, more: Mapping[str, str] | None = None) -> str:
    """Run Python with these arguments as on a machine with that GPU; returns what it prints."""
    python, card = interpreter(), device or find_device("T4")
    paths = os.pathsep.join([str(SOURCE), *_packages_missing_there(python.python)])
    variables = {**environment(runtime_for(python), card), "WILLFIT_GPU_LIMIT": str(card.capacity)}
    variables |= {"PYTHONPATH": paths, **(more or {})}
    for name in ("WILLFIT_CUDA_PYTHON", "WILLFIT"):  # that Python is the one that runs, and guards are to be tested
        variables.pop(name, None)
    command = [python.python, *arguments]
    ran = subprocess.run(command, env=variables, capture_output=True, text=True, check=False, timeout=600)
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
