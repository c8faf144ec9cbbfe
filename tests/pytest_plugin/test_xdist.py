"""Under pytest-xdist results and baselines come together on the controller."""

from __future__ import annotations

import json

import pytest
from toy import JOB, TOY

from willfit._pytest.baseline import read

pytest.importorskip("xdist", reason="pytest-xdist is not installed")

TESTS = (
    JOB
    + """
@pytest.mark.willfit(on=TOY, baseline=True)
@pytest.mark.parametrize("width", [32, 64, 128, 256])
def test_it(willfit, width):
    willfit.check(*build(width), loss=loss)

@pytest.mark.willfit(on=SMALL)
def test_small(willfit):
    willfit.check(*job, loss=loss)
"""
)


@pytest.fixture(autouse=True)
def no_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)  # of the run that this test is a part of


def run(pytester: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    return pytester.runpytest_subprocess("-n2", "-p", "no:randomly", *arguments)


WRITERS = """
import os, pathlib, willfit._pytest.ledger as ledger

own = ledger.write

def write(path, baselines):
    with open(pathlib.Path(__file__).with_name("writers"), "a") as file:
        print(os.environ.get("PYTEST_XDIST_WORKER", "controller"), file=file)
    own(path, baselines)

ledger.write = write
"""


def test_two_workers_write_what_one_process_writes(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_it=TESTS)
    pytester.makeconftest(WRITERS)
    file = pytester.path / "test_it.willfit.json"
    result = run(pytester, "--willfit-json=two.json", "--willfit-summary=1", "-v")
    result.assert_outcomes(passed=4, failed=1)
    result.stdout.fnmatch_lines(["*DOES NOT FIT test_it.py::test_small*"])
    result.stdout.fnmatch_lines(
        ["*- willfit: Net on small -*", "*= 1 largest footprint* =*", "test_it.willfit.json: 4 new"]
    )
    assert (pytester.path / "writers").read_text(encoding="utf-8").split() == ["controller"]
    assert [each.name for each in pytester.path.glob("*.willfit.json*")] == [file.name]
    assert read(file)["test_it[64]", "check"][0].required == TOY.required
    cached = json.loads((pytester.path / ".pytest_cache/v/willfit/required").read_text(encoding="utf-8"))
    assert len(cached) == 5
    together = file.read_bytes()
    file.unlink()
    pytester.makeconftest("")
    pytester.runpytest("--willfit-json=one.json")
    assert file.read_bytes() == together
    one, two = (json.loads((pytester.path / name).read_text(encoding="utf-8")) for name in ("one.json", "two.json"))
    assert one == two
    assert len(one["checks"]) == 5


def test_what_changed_fails_on_workers_and_what_is_unused_is_known_on_the_controller(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_it=TESTS)
    pytester.runpytest()
    file = pytester.path / "test_it.willfit.json"
    before = file.read_bytes()
    pytester.makepyfile(
        test_it=TESTS.replace("[32, 64, 128, 256]", "[64, 128]").replace("build(width)", "build(width + width % 128)")
    )
    result = run(pytester, "-v")
    result.assert_outcomes(passed=1, failed=2)
    result.stdout.fnmatch_lines(["*BASELINE CHANGED test_it.py::test_it[[]64]*"])
    result.stdout.fnmatch_lines(
        ["test_it.willfit.json: not used any more: test_it[[]256] check, test_it[[]32] check; --willfit-update *"]
    )
    assert file.read_bytes() == before


def test_each_worker_with_all_tests_writes_one_file(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_it=TESTS)
    result = run(pytester, "--dist=each")
    result.assert_outcomes(passed=8, failed=2)
    result.stdout.fnmatch_lines(["test_it.willfit.json: 4 new"])


def test_wrong_markers_are_named_and_not_an_internal_error(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        test_it="""
import pytest

def test_before():
    raise AssertionError("no test runs")

@pytest.mark.willfit(on="T5")
def test_wrong():
    pass
"""
    )
    result = run(pytester)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stdout.fnmatch_lines(["ERROR: test_it.py::test_wrong: marker willfit: 'T5' is no GPU that willfit knows*"])
    result.stdout.no_fnmatch_line("*INTERNALERROR*")
    assert result.stdout.str().count("ERROR: test_it.py::test_wrong") == 1


def test_a_worker_that_dies_loses_its_own_results_and_no_others(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        test_it=TESTS.replace("on=SMALL", "on=TOY")
        + """
def test_dies():
    import os
    os._exit(7)
"""
    )
    result = run(pytester)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*worker 'gw*' crashed*"])
    result.stdout.no_fnmatch_line("*INTERNALERROR*")
    written = read(pytester.path / "test_it.willfit.json")
    assert {name for _, name in written} == {"check"}
    assert all(entry.fingerprint["device"] == "toy" for (entry,) in written.values())


def test_groups_of_xdist_have_no_part_in_the_names_of_tests(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        test_it=TESTS.replace("on=SMALL", "on=TOY").replace(
            "def test_it", '@pytest.mark.xdist_group("one")\ndef test_it'
        )
    )
    file = pytester.path / "test_it.willfit.json"
    run(pytester, "--dist=loadgroup", "--willfit-json=two.json").assert_outcomes(passed=5)
    content = json.loads((pytester.path / "two.json").read_text(encoding="utf-8"))
    assert not [check["test"] for check in content["checks"] if "@" in check["test"]]
    before = file.read_bytes()
    result = pytester.runpytest("--willfit-update")
    result.assert_outcomes(passed=5)
    assert file.read_bytes() == before
    file.write_bytes(before.replace(b"test_it[256]", b"test_gone"))
    run(pytester, "--dist=loadgroup").stdout.fnmatch_lines(["*not used any more: test_gone check;*"])
