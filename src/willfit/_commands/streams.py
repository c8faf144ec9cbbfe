"""What commands write, and where: answers to stdout, all else to stderr."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

from willfit._errors import WillfitError

Progress = Callable[[str], None]


def write(text: str) -> None:
    """To stdout; characters that it cannot take are escaped, and a reader that has gone away is no error."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def write_json(value: Any) -> None:
    write(json.dumps(value, indent=2))


def say(sentence: str) -> None:
    print(f"willfit: {sentence}", file=sys.stderr)


def report(error: WillfitError) -> None:
    """One message; where the user's own code raised, with its lines and no others."""
    from willfit._target import user_frames

    frames = user_frames(error.__cause__) if error.__cause__ is not None else ""
    if frames:
        print(frames, file=sys.stderr)
    say(f"error: {error}")


@contextmanager
def stdout_as_stderr() -> Iterator[None]:
    """What the user's code prints goes to stderr, from libraries in C and child processes too."""
    sys.stdout.flush()
    saved = os.dup(1)
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(saved, 1)
        os.close(saved)


@contextmanager
def progress_line() -> Iterator[Progress]:
    """A line that says what is being done, on a terminal alone, gone when it is over."""
    if not sys.stderr.isatty():
        yield lambda words: None
        return
    from rich.console import Console
    from rich.live import Live
    from rich.spinner import Spinner

    spinner = Spinner("dots", "")
    # What the user's code prints passes above the line, but stays on its own stream.
    with Live(spinner, console=Console(stderr=True), transient=True, redirect_stdout=sys.stdout.isatty()):
        yield lambda words: spinner.update(text=f"willfit: {words}")
