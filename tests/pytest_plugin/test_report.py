"""What pytest shows, at every verbosity, and what goes into JUnit XML."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import pytest
from toy import JOB, TOY

from willfit._units import format_size

FAILS = (
    JOB
    + """
@pytest.mark.willfit(on=SMALL)
def test_it(willfit):
    willfit.check(*job, loss=loss)
"""
)
PASSES = FAILS.replace("on=SMALL", "on=TOY, limit='1 GiB'")
SENTENCE = "E       Failed: Net does not fit on small and needs 22.00 MiB, 18.00 MiB more than it has"


def section(shown: str) -> list[str]:
    """The lines of willfit's section in a report."""
    lines = shown.splitlines()
    start = next(number for number, line in enumerate(lines) if re.fullmatch(r"-+ willfit: Net on \w+ -+", line))
    end = next(
        number for number in range(start + 1, len(lines)) if re.fullmatch(r"[=_-]{3,} .*[=_-]{3,}", lines[number])
    )
    return lines[start + 1 : end]


def test_short_by_default(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(FAILS)
    shown = pytester.runpytest().stdout.str()
    lines = section(shown)
    assert shown.splitlines().count(SENTENCE) == 1
    assert lines[0].startswith("DOES NOT FIT: training Net with SGD needs 22.00 MiB on a small")
    assert any(line.split()[:2] == ["workspaces", "16.25"] for line in lines)
    assert "Where memory runs out" in lines
    assert not any("Peak allocated in each phase" in line or "scratch memory" in line for line in lines)
    assert len(lines) < 32
    assert max(map(len, lines)) <= 80


def test_in_full_at_vv(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(FAILS)
    for arguments in (("-vv",), ("-o", "verbosity_willfit=2"), ("-q", "-o", "verbosity_willfit=2")):
        lines = section(pytester.runpytest(*arguments).stdout.str())
        assert "Peak allocated in each phase" in lines
        assert "      scratch memory that libraries such as cuBLAS take once and keep" in lines
        assert max(map(len, lines)) <= 80


def test_one_line_at_q(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(FAILS)
    for arguments in (("-q",), ("-o", "verbosity_willfit=-1")):
        shown = pytester.runpytest(*arguments).stdout.str()
        assert shown.splitlines().count(SENTENCE) == 1
        (line,) = section(shown)
        assert line.startswith("needs 22.00 MiB: workspaces 16.25 MiB, ")
        assert len(line) <= 80


def test_its_own_letter_and_word(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "1")
    pytester.makepyfile(
        test_it=JOB
        + """
@pytest.mark.willfit(on=SMALL)
def test_small(willfit):
    willfit.check(*job, loss=loss)

@pytest.mark.willfit(limit=1)
def test_limit(willfit):
    willfit.check(*job, loss=loss)

@pytest.mark.willfit(on=SMALL, limit=1)
def test_both(willfit):
    willfit.check(*job, loss=loss)

@pytest.mark.willfit(on=TOY, baseline=True)
def test_baseline(willfit):
    willfit.check(*job, loss=loss)

@pytest.mark.willfit(on=TOY)
def test_something_else(willfit):
    willfit.check(*job, loss=loss)
    assert False

@pytest.mark.xfail
@pytest.mark.willfit(on=SMALL)
def test_expected(willfit):
    willfit.check(*job, loss=loss)
"""
    )
    pytester.runpytest().stdout.fnmatch_lines(["test_it.py WWWWFx *"])
    result = pytester.runpytest("-v")
    result.assert_outcomes(failed=5, xfailed=1)
    result.stdout.fnmatch_lines(
        [
            "*::test_small DOES NOT FIT *",
            "*::test_limit OVER THE LIMIT *",
            "*::test_both DOES NOT FIT *",
            "*::test_baseline NO BASELINE *",
            "*::test_something_else FAILED *",
            "*::test_expected XFAIL *",
        ]
    )


def test_the_bill_is_that_of_the_check_that_failed(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        JOB
        + """
def test_it(willfit):
    willfit.check(*job, loss=loss, on=TOY)
    willfit.check(*job, loss=loss, on=SMALL)
"""
    )
    shown = pytester.runpytest().stdout.str()
    assert "- willfit: Net on small -" in shown
    assert "- willfit: Net on toy -" not in shown


def test_a_test_that_fails_otherwise_has_the_bills_of_its_checks(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        JOB
        + """
def test_it(willfit):
    footprint = willfit.check(*job, loss=loss, on=TOY)
    assert footprint.bill["activations"] == 0
"""
    )
    result = pytester.runpytest()
    result.stdout.fnmatch_lines(["FAILED *"])
    result.stdout.fnmatch_lines(["*- willfit: Net on toy -*", "FITS: *"])


def test_a_test_that_passes_shows_its_bill_on_request(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(PASSES)
    pytester.runpytest().stdout.no_fnmatch_line("*willfit: Net on toy*")
    for arguments in (("-rA",), ("-rP",)):
        result = pytester.runpytest(*arguments)
        result.assert_outcomes(passed=1)
        result.stdout.fnmatch_lines(["*= PASSES =*", "*- willfit: Net on toy -*", "FITS: *"])


def test_show_capture_hides_it_like_other_sections(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(FAILS)
    result = pytester.runpytest("--show-capture=no")
    result.stdout.fnmatch_lines([SENTENCE])
    result.stdout.no_fnmatch_line("*willfit: Net*")


def test_a_footprint_without_a_device_has_a_bill_too(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("willfit._device_here.current_device", lambda: None)
    pytester.makepyfile(FAILS.replace("on=SMALL", "limit=1"))
    pytester.runpytest("-q").stdout.fnmatch_lines(
        ["*Failed: Net needs * (required), * over the limit of 1 B", "*- willfit: Net -*", "needs *: workspaces *"]
    )


def test_the_summary_has_the_largest_first(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        test_it=JOB
        + """
@pytest.mark.parametrize("width", [64, 1024, 2048])
@pytest.mark.willfit(on=TOY, limit="1 GiB")
def test_it(willfit, width):
    willfit.check(*build(width), loss=loss)
    willfit.predict(*build(4096), loss=loss)

@pytest.mark.willfit(on=SMALL)
def test_small(willfit):
    willfit.check(*job, loss=loss, name="lora")
"""
    )
    result = pytester.runpytest("--willfit-summary=2")
    result.stdout.fnmatch_lines(
        [
            "*= 2 largest footprints =*",
            " *needs *limit  GPU  verdict  test",
            "*MiB  1.00 GiB  toy  fits     test_it.py::test_it[[]2048]",
            "*MiB  1.00 GiB  toy  fits     test_it.py::test_it[[]1024]",
            "*= short test summary info =*",
        ],
        consecutive=True,
    )
    shown = pytester.runpytest("--willfit-summary=0").stdout
    shown.fnmatch_lines(["*= footprints =*", "*small *does not fit  test_it.py::test_small (lora)"])
    pytester.runpytest().stdout.no_fnmatch_line("*footprints*")
    pytester.runpytest("-k", "nothing", "--willfit-summary=3").stdout.fnmatch_lines(["no check was made"])
    pytester.makepyfile(test_it="def test_it(): pass")
    pytester.runpytest("--willfit-summary=3").stdout.fnmatch_lines(["no check was made"])


def properties(pytester: pytest.Pytester, *arguments: str) -> dict[str, str]:
    pytester.runpytest("--junitxml=out.xml", *arguments)
    tree = ElementTree.parse(pytester.path / "out.xml")
    return {each.attrib["name"]: each.attrib["value"] for each in tree.iter("property")}


def test_junit_xml_has_the_figures(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(PASSES)
    expected = {
        "willfit.check.device": "toy",
        "willfit.check.verdict": "fits",
        "willfit.check.required": str(TOY.required),
        "willfit.check.peak_reserved": str(TOY.peak_reserved),
        "willfit.check.peak_allocated": str(TOY.peak_allocated),
        "willfit.check.limit": str(2**30),
    }
    assert properties(pytester) == expected
    assert properties(pytester, "-o", "willfit_junit=false") == {}


def test_junit_xml_has_the_figures_of_tests_that_fail(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(FAILS)
    found = properties(pytester)
    assert (found["willfit.check.device"], found["willfit.check.verdict"]) == ("small", "does not fit")
    assert "willfit.check.limit" not in found
    failure = ElementTree.parse(pytester.path / "out.xml").find(".//failure")
    assert failure is not None
    assert failure.attrib["message"] == SENTENCE.removeprefix("E").strip()


def test_without_a_terminal_it_is_silent(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(FAILS)
    result = pytester.runpytest_subprocess("-p", "no:terminal", "--willfit-summary=1")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert result.stdout.str() == ""


def test_sizes_in_the_sentence_are_those_of_the_footprint(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(FAILS.replace("on=SMALL", f"on=TOY, peak='allocated', limit={TOY.peak_allocated - 1024}"))
    pytester.runpytest().stdout.fnmatch_lines(
        [f"*Net needs {format_size(TOY.peak_allocated)} (allocated), 1.00 KiB over the limit of *"]
    )
