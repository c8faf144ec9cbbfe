"""Checks as GitHub Actions shows them: annotations on the lines of a change, and a job summary.

Source: https://docs.github.com/actions/reference/workflows-and-actions/workflow-commands
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from willfit._render.checks import limit_of, place_of
from willfit._units import format_size

if TYPE_CHECKING:
    from willfit._checks import Check

_LARGEST: Final = 3  # roles that a row of the summary names


def workflow_commands(checks: Sequence[Check]) -> str:
    """A workflow command for each check that failed (an error) or is tight (a warning)."""
    return "\n".join(_annotation(check) for check in checks if check.outcome != "fits")


def _annotation(check: Check) -> str:
    command = "warning" if check.outcome == "tight" else "error"
    properties = {"file": check.file, "line": check.line, "title": f"willfit: {check.target.name} {check.outcome}"}
    told = ",".join(f"{key}={_property(str(value))}" for key, value in properties.items())
    message = "\n".join(filter(None, (check.sentence, place_of(check))))
    return f"::{command} {told}::{_data(message)}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def summary(checks: Sequence[Check]) -> str:
    """A section in Markdown: a table of all checks, and what failed in sentences."""
    rows = ["| target | method | GPU | | needs | limit | most of it |", "| --- | --- | --- | --- | ---: | ---: | --- |"]
    for check in checks:
        needs = "" if check.peak is None else format_size(check.peak)
        mark = {"fits": "\N{WHITE HEAVY CHECK MARK}", "tight": "\N{WARNING SIGN}"}.get(check.outcome, "\N{CROSS MARK}")
        cells = (
            check.target.name,
            check.target.method,
            check.device,
            f"{mark} {check.outcome}",
            needs,
            limit_of(check),
        )
        rows.append("| " + " | ".join(map(_cell, (*cells, _most(check)))) + " |")
    failed = [
        f"- {_cell(check.sentence)} {_cell(place_of(check))}".rstrip() for check in checks if check.outcome != "fits"
    ]
    return "\n".join(["### willfit", "", *rows, *([""] if failed else []), *failed, ""])


def _most(check: Check) -> str:
    """The largest roles of the bill."""
    if check.footprint is None:
        return ""
    bill = sorted(check.footprint.bill.items(), key=lambda item: -item[1])[:_LARGEST]
    return ", ".join(f"{role} {format_size(size)}" for role, size in bill if size)


def _cell(text: str) -> str:
    """As text within a table of Markdown."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|").replace("\n", "<br>")
