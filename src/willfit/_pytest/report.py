"""What pytest shows of checks: sections of a test's report, status, properties, and the lines at the end."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

import pytest

from willfit._pytest.outcome import LETTER, CheckFailed, Result
from willfit._units import format_size

if TYPE_CHECKING:
    from willfit._footprint import Footprint
    from willfit._pytest.run import Run

RESULTS: pytest.StashKey[list[Result]] = pytest.StashKey()
"""The checks of a test since its last report."""

_FULL = 2  # -vv


def attach(item: pytest.Item, call: pytest.CallInfo[Any], report: pytest.TestReport) -> None:
    """Add sections to a report: of the check that failed, else of all, where they will be shown."""
    results = item.stash.get(RESULTS, [])
    item.stash[RESULTS] = []
    error = call.excinfo.value if call.excinfo is not None else None
    if isinstance(error, CheckFailed):
        results = [error.result]
        assert error.result.problem is not None
        report.willfit = error.result.problem.word  # type: ignore[attr-defined]  # comes along from a worker
    if report.failed or {"P", "A"} & set(item.config.getoption("reportchars", None) or ""):
        for result in results:
            report.sections += _sections(item, result)


def _sections(item: pytest.Item, result: Result) -> list[tuple[str, str]]:
    footprint, problem, hook = result.footprint, result.problem, item.ihook
    sections = list(hook.pytest_willfit_generate_sections(item=item, footprint=footprint) or ())
    verbosity = verbosity_of(item.config)
    if problem is not None and problem.change is not None and verbosity >= 0:
        from willfit._pytest.changes import change_table
        from willfit._render.paper import WIDTH

        table = change_table(*problem.change, everything=verbosity >= _FULL)
        remedy = textwrap.fill(problem.remedy, WIDTH, break_long_words=False, break_on_hyphens=False)
        sections.insert(0, ("willfit: baseline", f"{table}\n\n{remedy}"))
    hook.pytest_willfit_update_sections(item=item, footprint=footprint, sections=sections)
    return sections


def bill_sections(item: pytest.Item, footprint: Footprint) -> list[tuple[str, str]]:
    """The bill: in one line at -q, in full at -vv, else in short."""
    verbosity = verbosity_of(item.config)
    if verbosity < 0:
        from willfit._render.line import line_text

        text = line_text(footprint)
    else:
        from willfit._render.text import bill_text

        text = bill_text(footprint, brief=verbosity < _FULL)
    where = f" on {footprint.device.name}" if footprint.device is not None else ""
    return [(f"willfit: {footprint.job.model}{where}", text)]


def verbosity_of(config: pytest.Config) -> int:
    """How much to say: that of -q and -v unless the ini file has another for willfit; 0 without a terminal."""
    return config.get_verbosity("willfit") if hasattr(config.option, "verbose") else 0


def status(report: pytest.TestReport | pytest.CollectReport) -> tuple[str, str, str] | None:
    """Category, letter and word of a test that a check failed; subtests have a status of their own."""
    word = getattr(report, "willfit", None)
    if word is None or type(report) is not pytest.TestReport or not report.failed:
        return None
    return "failed" if report.when == "call" else "error", LETTER, word


def properties(result: Result) -> list[tuple[str, object]]:
    """What JUnit XML gets of a check: ``willfit.check.required`` and so on; sizes are bytes."""
    plain = result.to_dict(with_footprint=False)
    keys = ("device", "verdict", "required", "peak_reserved", "peak_allocated", "limit")
    return [(f"willfit.{result.name}.{key}", plain[key]) for key in keys if plain[key] is not None]


def summarize(terminal: pytest.TerminalReporter, run: Run) -> None:
    """The largest footprints, if asked for, and what became of baselines and files."""
    if run.settings.summary is not None:
        _largest(terminal, run)
    quiet = verbosity_of(terminal.config) < 0
    if (run.done or run.wrong) and not quiet:
        terminal.section("willfit", sep="=")
    for sentence in run.done:
        terminal.line(f"willfit: {sentence}" if quiet else sentence)
    for sentence in run.wrong:
        terminal.line(f"willfit: ERROR: {sentence}" if quiet else f"ERROR: {sentence}", red=True)


def _largest(terminal: pytest.TerminalReporter, run: Run) -> None:
    results = sorted(run.results(), key=lambda result: -result["required"])
    shown = results[: run.settings.summary or None]
    terminal.section(f"{len(shown)} largest footprints" if len(shown) < len(results) else "footprints", sep="=")
    rows = [
        (
            format_size(each["required"]),
            format_size(each["limit"]) if each["limit"] is not None else "",
            each["device"] or "",
            each["verdict"] or "",
            each["test"] + ("" if each["name"] == "check" else f" ({each['name']})"),
        )
        for each in shown
    ]
    head = ("needs", "limit", "GPU", "verdict", "test")
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in (head, *rows) if rows else ():
        needs, limit, *texts = (
            cell.rjust(width) if position < 2 else cell.ljust(width)
            for position, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        terminal.line("  ".join((needs, limit, *texts)).rstrip())
    if not rows:
        terminal.line("no check was made")
