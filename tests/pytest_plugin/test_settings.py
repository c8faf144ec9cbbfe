"""Marker before command line before environment before ini file, and what each of them refuses."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
from toy import JOB

from willfit._pytest.settings import Settings, resolve
from willfit._pytest.tolerance import parse_tolerance

DEFAULTS = Settings()
GIB = 2**30


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)


def settings(pytester: pytest.Pytester, *arguments: str) -> Any:
    return resolve(pytester.parseconfig(*arguments))


def test_without_a_word(pytester: pytest.Pytester) -> None:
    run = settings(pytester)
    assert run.check == DEFAULTS
    assert (run.update, run.json, run.summary, run.junit, run.cap_workers) == ("", None, None, True, False)


# name, what the command line says (None: it has no such option), the environment, the ini file, and what they mean
VALUES: list[tuple[str, str | None, str, str, tuple[Any, Any, Any]]] = [
    ("on", "T4", "A10", "24 GiB", ("T4", "A10", "24 GiB")),
    ("limit", "3 GiB", "2 GiB", "1GiB", (3 * GIB, 2 * GIB, GIB)),
    ("peak", None, "allocated", "reserved", (None, "allocated", "reserved")),
    ("tolerance", "total:3%", "2%", "1%", tuple(map(parse_tolerance, ("total:3%", "2%", "1%")))),
    ("steps", None, "2", "1", (None, 2, 1)),
    ("baseline", "", "1", "true", (True, True, True)),
]


@pytest.mark.parametrize(("name", "option", "variable", "ini", "meant"), VALUES, ids=[value[0] for value in VALUES])
def test_the_command_line_goes_before_the_environment_before_the_ini_file(
    pytester: pytest.Pytester,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    option: str | None,
    variable: str,
    ini: str,
    meant: tuple[Any, Any, Any],
) -> None:
    pytester.makeini(f"[pytest]\nwillfit_{name} = {ini}\n")
    assert getattr(settings(pytester).check, name) == meant[2]
    monkeypatch.setenv(f"WILLFIT_PYTEST_{name.upper()}", variable)
    assert getattr(settings(pytester).check, name) == meant[1]
    if option is not None:
        said = f"--willfit-{name}={option}" if option else f"--willfit-{name}"
        assert getattr(settings(pytester, said).check, name) == meant[0]


def test_false_goes_before_true_as_well(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    pytester.makeini("[pytest]\nwillfit_baseline = true\nwillfit_junit = false\n")
    assert settings(pytester).check.baseline
    assert not settings(pytester).junit
    monkeypatch.setenv("WILLFIT_PYTEST_BASELINE", "off")
    assert not settings(pytester).check.baseline


def test_the_marker_goes_before_all(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WILLFIT_PYTEST_STEPS", "1")
    pytester.makepyfile(
        JOB
        + """
@pytest.mark.willfit(on=TOY, steps=2)
def test_marked(willfit):
    footprint = willfit.check(*job, loss=loss)
    assert (footprint.device, footprint.steps) == (TOY, 2)

@pytest.mark.willfit(on=None, limit="1 GiB", steps=None)
def test_as_if_nothing_was_said(willfit, monkeypatch):
    monkeypatch.setattr("willfit._device_here.current_device", lambda: None)
    footprint = willfit.check(*job, loss=loss)
    assert (footprint.device, footprint.steps) == (None, 3)

def test_unmarked(willfit):
    footprint = willfit.predict(*job, loss=loss)
    assert (footprint.device.name, footprint.steps) == ("T4", 1)
    assert willfit.predict(*job, loss=loss, on=TOY, steps=3).steps == 3
