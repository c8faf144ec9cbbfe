"""A script run as ``python`` would run it, in a process that is of no use afterwards: it stays confined to a folder."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import CodeType
from typing import Any
from unittest.mock import patch

import torch

from willfit._copying import COMPILED_IS_EAGER
from willfit._errors import JobError, WillfitError
from willfit._globals import is_the_users
from willfit._script.confined import confine
from willfit._script.watched import Watched
from willfit._trace.following import Follower
from willfit._trace.trace import Trace

Refused = Callable[[Exception, Follower, str], WillfitError | None]


def run_script(
    command: tuple[str, ...],
    folder: Path,
    follower: Follower,
    watched: Watched,
    engine: AbstractContextManager[Any],
    refused: Refused = lambda error, follower, script: None,
) -> Trace:
    """Run a script, with its arguments, while an engine follows it. Returns only where it ends by itself.

    ``refused`` tells what the engine cannot do from what the script raised itself.

    Raises `JobError` for what the script raised, and where no optimizer stepped; what ``refused`` returns.
    """
    script, *arguments = command
    sys.argv = [script, *arguments]
    sys.path.insert(0, str(Path(script).resolve().parent))
    with engine, _no_workers(), _one_process(script), _compiling_noted(follower), watched.by_hooks():
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
            raise refused(error, follower, script) or JobError(
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


@contextmanager
def _one_process(script: str) -> Iterator[None]:
    """A group of processes is not begun: this one would wait for the others."""

    def begin(*_: Any, **__: Any) -> None:
        raise JobError(
            f"{script} begins a process group of torch.distributed, and willfit follows one process: run it as for "
            "one GPU, without a launcher's variables, or guard its loop with willfit.guard"
        )

    if not torch.distributed.is_available():
        yield
        return
    with patch.object(torch.distributed, "init_process_group", begin):
        yield


@contextmanager
def _compiling_noted(follower: Follower) -> Iterator[None]:
    """Either engine runs what is compiled as if it were not: a module, or what the script itself compiles."""
    own = torch.compile

    def compile(model: Any = None, *args: Any, **kwargs: Any) -> Any:
        of = getattr(model, "__self__", model)
        if isinstance(of, torch.nn.Module) or is_the_users(sys._getframe(1).f_code.co_filename):
            follower.assume(COMPILED_IS_EAGER)
        return own(model, *args, **kwargs)

    with patch.object(torch, "compile", compile):
        yield
