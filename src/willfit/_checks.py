"""The targets of a project held to what they may need: one check for each target and GPU."""

from __future__ import annotations

import ast
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from willfit._errors import UsageError, WillfitError
from willfit._peaks import PEAKS
from willfit._project import FILE, FULL, Target
from willfit._units import format_size

if TYPE_CHECKING:
    from willfit._devices import Device
    from willfit._footprint import Footprint

SCHEMA: Final = 1
"""Version of what ``willfit check --format json`` says of targets."""

Outcome = Literal["fits", "tight", "does not fit", "over the limit", "could not be predicted"]
FAILURES: Final[tuple[Outcome, ...]] = ("does not fit", "over the limit", "could not be predicted")


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """A target on one GPU, and what came out."""

    target: Target
    device: str
    """The GPU's name."""
    outcome: Outcome
    sentence: str
    """The outcome in a sentence."""
    footprint: Footprint | None = None
    """None where it could not be predicted."""
    seconds: float = 0.0
    file: str
    """Where the target is defined, relative to the project, with slashes."""
    line: int
    usage: bool = False
    """Whether it could not be predicted because the target itself is wrong."""

    @property
    def peak(self) -> int | None:
        """Bytes of the peak that the limit is about; None where it could not be predicted."""
        return None if self.footprint is None else getattr(self.footprint, PEAKS[self.target.peak])

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as docs/schema.md describes them; sizes are bytes."""
        found = self.footprint
        return {
            "name": self.target.name,
            "entry": self.target.entry,
            "file": self.file,
            "line": self.line,
            "method": self.target.method,
            "device": self.device,
            "outcome": self.outcome,
            "reason": self.sentence,
            "limit": self.target.limit,
            "peak": self.target.peak,
            "required": None if found is None else found.required,
            "peak_reserved": None if found is None else found.peak_reserved,
            "peak_allocated": None if found is None else found.peak_allocated,
            "capacity": None if found is None else found.capacity,
            "seconds": round(self.seconds, 3),
        }


def run(targets: tuple[Target, ...], progress: Callable[[str], None] = lambda words: None) -> Iterator[Check]:
    """Check targets, whose paths are relative to the working directory. One that fails keeps no other from its check.

    Raises `UsageError` for a GPU that there is none of, before anything is imported.
    """
    from willfit._devices import resolve_device

    devices = {}
    for target in targets:
        try:
            found = [resolve_device(on, target.capacity) for on in target.on]
        except UsageError as error:
            raise UsageError(f"target {target.name}: {error}") from None
        if None in found:
            raise UsageError(f"target {target.name} is for a GPU, and none is here: name one as in T4")
        devices[target.name] = [device for device in found if device is not None]
    for target in targets:
        progress(f"checking {target.name}")
        yield from _checked(target, devices[target.name])


def _checked(target: Target, devices: list[Device]) -> Iterator[Check]:
    file, line = place(target.entry)
    start = time.perf_counter()
    usage = False
    try:
        footprints = _footprints(target, devices)
    except (WillfitError, SystemExit) as error:
        footprints = [_why_not(error)] * len(devices)
        usage = isinstance(error, UsageError)
    seconds = (time.perf_counter() - start) / len(devices)
    for device, found in zip(devices, footprints, strict=True):
        outcome, sentence = judged(target, device.name, found)
        yield Check(
            target=target,
            device=device.name,
            outcome=outcome,
            sentence=sentence,
            footprint=None if isinstance(found, str) else found,
            seconds=seconds,
            file=file,
            line=line,
            usage=usage,
        )


def _why_not(error: BaseException) -> str:
    """The message and, where the user's own code raised, its lines."""
    if isinstance(error, SystemExit):
        return f"the training step called sys.exit({error.code!r})"
    from willfit._target import user_frames

    frames = user_frames(error.__cause__) if error.__cause__ is not None else ""
    return f"{error}\n{frames}" if frames else str(error)


def _footprints(target: Target, devices: list[Device]) -> list[Footprint | str]:
    """One for each GPU, or why there is none."""
    from willfit._target import imported

    with imported(target.entry) as build:
        job = build()
        from willfit._sweep import sweep

        found = sweep(*job, on=devices, methods=[target.method], steps=target.steps, engine=target.engine)
    return [cell.error if cell.footprint is None else cell.footprint for cell in found.cells]


def judged(target: Target, device: str, found: Footprint | str) -> tuple[Outcome, str]:
    """The outcome of a prediction, or of what kept it from being made, with a sentence. Exactly the limit is within it.

    >>> judged(Target(entry="train.py:build", on=("T4",), name="tune"), "T4", "torch is not installed")
    ('could not be predicted', 'tune could not be predicted on T4: torch is not installed')
    """
    how = f"{target.name} with {target.method}" if target.method != FULL else target.name
    if isinstance(found, str):
        return "could not be predicted", f"{how} could not be predicted on {device}: {found}"
    needs = f"needs {format_size(found.required)}"
    if found.verdict == "does not fit":
        missing = f", {format_size(found.missing)} more than it has" if found.missing else ""
        return "does not fit", f"{how} does not fit on {device}: it {needs}{missing}"
    peak = getattr(found, PEAKS[target.peak])
    if target.limit is not None and peak > target.limit:
        over = f"{format_size(peak - target.limit)} over the limit of {format_size(target.limit)}"
        return "over the limit", f"{how} needs {format_size(peak)} ({target.peak}) on {device}, {over}"
    if found.verdict == "tight":
        from willfit._render.sentences import tightness

        return "tight", f"{how} fits on {device}, but tightly: it {needs}. {tightness(found)}"
    return "fits", f"{how} fits on {device}: it {needs}"


def place(entry: str) -> tuple[str, int]:
    """File and line at which the function of a target is defined, as far as the text of the file tells.

    Where there is no such file, that of the project itself.
    """
    home, _, name = entry.rpartition(":")
    for path in files_of(home):
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, SyntaxError):
            continue
        named = [node for node in tree.body if getattr(node, "name", "") == name.split(".")[0]]
        return path.as_posix(), named[-1].lineno if named else 1
    return FILE, 1


def files_of(home: str) -> list[Path]:
    """Where the code of a target may be: its path, or where a project that is not installed keeps such a module."""
    if home.endswith(".py"):
        return [Path(home)]
    bases = [Path(top, *home.split(".")) for top in ("", "src")]
    return [path for base in bases for path in (base.with_suffix(".py"), base / "__init__.py")]
