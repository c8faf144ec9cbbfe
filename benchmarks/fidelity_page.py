"""The page of the fidelity benchmark, docs/fidelity.md: of what was recorded and predicted with each version."""

from __future__ import annotations

import json
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PAGE = ROOT / "docs" / "fidelity.md"
sys.path[:0] = [str(HERE), str(ROOT / "tests" / "conformance")]

import recorded  # noqa: E402
from training_steps import CASES, PLAIN, SEEN, ZOO  # noqa: E402

PAGE_VERSION = "2.13.0"  # the others have a section of their own
OTHER_VERSIONS = ("2.6.0", "2.9.1", "2.15.0")


def truth_path(version: str) -> Path:
    return HERE / f"truth-{version}.jsonl"


def read_truth(version: str) -> dict[str, dict[str, Any]]:
    return {line["case"]: line for line in map(json.loads, truth_path(version).read_text().splitlines())}


@dataclass(frozen=True)
class Row:
    """A case as predicted, beside what was measured; ``error`` says why there is no prediction."""

    name: str
    truth: dict[str, Any]
    allocated: int = 0
    reserved: int = 0
    error: str = ""

    def difference(self, what: str) -> int:
        return int(getattr(self, what) - self.truth[f"peak_{what}"])

    def relative(self, what: str) -> float:
        return float(self.difference(what) / self.truth[f"peak_{what}"])


# -- what was predicted ------------------------------------------------------------------------------------------------


def _predicted_path(version: str) -> Path:
    return HERE / f"predicted-{version}.json"


def keep(version: str, packages: str, rows: list[Row]) -> None:
    """Keep what was predicted with a version: the packages, and for each case both peaks, or why there are none."""
    cases = {row.name: row.error or [row.allocated, row.reserved] for row in rows}
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(found)}" for name, found in cases.items())
    _predicted_path(version).write_text(f'{{"packages": {json.dumps(packages)}, "cases": {{\n{lines}\n}}}}\n')


def read_rows(version: str) -> list[Row]:
    """The cases of a version: predicted, and true."""
    predicted, truth = json.loads(_predicted_path(version).read_text())["cases"], read_truth(version)
    return [
        Row(name, truth[name], error=found) if isinstance(found, str) else Row(name, truth[name], *found)
        for name in CASES
        if (found := predicted.get(name)) is not None
    ]


def packages(version: str) -> str:
    return str(json.loads(_predicted_path(version).read_text())["packages"])


# -- the tables --------------------------------------------------------------------------------------------------------


def table_start(name: str, truth: dict[str, Any]) -> str:
    """The part of a case's row that depends on no prediction."""
    return f"| {name} | {truth['gpu']} | {truth['peak_allocated']:,} | {truth['peak_reserved']:,} |"


def table_row(row: Row) -> str:
    start = table_start(row.name, row.truth)
    if row.error:
        return f"{start} no prediction: {row.error[:200].replace('|', '/')} | | |"
    return f"{start} {_cell(row, 'allocated')} | {_cell(row, 'reserved')} | {CASES[row.name].note} |"


def _cell(row: Row, what: str) -> str:
    difference = row.difference(what)
    return "exact" if difference == 0 else f"{difference:+,} ({row.relative(what):+.2%})"


def summary(rows: list[Row]) -> list[str]:
    predicted = [row for row in rows if not row.error]
    lines = ["| | exact | median error | worst | below the truth |", "| --- | --- | --- | --- | --- |"]
    for what in ("allocated", "reserved"):
        errors = [row.relative(what) for row in predicted]
        worst = max(predicted, key=lambda row: abs(row.relative(what)))
        below = sum(error < 0 for error in errors)
        which = f"{worst.relative(what):+.2%} ({worst.name})" if worst.difference(what) else "exact"
        exact, median = sum(error == 0 for error in errors), statistics.median(map(abs, errors))
        lines.append(f"| {what} | {exact} of {len(rows)} | {median:.3%} | {which} | {below} |")
    if len(predicted) < len(rows):
        lines.append(f"\n{len(rows) - len(predicted)} could not be predicted.")
    return lines


