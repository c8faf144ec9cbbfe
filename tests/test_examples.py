from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

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
        (1, ["-m", "willfit", "check", "examples/finetune_llama.py:build", "--on", "T4", "--no-advise"]),
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
    bill, _, advice = ran.stdout.partition("DOES NOT FIT")[2].partition("What would make it fit on T4")
    assert max(map(len, bill.splitlines())) <= 80
    if code == 0:  # the guard's refusal
        assert re.search(r"^1\. 4-bit weights .*\n   FITS: needs 13\.[0-9]+ GiB", advice, re.MULTILINE)


@pytest.mark.parametrize(("job", "code"), [("lora", 1), ("qlora", 0)])
def test_following_the_advice_llama_fits_a_t4(job: str, code: int) -> None:
    pytest.importorskip("bitsandbytes")
    ran = run("-m", "willfit", "check", f"examples/llama_on_a_t4.py:{job}", "--on", "T4", "--no-advise")
    assert ran.returncode == code, ran.stderr


def workflow_commands() -> list[str]:
    """What the steps of the example's workflow run."""
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    workflow = yaml.safe_load((EXAMPLES / "pytest" / "willfit.yml").read_text(encoding="utf-8"))
    (job,) = workflow["jobs"].values()
    assert job["runs-on"] == "ubuntu-latest"
    return [line for step in job["steps"] for line in step.get("run", "").splitlines()]


def test_the_workflow_installs_what_it_uses() -> None:
    installs = [line for line in workflow_commands() if "pip install" in line]
    assert " torch==2.13.0 " in installs[0], "its baselines are those of this version"
    assert '"willfit[pytest]"' in installs[1]


@pytest.mark.skipif(not torch.__version__.startswith("2.13.0"), reason="the baselines are those of torch 2.13.0")
def test_the_workflow_passes_on_a_machine_without_a_gpu(tmp_path: Path) -> None:
    pytest.importorskip("xdist", reason="pytest-xdist is not installed")
    (command,) = [line for line in workflow_commands() if "-m pytest" in line]
    project = tmp_path / "project"
    shutil.copytree(EXAMPLES / "pytest", project)
    before = (project / "test_memory.willfit.json").read_bytes()
    arguments = command.replace("python ", f"{sys.executable} ", 1).split()
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "CI": "true"}

    def test() -> subprocess.CompletedProcess[str]:
        return subprocess.run(arguments, cwd=project, env=environment, capture_output=True, text=True, timeout=300)

    ran = test()
    assert ran.returncode == 0, ran.stdout
    assert "2 passed" in ran.stdout
    checks = json.loads((project / "out" / "willfit.json").read_text(encoding="utf-8"))["checks"]
    assert [check["verdict"] for check in checks] == ["fits", "fits"]
    assert (project / "out" / "junit.xml").exists()
    train = (project / "train.py").read_text(encoding="utf-8")
    (project / "train.py").write_text(train.replace("LanguageModel()\n", "LanguageModel(ratio=5)\n"), encoding="utf-8")
    ran = test()
    assert ran.returncode == 1
    assert re.search(r"needs 368\.00 MiB more than its baseline: activations .* in blocks\.\*\.mlp; ", ran.stdout)
    assert (project / "test_memory.willfit.json").read_bytes() == before
