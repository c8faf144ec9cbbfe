"""Baselines in a run: written, compared, updated, and never lost."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from toy import JOB, TOY

from willfit._pytest.baseline import read
from willfit._pytest.settings import Settings

TESTS = (
    JOB
    + """
import os
WIDTH = int(os.environ.get("WIDTH", 64))

@pytest.mark.willfit(on=TOY, baseline=True)
def test_it(willfit):
    willfit.check(*build(WIDTH), loss=loss)
"""
)


@pytest.fixture(autouse=True)
def no_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)


@pytest.fixture
def file(pytester: pytest.Pytester) -> Path:
    """The baselines of the test file ``test_it.py``."""
    return pytester.path / "test_it.willfit.json"


def required(file: Path, test: str = "test_it", name: str = "check") -> list[int]:
    return [entry.required for entry in read(file)[test, name]]


def run(pytester: pytest.Pytester, *arguments: str, **outcomes: int) -> pytest.RunResult:
    result = pytester.runpytest(*arguments)
    result.assert_outcomes(**outcomes)
    return result


def test_a_missing_one_is_written_and_said_so(pytester: pytest.Pytester, file: Path) -> None:
    pytester.makepyfile(test_it=TESTS)
    result = run(pytester, passed=1)
    result.stdout.fnmatch_lines(["*= willfit =*", "test_it.willfit.json: 1 new"])
    assert required(file) == [TOY.required]
    before = file.stat().st_mtime_ns
    run(pytester, passed=1).stdout.no_fnmatch_line("*willfit.json*")
    assert file.stat().st_mtime_ns == before, "what has not changed is not written"


def test_where_ci_is_set_a_missing_one_is_a_failure(
    pytester: pytest.Pytester, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CI", "true")
    pytester.makepyfile(test_it=TESTS)
    result = run(pytester, "-v", failed=1)
    result.stdout.fnmatch_lines(
        ["*::test_it NO BASELINE*", "*Failed: Net on toy has no baseline ('check' in test_it.willfit.json)*"]
    )
    assert not file.exists()
    run(pytester, "--willfit-update-new-only", passed=1)
    assert required(file) == [TOY.required]
    run(pytester, passed=1)


def test_a_change_fails_and_says_what_moved(
    pytester: pytest.Pytester, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytester.makepyfile(test_it=TESTS)
    run(pytester, passed=1)
    before = file.read_bytes()
    monkeypatch.setenv("WIDTH", "128")
    # float32 weights: each of the two blocks grows from 64 x 64 to 128 x 128 and stays in blocks of 512 bytes
    more = f"{2 * 4 * (128 * 128 - 64 * 64) / 1024:.2f} KiB"
    for arguments in ((), ("--willfit-update-new-only",)):
        result = run(pytester, "-v", *arguments, failed=1)
        result.stdout.fnmatch_lines(
            [
                "*::test_it BASELINE CHANGED*",
                f"*Failed: Net on toy needs *: parameters +{more}, in blocks.[*]; *; workspaces and * unchanged",
                "*- willfit: baseline -*",
                "*baseline * now * change",
                "To accept this, run the test with --willfit-update and commit",
                "test_it.willfit.json.",
                "*- willfit: Net on toy -*",
            ]
        )
        assert file.read_bytes() == before
    run(pytester, "--willfit-update", passed=1).stdout.fnmatch_lines(["test_it.willfit.json: 1 changed"])
    assert file.read_bytes() != before
    run(pytester, passed=1)


def test_what_is_tolerated_passes_and_is_not_written(
    pytester: pytest.Pytester, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytester.makepyfile(test_it=TESTS)
    run(pytester, passed=1)
    before = file.read_bytes()
    monkeypatch.setenv("WIDTH", "72")
    run(pytester, "--willfit-tolerance=total:1%", passed=1)
    run(pytester, "--willfit-tolerance=parameters:1%", failed=1)
    assert file.read_bytes() == before


def test_a_check_over_its_limit_writes_nothing(pytester: pytest.Pytester, file: Path) -> None:
    pytester.makepyfile(test_it=TESTS.replace("baseline=True", "baseline=True, limit=1"))
    run(pytester, "--willfit-update", failed=1)
    assert not file.exists()


def test_the_option_holds_all_checks_to_baselines(pytester: pytest.Pytester, file: Path) -> None:
    pytester.makepyfile(
        test_it=JOB
        + """