"""
    )
    pytester.runpytest("--willfit-on=T4").assert_outcomes(passed=3)


@pytest.mark.parametrize(
    ("where", "said", "message"),
    [
        ("option", "--willfit-limit=3 G", "--willfit-limit: limit '3 G' has no unit that willfit takes*"),
        ("option", "--willfit-on=T5", "--willfit-on: 'T5' is no GPU that willfit knows*"),
        ("option", "--willfit-tolerance=loss:1%", "--willfit-tolerance: tolerance 'loss:1%' is for no role*"),
        ("option", "--willfit-summary=-1", "--willfit-summary: summary must be a number of footprints, 0 or more*"),
        ("variable", "steps=x", "WILLFIT_PYTEST_STEPS in the environment: steps must be a number*: found 'x'"),
        ("variable", "baseline=maybe", "WILLFIT_PYTEST_BASELINE in the environment: baseline must be true or false*"),
        ("ini", "verbosity_willfit = x", "verbosity_willfit in tox.ini must be a number, or auto: *'x'"),
        (
            "ini",
            "willfit_peak = free",
            "willfit_peak in tox.ini: peak must be one of required, reserved, allocated: found*",
        ),
        ("ini", "willfit_steps = x", "willfit_steps in tox.ini: *'x'*"),
        ("ini", "willfit_cap_workers = 7", "willfit_cap_workers in tox.ini: *7*"),
    ],
)
def test_what_cannot_be_is_refused_with_its_place(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, where: str, said: str, message: str
) -> None:
    if where == "ini":
        pytester.makeini(f"[pytest]\n{said}\n")
    elif where == "variable":
        name, _, value = said.partition("=")
        monkeypatch.setenv(f"WILLFIT_PYTEST_{name.upper()}", value)
    result = pytester.runpytest(*([said] if where == "option" else []))
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: {message}"])


def test_both_kinds_of_update_are_too_many(pytester: pytest.Pytester) -> None:
    result = pytester.runpytest("--willfit-update", "--willfit-update-new-only")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: --willfit-update and --willfit-update-new-only are both given*"])


@pytest.mark.parametrize(("value", "is_ci"), [("true", True), ("1", True), ("", False), ("false", False), ("0", False)])
def test_ci(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, value: str, is_ci: bool) -> None:
    monkeypatch.setenv("CI", value)
    assert settings(pytester).is_ci is is_ci


@pytest.mark.skipif(pytest.version_tuple < (9,), reason="pytest reads native TOML from 9 on")
def test_native_toml(pytester: pytest.Pytester) -> None:
    pytester.makepyprojecttoml(
        """
[tool.pytest]
willfit_on = "T4"
willfit_limit = "14 GiB"
willfit_steps = 2
willfit_summary = 5
willfit_baseline = true
willfit_tolerance = ["total:2%", "activations:64MiB"]
willfit_cap_workers = true
verbosity_willfit = 2
"""
    )
    run = settings(pytester)
    assert run.check == Settings(
        on="T4",
        limit=14 * GIB,
        steps=2,
        baseline=True,
        tolerance=parse_tolerance("total:2%, activations:64MiB"),
    )
    assert (run.summary, run.cap_workers) == (5, True)


def test_toml_in_the_old_way(pytester: pytest.Pytester) -> None:
    pytester.makepyprojecttoml(
        """
[tool.pytest.ini_options]
willfit_on = "T4"
willfit_steps = "2"
willfit_tolerance = "total:2%"
"""
    )
    check = settings(pytester).check
    assert (check.on, check.steps, check.tolerance) == ("T4", 2, parse_tolerance("total:2%"))


def test_options_are_few_prefixed_and_without_a_default(pytester: pytest.Pytester) -> None:
    parser = pytester.parseconfig()._parser.optparser
    own = [action for action in parser._actions if any("willfit" in name for name in action.option_strings)]
    assert isinstance(parser, argparse.ArgumentParser)
    assert 1 < len(own) <= 8
    assert all(name.startswith("--willfit-") for action in own for name in action.option_strings)
    assert {action.default for action in own} == {None}


def test_help_is_there_for_every_setting(pytester: pytest.Pytester) -> None:
    shown = pytester.runpytest("--help").stdout.str()
    for name in ("on", "limit", "tolerance", "json", "summary", "baseline", "update", "update-new-only"):
        assert f"--willfit-{name}" in shown
    for name in ("on", "limit", "peak", "tolerance", "steps", "baseline", "json", "summary", "junit", "cap_workers"):
        assert f"willfit_{name} (" in shown or f"willfit_{name}:" in shown or f"willfit_{name} " in shown
    assert "verbosity_willfit" in shown


def test_the_documentation_has_every_setting(pytester: pytest.Pytester) -> None:
    text = (Path(__file__).parents[2] / "docs" / "pytest.md").read_text(encoding="utf-8")
    parser = pytester.parseconfig()._parser
    options = [name for action in parser.optparser._actions for name in action.option_strings if "willfit" in name]
    inis = [name for name in parser._inidict if "willfit" in name]
    assert len(options) == 8
    assert len(inis) == 11
    for name in (*options, *inis):
        assert name in text
    for name in inis:
        assert name == "verbosity_willfit" or f"WILLFIT_PYTEST_{name.removeprefix('willfit_').upper()}" in text


def test_markers_are_registered(pytester: pytest.Pytester) -> None:
    pytester.runpytest("--markers").stdout.fnmatch_lines(
        ["@pytest.mark.willfit(on=None, limit=None, peak=*", "@pytest.mark.willfit_requires(vram): skip the test *"]
    )
