from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=EXAMPLES.parent,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def test_the_small_model_trains_under_the_guard() -> None:
    ran = run("examples/train_small.py")
    assert ran.returncode == 0, ran.stderr
    losses = [float(loss) for loss in re.findall(r"loss ([0-9.]+)", ran.stdout)]
    assert len(losses) == 11
    assert losses[-1] < losses[0] / 4


def test_the_small_model_fits_a_t4() -> None:
    ran = run("-m", "willfit", "check", "examples/train_small.py:build", "--on", "T4")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("FITS: training NextLetter with AdamW needs ")


@pytest.mark.parametrize(
    ("code", "arguments"),
    [
        (0, ["examples/finetune_llama.py"]),
        (1, ["-m", "willfit", "check", "examples/finetune_llama.py:build", "--on", "T4"]),
    ],
)
def test_llama_is_refused_on_a_t4_with_the_bill(code: int, arguments: list[str]) -> None:
    pytest.importorskip("transformers")
    ran = run(*arguments)
    assert ran.returncode == code, ran.stderr
    said = " ".join(ran.stdout.split())
    assert "DOES NOT FIT: training LlamaForCausalLM with AdamW needs " in said
    assert "8.03 billion parameters, all trainable, in bfloat16" in said
    for role, size in {"parameters": "14.96 GiB", "gradients": "14.96 GiB", "optimizer states": "29.92 GiB"}.items():
        assert re.search(rf"^  {role} +{size} ", ran.stdout, re.MULTILINE), role
    assert max(map(len, ran.stdout.partition("DOES NOT FIT")[2].splitlines())) <= 80
