"""Checks as JUnit XML, in the dialect that pytest writes and CI servers read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from willfit._render.checks import place_of

if TYPE_CHECKING:
    from willfit._checks import Check


def junit_xml(checks: Sequence[Check]) -> str:
    """A test suite with a test case for each check: a failure where it does not hold, an error where nobody knows."""
    failures = sum(check.outcome in ("does not fit", "over the limit") for check in checks)
    errors = sum(check.outcome == "could not be predicted" for check in checks)
    counts = {"tests": len(checks), "failures": failures, "errors": errors, "skipped": 0}
    attributes = {"name": "willfit", **{key: str(value) for key, value in counts.items()}}
    attributes["time"] = f"{sum(check.seconds for check in checks):.3f}"
    suites = ElementTree.Element("testsuites", attributes)
    suite = ElementTree.SubElement(suites, "testsuite", attributes)
    for check in checks:
        _case(suite, check)
    ElementTree.indent(suites)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(suites, encoding="unicode")


def _case(suite: ElementTree.Element, check: Check) -> None:
    name = f"{check.target.method} on {check.device}"
    case = ElementTree.SubElement(
        suite,
        "testcase",
        classname=_text(check.target.name),
        name=_text(name),
        file=_text(check.file),
        line=str(check.line),
        time=f"{check.seconds:.3f}",
    )
    properties = ElementTree.SubElement(case, "properties")
    for key, value in check.to_dict().items():
        if key in ("outcome", "limit", "peak", "required", "peak_reserved", "peak_allocated") and value is not None:
            ElementTree.SubElement(properties, "property", name=f"willfit.{key}", value=str(value))
    if check.outcome in ("fits", "tight"):
        return
    kind = "error" if check.outcome == "could not be predicted" else "failure"
    problem = ElementTree.SubElement(case, kind, type=check.outcome, message=_text(check.sentence.split("\n")[0]))
    problem.text = _text("\n".join(filter(None, (check.sentence, place_of(check)))))


def _text(text: str) -> str:
    """Without the control characters that XML 1.0 has no way to write."""
    return "".join(each if each in "\t\n" or each >= " " else "?" for each in text)
