"""The baselines in a run: what checks are compared with, what is to be written, what is used no more."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from willfit._errors import UsageError
from willfit._peaks import PEAKS
from willfit._pytest.baseline import SUFFIX, Baseline, Key, baseline_path, read, write
from willfit._pytest.changes import change_sentence, is_within
from willfit._pytest.fingerprint import differences
from willfit._pytest.outcome import Problem
from willfit._pytest.tolerance import Tolerance
from willfit._units import format_size

if TYPE_CHECKING:
    from willfit._pytest.settings import RunSettings, Settings

Entries = tuple[Baseline, ...]


class Ledger:
    """Reads files of baselines, and writes them at the end of the run; under xdist, that of the controller."""

    def __init__(self, settings: RunSettings, root: Path) -> None:
        self._settings = settings
        self._root = root
        self._files: dict[Path, dict[Key, Entries]] = {}
        self._new: defaultdict[Path, dict[Key, Entries]] = defaultdict(dict)
        self._checked: defaultdict[Path, set[Key]] = defaultdict(set)
        self._conflicts: set[tuple[Path, Key]] = set()
        self._is_used = False

    def checked(self, file: Path, key: Key) -> None:
        """A check was made, with a baseline or without."""
        self._checked[baseline_path(file)].add(key)

    def compare(self, file: Path, key: Key, now: Baseline, settings: Settings, job: str) -> Problem | None:
        """Hold a check to its baseline, or note that it is to be written.

        Args:
            file: the test's file.
            key: the test's id within it, and the name of the check.
            now: what was predicted.
            settings: the check's.
            job: what the sentence is about: "LlamaForCausalLM on T4".
        """
        self._is_used = True
        path = baseline_path(file)
        try:
            entries = self._read(path).get(key, ())
        except UsageError as error:
            return Problem("UNREADABLE BASELINE", str(error))
        if self._settings.update == "all":
            if entries != (now,):
                self._note(path, key, (now,))
            return None
        same = tuple(each for each in entries if each.fingerprint == now.fingerprint)
        tolerance = settings.tolerance or Tolerance()
        if any(is_within(each, now, tolerance, settings.peak) for each in same or entries):
            return None
        if not same and (self._settings.update == "new" or not (entries or self._settings.is_ci)):
            self._note(path, key, (*entries, now))
            return None
        if not entries:
            return Problem(
                "NO BASELINE",
                f"{job} has no baseline ({key[1]!r} in {path.name}), and where CI is set none is written: "
                "run the test on a machine of yours, or with --willfit-update-new-only, and commit the file",
            )
        return _changed((same or entries)[-1], now, settings, job, path)

    def _read(self, path: Path) -> dict[Key, Entries]:
        if path not in self._files:
            self._files[path] = read(path)
        return self._files[path]

    def _note(self, path: Path, key: Key, entries: Entries) -> None:
        if self._new[path].get(key, entries) != entries:
            self._conflicts.add((path, key))
        self._new[path][key] = entries

    # -- from a worker to the controller --------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """What a worker noted, in plain values."""
        return {
            "new": [
                (str(path), *key, [asdict(entry) for entry in entries])
                for path, new in self._new.items()
                for key, entries in new.items()
            ],
            "checked": [(str(path), *key) for path, keys in self._checked.items() for key in keys],
            "conflicts": [(str(path), *key) for path, key in self._conflicts],
            "is_used": self._is_used,
        }

    def merge(self, noted: dict[str, Any]) -> None:
        """Take over what a worker noted."""
        for path, test, name, entries in noted["new"]:
            self._note(Path(path), (test, name), tuple(Baseline(**entry) for entry in entries))
        for path, test, name in noted["checked"]:
            self._checked[Path(path)].add((test, name))
        self._conflicts.update((Path(path), (test, name)) for path, test, name in noted["conflicts"])
        self._is_used = self._is_used or noted["is_used"]

    # -- at the end --------------------------------------------------------------------------------------------

    def finish(self, tests: dict[Path, dict[str, bool]]) -> tuple[list[str], list[str]]:
        """Write what is to be written; returns what was done and what went wrong, in sentences.

        Args:
            tests: by test file, all tests that were collected in it, and whether they passed.
        """
        done: list[str] = []
        wrong: list[str] = []
        for path, key in sorted(self._conflicts):
            del self._new[path][key]
            wrong.append(f"{self._shown(path)}: {' '.join(key)} came out in two ways, and was not written")
        if self._settings.update and not self._is_used:
            done.append("no check has a baseline: give it baseline=True, or all of them one with --willfit-baseline")
        unused = {baseline_path(file): self._unused(baseline_path(file), known) for file, known in tests.items()}
        for path in sorted({*self._new, *unused}):
            gone = unused.get(path, []) if self._settings.update == "all" else []
            new = self._new.get(path, {})
            try:
                if new or gone:
                    done.append(f"{self._shown(path)}: {_apply(path, new, gone)}")
            except (UsageError, OSError) as error:
                wrong.append(f"{self._shown(path)} was not written: {error}")
            if left := [" ".join(key) for key in unused.get(path, []) if key not in gone]:
                done.append(f"{self._shown(path)}: not used any more: {', '.join(left)}; --willfit-update drops them")
        for directory in sorted({path.parent for path in self._checked}):
            for path in sorted(directory.glob(f"*{SUFFIX}")):
                if not path.with_name(path.name.removesuffix(SUFFIX) + ".py").exists():
                    done.append(f"{self._shown(path)}: its test file is gone; delete it")
        return done, wrong

    def _shown(self, path: Path) -> str:
        """The path as people know it: from the root of the tests."""
        return path.relative_to(self._root).as_posix() if path.is_relative_to(self._root) else str(path)

    def _unused(self, path: Path, tests: dict[str, bool]) -> list[Key]:
        """The entries of tests that are gone, and of checks that a test which passed did not make."""
        try:
            entries = self._read(path)
        except UsageError:
            return []  # said by the checks that need it
        made = self._checked.get(path, set())
        return [key for key in entries if key[0] not in tests or (tests[key[0]] and key not in made)]


def _apply(path: Path, new: dict[Key, Entries], gone: list[Key]) -> str:
    """Write a file as it is now with these changes, and say what they are."""
    entries = read(path)
    added = sum(key not in entries for key in new)
    write(path, {key: value for key, value in {**entries, **new}.items() if key not in gone})
    counts = ((added, "new"), (len(new) - added, "changed"), (len(gone), "dropped"))
    return ", ".join(f"{count} {word}" for count, word in counts if count)


def _changed(before: Baseline, now: Baseline, settings: Settings, job: str, path: Path) -> Problem:
    difference = getattr(now, PEAKS[settings.peak]) - getattr(before, PEAKS[settings.peak])
    if difference:
        verb = f"needs {format_size(abs(difference))} {'more' if difference > 0 else 'less'} than its baseline"
    else:
        verb = "needs as much as its baseline, but not for the same"
    sentence = f"{job} {verb}: {change_sentence(before, now)}"
    if environment := differences(before.fingerprint, now.fingerprint):
        sentence += f" (made with {environment})"
    remedy = f"To accept this, run the test with --willfit-update and commit {path.name}."
    return Problem("BASELINE CHANGED", sentence, (before, now), remedy)
