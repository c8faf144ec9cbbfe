"""``willfit run``: training scripts that know nothing of willfit. The truth is the same script, run on the emulated GPU
with nothing but a count of its optimizers' steps."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from alone import lay_out, measured
from machine import SOURCE, interpreter, missing, same_version


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    lay_out(tmp_path)
    return tmp_path


def willfit_run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "PYTHONPATH": str(SOURCE), **environment}
    command = [sys.executable, "-m", "willfit", "run", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=variables, timeout=300)


def predicted(*arguments: str) -> dict[str, Any]:
    interpreter()  # skips with a reason where there is none
    ran = willfit_run("--on", "T4", "--format", "json", *arguments)
    assert ran.returncode == 0, ran.stderr
    footprint: dict[str, Any] = json.loads(ran.stdout)
    return footprint


def skip_without_its_packages(script: str) -> None:
    if script == "finetune_trainer.py" and not missing():
        packages = dict(interpreter().packages)
        if "transformers" not in packages or "accelerate" not in packages:
            pytest.skip(f"{interpreter().python} lacks transformers or accelerate")


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_script_takes_to_the_byte_what_it_takes_alone(here: Path) -> None:
    arguments = ("nanogpt.py", "input.txt", "--n_layer=2")
    before = files(here)
    footprint = predicted(*arguments)
    assert files(here) == before, "the checkpoint and the encoded text went elsewhere"
    assert (footprint["peak_allocated"], footprint["peak_reserved"]) == measured(here, *arguments)


def test_two_models_with_an_optimizer_each(here: Path) -> None:
    arguments = ("gan.py", "--ngf=16", "--ndf=16")
    before = files(here)
    footprint = predicted(*arguments)
    assert files(here) == before
    assert (footprint["peak_allocated"], footprint["peak_reserved"]) == measured(here, *arguments)
    job = footprint["job"]
    assert (job["model"], job["optimizer"]) == ("Discriminator + Generator", "Adam + Adam")
    assert footprint["bill"]["parameters"] >= 4 * job["parameters"]
    assert footprint["bill"]["optimizer states"] >= 8 * job["parameters"]
    assert max(phase["step"] for phase in footprint["phases"]) == 2


# Where the script reads values: those of the truth are all 0, the policy's are others, and masks are built by them.
@pytest.mark.parametrize("arguments", [("classify.py", "--amp", "--batch-size=8"), ("finetune_trainer.py", "results")])
def test_a_script_that_reads_values_takes_what_it_takes_alone_but_for_a_hundredth(
    here: Path, arguments: tuple[str, ...]
) -> None:
    skip_without_its_packages(arguments[0])
    before = files(here)
    footprint = predicted(*arguments)
    assert files(here) == before
    assert footprint["peak_allocated"] == pytest.approx(measured(here, *arguments)[0], rel=0.01)


def test_a_loop_that_acts_on_what_it_reads(here: Path) -> None:
    footprint = predicted("reinforce.py")
    parameters = (4 * 128 + 128) + (128 * 2 + 2) + (128 + 1)
    assert footprint["job"]["parameters"] == parameters
    sizes = [4 * 128, 128, 128 * 2, 2, 128, 1]
    blocks = sum(-(-4 * size // 512) * 512 for size in sizes)  # the allocator rounds to 512 bytes
    assert footprint["bill"]["parameters"] == blocks
    assert footprint["bill"]["optimizer states"] == 2 * blocks  # Adam's step counts are on the host
    assert not (here / "rewards.csv").exists()


def failing(here: Path, text: str, *options: str) -> subprocess.CompletedProcess[str]:
    interpreter()
    (here / "train.py").write_text(text)
    return willfit_run("--on", "T4", *options, "train.py")


TRAINS = """
import torch
model = torch.nn.Linear(4096, 4096, device="cuda")
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for _ in range({steps}):
    model(torch.zeros(1, 4096, device="cuda")).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
print("the end")
"""


def test_what_the_script_prints_is_no_part_of_the_answer(here: Path) -> None:
    ran = failing(here, 'print("hello")\n' + TRAINS.format(steps=9))
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("FITS: training Linear with SGD needs ")
    assert "hello" in ran.stderr
    assert "the end" not in ran.stderr


def test_a_job_that_does_not_fit_exits_with_1(here: Path) -> None:
    ran = failing(here, TRAINS.format(steps=2), "--capacity", "100 MiB")
    assert ran.returncode == 1
    assert ran.stdout.startswith("DOES NOT FIT: ")
    assert "at " in ran.stdout.partition("Where memory runs out")[2]


def test_a_script_that_ends_after_one_step_is_told_of(here: Path) -> None:
    ran = failing(here, TRAINS.format(steps=1))
    assert ran.returncode == 0, ran.stderr
    assert "the script ended after optimizer step 1" in " ".join(ran.stdout.split())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\n", "the script ended before any optimizer of PyTorch's stepped"),
        ('open("data/train.bin")\n', "train.py raised FileNotFoundError before its optimizer had stepped twice"),
        ("raise SystemExit(3)\n", "train.py called sys.exit(3)"),
        ("x = (\n", "train.py raised SyntaxError"),
    ],
)
def test_a_script_that_cannot_be_followed_is_refused_with_a_reason(here: Path, text: str, message: str) -> None:
    ran = failing(here, text)
    assert ran.returncode == 3
    assert message in ran.stderr
    assert "willfit/_" not in ran.stderr, "no lines of willfit's own"


def test_it_says_what_is_missing_where_there_is_no_cuda_build(here: Path) -> None:
    ran = willfit_run("--engine", "emulated", "--on", "T4", "gan.py", WILLFIT_CUDA_PYTHON=str(here / "no-python"))
    assert ran.returncode == 3
    assert "cannot be asked for its PyTorch" in ran.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("nanogpt.py", "input.txt", "--n_layer=2"),
        ("gan.py", "--ngf=16", "--ndf=16"),
        ("classify.py", "--amp", "--batch-size=8"),
        ("finetune_trainer.py", "results"),
        ("reinforce.py",),
        ("sentiment.py",),
    ],
)
def test_both_engines_agree_to_the_byte(here: Path, arguments: tuple[str, ...]) -> None:
    skip_without_its_packages(arguments[0])
    emulated = predicted("--engine", "emulated", *arguments)
    if not same_version():
        pytest.skip(f"{interpreter().python} has another version of PyTorch")
    symbolic = predicted("--engine", "symbolic", *arguments)
    assert (emulated["engine"], symbolic["engine"]) == ("emulated", "symbolic")
    for name in ("peak_allocated", "peak_reserved", "phases", "job"):
        assert symbolic[name] == emulated[name]


def test_a_script_that_is_not_there(here: Path) -> None:
    ran = willfit_run("--on", "T4", "trian.py")
    assert ran.returncode == 2
    assert "there is no file 'trian.py' here" in ran.stderr
