"""Both pre-commit hooks, under the real pre-commit program, in a scratch repository."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import willfit
from willfit._precommit import main

SOURCE = Path(willfit.__file__).parent
ROOT = Path(__file__).parent.parent
HOOKS = ROOT / ".pre-commit-hooks.yaml"

pytestmark = [
    pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed"),
    pytest.mark.skipif(not HOOKS.exists(), reason="the hooks are in a checkout alone, and this is none"),
]
with_precommit = pytest.mark.skipif(find_spec("pre_commit") is None, reason="pre-commit is not installed")


def baselines(required: int = 300, **more: Any) -> str:
    entry = {
        "fingerprint": {"torch": "2.13.0", "device": "T4"},
        "peak_at": "backward of step 1",
        "peak_allocated": 100,
        "peak_reserved": 200,
        "required": required,
        "roles": {"parameters": {"blocks.*.mlp": 60}, "activations": {"head": 40}},
        **more,
    }
    return json.dumps({"schema": 1, "tests": {"test_fits": {"check": [entry]}}})


def target(limit: str = '"12 GiB"', entry: str = "train.py:build") -> str:
    return f'[[tool.willfit.target]]\nname = "tune"\nentry = "{entry}"\non = "T4"\nlimit = {limit}\n'


Git = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Git:
    """A scratch repository, which is the working directory, with a first commit."""
    for name, value in {
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_NOSYSTEM": "1",
        **{f"GIT_{who}_{what}": "someone@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
    }.items():
        monkeypatch.setenv(name, value)
    for name in ("PRE_COMMIT_FROM_REF", "GIT_DIR", "GIT_INDEX_FILE", "GIT_WORK_TREE"):
        monkeypatch.delenv(name, raising=False)
    here = tmp_path / "project"
    here.mkdir()
    monkeypatch.chdir(here)

    def run(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        ran = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
        assert ran.returncode == 0 or not check, ran.stdout + ran.stderr
        return ran

    run("init", "--quiet", "--initial-branch=main")
    for name, text in {
        "tests/test_memory.willfit.json": baselines(),
        "pyproject.toml": target(),
        "CHANGELOG.md": "# Changelog\n",
    }.items():
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(text)
    run("add", ".")
    run("commit", "--quiet", "--message=first")
    return run


BASELINE = "tests/test_memory.willfit.json"


def hook(*files: str) -> int:
    return main(list(files or (BASELINE, "pyproject.toml")))


# -- the hook itself ---------------------------------------------------------------------------------------------------


def test_what_did_not_change_is_well(git: Git, capsys: pytest.CaptureFixture[str]) -> None:
    assert hook() == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        (BASELINE, "{", f"{BASELINE}: is no file of baselines: "),
        (BASELINE, baselines(peak_allocated=101), "the roles add up to 100, not to the peak_allocated of 101"),
        (BASELINE, baselines(required=-1), "-1 is no size in bytes"),
        (BASELINE, "<<<<<<< ours\n" + baselines(), "it has the marks of a merge conflict"),
        (
            "pyproject.toml",
            target(limit='"12 G"'),
            "target 1 (tune) of [tool.willfit]: limit '12 G' has",
        ),
        ("pyproject.toml", "[tool.willfit\n", "pyproject.toml is not TOML"),
    ],
)
def test_what_is_not_well_formed_is_named(
    git: Git, capsys: pytest.CaptureFixture[str], file: str, text: str, message: str
) -> None:
    Path(file).write_text(text)
    assert hook() == 1
    assert message.replace("pyproject.toml is", "pyproject.toml: is") in capsys.readouterr().out


RAISED = {
    "a baseline": (BASELINE, baselines(required=301), "test_fits check: required was 300 B and is 301 B"),
    "a limit": ("pyproject.toml", target('"13 GiB"'), "tune was 12.00 GiB (required) and is 13.00 GiB (required)"),
    "no limit": ("pyproject.toml", target().partition("limit")[0], "tune has no limit any more: it was 12.00 GiB"),
    "another peak": ("pyproject.toml", target() + 'peak = "allocated"', "and is 12.00 GiB (allocated)"),
}


@pytest.mark.parametrize(("file", "text", "message"), RAISED.values(), ids=RAISED)
def test_a_budget_is_raised_with_a_line_in_the_changelog_only(
    git: Git, capsys: pytest.CaptureFixture[str], file: str, text: str, message: str
) -> None:
    Path(file).write_text(text)
    assert hook() == 1
    out = capsys.readouterr().out
    assert message in out
    assert "a budget was raised, and CHANGELOG.md has no new line" in out
    Path("CHANGELOG.md").write_text("# Changelog\n\n")
    assert hook() == 1, "an empty line says nothing"
    Path("CHANGELOG.md").write_text("# Changelog\n\n- Wider layers.\n")
    assert hook() == 0


@pytest.mark.parametrize(
    ("file", "text"),
    [
        (BASELINE, baselines(required=299)),
        ("pyproject.toml", target('"11 GiB"')),
        ("pyproject.toml", "[project]\nname = 'a'\n"),
        ("new.willfit.json", baselines()),
    ],
    ids=["a lower baseline", "a lower limit", "no target any more", "a new file"],
)
def test_nothing_else_needs_one(git: Git, file: str, text: str) -> None:
    Path(file).write_text(text)
    assert hook(file) == 0


def test_a_baseline_of_another_version_is_held_to_the_highest_there_was(git: Git) -> None:
    other = {"torch": "2.14.0", "device": "T4"}
    Path(BASELINE).write_text(baselines(fingerprint=other))
    assert hook() == 0
    Path(BASELINE).write_text(baselines(required=301, fingerprint=other))
    assert hook() == 1


def test_before_the_first_commit_nothing_is_raised(git: Git, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "new").mkdir()
    monkeypatch.chdir(tmp_path / "new")
    git("init", "--quiet")
    Path("pyproject.toml").write_text(target())
    assert hook("pyproject.toml") == 0


# -- under pre-commit --------------------------------------------------------------------------------------------------


@pytest.fixture
def hooks(tmp_path: Path, git: Git, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository as pre-commit clones willfit's, and a config that takes both hooks from it."""
    copy = tmp_path / "willfit"
    shutil.copytree(SOURCE, copy / "src" / "willfit", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "hooks", copy / "hooks", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(HOOKS, copy)
    git("-C", str(copy), "init", "--quiet")
    git("-C", str(copy), "add", ".")
    git("-C", str(copy), "commit", "--quiet", "--message=hooks")
    revision = git("-C", str(copy), "rev-parse", "HEAD").stdout.strip()
    both = "[{id: willfit-baseline}, {id: willfit-check}]"
    Path(".pre-commit-config.yaml").write_text(f"repos:\n- repo: {copy.as_uri()}\n  rev: {revision}\n  hooks: {both}\n")
    program = tmp_path / "bin" / "willfit"  # as the project's own environment has it
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m willfit "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(SOURCE.parent))
    monkeypatch.setenv("PRE_COMMIT_HOME", str(tmp_path / "cache"))
    return copy


def precommit(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pre_commit", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


@with_precommit
def test_the_baseline_hook_runs_on_a_commit_and_needs_no_torch(hooks: Path, git: Git, tmp_path: Path) -> None:
    bare = tmp_path / "bin" / "python3"  # a Python with nothing installed is what the hook has to do with
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')
    bare.chmod(0o755)
    ran = precommit("install", "--hook-type=pre-commit", "--hook-type=pre-push")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    Path(BASELINE).write_text(baselines(required=400))
    git("add", ".")
    refused = git("commit", "--message=raise", check=False)
    assert refused.returncode == 1
    assert "required was 300 B and is 400 B" in refused.stdout + refused.stderr
    assert "willfit check" not in refused.stdout + refused.stderr, "that one waits for the push"
    Path("CHANGELOG.md").write_text("# Changelog\n\n- Wider layers.\n")
    git("add", ".")
    git("commit", "--message=raise, and say why")
    assert "raise, and say why" in git("log", "-1", "--format=%s").stdout
    assert not list((hooks / "src").rglob("__pycache__"))


JOB = """
import torch
from nets import SIDE


def step(model, optimizer, batch):
    model(batch).sum().backward()
    optimizer.step()


def build():
    model = torch.nn.Linear(SIDE, SIDE, device="meta")
    return model, torch.optim.SGD(model.parameters()), torch.zeros(1, SIDE), step
"""


@with_precommit
def test_the_check_hook_runs_on_a_push_that_changes_a_targets_files(hooks: Path, git: Git, tmp_path: Path) -> None:
    git("init", "--quiet", "--bare", str(tmp_path / "remote.git"))
    git("remote", "add", "origin", str(tmp_path / "remote.git"))
    Path("train.py").write_text(JOB)
    Path("nets.py").write_text("SIDE = 64\n")
    Path("pyproject.toml").write_text(target('"1 GiB"'))
    git("add", ".")
    git("commit", "--quiet", "--message=a job")
    git("push", "--quiet", "origin", "main")
    precommit("install", "--hook-type=pre-push")

    def push(file: str, text: str) -> str:
        Path(file).write_text(text)
        git("add", ".")
        git("commit", "--quiet", "--no-verify", f"--message={file}")
        pushed = git("push", "origin", "main", check=False)
        return f"{pushed.returncode} {pushed.stdout}{pushed.stderr}"

    said = push("notes.txt", "nothing of the job's\n")
    assert said.startswith("0 "), said
    said = push("nets.py", "SIDE = 30_000\n")  # 3.4 GiB of weights
    assert said.startswith("1 "), said
    assert "1 of 1 check failed" in said
    assert "over the limit of 1.00 GiB" in said
    said = push("nets.py", "SIDE = 128\n")
    assert said.startswith("0 "), said
