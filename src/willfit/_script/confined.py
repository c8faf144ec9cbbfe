"""What a process may do to its machine from now on: nothing. What it writes goes to a folder, and nothing leaves.

Three layers, as none does alone. Python's functions for files are led to the folder, where a file that the process
changes takes the place of the one that it read. Python's audit events refuse the network and other programs. The Linux
kernel's Landlock refuses what libraries in C would write past Python, or send.

There is no way back: it is for a process that ends when it is done.
"""

from __future__ import annotations

import builtins
import errno
import glob
import io
import multiprocessing.context
import os
import pathlib
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from willfit._script.landlock import restrict

# Libraries that would reach out before anything of the user's does.
_OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "WANDB_MODE": "disabled",
    "NEPTUNE_MODE": "debug",
    "COMET_START_ONLINE": "0",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
_PROGRAMS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn")
_NETWORK = ("socket.connect", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo", "socket.gethostbyname")
_HERE = ("127.", "::1", "localhost")
# Files that are none.
_DEVICES = ("/dev/", "/proc/", "/sys/")


def confine(folder: Path) -> tuple[str, ...]:
    """Confine this process to a folder, and say what that does not cover here."""
    os.environ.update(_OFFLINE)
    temporary = folder / "tmp"
    temporary.mkdir(exist_ok=True)
    os.environ["TMPDIR"] = str(temporary)
    tempfile.tempdir = None  # looked for again
    sys.dont_write_bytecode = True
    _Overlay(folder / "files", folder).lead()
    _save_by_python()
    kinds: tuple[Any, ...] = (multiprocessing.context.SpawnProcess, multiprocessing.context.ForkServerProcess)
    for kind in kinds:
        kind._Popen = staticmethod(_refuse_process)
    sys.addaudithook(_refuse)
    return restrict(folder)


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    if event in _PROGRAMS:
        raise PermissionError(errno.EACCES, f"willfit run starts no other program: {arguments[0]}")
    if event in _NETWORK and not _is_here(event, arguments):
        raise OSError(errno.ENETUNREACH, "willfit run lets nothing leave the machine")


def _refuse_process(process: Any) -> None:
    """A process that is no copy of this one would not be confined."""
    raise PermissionError(errno.EACCES, "willfit run follows one process, and starts no other by spawn or forkserver")


def _is_here(event: str, arguments: tuple[Any, ...]) -> bool:
    address = arguments[0] if event in ("socket.getaddrinfo", "socket.gethostbyname") else arguments[1]
    host = address[0] if isinstance(address, tuple) and address else address
    if host is None or (isinstance(address, (str, bytes)) and event in ("socket.connect", "socket.sendto")):
        return True  # a socket that is a file
    return str(host).startswith(_HERE)


def _save_by_python() -> None:
    """``torch.save`` writes to a path in C++."""
    torch: Any = sys.modules.get("torch")
    if torch is None:
        return
    own = torch.save

    def save(value: Any, file: Any, *args: Any, **kwargs: Any) -> None:
        if isinstance(file, (str, os.PathLike)):
            with open(file, "wb") as stream:
                own(value, stream, *args, **kwargs)
        else:
            own(value, file, *args, **kwargs)

    torch.save = save


class _Overlay:
    """Files over those of the machine: written ones lie here, at the same path, and are read from here."""

    def __init__(self, top: Path, free: Path) -> None:
        self._top = str(top)
        self._free = str(free)
        self._gone: set[str] = set()
        self._os = {name: getattr(os, name) for name in (*_READ, *_CHANGE, "mkdir", "rename", "replace", "open")}
        self._exists = os.path.lexists
        self._listdir, self._scandir, self._open = os.listdir, os.scandir, builtins.open
        self._os["mkdir"](self._top)

    def lead(self) -> None:
        """Put the functions in the place of Python's."""
        for name in _READ:
            setattr(os, name, self._reading(self._os[name]))
        for name in _CHANGE:
            setattr(os, name, self._changing(self._os[name], removes=name in _REMOVE))
        for name in ("rename", "replace"):
            setattr(os, name, self._renaming(self._os[name]))
        os.mkdir, os.open, os.listdir, os.scandir = self.mkdir, self.open_fd, self.listdir, self.scandir
        builtins.open = io.open = self.open
        for cls in (getattr(module, name, None) for module, name in _EARLY):
            for name in vars(cls) if cls else ():
                if name in _FUNCTIONS:
                    setattr(cls, name, staticmethod(getattr(os, name) if name != "open" else self.open))

    # -- where a path is ----------------------------------------------------------------------------------------

    def _path(self, path: Any) -> str | None:
        """The path as it is on the machine; None for what is no path of a file, or lies in the folder anyway."""
        if isinstance(path, int):
            return None
        name = os.path.abspath(os.fsdecode(path))
        return None if name.startswith((*_DEVICES, self._free)) else name

    def _lstat(self, path: str) -> bool:
        try:
            self._os["lstat"](path)
        except OSError:
            return False
        return True

    def read(self, path: Any) -> Any:
        """Where to read a path."""
        name = self._path(path)
        if name is None:
            return path
        if name in self._gone:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), os.fsdecode(path))
        over = self._top + name
        return over if self._lstat(over) else path

    def write(self, path: Any, *, keep: bool) -> Any:
        """Where to write a path; what is there already comes along where it is to be kept."""
        name = self._path(path)
        if name is None:
            return path
        over = self._top + name
        parent = os.path.dirname(name)
        if not self._lstat(self._top + parent):
            self._os["stat"](parent)  # raises where there is none
            self._parents(self._top + parent)
        is_there = name not in self._gone and self._lstat(name)
        if keep and is_there and not self._lstat(over):
            if os.path.isdir(name):
                self._os["mkdir"](over)
            else:
                with self._open(name, "rb") as old, self._open(over, "wb") as new:
                    shutil.copyfileobj(old, new)
        self._gone.discard(name)
        return over

    def _parents(self, path: str) -> None:
        if not self._lstat(path):
            self._parents(os.path.dirname(path))
            self._os["mkdir"](path)

    # -- functions in the place of Python's ---------------------------------------------------------------------

    def open(self, file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if isinstance(file, int):
            return self._open(file, mode, *args, **kwargs)
        if any(letter in mode for letter in "wax+"):
            if "x" in mode and os.path.lexists(file):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), os.fsdecode(file))
            return self._open(self.write(file, keep="w" not in mode), mode, *args, **kwargs)
        return self._open(self.read(file), mode, *args, **kwargs)

    def open_fd(self, path: Any, flags: int, *args: Any, dir_fd: int | None = None, **kwargs: Any) -> int:
        if dir_fd is None:
            writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            if flags & os.O_EXCL and os.path.lexists(path):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), os.fsdecode(path))
            path = self.write(path, keep=not flags & os.O_TRUNC) if writes else self.read(path)
        return int(self._os["open"](path, flags, *args, dir_fd=dir_fd, **kwargs))

    def mkdir(self, path: Any, *args: Any, **kwargs: Any) -> None:
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), os.fsdecode(path))
        self._os["mkdir"](self.write(path, keep=False), *args, **kwargs)

    def listdir(self, path: Any = ".") -> list[Any]:
        name = self._path(path)
        if name is None:
            return self._listdir(path)
        here = [top for top in (self._top + name, name) if self._lstat(top)]
        names = {each for top in here or [name] for each in self._listdir(top)}
        kept = sorted(each for each in names if os.path.join(name, each) not in self._gone)
        return [os.fsencode(each) for each in kept] if isinstance(path, bytes) else kept

    def scandir(self, path: Any = ".") -> Any:
        name = self._path(path)
        if name is None or not self._lstat(self._top + name):
            return self._scandir(path)
        return _Entries(self._entries(name))

    def _entries(self, name: str) -> Iterator[Any]:
        seen: set[str] = set()
        for top in (self._top + name, name):
            if self._lstat(top):
                with self._scandir(top) as entries:
                    for entry in entries:
                        if entry.name not in seen and os.path.join(name, entry.name) not in self._gone:
                            seen.add(entry.name)
                            yield entry

    def _reading(self, own: Callable[..., Any]) -> Callable[..., Any]:
        def read(path: Any, *args: Any, **kwargs: Any) -> Any:
            return own(path if kwargs.get("dir_fd") is not None else self.read(path), *args, **kwargs)

        return read

    def _changing(self, own: Callable[..., Any], *, removes: bool) -> Callable[..., Any]:
        def change(path: Any, *args: Any, **kwargs: Any) -> Any:
            name = None if kwargs.get("dir_fd") is not None else self._path(path)
            if name is None:
                return own(path, *args, **kwargs)
            os.lstat(path)  # raises where there is none
            own(self.write(path, keep=True), *args, **kwargs)
            if removes and self._lstat(name):
                self._gone.add(name)
            return None

        return change

    def _renaming(self, own: Callable[..., Any]) -> Callable[..., Any]:
        def rename(source: Any, destination: Any, **kwargs: Any) -> None:
            os.lstat(source)
            own(self.write(source, keep=True), self.write(destination, keep=False), **kwargs)
            if (name := self._path(source)) is not None and self._lstat(name):
                self._gone.add(name)

        return rename


_READ = ("stat", "lstat", "access", "readlink", "chdir")
_REMOVE = ("remove", "unlink", "rmdir")
_CHANGE = (*_REMOVE, "chmod", "utime", "truncate")
_FUNCTIONS = frozenset((*_READ, *_CHANGE, "mkdir", "rename", "replace", "listdir", "scandir", "open"))
# Classes of the standard library's that have looked functions of os up already: in Python 3.10, in 3.13, from 3.14 on.
_EARLY: tuple[tuple[Any, str], ...] = ((pathlib, "_NormalAccessor"), (glob, "_Globber"), (glob, "_StringGlobber"))


class _Entries:
    """As ``os.scandir`` returns it."""

    def __init__(self, entries: Iterator[Any]) -> None:
        self._entries = entries

    def __iter__(self) -> Iterator[Any]:
        return self._entries

    def __next__(self) -> Any:
        return next(self._entries)

    def __enter__(self) -> _Entries:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Nothing more is read."""
