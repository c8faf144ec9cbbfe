"""The Python whose PyTorch is built for CUDA: this one, or the one that ``WILLFIT_CUDA_PYTHON`` names."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from willfit._errors import UnavailableError

VARIABLE = "WILLFIT_CUDA_PYTHON"
_OLDEST_CUDA, _NEWEST_CUDA = 12, 13
_SECONDS = 60  # to start Python and look for packages, on a slow disk too


@dataclass(frozen=True)
class Interpreter:
    """A Python that has a CUDA build of PyTorch."""

    python: str
    """Path of its executable."""
    version: tuple[int, int]
    """Of Python: functions cannot travel between versions."""
    torch: str
    """Version of its PyTorch: "2.13.0+cu130"."""
    cuda: str
    """The version of CUDA that it is built for: "13.0"."""
    libraries: tuple[Path, ...]
    """PyTorch's shared libraries, and those of bitsandbytes, that call CUDA's."""
    packages: tuple[tuple[str, str], ...]
    """Versions of packages that models are made of: ``(("transformers", "5.24.0"), ...)``."""

    @property
    def is_this_one(self) -> bool:
        """Whether this process runs under it."""
        return os.path.realpath(self.python) == os.path.realpath(sys.executable) and VARIABLE not in os.environ


# Runs in that Python; importing torch there would take seconds.
_LOOK = r"""
import importlib.metadata as metadata, importlib.util as util, json, pathlib, sys
def folder(name):
    spec = util.find_spec(name)
    return pathlib.Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else None
found = {"version": sys.version_info[:2], "python": sys.executable, "torch": None, "libraries": [], "packages": {}}
torch = folder("torch")
if torch is not None:
    version = {}
    exec((torch / "version.py").read_text(), version)
    found.update({"torch": version["__version__"], "cuda": version.get("cuda"), "hip": version.get("hip")})
    found["libraries"] = [str(path) for path in sorted((torch / "lib").glob("lib*.so"))]
bitsandbytes = folder("bitsandbytes")
if bitsandbytes is not None:
    found["libraries"] += [str(path) for path in sorted(bitsandbytes.glob("libbitsandbytes_cuda*.so"))]
for name in "transformers peft accelerate bitsandbytes lightning torchvision timm trl diffusers".split():
    try:
        found["packages"][name] = metadata.version(name)
    except metadata.PackageNotFoundError:
        pass
print(json.dumps(found))
"""


def cuda_interpreter() -> Interpreter:
    """The Python to run PyTorch's CUDA code with.

    Raises `UnavailableError`: this is not Linux, or there is no CUDA build of PyTorch.
    """
    if not sys.platform.startswith("linux"):
        raise UnavailableError(
            f"PyTorch's CUDA code cannot run here: its emulator needs Linux, and this is {sys.platform}; "
            "predict with the symbolic engine, which runs everywhere"
        )
    named = os.environ.get(VARIABLE)
    return _look(named or sys.executable or "", bool(named))


@cache
def _look(python: str, named: bool) -> Interpreter:
    where = f"{VARIABLE}={python}" if named else f"this Python ({python})"
    try:
        ran = subprocess.run(
            [python, "-c", _LOOK],
            capture_output=True,
            text=True,
            check=True,
            timeout=_SECONDS,
            stdin=subprocess.DEVNULL,
        )
        found: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError) as error:
        said = (getattr(error, "stderr", "") or str(error)).strip().splitlines()
        raise UnavailableError(f"{where} cannot be asked for its PyTorch: {said[-1] if said else error}") from None
    if found["torch"] is None:
        raise UnavailableError(f"{where} has no PyTorch: the emulator runs the CUDA code of one that is built for CUDA")
    if not found["cuda"]:
        kind = "ROCm" if found.get("hip") else "the CPU"
        raise UnavailableError(
            f"{where} has PyTorch {found['torch']}, which is built for {kind}: the emulator runs the CUDA code "
            "of a build for CUDA. Install one (on Linux `pip install torch` gives it), or name a Python "
            f"that has one with {VARIABLE}"
        )
    major = int(found["cuda"].partition(".")[0])
    if not _OLDEST_CUDA <= major <= _NEWEST_CUDA:
        raise UnavailableError(
            f"{where} has PyTorch {found['torch']}, which is built for CUDA {found['cuda']}: "
            f"the emulator stands in for CUDA {_OLDEST_CUDA} and {_NEWEST_CUDA}"
        )
    return Interpreter(
        python=found["python"],
        version=(found["version"][0], found["version"][1]),
        torch=found["torch"],
        cuda=found["cuda"],
        libraries=tuple(map(Path, found["libraries"])),
        packages=tuple(sorted(found["packages"].items())),
    )
