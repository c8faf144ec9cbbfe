"""Every operator of PyTorch's own test database, forward and backward, against PyTorch's own CUDA code.

``record.py`` records that, ``compare.py`` compares; what differs is listed in ``known_differences.json``, from where
docs/fidelity.md takes it.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import recorded
import torch

HERE = Path(__file__).parent

VERSION = torch.__version__.partition("+")[0]
EMULATOR = Path(os.environ.get("WILLFIT_EMULATOR", HERE.parents[2] / "shared" / "cuda-emulator" / "run"))


def run(*command: str, **environment: str) -> str:
    environment = {**os.environ, "PYTHONWARNINGS": "ignore", **environment}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.skipif(VERSION not in recorded.VERSIONS, reason=f"nothing was recorded with torch {VERSION}")
def test_operators_allocate_what_cuda_does() -> None:
    result: dict[str, Any] = json.loads(run(sys.executable, str(HERE / "compare.py")).splitlines()[-1])
    # an operator that is not on the list has become worse; one that no longer belongs there is to be taken off
    assert result["differ"] == recorded.known(VERSION)
    recorded_calls = sum(map(len, recorded.read(VERSION).values()))
    # a build without CUDA knows of fewer dtypes for a handful of operators
    assert result["calls"] >= 0.99 * recorded_calls
    assert result["operators"] >= 500


def test_each_known_difference_has_a_reason() -> None:
    assert all(entry["why"] for entry in recorded.read_known().values())


def test_a_version_is_read_as_it_was_written(tmp_path: Path) -> None:
    base = recorded.read(recorded.BASE)
    changed = {name: {key: events + " +512" for key, events in calls.items()} for name, calls in base.items()}
    first, *_, last = base
    del changed[last]
    changed[first] = base[first]
    recorded.write("2.99.0", changed, tmp_path)
    assert recorded.read("2.99.0", tmp_path) == changed


@pytest.mark.skipif(
    torch.version.cuda is None or not EMULATOR.exists(), reason="needs a CUDA build of PyTorch and the emulator"
)
def test_what_was_recorded_is_what_cuda_does(tmp_path: Path) -> None:
    if VERSION not in recorded.VERSIONS:
        pytest.skip(f"nothing was recorded with torch {VERSION}")
    run(str(EMULATOR), "A100-80GB", str(HERE / "record.py"), str(tmp_path), PYTHON=sys.executable)
    assert recorded.read(VERSION, tmp_path) == recorded.read(VERSION)
