"""What the pytest plugin costs: where it is not used, in a suite of 50 predictions, and for a job that it knows.

Run by hand: python benchmarks/pytest_plugin.py [RUNS]        needs pytest-xdist and Transformers
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import willfit

Job = tuple[nn.Module, torch.optim.Optimizer, Any]

SUITE = """
import pytest, torch
from torch import nn


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        return x + self.down(nn.functional.gelu(self.up(self.norm(x))))


def build(width):
    with torch.device("meta"):
        model = nn.Sequential(*(Block(width) for _ in range(4)))
    return model, torch.optim.AdamW(model.parameters()), torch.zeros(8, 128, width)


@pytest.mark.willfit(on="T4", limit="14 GiB")
@pytest.mark.parametrize("width", range(64, 64 + 50 * 8, 8))
def test_fits(willfit, width):
    willfit.check(*build(width), loss=lambda model, batch: model(batch).sum())
"""


def seconds(*arguments: str, cwd: str, **environment: str) -> float:
    """How long a run of pytest takes in a process of its own."""
    command = [sys.executable, "-m", "pytest", "-q", *arguments]
    start = time.perf_counter()
    ran = subprocess.run(command, cwd=cwd, capture_output=True, text=True, env={**os.environ, **environment})
    assert ran.returncode in (0, 5), ran.stdout + ran.stderr
    return time.perf_counter() - start


def unused(runs: int) -> None:
    """``pytest --co`` where there are no tests, with the plugin and without, in turns and without other plugins.

    Of each the least, and the median: the processors' time, which others on the machine add to and nobody takes from.
    """
    took: dict[str, list[float]] = {"without": [], "with it": []}
    with tempfile.TemporaryDirectory() as directory:
        for run in range(runs + 1):
            for name, arguments in (("without", ()), ("with it", ("-p", "willfit.pytest_plugin"))):
                before = busy()
                seconds("--co", *arguments, cwd=directory, PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")
                if run:  # the first may have had to compile
                    took[name].append(1000 * (busy() - before))
    for what, figure in (("least", min), ("median", statistics.median)):
        without, with_it = (figure(each) for each in took.values())
        print(f"pytest --co, no tests, ms, {what:<6} without {without:6.0f}, more with {with_it - without:6.1f}")


def busy() -> float:
    """Seconds that child processes kept processors busy so far."""
    times = os.times()
    return times.children_user + times.children_system


def fifty() -> None:
    """A suite of 50 tests, a prediction in each; the jobs all different, or one and the same."""
    print("50 tests, a prediction of four transformer blocks in each: a whole run of pytest")
    for name, width in (("all different", "width"), ("all the same", "64")):
        with tempfile.TemporaryDirectory() as directory:
            Path(directory, "test_it.py").write_text(
                SUITE.replace("build(width), ", f"build({width}), "), encoding="utf-8"
            )
            for label, arguments in (("serial", ()), ("-n 2", ("-n", "2"))):
                best = min(seconds(*arguments, cwd=directory) for _ in range(3))
                print(f"    {name}, {label:<8}                  {best:7.1f} s")
    with tempfile.TemporaryDirectory() as directory:
        Path(directory, "test_it.py").write_text("import torch\n\ndef test_it(): pass\n", encoding="utf-8")
        print(f"    for comparison: importing torch alone   {min(seconds(cwd=directory) for _ in range(3)):7.1f} s")


def mlp() -> Job:
    model = nn.Sequential(*(nn.Linear(256, 256) for _ in range(2)))
    return model, torch.optim.AdamW(model.parameters()), torch.zeros(8, 256)


def transformer(name: str) -> Callable[[], Job]:
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 4096, "intermediate_size": 14336, "num_key_value_heads": 8, "vocab_size": 128256}

    def build() -> Job:
        with torch.device("meta"):
            model = LlamaForCausalLM(LlamaConfig(**sizes)) if name == "llama" else GPT2LMHeadModel(GPT2Config())
        tokens = torch.zeros(1, 512, dtype=torch.int64)
        return model, torch.optim.AdamW(model.parameters()), {"input_ids": tokens, "labels": tokens.clone()}

    return build


def reuse() -> None:
    """The same job once more in the same process, built anew each time."""
    os.environ.pop("WILLFIT_REUSE", None)
    print("the same job predicted again")
    for name, build, options in (
        ("perceptron", mlp, {"loss": lambda model, batch: model(batch).sum()}),
        ("GPT-2", transformer("gpt2"), {}),
        ("Llama-3-8B", transformer("llama"), {}),
    ):
        job = build()
        willfit.predict(*job, on="A10", **options)  # type: ignore[arg-type]  # imports what it imports
        took = []
        for _ in range(6):
            job = build()
            start = time.perf_counter()
            willfit.predict(*job, on="T4", **options)  # type: ignore[arg-type]
            took.append(1000 * (time.perf_counter() - start))
        again = statistics.median(took[1:])
        print(f"    {name:<12} first {took[0]:8.1f} ms, again {again:7.2f} ms: {100 * again / took[0]:.1f} %")


if __name__ == "__main__":
    unused(int(sys.argv[1]) if len(sys.argv) > 1 else 20)
    fifty()
    reuse()
