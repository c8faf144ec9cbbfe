"""TRL's kernels in Triton where Triton is not installed: on a package that is put together as TRL is.

Its loss has two ways: a kernel in Triton that writes to a small buffer, and one without that makes logits in fp32.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

import willfit

KERNELS = """
import torch
from transformers.utils import is_triton_available
if is_triton_available():
    import triton
    import triton.language as tl

def _jit(function):
    return triton.jit(function) if is_triton_available() else function

_AVAILABLE = is_triton_available()
def _use_triton(device):
    return _AVAILABLE and device.type == "cuda"

@_jit
def _kernel(pointer):
    raise AssertionError("launched")

def loss(hidden):
    if not _use_triton(hidden.device):
        return hidden.repeat(1, 64).float().sum()
    _kernel[(triton.cdiv(hidden.size(0), 2),)](hidden)
    return hidden.sum()
"""
TRAINER = """
from transformers.utils import is_triton_available
from ..kernels.losses import loss
def step(model, optimizer, batch):
    loss(model(batch)).backward()
    if is_triton_available():
        _fused_logprob_entropy(batch)
"""
SCRIPT = """
import sys
import torch, willfit
from trl.trainer.utils import step
import trl.kernels
before = dict(vars(sys.modules["trl.trainer.utils"]))
model = torch.nn.Linear(1024, 1024)
for _ in range(2):
    found = willfit.predict(model, torch.optim.SGD(model.parameters()), torch.zeros(512, 1024), step, on="T4", steps=1)
    assert vars(sys.modules["trl.trainer.utils"]) == before, "something stays"
    assert "triton" not in sys.modules and sys.modules["trl.kernels"] is trl.kernels
print(found.peak_allocated)
print(*found.assumptions, sep="; ")
"""


def test_the_way_with_triton_is_followed(tmp_path: Path) -> None:
    """Without it, logits of 64 x 512 x 1024 in fp32 alone are 128 MiB."""
    pytest.importorskip("transformers", reason="transformers is not installed")
    if importlib.util.find_spec("triton") is not None:
        pytest.skip("Triton is installed")
    files = {
        "trl/__init__.py": "",
        "trl/kernels/__init__.py": "from .losses import loss\nselective_log_softmax_and_entropy = loss\n",
        "trl/kernels/losses.py": KERNELS,
        "trl/trainer/__init__.py": "",
        "trl/trainer/utils.py": TRAINER,
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    paths = os.pathsep.join([str(tmp_path), str(Path(willfit.__file__).parents[1])])
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT]
    ran = subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    peak, assumptions = ran.stdout.splitlines()
    assert int(peak) < 64 * 2**20
    assert "TRL's kernels in Triton are taken to run" in assumptions
