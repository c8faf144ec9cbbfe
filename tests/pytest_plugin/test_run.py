"""Results of a run, as JSON and in pytest's cache."""

from __future__ import annotations

import json
from typing import Any

import pytest
from toy import JOB, TOY

from willfit._pytest.run import CACHE

TESTS = (
    JOB
    + """
@pytest.mark.willfit(on=TOY, limit="1 GiB")
def test_fits(willfit):
    willfit.check(*job, loss=loss)
    willfit.check(*build(128), loss=loss, name="wide", peak="allocated")

@pytest.mark.willfit(on=SMALL)
def test_small(willfit):
    willfit.check(*job, loss=loss)
"""
)


def results(pytester: pytest.Pytester, *arguments: str) -> dict[str, Any]:
    pytester.runpytest("--willfit-json=results/out.json", *arguments)
    content: dict[str, Any] = json.loads((pytester.path / "results" / "out.json").read_text(encoding="utf-8"))
    return content


def test_json_has_every_check(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_it=TESTS)
    content = results(pytester)
    assert content["schema"] == 1
    fits, wide, small = content["checks"]
    footprint = fits.pop("footprint")
    assert fits == {
        "test": "test_it.py::test_fits",
        "name": "check",
        "outcome": "passed",
        "reason": None,
        "limit": 2**30,
        "peak": "required",
        "device": "toy",
        "verdict": "fits",
        "required": TOY.required,
        "peak_reserved": TOY.peak_reserved,
        "peak_allocated": TOY.peak_allocated,
    }
    assert footprint == json.loads(json.dumps(TOY.to_dict())) | {"sources": footprint["sources"]}
    assert (wide["name"], wide["peak"], wide["footprint"]["job"]["batch"]) == ("wide", "allocated", "4 x 128")
    assert small["outcome"] == "does not fit"
    assert small["reason"] == "Net does not fit on small and needs 22.00 MiB, 18.00 MiB more than it has"


def test_json_is_written_without_any_check(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_it(): pass")
    assert results(pytester)["checks"] == []


def test_json_that_cannot_be_written(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_it=TESTS.replace("on=SMALL", "on=TOY"))
    pytester.mkdir("out.json")
    result = pytester.runpytest("--willfit-json=out.json")
    result.assert_outcomes(passed=2)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["ERROR: --willfit-json was not written: *out.json*"])


def test_a_test_that_is_run_again_has_its_last_result(pytester: pytest.Pytester) -> None:
    pytest.importorskip("pytest_rerunfailures", reason="pytest-rerunfailures is not installed")
    pytester.makepyfile(
        test_it=JOB
        + """
devices = iter([SMALL, TOY])

def test_it(willfit):
    willfit.check(*job, loss=loss, on=next(devices))
"""
    )
    (check,) = results(pytester, "--reruns=1")["checks"]
    assert check["outcome"] == "passed"


def remembered(pytester: pytest.Pytester) -> dict[str, int]:
    path = pytester.path / ".pytest_cache" / "v" / CACHE
    content: dict[str, int] = json.loads(path.read_text(encoding="utf-8"))
    return content


def test_the_cache_has_what_each_test_needed(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_it=TESTS, test_other=TESTS)
    pytester.runpytest()
    needs = remembered(pytester)
    assert sorted(needs) == [
        f"{file}.py::{test}" for file in ("test_it", "test_other") for test in ("test_fits", "test_small")
    ]
    assert needs["test_it.py::test_fits"] >= TOY.required
    (pytester.path / "test_other.py").unlink()
    pytester.makepyfile(test_it=TESTS.replace("build(128)", "build(2048)"))
    pytester.runpytest("-k", "test_fits")
    now = remembered(pytester)
    assert sorted(now) == ["test_it.py::test_fits", "test_it.py::test_small"]
    assert now["test_it.py::test_fits"] > needs["test_it.py::test_fits"]


def test_without_the_cache_nothing_is_remembered(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_it=TESTS)
    pytester.runpytest("-p", "no:cacheprovider").assert_outcomes(passed=1, failed=1)
    assert not (pytester.path / ".pytest_cache").exists()


def test_a_cache_that_cannot_be_read_is_made_anew(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_it=TESTS)
    pytester.runpytest()
    (pytester.path / ".pytest_cache" / "v" / CACHE).write_text("{", encoding="utf-8")
    pytester.runpytest().assert_outcomes(passed=1, failed=1)
    assert len(remembered(pytester)) == 2
