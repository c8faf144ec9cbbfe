"""The hooks by which a conftest.py changes what the plugin does."""

from __future__ import annotations

import inspect
import json

import pytest
from toy import JOB

from willfit import hookspecs

TESTS = (
    JOB
    + """
def test_it(willfit):
    willfit.check(*job, loss=loss, baseline=True)
"""
)
OWN = [name for name in dir(hookspecs) if name.startswith("pytest_")]


@pytest.mark.parametrize("name", OWN)
def test_each_says_in_a_line_what_it_is_and_has_types(name: str) -> None:
    function = getattr(hookspecs, name)
    assert name.startswith("pytest_willfit_")
    assert function.__doc__
    assert "\n" not in function.__doc__
    signature = inspect.signature(function)
    assert signature.return_annotation is not signature.empty
    assert all(each.annotation is not each.empty for each in signature.parameters.values())


def test_they_are_known_to_pytest(pytester: pytest.Pytester) -> None:
    pytester.makeconftest("def pytest_willfit_generate_nothing(): pass")
    result = pytester.runpytest()
    assert result.ret != pytest.ExitCode.NO_TESTS_COLLECTED
    (result.stdout.str() + result.stderr.str()).index("unknown hook 'pytest_willfit_generate_nothing'")


def test_the_device_for_a_test(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(
        """
from willfit import Device

def pytest_willfit_generate_device(item, on):
    if "small" in item.name:
        return Device(name="small of the hook", total=4 * 2**20, context=0)
    assert on == "T4"
"""
    )
    pytester.makepyfile(TESTS + "\n\ntest_small = test_it\n")
    result = pytester.runpytest("--willfit-on=T4")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*Failed: Net does not fit on small of the hook and needs *"])


def test_the_fingerprint_of_baselines(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(
        """
def pytest_willfit_update_fingerprint(item, footprint, fingerprint):
    fingerprint["kernels"] = f"{item.name} on {footprint.device.name}"
    del fingerprint["willfit"]
"""
    )
    pytester.makepyfile(test_it=TESTS)
    pytester.runpytest("--willfit-on=T4").assert_outcomes(passed=1)

    def fingerprint() -> dict[str, str]:
        content = json.loads((pytester.path / "test_it.willfit.json").read_text(encoding="utf-8"))
        found: dict[str, str] = content["tests"]["test_it"]["check"][0]["fingerprint"]
        return found

    assert fingerprint()["kernels"] == "test_it on T4"
    assert "willfit" not in fingerprint()
    assert fingerprint()["device"] == "T4"
    pytester.makeconftest(
        """
def pytest_willfit_generate_fingerprint(item, model, optimizer, footprint):
    return {"ours": f"{type(model).__name__} {type(optimizer).__name__} {footprint.steps}"}
"""
    )
    pytester.runpytest("--willfit-on=T4", "--willfit-update").assert_outcomes(passed=1)
    assert fingerprint() == {"ours": "Net SGD 3"}


def test_the_sections_of_a_report(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(
        """
def pytest_willfit_update_sections(item, footprint, sections):
    sections.append(("willfit: phases", " ".join(f"{each.phase}" for each in footprint.phases[:2])))
"""
    )
    pytester.makepyfile(TESTS)
    result = pytester.runpytest("--willfit-limit=1 B")
    result.stdout.fnmatch_lines(["*- willfit: Net -*", "*- willfit: phases -*", "placement forward"])
    pytester.makeconftest(
        """
def pytest_willfit_generate_sections(item, footprint):
    return [("mine", f"{footprint.peak_allocated} bytes")]
"""
    )
    result = pytester.runpytest("--willfit-limit=1 B")
    result.stdout.fnmatch_lines(["*- mine -*", "* bytes"])
    result.stdout.no_fnmatch_line("*willfit: Net*")
