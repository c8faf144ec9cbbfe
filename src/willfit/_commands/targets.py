"""``willfit check`` without a TARGET: the targets of pyproject.toml. Also one TARGET, in the formats of CI."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from willfit import __version__
from willfit._commands.options import COULD_NOT_TELL, DOES_NOT_FIT, FITS, USAGE
from willfit._commands.streams import progress_line, say, stdout_as_stderr, write, write_json
from willfit._errors import UsageError
from willfit._project import FILE, Target, find, read
from willfit._render.paper import colour_wanted

if TYPE_CHECKING:
    from willfit._checks import Check

CI_FORMATS: Final = ("github", "junit", "sarif")


def check_project(arguments: argparse.Namespace, options: Sequence[str]) -> int:
    """Check all targets of the project, or those that a change concerns; ``options`` were given for a TARGET alone."""
    if options:
        raise UsageError(f"{options[0]} is for one TARGET, and none was given: targets of {FILE} have keys for that")
    file = find(Path.cwd())
    targets = () if file is None else read(file)
    if file is None or not targets:
        where = f"no {FILE} here or above" if file is None else f"{file} has no [[tool.willfit.target]]"
        raise UsageError(f"no TARGET was given, and there is {where}: give one as in willfit check train.py:build")
    if arguments.changed is not None:
        from willfit._changed import changed

        here = Path.cwd()
        targets = changed(
            targets, [os.path.relpath(here / each, file.parent) for each in arguments.changed], file.parent
        )
        if not targets:
            say("no target depends on what was changed")
            return FITS
    with _working_in(file.parent):
        return _check(targets, arguments)


def check_one(arguments: argparse.Namespace) -> int:
    """One TARGET of the command line, in a format of CI."""
    from willfit._units import parse_size

    target = Target(
        entry=arguments.target,
        on=(arguments.on,),
        name=arguments.target,
        capacity=None if arguments.capacity is None else parse_size(arguments.capacity, "capacity"),
        steps=arguments.steps,
        engine=arguments.engine,
    )
    return _check((target,), arguments)


def _check(targets: tuple[Target, ...], arguments: argparse.Namespace) -> int:
    from willfit._checks import run

    with stdout_as_stderr() if arguments.format != "text" else nullcontext(), progress_line() as progress:
        checks = tuple(_in_the_repository(check) for check in run(targets, progress))
    _show(checks, arguments.format)
    return _exit_code(checks, arguments.strict)


def _in_the_repository(check: Check) -> Check:
    """With its file as GitHub counts, from the top of the repository, where the project is in a folder of that."""
    top = Path(os.environ.get("GITHUB_WORKSPACE") or Path.cwd()).resolve()
    file = Path(check.file).resolve()
    return replace(check, file=file.relative_to(top).as_posix()) if file.is_relative_to(top) else check


def _show(checks: tuple[Check, ...], form: str) -> None:
    if form == "json":
        from willfit._checks import SCHEMA

        write_json({"schema": SCHEMA, "willfit": __version__, "checks": [check.to_dict() for check in checks]})
    elif form == "junit":
        from willfit._render.junit import junit_xml

        write(junit_xml(checks))
    elif form == "sarif":
        from willfit._render.sarif import sarif

        write_json(sarif(checks, __version__))
    else:
        from willfit._render.checks import checks_text

        write(checks_text(checks, color=colour_wanted(sys.stdout)))
        if form == "github":
            _show_github(checks)


def _show_github(checks: tuple[Check, ...]) -> None:
    """Annotations among the lines of the log, and the summary where GitHub looks for it."""
    from willfit._render.github import summary, workflow_commands

    if found := workflow_commands(checks):
        write(found)
    if file := os.environ.get("GITHUB_STEP_SUMMARY"):
        try:
            with open(file, "a", encoding="utf-8") as stream:
                stream.write(summary(checks))
        except OSError as error:
            say(f"warning: the job summary cannot be written: {error}")


def _exit_code(checks: Sequence[Check], strict: bool) -> int:
    outcomes = {check.outcome for check in checks}
    if outcomes & {"does not fit", "over the limit"} or (strict and "tight" in outcomes):
        return DOES_NOT_FIT
    if "could not be predicted" in outcomes:
        return USAGE if any(check.usage for check in checks) else COULD_NOT_TELL
    return FITS


@contextmanager
def _working_in(directory: Path) -> Iterator[Any]:
    """Paths of the project's targets are relative to it."""
    before = Path.cwd()
    os.chdir(directory)
    try:
        yield
    finally:
        os.chdir(before)