@pytest.mark.willfit(on=TOY)
@pytest.mark.parametrize("width", [32, 64])
def test_it(willfit, width):
    willfit.check(*build(width), loss=loss)
    willfit.check(*build(width), loss=loss, name="one step", steps=1)
    willfit.check(*build(width), loss=loss)
    willfit.check(*build(width), loss=loss, baseline=False)
"""
    )
    run(pytester, passed=2)
    assert not file.exists()
    run(pytester, "--willfit-baseline", passed=2)
    assert sorted(read(file)) == [
        (test, name) for test in ("test_it[32]", "test_it[64]") for name in ("check", "check-2", "one step")
    ]
    run(pytester, passed=2).stdout.no_fnmatch_line("*not used*")  # a run without baselines uses them all the same


def test_an_update_without_any_says_so(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_it=TESTS.replace("baseline=True", "baseline=False"))
    run(pytester, "--willfit-update", passed=1).stdout.fnmatch_lines(["no check has a baseline: *"])


def test_tests_of_one_name_do_not_meet(pytester: pytest.Pytester) -> None:
    in_classes = TESTS + "\n".join(
        f"""
class Test{name}:
    @pytest.mark.willfit(on=TOY, baseline=True)
    def test_it(self, willfit):
        willfit.check(*build({width}), loss=loss)
"""
        for name, width in (("A", 32), ("B", 128))
    )
    for directory in ("a", "b"):
        place = pytester.mkdir(directory)
        (place / "test_it.py").write_text(in_classes if directory == "a" else TESTS, encoding="utf-8")
    run(pytester, "--import-mode=importlib", passed=4)
    run(pytester, "--import-mode=importlib", passed=4)
    first, second = (read(pytester.path / directory / "test_it.willfit.json") for directory in ("a", "b"))
    assert sorted(first) == [("TestA::test_it", "check"), ("TestB::test_it", "check"), ("test_it", "check")]
    assert sorted(second) == [("test_it", "check")]
    assert len({entry[0].required for entry in first.values()} | {e[0].peak_allocated for e in first.values()}) > 3


def test_a_class_that_others_inherit_has_a_baseline_in_each(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        base_of_tests=JOB
        + """
class Base:
    width = 64

    @pytest.mark.willfit(on=TOY, baseline=True)
    def test_it(self, willfit):
        willfit.check(*build(self.width), loss=loss)
""",
        test_a="from base_of_tests import Base\nclass TestA(Base): pass",
        test_b="from base_of_tests import Base\nclass TestB(Base): width = 128",
    )
    run(pytester, passed=2)
    run(pytester, passed=2)
    assert (pytester.path / "test_a.willfit.json").exists()
    assert (pytester.path / "test_b.willfit.json").exists()


def test_the_same_test_twice_is_one_baseline(pytester: pytest.Pytester, file: Path) -> None:
    pytester.makepyfile(test_it=TESTS)
    run(pytester, "--keep-duplicates", "test_it.py", "test_it.py", passed=2)
    assert required(file) == [TOY.required]


def test_one_test_with_two_answers_is_not_written(pytester: pytest.Pytester, file: Path) -> None:
    pytester.makepyfile(
        test_it=JOB
        + """
widths = iter([32, 64])

@pytest.mark.willfit(on=TOY, baseline=True)
def test_it(willfit):
    willfit.check(*build(next(widths)), loss=loss)
"""
    )
    result = pytester.runpytest("--keep-duplicates", "test_it.py", "test_it.py")
    result.assert_outcomes(passed=2)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["ERROR: test_it.willfit.json: test_it check came out in two ways*"])
    assert not file.exists()


# -- entries that are not used any more -------------------------------------------------------------------------------

TWO = (
    JOB
    + """
@pytest.mark.willfit(on=TOY, baseline=True)
def test_a(willfit):
    willfit.check(*job, loss=loss)

