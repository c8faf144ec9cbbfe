"""Checks as SARIF 2.1.0, which code scanning reads.

Source: https://docs.oasis-open.org/sarif/sarif/v2.1.0/sarif-v2.1.0.html, and what GitHub takes of it:
https://docs.github.com/code-security/code-scanning/integrating-with-code-scanning/sarif-support-for-code-scanning
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from willfit._render.checks import place_of

if TYPE_CHECKING:
    from willfit._checks import Check

_RULES: Final = {
    "does not fit": ("error", "A training job does not fit the GPU that it is for."),
    "over the limit": ("error", "A training job needs more memory than its limit."),
    "could not be predicted": ("error", "What a training job needs could not be predicted."),
    "tight": ("warning", "A training job fits the GPU that it is for, but tightly."),
}
"""Outcome -> its level, and what it means."""


def sarif(checks: Sequence[Check], version: str) -> dict[str, Any]:
    """A log with one run: a result for each check that failed or is tight. ``version`` is willfit's."""
    rules = [
        {
            "id": _id(outcome),
            "shortDescription": {"text": meaning},
            "defaultConfiguration": {"level": level},
        }
        for outcome, (level, meaning) in _RULES.items()
    ]
    driver = {"name": "willfit", "semanticVersion": version, "rules": rules}
    return {
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [
            {"tool": {"driver": driver}, "results": [_result(check) for check in checks if check.outcome in _RULES]}
        ],
    }


def _result(check: Check) -> dict[str, Any]:
    location = {
        "artifactLocation": {"uri": check.file, "uriBaseId": "%SRCROOT%"},
        "region": {"startLine": check.line},
    }
    return {
        "ruleId": _id(check.outcome),
        "ruleIndex": list(_RULES).index(check.outcome),
        "level": _RULES[check.outcome][0],
        "message": {"text": "\n".join(filter(None, (check.sentence, place_of(check))))},
        "locations": [{"physicalLocation": location}],
        # the same finding while it is about the same target and GPU, whatever bytes it says
        "partialFingerprints": {"willfit/v1": f"{check.target.name}/{check.target.method}/{check.device}"},
    }


def _id(outcome: str) -> str:
    return outcome.replace(" ", "-")
