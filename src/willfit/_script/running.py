"""A script run as ``python`` would run it, in a process that is of no use afterwards: it stays confined to a folder."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import CodeType
from typing import Any
from unittest.mock import patch

import torch

from willfit._errors import JobError, WillfitError
from willfit._script.confined import confine
from willfit._script.watched import Watched
from willfit._trace.following import Follower
from willfit._trace.trace import Trace
from willfit._wrong_jobs import cannot_be_followed


def run_script(
    command: tuple[str, ...], folder: Path, follower: Follower, watched: Watched, engine: AbstractContextManager[Any]
) -> Trace:
    """Run a script, with its arguments, while an engine follows it. Returns only where it ends by itself.

    Raises `JobError` for what the script raised, and where no optimizer stepped; `TraceError` for an operator that
    the engine cannot follow.
    """
    script, *arguments = command
    sys.argv = [script, *arguments]
    sys.path.insert(0, str(Path(script).resolve().parent))
    with engine, _no_workers(), watched.by_hooks():
        for note in confine(folder):
            follower.assume(note)
        try:
            _run_file(script)
        except SystemExit as error:
            if error.code not in (None, 0):
                raise JobError(
                    f"{script} called sys.exit({error.code!r}) before its optimizer had stepped twice"
                ) from error
        except WillfitError:
            raise
        except Exception as error:
            raise cannot_be_followed(error, follower, script) or JobError(
                f"{script} raised {type(error).__name__} before its optimizer had stepped twice: {error}"
            ) from error
        return watched.finish()


def _run_file(script: str) -> None:
    runpy.run_path(script, run_name="__main__")


OUTERMOST: CodeType = _run_file.__code__
"""Lines that called this are none of the script's."""


@contextmanager
def _no_workers() -> Iterator[None]:
    """DataLoaders read in this process: it ends before workers would have been worth their start."""
    loader = torch.utils.data.DataLoader
    own = loader.__iter__

    def iterate(self: Any) -> Any:
        self.num_workers, self.timeout = 0, 0
        return own(self)

    with patch.object(loader, "__iter__", iterate):
        yield
