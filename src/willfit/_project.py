"""What a project asks for in its pyproject.toml: ``[[tool.willfit.target]]``. The standard library does for all of it.

That is a promise: the pre-commit hook reads these tables with nothing installed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, Final

from willfit._errors import UsageError
from willfit._peaks import PEAKS, Peak
from willfit._trace.trace import ENGINES, Engine
from willfit._units import parse_size

FILE: Final = "pyproject.toml"
FULL: Final = "full"
"""The method that changes nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """One training job that a project holds to what it may need."""

    entry: str
    """A TARGET of the command line: "train.py:build"; a path is relative to the file that it stands in."""
    on: tuple[str | int, ...]
    """The GPUs that it has to fit, each by its name or its size."""
    name: str = ""
    """What it is called; by default its entry."""
    limit: int | None = None
    """Bytes that its peak may have."""
    peak: Peak = "required"
    """Which peak that is."""
    method: str = FULL
    """How it is trained: "full", or the names of changes that `willfit sweep --method` takes, joined by "+"."""
    capacity: int | None = None
    """Bytes that the allocator may hold, in place of the GPU's own."""
    steps: int = 3
    """Optimizer steps that are followed."""
    engine: Engine = "symbolic"
    files: tuple[str, ...] = ()
    """Further files that it depends on, as patterns: a change of one is a change of the target."""


def find(directory: Path) -> Path | None:
    """The pyproject.toml of a directory, or of the nearest one above that has one."""
    return next((file for each in (directory, *directory.parents) if (file := each / FILE).is_file()), None)


def read(file: Path) -> tuple[Target, ...]:
    """The targets in a pyproject.toml. Raises `UsageError` for what cannot be, and says where it stands."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{FILE} cannot be read: {error}") from None
    return parse(text)


def parse(text: str) -> tuple[Target, ...]:
    r"""The targets in the text of a pyproject.toml. Raises `UsageError` for what cannot be, and says where it stands.

    >>> (target,) = parse('''
    ... [[tool.willfit.target]]
    ... entry = "train.py:build"
    ... on = "T4"
    ... limit = "12 GiB"
    ... ''')
    >>> target.name, target.on, target.limit
    ('train.py:build', ('T4',), 12884901888)
    >>> parse("[[tool.willfit.target]]\nentry = 'train.py:build'")
    Traceback (most recent call last):
    willfit._errors.UsageError: pyproject.toml: target 1 (train.py:build) of [tool.willfit] has no 'on'
    """
    table = _toml(text).get("tool", {}).get("willfit", {})
    if not isinstance(table, Mapping):
        raise UsageError(f"{FILE}: tool.willfit must be a table: found {table!r}")
    if unknown := [key for key in table if key != "target"]:
        raise UsageError(f"{FILE}: [tool.willfit] has an unknown key {unknown[0]!r}: there is only target")
    entries = table.get("target", [])
    if not isinstance(entries, list) or not all(isinstance(entry, Mapping) for entry in entries):
        raise UsageError(f"{FILE}: the targets of [tool.willfit] are tables: write each under [[tool.willfit.target]]")
    targets: dict[str, Target] = {}
    for number, entry in enumerate(entries, 1):
        target = _target(entry, number)
        if target.name in targets:
            raise UsageError(f"{FILE}: two targets of [tool.willfit] are called {target.name!r}: name them apart")
        targets[target.name] = target
    return tuple(targets.values())


def _toml(text: str) -> dict[str, Any]:
    if "willfit" not in text:  # nothing of ours, in whatever version of TOML
        return {}
    try:
        if sys.version_info >= (3, 11):
            import tomllib
        else:
            import tomli as tomllib
    except ImportError:
        version = ".".join(map(str, sys.version_info[:2]))
        raise UsageError(f"{FILE} cannot be read by Python {version} without tomli: use 3.11 or newer") from None
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{FILE} is not TOML: {error}") from None


def _target(entry: Mapping[str, Any], number: int) -> Target:
    called = entry.get("name", entry.get("entry"))
    where = f"{FILE}: target {number}{f' ({called})' if isinstance(called, str) else ''} of [tool.willfit]"
    keys = [field.name for field in fields(Target)]
    for key in entry:
        if key not in keys:
            raise UsageError(f"{where} has an unknown key {key!r}: there are {', '.join(keys)}")
    for key in ("entry", "on"):
        if key not in entry:
            raise UsageError(f"{where} has no {key!r}")
    try:
        values = {key: _PARSERS[key](value) for key, value in entry.items()}
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from None
    return Target(**{"name": values["entry"], **values})


# -- what a value may be ------------------------------------------------------------------------------------------


def _text(what: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise UsageError(f"{what} must be text: found {value!r}")
    return value


def _entry(value: Any) -> str:
    home, _, name = _text("entry", value).rpartition(":")
    if not home or not all(part.isidentifier() for part in name.split(".")):
        raise UsageError(f"entry must be as in path/to/train.py:build or package.train:build: found {value!r}")
    return str(value)


def _devices(value: Any) -> tuple[str | int, ...]:
    devices = value if isinstance(value, list) else [value]
    if not devices:
        raise UsageError("on names no GPU")
    for each in devices:
        if isinstance(each, bool) or not isinstance(each, (str, int)) or not str(each).strip():
            raise UsageError(f'on must be the name of a GPU such as "T4", a size, or a list of such: found {each!r}')
    return tuple(devices)


def _one_of(what: str, choices: tuple[str, ...], value: Any) -> str:
    if value not in choices:
        raise UsageError(f"{what} must be one of {', '.join(choices)}: found {value!r}")
    return str(value)


def _size(what: str, value: Any) -> int:
    return parse_size(value, what)


def _method(value: Any) -> str:
    if not all(word.strip() for word in _text("method", value).split("+")):
        raise UsageError(f'method must be names joined by "+", such as "lora+checkpointing": found {value!r}')
    return "+".join(word.strip() for word in value.split("+"))


def _steps(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UsageError(f"steps must be a number of optimizer steps, 1 or more: found {value!r}")
    return value


def _files(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise UsageError(f"files must be a list of patterns: found {value!r}")
    return tuple(_text("a pattern of files", each) for each in value)


_PARSERS: Final[dict[str, Callable[[Any], Any]]] = {
    "entry": _entry,
    "on": _devices,
    "name": partial(_text, "name"),
    "limit": partial(_size, "limit"),
    "peak": partial(_one_of, "peak", tuple(PEAKS)),
    "method": _method,
    "capacity": partial(_size, "capacity"),
    "steps": _steps,
    "engine": partial(_one_of, "engine", ENGINES),
    "files": _files,
}
