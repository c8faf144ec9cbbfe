"""A TARGET of the command line: ``path/to/file.py:function`` or ``package.module:function``, imported and called."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from operator import attrgetter
from pathlib import Path
from types import ModuleType
from typing import Any

from willfit._errors import TargetError

_FORM = "write it as path/to/train.py:build or package.train:build"
_RETURNS = "must return (model, optimizer, batch) or (model, optimizer, batch, step)"


@contextmanager
def imported(target: str) -> Iterator[Callable[[], tuple[Any, ...]]]:
    """Import a target's function; calling what this yields returns (model, optimizer, batch[, step]).

    A file is run as ``python -i`` would import it, not as ``__main__``; one in a package keeps its package, for its
    relative imports. Until the end of the ``with`` block the file's directory (for a module, the working directory)
    is the first on ``sys.path``, so that the function and the step may import what they need.

    Raises `TargetError`, also when calling, if there is no such file, module or function, if it raises or exits, if
    it takes arguments or returns anything else. The user's own exception, if any, is its cause.
    """
    home, separator, name = target.rpartition(":")
    if not separator or not home or not all(part.isidentifier() for part in name.split(".")):
        raise TargetError(f"{target!r} is no TARGET: {_FORM}")
    is_file = home.endswith(".py") or os.sep in home or "/" in home
    path = Path(home).resolve() if is_file else None
    if path is not None and not path.is_file():
        raise TargetError(f"there is no file {home!r} here ({Path.cwd()})")
    directory, module_name = where(path) if path is not None else (Path.cwd(), home)
    new = module_name not in sys.modules
    sys.path.insert(0, str(directory))
    try:
        module = _import(target, module_name, path)
        yield _checked(target, _function(target, module, name))
    finally:
        with suppress(ValueError):  # unless the target took it off itself
            sys.path.remove(str(directory))
        if path is not None and new:
            sys.modules.pop(module_name, None)


def user_frames(error: BaseException) -> str:
    """Where an exception was raised, as far as it is the user's code: the lines of a traceback, "" if there are none.

    Frames of willfit, of the standard library and of installed packages are left out, but for the last of all, in
    which it was raised. Of a syntax error it is the line that is wrong.
    """
    if hasattr(error, "user_frames"):  # of another process
        return str(error.user_frames)
    if isinstance(error, SyntaxError):
        return "".join(traceback.format_exception_only(error)[:-1]).rstrip()
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if _is_users(frame.filename)]
    if not own:
        return ""
    if frames[-1] is not own[-1] and not frames[-1].filename.startswith((_WILLFIT, "<frozen")):
        own.append(frames[-1])
    return "".join(traceback.format_list(own)).rstrip()


_WILLFIT = os.path.dirname(os.path.abspath(__file__)) + os.sep
_LIBRARY = os.path.dirname(os.path.abspath(os.__file__)) + os.sep


def _is_users(filename: str) -> bool:
    foreign = filename.startswith((_WILLFIT, _LIBRARY, "<frozen")) or f"{os.sep}site-packages{os.sep}" in filename
    return not foreign


def where(path: Path) -> tuple[Path, str]:
    """The directory to import a file from, and the module's name: with its packages, where it has any."""
    directory, parts = path.parent, [path.stem]
    while (directory / "__init__.py").is_file():
        parts.insert(0, directory.name)
        directory = directory.parent
    return directory, ".".join(parts)


def _import(target: str, name: str, path: Path | None) -> ModuleType:
    with _users_errors(target, "while it was imported"):
        if path is None or "." in name:
            try:
                return importlib.import_module(name)
            except ModuleNotFoundError as error:
                if error.name and (name == error.name or name.startswith(error.name + ".")):
                    raise TargetError(f"{target!r}: there is no module {error.name!r} here; {_FORM}") from None
                raise
        # By its path, and even if a module of this name is there already: a file may well be called test.py.
        specification = importlib.util.spec_from_file_location(name, path)
        if specification is None or specification.loader is None:
            raise TargetError(f"{path} is not a Python file: {_FORM}")
        module = importlib.util.module_from_spec(specification)
        if name not in sys.modules:
            sys.modules[name] = module  # dataclasses and pickle look a class's module up here
        specification.loader.exec_module(module)
        return module


def _function(target: str, module: ModuleType, name: str) -> Callable[[], Any]:
    try:
        function = attrgetter(name)(module)
    except AttributeError:
        functions = inspect.getmembers(module, lambda value: getattr(value, "__module__", "") == module.__name__)
        own = [each for each, value in functions if inspect.isroutine(value) and not each.startswith("_")]
        has = f"its functions are {', '.join(own)}" if own else "it has no functions"
        raise TargetError(f"{target!r}: there is no {name!r} in {module.__name__}; {has}") from None
    if not callable(function):
        raise TargetError(f"{target!r} is not a function: found {type(function).__name__}; a function {_RETURNS}")
    try:
        inspect.signature(function).bind()
    except TypeError as error:
        raise TargetError(f"{target!r} is called without arguments, but takes some: {error}") from None
    except ValueError:
        pass  # a builtin without a signature: the call will tell
    return function  # type: ignore[no-any-return]


def _checked(target: str, function: Callable[[], Any]) -> Callable[[], tuple[Any, ...]]:
    def build() -> tuple[Any, ...]:
        with _users_errors(target, "when it was called"):
            job = function()
        if not isinstance(job, tuple | list):
            raise TargetError(f"{target!r} {_RETURNS}: found {type(job).__name__}")
        if len(job) not in (3, 4):
            types = ", ".join(type(part).__name__ for part in job)
            raise TargetError(f"{target!r} {_RETURNS}: found {len(job)} values ({types})")
        if len(job) == 4 and job[3] is not None and not callable(job[3]):
            found = type(job[3]).__name__
            raise TargetError(f"{target!r} {_RETURNS}: the step is a function, found {found}")
        return tuple(job)

    return build


@contextmanager
def _users_errors(target: str, when: str) -> Iterator[None]:
    """Turn what the user's code raises into a `TargetError` with that as its cause."""
    try:
        yield
    except TargetError:
        raise
    except SystemExit as error:
        raise TargetError(
            f"{target!r} called sys.exit({error.code!r}) {when}: put what parses arguments or runs the training "
            'under `if __name__ == "__main__":`'
        ) from error
    except Exception as error:
        raise TargetError(f"{target!r} raised {type(error).__name__} {when}: {error}{_hint(error)}") from error


def _hint(error: Exception) -> str:
    """What to do about errors that a machine without a GPU is bound to raise."""
    if not any(words in str(error) for words in ("not compiled with CUDA", "no NVIDIA driver", "No CUDA GPUs")):
        return ""
    return "\nBuild model and batch on the CPU or on meta: willfit itself places them on the GPU that it predicts."