def other_versions() -> list[str]:
    """A row for each version: how close the predictions are, and by how much the truth differs from the page's."""
    lines = [
        "| | allocated: exact | median error | worst | below | reserved: exact | worst | peak otherwise than in 2.13 |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    base = read_truth(PAGE_VERSION)
    for version in OTHER_VERSIONS:
        rows = [row for row in read_rows(version) if not row.error]
        cells = []
        for what in ("allocated", "reserved"):
            errors = {row.name: row.relative(what) for row in rows}
            worst = max(errors, key=lambda name: abs(errors[name]))
            exact = sum(error == 0 for error in errors.values())
            cells.append(f"{exact} of {len(rows)}")
            if what == "allocated":
                cells.append(f"{statistics.median(map(abs, errors.values())):.3%}")
            cells.append(f"{errors[worst]:+.2%} ({worst})" if errors[worst] else "exact")
            if what == "allocated":
                cells.append(str(sum(error < 0 for error in errors.values())))
        changes = [
            row.truth["peak_allocated"] / base[row.name]["peak_allocated"] - 1 for row in rows if row.name in base
        ]
        changed = [change for change in changes if change]
        cells.append(f"{len(changed)} cases, from {min(changes):+.1%} to {max(changes):+.1%}")
        lines.append(f"| {packages(version)} | {' | '.join(cells)} |")
    return lines


def other_differences() -> list[str]:
    """The cases that are not exact with another version."""
    lines = [
        "| case | torch | allocated: predicted - measured | reserved | |",
        "| --- | --- | --- | --- | --- |",
    ]
    for version in OTHER_VERSIONS:
        for row in read_rows(version):
            if row.error:
                lines.append(f"| {row.name} | {version} | no prediction: {row.error[:200].replace('|', '/')} | | |")
            elif row.difference("allocated") or row.difference("reserved"):
                cells = _cell(row, "allocated"), _cell(row, "reserved"), CASES[row.name].note
                lines.append(f"| {row.name} | {version} | {' | '.join(cells)} |")
    return lines


def operators() -> list[str]:
    """The operators that are known to differ, with the size by version."""
    lines = [
        f"| operator | {' | '.join(recorded.VERSIONS)} | |",
        f"| --- |{' ---: |' * len(recorded.VERSIONS)} --- |",
    ]
    for name, entry in recorded.read_known().items():
        sizes = (f"{entry[version]:+,}".replace("+0", "0") if version in entry else "" for version in recorded.VERSIONS)
        lines.append(f"| `{name}` | {' | '.join(sizes)} | {entry['why']} |")
    return lines


def compared() -> list[str]:
    """How many operators and calls were recorded of each version, and how many operators differ."""
    lines = ["| torch | operators | calls | operators that differ |", "| --- | ---: | ---: | ---: |"]
    for version in recorded.VERSIONS:
        calls = recorded.read(version)
        numbers = len(calls), sum(map(len, calls.values())), len(recorded.known(version))
        lines.append(f"| {version} | {' | '.join(f'{number:,}' for number in numbers)} |")
    return lines


def page() -> str:
    head = [
        "| case | GPU | allocated | reserved | allocated: predicted - measured | reserved | |",
        "| --- | --- | ---: | ---: | ---: | ---: | --- |",
    ]
    rows = read_rows(PAGE_VERSION)
    zoo = [table_row(row) for row in rows if row.name in ZOO]
    more = [table_row(row) for row in rows if row.name in SEEN - ZOO]
    last = [table_row(row) for row in rows if row.name in PLAIN - SEEN]
    quantized = [table_row(row) for row in rows if row.name not in PLAIN]
    text = (HERE / "fidelity.md.in").read_text()
    for name, lines in {
        "SUMMARY": summary(rows),
        "ZOO": head + zoo,
        "MORE": head + more,
        "LAST": head + last,
        "QUANTIZED": head + quantized,
        "VERSIONS": [packages(PAGE_VERSION)],
        "COUNT": [str(len(rows))],
        "OTHER_VERSIONS": other_versions(),
        "OTHER_DIFFERENCES": other_differences(),
        "COMPARED": compared(),
        "OPERATORS": operators(),
    }.items():
        text = text.replace(f"@{name}@", "\n".join(lines))
    return text
