"""Which Python has the CUDA build: what is said where there is none."""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from willfit import UnavailableError
from willfit._emulator import interpreter
from willfit._emulator.interpreter import VARIABLE, cuda_interpreter


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    interpreter._look.cache_clear()
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv(VARIABLE, raising=False)


def python_with(tmp_path: Path, version_py: str | None) -> str:
    """An executable that runs this Python with a package called torch of its own."""
    site = tmp_path / "site"
    if version_py is not None:
        (site / "torch" / "lib").mkdir(parents=True)
        (site / "torch" / "__init__.py").touch()
        (site / "torch" / "version.py").write_text(version_py)
        (site / "torch" / "lib" / "libtorch_cuda.so").touch()
    site.mkdir(exist_ok=True)
    executable = tmp_path / "python"
    executable.write_text(f'#!/bin/sh\nPYTHONPATH={site} exec {sys.executable} -S "$@"\n')
    executable.chmod(0o755)
    return str(executable)


@pytest.mark.skipif(sys.platform == "win32", reason="the executable is a shell script")
class TestNamed:
    def test_a_build_for_cuda_is_described(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        python = python_with(tmp_path, "__version__ = '2.13.0+cu130'\ncuda = '13.0'\nhip = None\n")
        monkeypatch.setenv(VARIABLE, python)
        found = cuda_interpreter()
        assert (found.torch, found.cuda, found.version) == ("2.13.0+cu130", "13.0", sys.version_info[:2])
        assert [path.name for path in found.libraries] == ["libtorch_cuda.so"]
        assert not found.is_this_one

    @pytest.mark.parametrize(
        ("version_py", "says"),
        [
            ("__version__ = '2.13.0+cpu'\ncuda = None\nhip = None\n", "built for the CPU"),
            ("__version__ = '2.13.0+rocm7'\ncuda = None\nhip = '7.0'\n", "built for ROCm"),
            ("__version__ = '2.6.0+cu118'\ncuda = '11.8'\nhip = None\n", "stands in for CUDA 12 and 13"),
            ("__version__ = '3.0.0+cu140'\ncuda = '14.0'\nhip = None\n", "stands in for CUDA 12 and 13"),
            (None, "has no PyTorch"),
        ],
    )
    def test_others_are_refused_by_name(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version_py: str | None, says: str
    ) -> None:
        python = python_with(tmp_path, version_py)
        monkeypatch.setenv(VARIABLE, python)
        with pytest.raises(UnavailableError, match=says) as caught:
            cuda_interpreter()
        assert python in str(caught.value)

    def test_one_that_is_not_there(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(VARIABLE, "/nowhere/python")
        with pytest.raises(UnavailableError, match="WILLFIT_CUDA_PYTHON=/nowhere/python cannot be asked"):
            cuda_interpreter()

    def test_one_that_fails_says_why(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        python = python_with(tmp_path, "raise ValueError('broken wheel')")
        monkeypatch.setenv(VARIABLE, python)
        with pytest.raises(UnavailableError, match="ValueError: broken wheel"):
            cuda_interpreter()


def test_other_systems_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(UnavailableError, match="needs Linux, and this is darwin"):
        cuda_interpreter()


def test_this_python_is_asked_where_none_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    own = subprocess.run

    def run(command: list[str], **options: object) -> object:
        asked.append(command[0])
        return own(command, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(subprocess, "run", run)
    with suppress(UnavailableError):  # where it is built for the CPU
        assert cuda_interpreter().is_this_one
    assert asked == [sys.executable]


@pytest.mark.skipif(torch.version.cuda is not None, reason="this PyTorch is built for CUDA")
def test_a_build_for_the_cpu_is_told_what_to_do() -> None:
    with pytest.raises(UnavailableError, match=r"built for the CPU.*pip install torch.*with WILLFIT_CUDA_PYTHON"):
        cuda_interpreter()
