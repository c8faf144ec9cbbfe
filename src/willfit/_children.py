"""Processes that willfit starts for what its own cannot do: watched, and gone when that is over."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import traceback
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from willfit import _errors
from willfit._errors import WillfitError

_BOOTSTRAP = Path(__file__).with_name("_bootstrap.py")
_LAST_LINES = 12


@dataclass(frozen=True)
class Failed:
    """An exception that ended what a process was to do."""

    kind: str
    """The class of `willfit`'s to raise; "" for an exception that is a mistake of willfit's own."""
    message: str
    frames: str
    """Lines of the user's code that led to it."""


class RemoteError(Exception):
    """The user's own lines that led to an exception in another process, as a traceback shows them."""

    @property
    def user_frames(self) -> str:
        """Those lines."""
        return str(self.args[0])


def start(
    python: str, module: str, folder: str, packages: Mapping[str, str], environment: Mapping[str, str]
) -> subprocess.Popen[str]:
    """Start a Python that calls ``main(folder)`` of a module, with these packages beside its own, by their folders."""
    return subprocess.Popen(
        [python, str(_BOOTSTRAP), module, folder, *(f"{name}={directory}" for name, directory in packages.items())],
        env=environment,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,  # Ctrl-C reaches this process alone, which then ends that one
    )


def watch(process: subprocess.Popen[str]) -> str | None:
    """Pass on what a process says until it ends; it never outlives this call. How it ended, if not well."""
    last: deque[str] = deque(maxlen=_LAST_LINES)
    try:
        assert process.stderr is not None
        for said in process.stderr:
            sys.stderr.write(said)
            last.append(said)
        status = process.wait()
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
    finally:
        if process.stderr is not None:
            process.stderr.close()
    return _ended(status, "".join(last)) if status else None


def _ended(status: int, said: str) -> str:
    if status == -signal.SIGKILL:
        why = "was killed (SIGKILL): by someone, or by the system for want of memory"
    elif status < 0:
        why = f"crashed ({signal.Signals(-status).name})"
    else:
        why = f"ended with status {status}"
    last = f"; the last that it said:\n{said.rstrip()}" if said.strip() else ""
    return f"{why}{last}"


def result_of(file: Path, notes: Sequence[str] = ()) -> Any:
    """What a process wrote down; raises what it failed with, and what differs there in the message."""
    result = pickle.loads(file.read_bytes())
    if not isinstance(result, Failed):
        return result
    if not result.kind:
        raise AssertionError(f"a mistake in willfit, please report it:\n{result.message}")
    differences = f" ({'; '.join(notes)})" if notes else ""
    error: Any = getattr(_errors, result.kind)(f"{result.message}{differences}")
    raise error from (RemoteError(result.frames) if result.frames else None)


def failed_with(error: Exception) -> Failed:
    """What to write down, in the process, of an exception."""
    from willfit._target import user_frames

    if isinstance(error, WillfitError):
        return Failed(type(error).__name__, str(error), user_frames(error.__cause__) if error.__cause__ else "")
    return Failed("", "".join(traceback.format_exception(error)), "")


def paths_imported_from() -> list[str]:
    """Where this process finds modules, for another."""
    return [os.path.abspath(path) for path in sys.path if path]
