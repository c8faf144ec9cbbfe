"""The workflow of examples/ci, tested by running its steps as a runner does, in a copy of the project."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import willfit

EXAMPLE = Path(__file__).parent.parent / "examples" / "ci"
SOURCE = Path(willfit.__file__).parent.parent


@pytest.fixture
def project(tmp_path: Path) -> Path:
    shutil.copytree(EXAMPLE, tmp_path / "project")
    program = tmp_path / "bin" / "willfit"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m willfit "$@"\n')
    program.chmod(0o755)
    return tmp_path / "project"


def steps() -> list[dict[str, Any]]:
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    workflow = yaml.safe_load((EXAMPLE / "willfit.yml").read_text(encoding="utf-8"))
    (job,) = workflow["jobs"].values()
    assert job["runs-on"] == "ubuntu-latest"
    found: list[dict[str, Any]] = job["steps"]
    return found


def run(project: Path, step: str) -> subprocess.CompletedProcess[str]:
    """As a runner runs it: ``bash -e`` with the files and variables that GitHub gives."""
    (command,) = [each["run"] for each in steps() if each.get("name") == step]
    environment = {
        **os.environ,
        "PATH": f"{project.parent / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(SOURCE),
        "CUDA_VISIBLE_DEVICES": "",
        "CI": "true",
        "GITHUB_ACTIONS": "true",
        "GITHUB_WORKSPACE": str(project),
        "GITHUB_STEP_SUMMARY": str(project.parent / "summary.md"),
    }
    arguments = ["bash", "-e", "-c", command]
    return subprocess.run(
        arguments, cwd=project, env=environment, capture_output=True, text=True, check=False, timeout=300
    )


def test_the_workflow_installs_what_it_uses() -> None:
    (install,) = [step["run"] for step in steps() if step.get("name") == "Install"]
    assert " torch==2.13.0 " in install
    assert '"willfit[quantized]"' in install, "adamw8bit is of bitsandbytes"


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
def test_the_steps_pass_and_then_fail_when_the_job_grows(project: Path) -> None:
    ran = run(project, "Check")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout.startswith("3 checks passed\n")
    assert "::error" not in ran.stdout
    summary = project.parent / "summary.md"
    assert summary.read_text().count("\N{WHITE HEAVY CHECK MARK}") == 3

    train = project / "train.py"
    grown = train.read_text().replace("words: int = 20_000", "words: int = 400_000")
    assert grown != train.read_text()
    train.write_text(grown)  # 0.8 GB of embedding, its gradient and two states of AdamW's: more than 2 GiB
    ran = run(project, "Check")
    assert ran.returncode == 1
    line = next(number for number, text in enumerate(grown.splitlines(), 1) if text.startswith("def build("))
    assert f"::error file=train.py,line={line},title=willfit%3A tagger over the limit::" in ran.stdout
    assert "over the limit" in summary.read_text()
    ran = run(project, "Write SARIF")
    assert ran.returncode == 0, ran.stderr
    results = json.loads((project / "willfit.sarif").read_text())["runs"][0]["results"]
    assert [result["ruleId"] for result in results] == ["over-the-limit", "over-the-limit"]
