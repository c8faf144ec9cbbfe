"""Compile the stand-in for a GPU's driver and libraries, once for each build of PyTorch, into the user's cache.

One library stands for all of them. What PyTorch's libraries import and runtime/*.c does not define becomes a function
that returns 0, which is "success" in each of them. No CUDA toolkit and no headers of it are needed.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import platform
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from willfit._emulator.interpreter import Interpreter
from willfit._errors import UnavailableError

SOURCES = Path(__file__).parent / "runtime"
LIBRARY = "libwillfit-gpu.so"
# Names under which programs look for a driver; the library is all of them.
_DRIVERS = ("libcuda.so.1", "libnvidia-ml.so.1")

_IMPORTED = ("cuda", "__cuda", "cublas", "cudnn", "cufft", "cusparse", "cupti")
# Functions of the driver are looked up by name while PyTorch runs, so their names are strings in its libraries.
_BY_NAME = re.compile(rb"\0(cu[A-Z][A-Za-z0-9_]{3,60})(?=\0)")
_LOOK_UP_BY_NAME = ("libc10_cuda.so", "libtorch_cuda.so", "libtorch_python.so")
# These must fail: a size that is not written would be a random one, and CUPTI would be asked for a GPU's counters.
_FAIL = re.compile(r"cupti\w+|cusparse\w*[bB]ufferSize\w*|cudnnBackend\w+")
_STUB = '#define STUB(name, result) __attribute__((visibility("default"))) int name(void) { return result; }'
_LONGEST_MESSAGE = 800


def runtime_for(interpreter: Interpreter) -> Path:
    """The folder of the library for this build of PyTorch; compiled if it is not there.

    Raises `UnavailableError`: no compiler, a compile error (with the compiler's message), a cache that is not writable.
    """
    folder = _folder(interpreter)
    if not (folder / LIBRARY).exists():
        _build_into(folder, interpreter)
    return folder


def check_tools(interpreter: Interpreter) -> None:
    """Raise `UnavailableError` if the library is not there and cannot be compiled for want of a compiler."""
    if not (_folder(interpreter) / LIBRARY).exists():
        _compiler()
        _nm()


def _folder(interpreter: Interpreter) -> Path:
    return _cache() / f"torch-{interpreter.torch}-{_key(interpreter)}"


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "willfit" / "emulator"


def _key(interpreter: Interpreter) -> str:
    """What the library depends on: the sources, and the libraries whose imports it serves."""
    key = hashlib.sha256(platform.machine().encode())
    for path in (*sorted(SOURCES.iterdir()), Path(__file__)):
        key.update(path.read_bytes())
    for path in interpreter.libraries:
        status = path.stat()
        key.update(f"{path} {status.st_size} {status.st_mtime_ns}".encode())
    return key.hexdigest()[:16]


def _build_into(folder: Path, interpreter: Interpreter) -> None:
    """Build beside the folder and put it there in one go, so that another process never sees half of it."""
    compiler, nm = _compiler(), _nm()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".building-") as scratch:
            made = Path(scratch) / "made"
            made.mkdir()
            _compile(compiler, nm, interpreter, Path(scratch), made)
            try:
                made.rename(folder)
            except OSError:
                if not (folder / LIBRARY).exists():  # else another process was faster
                    raise
    except OSError as error:
        raise UnavailableError(
            f"the emulator cannot be built in {folder.parent} ({error.strerror or error}): "
            "name a cache directory that can be written to with XDG_CACHE_HOME"
        ) from None


def _compile(compiler: list[str], nm: list[str], interpreter: Interpreter, scratch: Path, made: Path) -> None:
    own = scratch / "own.so"
    flags = ["-shared", "-fPIC", "-O1", "-w", "-fvisibility=hidden"]
    sources = sorted(map(str, SOURCES.glob("*.c")))
    _run([*compiler, *flags, *sources, "-o", str(own), "-ldl", "-lpthread"])
    defined = set(_run([*nm, "-D", "--defined-only", str(own)]).split())
    wanted: set[str] = set()
    for library in interpreter.libraries:
        wanted |= _imported(nm, library)
        if library.name in _LOOK_UP_BY_NAME:
            wanted |= _named(library)
    missing = [f"STUB({name}, {int(bool(_FAIL.fullmatch(name)))})" for name in sorted(wanted - defined)]
    stubs = scratch / "stubs.c"
    stubs.write_text("\n".join([_STUB, *missing, ""]))
    library = made / LIBRARY
    _run([*compiler, *flags, *sources, str(stubs), "-o", str(library), "-ldl", "-lpthread"])
    for name in _DRIVERS:
        (made / name).symlink_to(LIBRARY)


def _imported(nm: list[str], library: Path) -> set[str]:
    """CUDA's functions that a library imports."""
    words = _run([*nm, "-D", "--undefined-only", str(library)]).split()
    return {name for word in words if (name := word.partition("@")[0]).startswith(_IMPORTED)}


def _named(library: Path) -> set[str]:
    """Functions of the driver whose names a library holds."""
    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return {name.decode() for name in _BY_NAME.findall(content)}


def _compiler() -> list[str]:
    return _tool("C compiler", "CC", "cc", "gcc", "clang")


def _nm() -> list[str]:
    return _tool("nm, which lists the symbols of a library,", "NM", "nm", "llvm-nm")


def _tool(what: str, variable: str, *usual: str) -> list[str]:
    for name in (os.environ.get(variable), *usual):
        if name and shutil.which(name.split()[0]):
            return name.split()
    raise UnavailableError(
        f"the emulator is compiled when it is first used, and there is no {what} here (looked for {', '.join(usual)}): "
        f"install one, as with `apt install gcc`, or name it with {variable}"
    )


def _run(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL).stdout
    except subprocess.CalledProcessError as error:
        message = error.stderr.strip()
        shown = message if len(message) <= _LONGEST_MESSAGE else f"{message[:_LONGEST_MESSAGE]}\n..."
        raise UnavailableError(f"the emulator could not be compiled with {command[0]}:\n{shown}") from None
