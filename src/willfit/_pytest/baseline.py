"""Baselines: what checks were predicted to need when somebody last looked, in a JSON file beside the tests' own."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from willfit._errors import UsageError
from willfit._pytest.components import by_component
from willfit._trace.trace import ROLES

if TYPE_CHECKING:
    from willfit._footprint import Footprint

SCHEMA: Final = 1
"""Version of the file; grows when a key changes its meaning or goes away."""

SUFFIX: Final = ".willfit.json"

Key = tuple[str, str]
"""A test's id within its file, and the name of a check in it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Baseline:
    """What one check was predicted to need; sizes are bytes."""

    fingerprint: dict[str, str]
    """What the answer depends on besides the test: versions, device, dtype, settings."""
    peak_at: str
    """Where the peak is: "optimizer step of step 1"."""
    peak_allocated: int
    peak_reserved: int
    required: int
    roles: dict[str, dict[str, int]]
    """role -> component -> bytes at the peak; what holds nothing is left out."""

    def is_as_large_as(self, other: Baseline) -> bool:
        """Whether both have the same figures, whatever they were predicted with."""
        return self.figures() == other.figures()

    def figures(self) -> tuple[Any, ...]:
        """All of its sizes."""
        return self.peak_allocated, self.peak_reserved, self.required, self.roles


def baseline_of(footprint: Footprint, fingerprint: dict[str, str]) -> Baseline:
    """The baseline that a prediction makes."""
    peak = next((each for each in footprint.phases if each.peak_allocated == footprint.peak_allocated), None)
    return Baseline(
        fingerprint=fingerprint,
        peak_at="" if peak is None else "placement" if not peak.step else f"{peak.phase} of step {peak.step}",
        peak_allocated=footprint.peak_allocated,
        peak_reserved=footprint.peak_reserved,
        required=footprint.required,
        roles={role: by_component(modules) for role, modules in footprint.bill_by_module.items() if modules},
    )


def baseline_path(test_file: Path) -> Path:
    """Where the baselines of a test file are.

    >>> baseline_path(Path("tests/test_finetune.py")).as_posix()
    'tests/test_finetune.willfit.json'
    """
    return test_file.with_name(test_file.stem + SUFFIX)


def read(path: Path) -> dict[Key, tuple[Baseline, ...]]:
    """The baselines in a file, one for each fingerprint; none if there is no file.

    Raises `UsageError` if it cannot be read as one, and says where and what to do.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path.name} cannot be read: {error}") from None
    return parse(text, path.name)


def parse(text: str, name: str) -> dict[Key, tuple[Baseline, ...]]:
    """The baselines in the text of a file of that name. Raises `UsageError` as `read` does."""
    try:
        content = json.loads(text)
    except ValueError as error:
        conflict = "it has the marks of a merge conflict; " if "\n<<<<<<< " in f"\n{text}" else ""
        raise _broken(name, f"{conflict}{error}") from None
    schema = content.get("schema") if isinstance(content, dict) else None
    if isinstance(schema, int) and schema > SCHEMA:
        raise UsageError(
            f"{name} was written by a newer willfit (schema {schema}, this one reads {SCHEMA}): update willfit"
        )
    try:
        if schema != SCHEMA:
            raise ValueError(f'"schema" is {schema!r}, not {SCHEMA}')
        return {
            (test, name): tuple(_baseline(entry) for entry in entries)
            for test, checks in content["tests"].items()
            for name, entries in checks.items()
        }
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise _broken(name, reason) from None


def write(path: Path, baselines: Mapping[Key, tuple[Baseline, ...]]) -> None:
    """Replace a file in one go: whoever reads it meanwhile sees the old one or the new one. Raises `OSError`."""
    if not baselines:
        path.unlink(missing_ok=True)
        return
    tests: dict[str, dict[str, Any]] = {}
    for (test, name), entries in baselines.items():
        tests.setdefault(test, {})[name] = [asdict(entry) for entry in entries]
    path = path.resolve()
    descriptor, scratch = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="\n") as file:
            json.dump({"schema": SCHEMA, "tests": tests}, file, indent=2, sort_keys=True)
            file.write("\n")
        os.chmod(scratch, path.stat().st_mode & 0o777 if path.exists() else 0o666 & ~_umask())
        os.replace(scratch, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(scratch)
        raise


def _umask() -> int:
    umask = os.umask(0)  # asked by setting it, as there is no other way
    os.umask(umask)
    return umask


def _broken(name: str, reason: str) -> UsageError:
    return UsageError(
        f"{name} is no file of baselines: {reason}; restore it from version control, "
        "or delete it and write it anew with --willfit-update"
    )


def _baseline(entry: Any) -> Baseline:
    baseline = Baseline(**entry)
    if not all(isinstance(value, str) for value in (*baseline.fingerprint, *baseline.fingerprint.values())):
        raise ValueError("a fingerprint is not text alone")
    if unknown := baseline.roles.keys() - set(ROLES):
        raise ValueError(f"there is no role {sorted(unknown)[0]!r}")
    sizes = [size for modules in baseline.roles.values() for size in modules.values()]
    for size in (*sizes, baseline.peak_allocated, baseline.peak_reserved, baseline.required):
        if type(size) is not int or size < 0:
            raise ValueError(f"{size!r} is no size in bytes")
    if sum(sizes) != baseline.peak_allocated:
        raise ValueError(f"the roles add up to {sum(sizes)}, not to the peak_allocated of {baseline.peak_allocated}")
    return baseline
