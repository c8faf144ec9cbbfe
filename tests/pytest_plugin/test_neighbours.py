"""Beside other plugins of pytest, all of them at work in the same run."""

from __future__ import annotations

import importlib.util
import json

import pytest
from toy import JOB, TOY

PLUGINS: dict[str, tuple[str, ...]] = {
    "pytest_memray": ("--memray",),
    "pytest_benchmark": (),
    "pytest_timeout": ("--timeout=300",),
    "pytest_randomly": (),
    "pytest_rerunfailures": ("--reruns=1",),
    "xdist": ("-n", "1"),
}

TESTS = (
    JOB
    + """
@pytest.mark.willfit(on=TOY, baseline=True)
@pytest.mark.parametrize("width", [32, 64])
def test_fits(willfit, width):
    willfit.check(*build(width), loss=loss)

@pytest.mark.willfit(on=SMALL)
def test_small(willfit):
    willfit.check(*job, loss=loss)
"""
)


def installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


@pytest.fixture(autouse=True)
def tests_of_tests_in_any_order(monkeypatch: pytest.MonkeyPatch, tests_of_tests_in_their_order: None) -> None:
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    monkeypatch.delenv("CI", raising=False)


def run(pytester: pytest.Pytester, *arguments: str) -> None:
    pytester.makepyfile(test_it=TESTS)
    result = pytester.runpytest_subprocess("-v", "-Werror", "--willfit-json=out.json", *arguments)
    outcomes = result.parseoutcomes()
    assert (outcomes["passed"], outcomes["failed"]) == (2, 1)
    result.stdout.fnmatch_lines(
        ["*DOES NOT FIT*", "E *Failed: Net does not fit on small and needs *", "*- willfit: Net on small -*"]
    )
    result.stdout.fnmatch_lines(["test_it.willfit.json: 2 new", "results written to out.json"])
    content = json.loads((pytester.path / "out.json").read_text(encoding="utf-8"))
    checks = {each["test"]: each for each in content["checks"]}
    assert checks["test_it.py::test_fits[64]"]["required"] == TOY.required
    assert checks["test_it.py::test_small"]["outcome"] == "does not fit"


@pytest.mark.parametrize("name", PLUGINS)
def test_beside_one(pytester: pytest.Pytester, name: str) -> None:
    if not installed(name):
        pytest.skip(f"{name.replace('_', '-')} is not installed: tox -e neighbours has it")
    run(pytester, *PLUGINS[name])


def test_beside_all_of_them(pytester: pytest.Pytester) -> None:
    if missing := [name.replace("_", "-") for name in PLUGINS if not installed(name)]:
        pytest.skip(f"{', '.join(missing)}: not installed; tox -e neighbours has them")
    run(pytester, *(option for own in PLUGINS.values() for option in own))


def test_a_benchmark_and_a_check_in_one_test(pytester: pytest.Pytester) -> None:
    pytest.importorskip("pytest_benchmark", reason="pytest-benchmark is not installed: tox -e neighbours has it")
    pytester.makepyfile(
        JOB
        + """
@pytest.mark.willfit(on=TOY)
def test_it(willfit, benchmark):
    benchmark.pedantic(willfit.check, (*job,), {"loss": loss}, rounds=2)
"""
    )
    pytester.runpytest_subprocess().assert_outcomes(passed=1)


def test_limits_of_memray_and_of_willfit_on_one_test(pytester: pytest.Pytester) -> None:
    pytest.importorskip("pytest_memray", reason="pytest-memray is not installed: tox -e neighbours has it")
    pytester.makepyfile(
        JOB
        + """
@pytest.mark.limit_memory("1 B")
@pytest.mark.willfit(on=TOY)
def test_memray(willfit):
    willfit.check(*job, loss=loss)

@pytest.mark.limit_memory("8 GB")
@pytest.mark.willfit(on=SMALL)
def test_willfit(willfit):
    willfit.check(*job, loss=loss)
"""
    )
    result = pytester.runpytest_subprocess("-v", "--memray")
    result.stdout.fnmatch_lines(["*::test_memray MEMORY PROBLEMS*"])
    result.stdout.fnmatch_lines(["*::test_willfit DOES NOT FIT*"])