@pytest.mark.willfit(on=TOY, baseline=True)
def test_b(willfit):
    willfit.check(*job, loss=loss)
    willfit.check(*job, loss=loss, name="again")
"""
)


def test_unused_entries_are_named_and_dropped_by_an_update(pytester: pytest.Pytester, file: Path) -> None:
    pytester.makepyfile(test_it=TWO)
    run(pytester, passed=2)
    pytester.makepyfile(
        test_it=TWO.replace("def test_a", "def test_renamed").replace(', name="again"', ', name="other"')
    )
    result = run(pytester, passed=2)
    result.stdout.fnmatch_lines(
        [
            "test_it.willfit.json: 2 new",
            "test_it.willfit.json: not used any more: test_a check, test_b again; --willfit-update drops them",
        ]
    )
    run(pytester, "--willfit-update", passed=2).stdout.fnmatch_lines(["test_it.willfit.json: 2 dropped"])
    assert sorted(read(file)) == [("test_b", "check"), ("test_b", "other"), ("test_renamed", "check")]


@pytest.mark.parametrize(
    "arguments",
    [("-k", "test_b"), ("test_it.py::test_b",), ("--deselect", "test_it.py::test_a"), ("--collect-only",), ("--lf",)],
    ids=" ".join,
)
def test_tests_that_are_not_run_keep_their_entries(
    pytester: pytest.Pytester, file: Path, arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytester.makepyfile(test_it=TWO)
    pytester.runpytest()
    if arguments == ("--lf",):
        monkeypatch.setattr("willfit._pytest.limits.over_limits", lambda *_: None)
        pytester.makepyfile(test_it=TWO.replace("def test_b(willfit):", "def test_b(willfit):\n    assert 0"))
        pytester.runpytest()
        pytester.makepyfile(test_it=TWO)
    before = file.read_bytes()
    result = pytester.runpytest("--willfit-update", *arguments)
    assert result.ret == pytest.ExitCode.OK
    result.stdout.no_fnmatch_line("*not used*")
    result.stdout.no_fnmatch_line("*dropped*")
    assert file.read_bytes() == before


@pytest.mark.parametrize("line", ["assert 0", "pytest.skip('not today')", "pytest.xfail('not yet')"])
def test_a_test_that_does_not_get_to_its_check_keeps_its_entry(
    pytester: pytest.Pytester, file: Path, line: str
) -> None:
    pytester.makepyfile(test_it=TWO)
    pytester.runpytest()
    before = file.read_bytes()
    pytester.makepyfile(test_it=TWO.replace("def test_a(willfit):", f"def test_a(willfit):\n    {line}"))
    pytester.runpytest("--willfit-update").stdout.no_fnmatch_line("*dropped*")
    assert file.read_bytes() == before


def test_a_file_whose_tests_are_gone_is_named(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_it=TESTS, test_other=TESTS)
    pytester.runpytest()
    (pytester.path / "test_other.py").unlink()
    run(pytester, passed=1).stdout.fnmatch_lines(["test_other.willfit.json: its test file is gone; delete it"])


# -- files that cannot be read or written ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "*test_it.willfit.json is no file of baselines: *restore it from version control*"),
        ('{"schema": 99}', "*test_it.willfit.json was written by a newer willfit (schema 99, *"),
    ],
)
@pytest.mark.parametrize("arguments", [(), ("--willfit-update",), ("--willfit-update-new-only",)], ids=str)
def test_what_cannot_be_read_is_never_overwritten(
    pytester: pytest.Pytester, file: Path, content: str, message: str, arguments: tuple[str, ...]
) -> None:
    pytester.makepyfile(test_it=TESTS)
    file.write_text(content, encoding="utf-8")
    result = run(pytester, "-v", *arguments, failed=1)
    result.stdout.fnmatch_lines(["*::test_it UNREADABLE BASELINE*", f"E *Failed: {message}"])
    assert file.read_text(encoding="utf-8") == content


def test_a_file_that_breaks_during_the_run_is_not_overwritten(pytester: pytest.Pytester, file: Path) -> None:
    pytester.makepyfile(
        test_it=TESTS
        + f"""
    import pathlib
    pathlib.Path({str(file)!r}).write_text("{{")
