"""Packages that extend willfit: installed as pip would install them, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HOOKS = """
import torch, willfit
torch.library.define("my_library::scan", "(Tensor x) -> Tensor")
torch.library.register_fake("my_library::scan", lambda x: torch.empty_like(x))

@willfit.hookimpl
def willfit_devices():
    return [
        willfit.Device(name="Toy 9000", total=96 * 2**20, context=0),
        willfit.Device(name="T4", total=2**30, context=0),  # in place of the catalogue's
    ]

def scan(call):
    with call.temporary(24 * 2**20):
        return call.run()

@willfit.hookimpl
def willfit_kernel_rules():
    return {"my_library::scan": scan}
"""


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A directory for sys.path with a package in it that has an entry point for willfit."""
    information = tmp_path / "my_package-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text("[willfit]\nmy_cards = my_package_hooks\n")
    (tmp_path / "my_package_hooks.py").write_text(HOOKS)
    return tmp_path


def run(path: Path, code: str) -> str:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(path), os.environ.get("PYTHONPATH", "")])}
    ran = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip()


def test_gpus_of_a_plugin_are_known_and_go_before_the_catalogue_s(installed: Path) -> None:
    code = """
import willfit
names = [device.name for device in willfit.all_devices()]
print(willfit.find_device("toy 9000").total, willfit.find_device("T4").total, names.count("T4"))
"""
    assert run(installed, code) == f"{96 * 2**20} {2**30} 1"


def test_a_rule_of_a_plugin_tells_what_an_operator_takes(installed: Path) -> None:
    code = """
import torch, willfit
def step(model, optimizer, batch):
    torch.ops.my_library.scan(batch)
    model(batch).sum().backward()
    optimizer.step()
model = torch.nn.Linear(8, 1)
job = model, torch.optim.SGD(model.parameters()), torch.zeros(4 * 2**20 // 8, 8), step
footprint = willfit.predict(*job, on="A100-80GB")
print(footprint.phases[1].peak_allocated)
"""
    # the batch and the scan's output, 16 MiB each, the temporary of 24 MiB, and weight and bias in a block each
    assert run(installed, code) == f"{(16 + 16 + 24) * 2**20 + 2 * 512}"


@pytest.mark.parametrize(
    ("hooks", "reason"),
    [
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("import willfit\n@willfit.hookimpl\ndef willfit_cards():\n    return []\n", "unknown hook 'willfit_cards'"),
    ],
)
def test_a_plugin_that_cannot_be_loaded_is_named(installed: Path, hooks: str, reason: str) -> None:
    (installed / "my_package_hooks.py").write_text(hooks)
    code = """
import willfit
try:
    willfit.all_devices()
except willfit.UsageError as error:
    print(error)
"""
    said = run(installed, code)
    assert said.startswith("the plugin 'my_cards' (my_package_hooks) cannot be loaded: ")
    assert reason in said
    assert "uninstall the package" in said
