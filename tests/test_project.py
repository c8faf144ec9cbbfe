"""``[[tool.willfit.target]]`` in pyproject.toml: what is read, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import willfit
from willfit._changed import changed
from willfit._project import Target, find, parse

ENTRY = '[[tool.willfit.target]]\nentry = "train.py:build"\n'


def test_a_target_has_what_its_table_says_and_defaults() -> None:
    text = f'{ENTRY}on = ["T4", "24 GiB"]\nname = "tune"\nlimit = "1 GiB"\npeak = "allocated"\n'
    text += 'method = "lora + checkpointing"'
    assert parse(text) == (
        Target(
            entry="train.py:build",
            on=("T4", "24 GiB"),
            name="tune",
            limit=2**30,
            peak="allocated",
            method="lora+checkpointing",
        ),
    )
    (target,) = parse(f'{ENTRY}on = "T4"')
    assert (target.name, target.limit, target.method, target.steps) == ("train.py:build", None, "full", 3)


@pytest.mark.parametrize("text", ["", "[project]\nname = 'a'", "[tool.ruff]\nline-length = 100", "[tool.willfit]"])
def test_a_project_without_targets_has_none(text: str) -> None:
    assert parse(text) == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (ENTRY, r"target 1 \(train.py:build\) of \[tool.willfit\] has no 'on'"),
        ('[[tool.willfit.target]]\non = "T4"', "target 1 of .* has no 'entry'"),
        (f'{ENTRY}on = "T4"\nlimt = 1', "has an unknown key 'limt': there are entry, on, name, limit"),
        (f'{ENTRY}on = "T4"\nlimit = "6 G"', r"limit '6 G' has no unit .*: did you mean \"6 GiB\" or \"6 GB\"\?"),
        (f'{ENTRY}on = "T4"\nlimit = -1', "limit must be at least one byte: found -1"),
        (f"{ENTRY}on = []", "on names no GPU"),
        (f"{ENTRY}on = true", "on must be the name of a GPU .*: found True"),
        (f'{ENTRY}on = "T4"\nmethod = "lora+"', "method must be names joined by .*: found 'lora\\+'"),
        (f'{ENTRY}on = "T4"\nsteps = 0', "steps must be a number of optimizer steps, 1 or more: found 0"),
        (f'{ENTRY}on = "T4"\npeak = "cached"', "peak must be one of required, reserved, allocated: found 'cached'"),
        (f'{ENTRY}on = "T4"\nengine = "real"', "engine must be one of symbolic, emulated: found 'real'"),
        (f'{ENTRY}on = "T4"\nfiles = "a.py"', "files must be a list of patterns: found 'a.py'"),
        ('[[tool.willfit.target]]\nentry = "train.py"\non = "T4"', "entry must be as in .*: found 'train.py'"),
        (f'{ENTRY}on = "T4"\n{ENTRY}on = "L4"', "two targets .* are called 'train.py:build': name them apart"),
        ('[tool.willfit]\ntarget = "train.py:build"', r"write each under \[\[tool.willfit.target\]\]"),
        ('[tool.willfit]\non = "T4"', "has an unknown key 'on': there is only target"),
        ("[tool]\nwillfit = 1", "tool.willfit must be a table: found 1"),
        ("[[tool.willfit.target]", "pyproject.toml is not TOML: .*line 1"),
    ],
)
def test_what_cannot_be_is_refused_and_named(text: str, message: str) -> None:
    with pytest.raises(willfit.UsageError, match=message):
        parse(text)


def test_the_nearest_pyproject_counts(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").touch()
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    assert find(inner) == tmp_path / "pyproject.toml"
    (tmp_path / "a" / "pyproject.toml").touch()
    assert find(inner) == tmp_path / "a" / "pyproject.toml"


def test_reading_targets_needs_the_standard_library_alone() -> None:
    code = "import sys; before = set(sys.modules); import willfit._project; print(*sorted({name.partition('.')[0] "
    code += "for name in set(sys.modules) - before} - sys.stdlib_module_names))"
    source = str(Path(willfit.__file__).parent.parent)
    ran = subprocess.run(
        [sys.executable, "-S", "-I", "-c", f"import sys; sys.path.append({source!r}); {code}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout.split() == ["willfit"]


# -- what a change concerns --------------------------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name, text in {
        "train.py": "import torch, nets\n\ndef build(): ...\n",
        "nets.py": "from pkg.layers import Layer\n",
        "pkg/__init__.py": "",
        "pkg/layers.py": "class Layer: ...\n",
        "src/app/__init__.py": "",
        "src/app/train.py": "from . import data\n",
        "src/app/data.py": "",
        "broken.py": "def build(:\n",
        "pyproject.toml": "",
    }.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return tmp_path


SCRIPT = Target(entry="train.py:build", on=("T4",), name="script", files=("configs/*.yaml",))
MODULE = Target(entry="app.train:build", on=("T4",), name="module")
BROKEN = Target(entry="broken.py:build", on=("T4",), name="broken")


@pytest.mark.parametrize(
    ("file", "names"),
    [
        ("train.py", ["script"]),
        ("nets.py", ["script"]),
        ("pkg/layers.py", ["script"]),
        ("configs/large.yaml", ["script"]),
        ("src/app/train.py", ["module"]),
        ("src/app/data.py", ["module"]),
        ("broken.py", ["broken"]),
        ("pyproject.toml", ["script", "module", "broken"]),
        ("README.md", []),
        ("other/nets.py", []),
    ],
)
def test_a_change_concerns_the_targets_that_import_the_file(project: Path, file: str, names: list[str]) -> None:
    assert [target.name for target in changed((SCRIPT, MODULE, BROKEN), [file], project)] == names


def test_nothing_changed_concerns_no_target(project: Path) -> None:
    assert changed((SCRIPT,), [], project) == ()
