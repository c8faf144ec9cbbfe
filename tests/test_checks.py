"""``willfit check`` of a project's targets, in every format. The bytes are those of arithmetic on one linear layer."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from willfit.cli import main

SIDE = 4096
WEIGHT = SIDE * SIDE * 4  # 64 MiB
JOB = f"""
import torch


def step(model, optimizer, batch):
    model(batch).sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def build():
    model = torch.nn.Linear({SIDE}, {SIDE}, bias=False, device="meta")
    return model, torch.optim.SGD(model.parameters(), lr=0.1), torch.zeros(8, {SIDE}), step


def raising():
    raise ValueError("no data, 100% sure")


def leaving():
    def step(model, optimizer, batch):
        raise SystemExit(4)

    return *build()[:3], step
"""


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("GITHUB_STEP_SUMMARY", "GITHUB_WORKSPACE"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "train.py").write_text(JOB)
    return tmp_path


def write(*targets: dict[str, Any], to: str = "pyproject.toml") -> None:
    tables = [
        "[[tool.willfit.target]]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in target.items())
        for target in targets
    ]
    Path(to).write_text("\n".join(tables))


def checks(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    main(["check", "--format", "json"])
    found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)["checks"]
    return found


FITS = {"name": "good", "entry": "train.py:build", "on": ["T4", "A100-40GB"]}
TOO_LARGE = {"name": "large", "entry": "train.py:build", "on": "1 GiB", "capacity": "100 MiB"}
RAISING = {"name": "raising", "entry": "train.py:raising", "on": "T4"}


def test_a_limit_holds_to_the_byte_of_the_peak_it_names(capsys: pytest.CaptureFixture[str]) -> None:
    write(FITS)
    peak = checks(capsys)[0]["peak_allocated"]
    assert 2 * WEIGHT < peak < 2.2 * WEIGHT + 2**24  # weights and gradients; inputs, outputs, cuBLAS's workspace
    limited = [
        {**FITS, "name": name, "peak": "allocated", "limit": limit, "on": "T4"}
        for name, limit in (("at", peak), ("below", peak - 1))
    ]
    write(*limited)
    found = checks(capsys)
    assert [check["outcome"] for check in found] == ["fits", "over the limit"]
    assert "(allocated) on T4, 1 B over the limit of " in found[1]["reason"]


def test_each_gpu_is_a_check_and_a_method_changes_the_job(capsys: pytest.CaptureFixture[str]) -> None:
    write(FITS, {**FITS, "name": "half", "method": "bf16-autocast", "on": "A100-40GB"})
    assert main(["check"]) == 2  # no such method: says which there are
    said = " ".join(capsys.readouterr().out.split())
    methods = re.search(r"there are (full[^.]*)", said)
    assert methods is not None, said
    other = next(name.strip() for name in methods[1].split(",")[1:])
    write(FITS, {**FITS, "name": "other", "method": other.split()[0], "on": "A100-40GB"})
    found = checks(capsys)
    assert [(check["name"], check["device"]) for check in found[:2]] == [("good", "T4"), ("good", "A100-40GB")]
    assert found[2]["required"] != found[1]["required"]


@pytest.mark.parametrize(
    ("targets", "code"),
    [
        ([FITS], 0),
        ([FITS, TOO_LARGE], 1),
        ([RAISING, TOO_LARGE], 1),
        ([RAISING, FITS], 2),
        ([{**FITS, "entry": "train.py:leaving"}], 3),
        ([{**FITS, "on": "no such GPU"}], 2),
    ],
)
def test_exit_codes(targets: list[dict[str, Any]], code: int) -> None:
    write(*targets)
    assert main(["check"]) == code


def test_one_target_that_fails_keeps_no_other_from_its_check(capsys: pytest.CaptureFixture[str]) -> None:
    write(RAISING, FITS)
    assert [check["outcome"] for check in checks(capsys)] == ["could not be predicted", "fits", "fits"]


def test_targets_are_found_from_a_folder_below(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(FITS)
    (project / "docs").mkdir()
    monkeypatch.chdir(project / "docs")
    assert main(["check"]) == 0
    assert Path.cwd() == project / "docs"


def test_only_what_a_change_concerns_is_checked(capsys: pytest.CaptureFixture[str]) -> None:
    write(TOO_LARGE)
    assert main(["check", "--changed", "README.md"]) == 0
    assert "no target depends on what was changed" in capsys.readouterr().err
    assert main(["check", "--changed", "README.md", "train.py"]) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["check"], "no TARGET was given, and there is no pyproject.toml here or above"),
        (["check", "--on", "T4"], "--on is for one TARGET, and none was given"),
        (["check", "--steps", "2"], "--steps is for one TARGET"),
        (["check", "train.py:build", "--changed", "a"], "--changed is for the targets of pyproject.toml"),
        (["check", "train.py:build", "--on", "T4", "--format", "junit", "--advise"], "--advise is for --format text"),
    ],
)
def test_options_that_do_not_go_together(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("willfit._commands.targets.find", lambda directory: None)
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


# -- formats -----------------------------------------------------------------------------------------------------------


def test_text_says_what_is_wrong_in_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    write(FITS, TOO_LARGE, RAISING)
    main(["check"])
    out = capsys.readouterr().out
    assert out.startswith("2 of 4 checks failed\n")
    assert max(map(len, out.splitlines())) <= 80
    assert "Memory runs out in the " in out
    assert 'raise ValueError("no data, 100% sure")' in out


def unescaped(text: str) -> str:
    for written, meant in (("%0A", "\n"), ("%0D", "\r"), ("%3A", ":"), ("%2C", ","), ("%25", "%")):
        text = text.replace(written, meant)
    return text


def test_github_gets_annotations_and_a_summary(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(FITS, TOO_LARGE, RAISING)
    summary = project / "summary.md"
    summary.write_text("from a step before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    main(["check", "--format", "github"])
    commands = [line for line in capsys.readouterr().out.splitlines() if line.startswith("::")]
    parts = [re.fullmatch(r"::(\w+) file=(.*),line=(\d+),title=([^,:]*)::(.*)", command) for command in commands]
    assert [part and part[1] for part in parts] == ["error", "error"]
    large, raising = (part.groups() for part in parts if part)
    lines = JOB.splitlines()
    assert large[1] == "train.py"
    assert lines[int(large[2]) - 1].startswith("def build()")
    assert lines[int(raising[2]) - 1].startswith("def raising()")
    assert unescaped(large[3]) == "willfit: large does not fit"
    assert "no data, 100% sure" in unescaped(raising[4])
    text = summary.read_text()
    assert text.startswith("from a step before\n### willfit\n")
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 4
    assert {row.count("|") for row in rows} == {8}


def test_the_file_of_an_annotation_counts_from_the_top_of_the_repository(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(TOO_LARGE)
    monkeypatch.setenv("GITHUB_WORKSPACE", str(project.parent))
    main(["check", "--format", "github"])
    assert f"::error file={project.name}/train.py,line=" in capsys.readouterr().out


def test_junit(capsys: pytest.CaptureFixture[str]) -> None:
    write(FITS, TOO_LARGE, RAISING)
    main(["check", "--format", "junit"])
    suites = ElementTree.fromstring(capsys.readouterr().out)
    (suite,) = suites
    assert suite.attrib.items() >= {"tests": "4", "failures": "1", "errors": "1", "skipped": "0"}.items()
    cases = {(case.get("classname"), case.get("name")): case for case in suite}
    assert cases["large", "full on 1 GiB"].find("failure") is not None
    assert cases["raising", "full on T4"].find("error") is not None
    good = cases["good", "full on T4"]
    assert [child.tag for child in good] == ["properties"]
    properties = {each.get("name"): each.get("value") for each in good[0]}
    assert int(properties["willfit.peak_allocated"] or 0) > 2 * WEIGHT


def test_sarif_has_what_code_scanning_requires(capsys: pytest.CaptureFixture[str]) -> None:
    write(FITS, TOO_LARGE, RAISING)
    main(["check", "--format", "sarif"])
    log = json.loads(capsys.readouterr().out)
    assert log["version"] == "2.1.0"
    (run,) = log["runs"]
    rules = run["tool"]["driver"]["rules"]
    results = run["results"]
    assert [result["ruleId"] for result in results] == ["does-not-fit", "could-not-be-predicted"]
    for result in results:
        assert rules[result["ruleIndex"]]["id"] == result["ruleId"]
        location = result["locations"][0]["physicalLocation"]
        assert location["artifactLocation"]["uri"] == "train.py"
        assert location["region"]["startLine"] > 1
        assert result["message"]["text"]
    assert len({tuple(result["partialFingerprints"].items()) for result in results}) == 2


def test_one_target_of_the_command_line_has_the_formats_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "train.py:build", "--on", "T4", "--capacity", "100 MiB", "--format", "sarif"]) == 1
    assert json.loads(capsys.readouterr().out)["runs"][0]["results"][0]["ruleId"] == "does-not-fit"
    assert main(["check", "train.py:build", "--on", "T4", "--format", "github"]) == 0
    assert "::" not in capsys.readouterr().out
