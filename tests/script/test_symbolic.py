"""``willfit run`` on fake tensors, in its confined process. Peaks are those of the script alone on the emulated GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from alone import COMMANDS, RECORDED, lay_out
from machine import SOURCE

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="scripts are not run on Windows")


def willfit_run(where: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "PYTHONPATH": str(SOURCE)}
    command = [sys.executable, "-m", "willfit", "run", "--engine", "symbolic", "--on", "T4", *arguments]
    return subprocess.run(command, cwd=where, capture_output=True, text=True, check=False, env=variables, timeout=300)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_script_takes_to_the_byte_what_it_takes_alone(tmp_path: Path, command: str) -> None:
    version = str(torch.__version__).partition("+")[0]
    recorded = json.loads(RECORDED.read_text())
    if version not in recorded:
        pytest.skip(f"what scripts take was not recorded with torch {version}")
    if command.startswith("gan.py") and version in ("2.6.0", "2.9.1"):
        pytest.skip("torch.save holds what it saved until garbage is collected: the pickler in _save is in a cycle")
    lay_out(tmp_path)
    before = files(tmp_path)
    ran = willfit_run(tmp_path, "--format", "json", *command.split())
    assert ran.returncode == 0, ran.stderr
    footprint = json.loads(ran.stdout)
    assert [footprint["peak_allocated"], footprint["peak_reserved"]] == recorded[version][command]
    assert footprint["engine"] == "symbolic"
    assert any("fake tensors" in each for each in footprint["assumptions"])
    assert files(tmp_path) == before, "what it writes went elsewhere"


SCRIPT = """
import argparse, multiprocessing, os, threading, torch

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--width", type=int)
    width = parser.parse_args().width
    for begin in (
        lambda: torch.distributed.init_process_group("nccl"),
        multiprocessing.get_context("spawn").Process(target=print).start,
        lambda: os.system("true"),
    ):
        try:
            begin()
        except Exception as error:
            print("refused:", error)
    thread = threading.Thread(target=lambda: torch.ones(1).cuda())
    thread.start()
    thread.join()
    model = torch.compile(torch.nn.Linear(width, width, bias=False)).cuda()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(9):
        try:
            model(torch.zeros(1, width).to("cuda")).sum().backward()
            optimizer.step()
            print("stepped", step)
        finally:
            print("out", step)
"""


def test_a_script_of_its_own_kind(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(SCRIPT)
    ran = willfit_run(tmp_path, "train.py", "--width", "4096")
    assert ran.returncode == 0, ran.stderr
    text = " ".join(ran.stdout.split())
    assert "parameters 64.00 MiB" in text  # 4096 x 4096 x 4 bytes
    assert "gradients 64.00 MiB" in text
    assert "what torch.compile compiles is predicted as it runs without being compiled" in text
    if torch.version.cuda is None:
        assert "a thread of the script's uses the GPU" in text
    assert "begins a process group of torch.distributed" in ran.stderr
    assert "starts no other by spawn or forkserver" in ran.stderr
    assert "willfit run starts no other program" in ran.stderr
    assert "stepped 0" in ran.stderr
    assert "stepped 1" not in ran.stderr, "it ends in the second step"
    assert "out 1" not in ran.stderr, "and nothing of it runs on the way out"


def test_data_that_is_not_there_is_the_scripts_own_error(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text('open("data/train.bin")\n')
    ran = willfit_run(tmp_path, "train.py")
    assert ran.returncode == 3
    assert "train.py raised FileNotFoundError before its optimizer had stepped twice" in ran.stderr
    assert 'File "train.py", line 1' in ran.stderr
    assert "willfit/_" not in ran.stderr, "no lines of willfit's own"
