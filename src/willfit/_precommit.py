"""The pre-commit hook ``willfit-baseline``: budgets in a commit are well-formed, and a higher one is explained.

It runs in an environment with nothing installed: all that it imports is the standard library's.
"""

from __future__ import annotations

import argparse
import os
import subprocess
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from willfit._errors import UsageError
from willfit._peaks import PEAKS
from willfit._project import FILE, Target
from willfit._project import parse as parse_project
from willfit._pytest import baseline
from willfit._units import format_size


def main(argv: Sequence[str] | None = None) -> int:
    """Look at the files that pre-commit names, and return its exit code: 1 with a line for each thing that is wrong."""
    parser = argparse.ArgumentParser(prog="willfit-baseline", description=__doc__)
    parser.add_argument("files", nargs="*")
    parser.add_argument("--changelog", default="CHANGELOG.md", metavar="FILE", help="(default: %(default)s)")
    arguments = parser.parse_args(argv)
    base = os.environ.get("PRE_COMMIT_FROM_REF") or "HEAD"
    wrong: list[str] = []
    raised: list[str] = []
    for name in arguments.files:
        try:
            raised += [f"{name}: {sentence}" for sentence in _raised_in(name, base)]
        except UsageError as error:
            told = str(error).removeprefix(Path(name).name).removeprefix(":").lstrip()
            wrong.append(f"{name}: {told}")
    if raised and not _says_something_new(arguments.changelog, base):
        wrong += raised
        wrong.append(f"a budget was raised, and {arguments.changelog} has no new line: say there why, and commit both")
    for sentence in wrong:
        print(f"willfit: {sentence}")
    return 1 if wrong else 0


def _raised_in(name: str, base: str) -> Iterator[str]:
    """What is higher in a file than it was, in words. Raises `UsageError` if the file is not well-formed."""
    try:
        text = Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot be read: {error}") from None
    before = _before(name, base)
    if Path(name).name == FILE:
        yield from _raised_limits(_well_formed(parse_project, before), parse_project(text))
    else:

        def parse(content: str) -> dict[baseline.Key, tuple[baseline.Baseline, ...]]:
            return baseline.parse(content, Path(name).name)

        yield from _raised_baselines(_well_formed(parse, before), parse(text))


def _well_formed(parse: Callable[[str], Any], text: str | None) -> Any:
    """What a file had; nothing, where there was none or it was broken."""
    try:
        return parse(text or "")
    except UsageError:
        return {}


def _raised_limits(before: Iterable[Target], now: Iterable[Target]) -> Iterator[str]:
    old = {target.name: target for target in before}
    order = list(PEAKS)  # each is at most the one before it, so that a limit on a later one allows more
    for target in now:
        was = old.get(target.name)
        if was is None or was.limit is None:
            continue
        if target.limit is None:
            yield f"{target.name} has no limit any more: it was {_limit(was)}"
        elif target.limit > was.limit or order.index(target.peak) > order.index(was.peak):
            yield f"the limit of {target.name} was {_limit(was)} and is {_limit(target)}"


def _limit(target: Target) -> str:
    assert target.limit is not None
    return f"{format_size(target.limit)} ({target.peak})"


def _raised_baselines(
    before: dict[baseline.Key, tuple[baseline.Baseline, ...]], now: dict[baseline.Key, tuple[baseline.Baseline, ...]]
) -> Iterator[str]:
    for key, entries in now.items():
        old = before.get(key, ())
        for entry in entries:
            # under another version or for another GPU it is held to the highest that there was
            same = [each for each in old if each.fingerprint == entry.fingerprint] or old
            for peak, attribute in PEAKS.items():
                was = max((getattr(each, attribute) for each in same), default=None)
                if was is not None and (size := getattr(entry, attribute)) > was:
                    yield f"{' '.join(filter(None, key))}: {peak} was {format_size(was)} and is {format_size(size)}"
                    break


def _before(name: str, base: str) -> str | None:
    """The file's text in the commit that this one comes after; None where there is none."""
    return _git("show", f"{base}:./{name}")


def _says_something_new(changelog: str, base: str) -> bool:
    """Whether the changelog has a line that it did not have."""
    added = (_git("diff", "--unified=0", "--no-color", "--no-ext-diff", base, "--", changelog) or "").splitlines()
    return any(line.startswith("+") and line[1:].strip() and not line.startswith("+++ ") for line in added)


def _git(*arguments: str) -> str | None:
    """What git says; None where it fails, as before the first commit."""
    ran = subprocess.run(["git", *arguments], capture_output=True, text=True, encoding="utf-8", check=False)
    return ran.stdout if ran.returncode == 0 else None