"""
    )
    result = pytester.runpytest()
    result.assert_outcomes(passed=1)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["ERROR: test_it.willfit.json was not written: *is no file of baselines*"])
    assert file.read_text(encoding="utf-8") == "{"


def test_a_directory_that_cannot_be_written(pytester: pytest.Pytester, file: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere; the next test stands for this one")
    pytester.makepyfile(test_it=TESTS)
    pytester.path.chmod(0o555)
    try:
        result = pytester.runpytest("-p", "no:cacheprovider")
    finally:
        pytester.path.chmod(0o755)
    result.assert_outcomes(passed=1)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["ERROR: test_it.willfit.json was not written: *Permission denied*"])
    assert not file.exists()


def test_a_file_that_cannot_be_written(pytester: pytest.Pytester, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied", str(file))

    monkeypatch.setattr("willfit._pytest.baseline.tempfile.mkstemp", denied)
    pytester.makepyfile(test_it=TESTS)
    result = pytester.runpytest()
    result.assert_outcomes(passed=1)
    assert result.ret == pytest.ExitCode.TESTS_FAILED, "a baseline that is missing the next time is no success"
    result.stdout.fnmatch_lines(["ERROR: test_it.willfit.json was not written: *Permission denied*"])


def test_an_interrupted_run_leaves_baselines_as_they_are(pytester: pytest.Pytester, file: Path) -> None:
    pytester.makepyfile(
        test_it=TESTS
        + """
def test_stop():
    raise KeyboardInterrupt
"""
    )
    result = pytester.runpytest_subprocess("--willfit-update", "--willfit-json=out.json")
    assert result.ret == pytest.ExitCode.INTERRUPTED
    assert not file.exists()
    assert [check["test"] for check in json.loads((pytester.path / "out.json").read_text())["checks"]] == [
        "test_it.py::test_it"
    ]


def test_a_run_that_stops_at_the_first_failure_writes_what_it_has(pytester: pytest.Pytester, file: Path) -> None:
    pytester.makepyfile(test_it=TESTS + "\n\ndef test_stop():\n    assert 0\n\ndef test_never(): pass\n")
    run(pytester, "-x", passed=1, failed=1)
    assert required(file) == [TOY.required]


# -- under something else ----------------------------------------------------------------------------------------------

CONFTEST = """
def pytest_willfit_update_fingerprint(fingerprint):
    fingerprint["torch"] = "{version}"
"""


def test_another_torch_with_the_same_bytes_passes(pytester: pytest.Pytester, file: Path) -> None:
    pytester.makepyfile(test_it=TESTS)
    pytester.makeconftest(CONFTEST.format(version="2.6.0"))
    run(pytester, passed=1)
    before = file.read_bytes()
    pytester.makeconftest(CONFTEST.format(version="3.0.10"))
    run(pytester, passed=1)
    assert file.read_bytes() == before


def test_another_torch_with_other_bytes_is_named_and_may_have_a_baseline_of_its_own(
    pytester: pytest.Pytester, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CI", "1")
    pytester.makepyfile(test_it=TESTS)
    pytester.makeconftest(CONFTEST.format(version="2.6.0"))
    run(pytester, "--willfit-update", passed=1)
    pytester.makeconftest(CONFTEST.format(version="3.0.10"))
    monkeypatch.setenv("WIDTH", "2048")
    run(pytester, failed=1).stdout.fnmatch_lines(["*Failed: Net on toy needs *(made with torch 2.6.0, now 3.0.10)*"])
    run(pytester, "--willfit-update-new-only", passed=1)
    run(pytester, passed=1)
    assert len(required(file)) == 2
    pytester.makeconftest(CONFTEST.format(version="2.6.0"))
    monkeypatch.setenv("WIDTH", "64")
    run(pytester, passed=1)
    run(pytester, "--willfit-update", passed=1)
    assert required(file) == [TOY.required], "an update leaves the one that is right now"


def test_the_settings_have_no_baseline_by_default() -> None:
    assert not Settings().baseline
