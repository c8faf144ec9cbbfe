"""What was recorded of the samples: a file for each version of PyTorch, which holds what differs from one version's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

DATA = Path(__file__).parents[1] / "data"
BASE = "2.13.0"
VERSIONS = ("2.6.0", "2.9.1", "2.13.0", "2.14.1", "2.15.0")

Calls = dict[str, dict[str, str]]
"""Allocations and frees, as samples.text writes them, by operator and sample."""


def path(version: str, directory: Path = DATA) -> Path:
    """The file of a version of PyTorch."""
    return directory / f"conformance-{version}.json"


def read(version: str, directory: Path = DATA) -> Calls:
    """All calls that were recorded with a version."""
    calls: Calls = {} if version == BASE else read(BASE)
    for name, changed in json.loads(path(version, directory).read_text()).items():
        found = calls.setdefault(name, {})
        for key, events in changed.items():
            if events is None:
                del found[key]
            else:
                found[key] = events
    return {name: found for name, found in calls.items() if found}


def write(version: str, calls: Calls, directory: Path = DATA) -> None:
    """Keep the calls recorded with a version: all, or what differs from the base; null is what only the base has."""
    base: Calls = {} if version == BASE else read(BASE)
    changes: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys([*base, *calls]):
        before, now = base.get(name, {}), calls.get(name, {})
        changed = {key: now.get(key) for key in dict.fromkeys([*before, *now]) if before.get(key) != now.get(key)}
        if changed:
            changes[name] = changed
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(found)}" for name, found in changes.items())
    path(version, directory).write_text(f"{{\n{lines}\n}}\n")


# -- what is known to differ -------------------------------------------------------------------------------------------

KNOWN = Path(__file__).with_name("known_differences.json")
Difference = int | str
"""Bytes, predicted less true, of the peak within one call; or what kept it from being predicted."""


def read_known() -> dict[str, dict[str, Difference]]:
    """Differences that are known: for each operator "why", and by version of PyTorch how much."""
    return json.loads(KNOWN.read_text())  # type: ignore[no-any-return]


def known(version: str) -> dict[str, Difference]:
    """The operators that are known to differ in a version, and by how much."""
    return {name: entry[version] for name, entry in read_known().items() if version in entry}


def write_known(version: str, differ: dict[str, Difference]) -> None:
    """Put these in place of what was known of a version. A new one has no reason yet: give it one."""
    entries = read_known()
    for name in {*entries, *differ}:
        entry = entries.setdefault(name, {"why": ""})
        entry.pop(version, None)
        if name in differ:
            entry[version] = differ[name]
    lines = []
    for name, entry in sorted(entries.items()):
        sizes = {each: entry[each] for each in VERSIONS if each in entry}
        if sizes:
            lines.append(f"{json.dumps(name)}: {json.dumps({'why': entry['why'], **sizes})}")
    KNOWN.write_text("{\n" + ",\n".join(lines) + "\n}\n")
