"""The guard in a loop of Accelerate's, in one process and in several."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

import willfit
from willfit import WillfitWarning, WillNotFit

accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")
pytestmark = pytest.mark.filterwarnings("default")  # of Accelerate

WIDTH, ROWS = 512, 256


def reset() -> None:
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(autouse=True)
def no_state() -> Any:
    reset()
    yield
    reset()


def loss(model: Any, batch: Any) -> torch.Tensor:
    return model(batch).square().mean()


def prepared(rows: int = ROWS, **options: Any) -> tuple[Any, ...]:
    accelerator = accelerate.Accelerator(cpu=True, **options)
    model = torch.nn.Sequential(torch.nn.Linear(WIDTH, WIDTH), torch.nn.ReLU(), torch.nn.Linear(WIDTH, WIDTH))
    optimizer = torch.optim.AdamW(model.parameters())
    loader = DataLoader(torch.randn(4 * rows, WIDTH), batch_size=rows, shuffle=True)  # type: ignore[arg-type]
    return (accelerator, *accelerator.prepare(model, optimizer, loader))


def footprint(**options: Any) -> willfit.Footprint:
    accelerator, *parts = prepared(**options)

    @willfit.guard(on="T4", capacity="512 kB", accelerator=accelerator, loss=loss, advise=False)
    def train(model: Any, optimizer: Any, loader: Any) -> None:
        raise AssertionError("it was called")

    with pytest.raises(WillNotFit) as refused:
        train(*parts)
    reset()
    return refused.value.footprint


def test_it_refuses_what_was_prepared() -> None:
    assert footprint().verdict == "does not fit"


def test_mixed_precision_is_accelerates() -> None:
    """Autocast makes bf16 copies of the two weights, 512 KiB each, which fp32 has no use for."""
    plain, mixed = footprint(), footprint(mixed_precision="bf16")
    assert plain.phases != mixed.phases
    assert mixed.bill["parameters"] == plain.bill["parameters"]  # they stay fp32


def test_accumulation_steps_once_in_so_many_calls() -> None:
    """In the second micro-batch's forward the gradients of the first are there already."""
    once, often = footprint(), footprint(gradient_accumulation_steps=4)
    before = {peak.phase: peak.peak_allocated for peak in once.phases if peak.step == 1}
    after = {peak.phase: peak.peak_allocated for peak in often.phases if peak.step == 1}
    assert after["forward"] > before["forward"]


def test_training_goes_on_as_if_nobody_had_looked() -> None:
    def train(accelerator: Any, model: Any, optimizer: Any, loader: Any) -> list[float]:
        losses = []
        for batch in loader:
            with accelerator.accumulate(model):
                value = loss(model, batch)
                accelerator.backward(value)
                optimizer.step()
                optimizer.zero_grad()
                losses.append(value.item())
        return losses

    results = []
    for guarded in (False, True):
        torch.manual_seed(0)
        accelerator, *parts = prepared(gradient_accumulation_steps=2, mixed_precision="bf16")
        run = willfit.guard(on="T4", accelerator=accelerator, loss=loss)(train) if guarded else train
        results.append(run(accelerator, *parts))
    assert results[0] == results[1]


def test_a_step_of_ones_own_may_clip_and_use_the_accelerator() -> None:
    accelerator, *parts = prepared(gradient_accumulation_steps=2)

    def step(model: Any, optimizer: Any, batch: Any) -> None:
        with accelerator.accumulate(model):
            accelerator.backward(loss(model, batch))
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

    @willfit.guard(on="T4", accelerator=accelerator, step=step)
    def train(model: Any, optimizer: Any, loader: Any) -> str:
        return "ran"

    before = accelerator.step, accelerator.sync_gradients
    assert train(*parts) == "ran"
    assert (accelerator.step, accelerator.sync_gradients) == before


def test_offloaded_weights_are_not_predicted() -> None:
    from accelerate import cpu_offload

    model = cpu_offload(torch.nn.Sequential(torch.nn.Linear(8, 8)), execution_device=torch.device("cuda", 0))
    with pytest.raises(willfit.JobError, match="weights of module '0' are offloaded by Accelerate"):
        willfit.predict(model, None, torch.zeros(2, 8), loss=loss, on="T4")


def test_a_model_spread_over_devices_is_not_predicted() -> None:
    accelerator, model, optimizer, loader = prepared()
    model.hf_device_map = {"0": 0, "2": "cpu"}

    @willfit.guard(on="T4", accelerator=accelerator, loss=loss)
    def train(model: Any, optimizer: Any, loader: Any) -> None: ...

    with pytest.raises(willfit.JobError, match="spread over several devices"):
        train(model, optimizer, loader)


# -- several processes -------------------------------------------------------------------------------------------------

SCRIPT = """
import os, sys, time
import torch, willfit
from accelerate import Accelerator
from torch.utils.data import DataLoader

accelerator = Accelerator(cpu=True)
rank = accelerator.process_index
model = torch.nn.Linear(256, 256)
optimizer = torch.optim.AdamW(model.parameters())
loader = DataLoader(torch.randn(512, 256), batch_size=8)
model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
short = rank == int(sys.argv[1])

@willfit.guard(
    on="T4", capacity="256 kB" if short else "4 GiB", accelerator=accelerator, loss=lambda m, x: m(x).sum()
)
def train(model, optimizer, loader):
    accelerator.wait_for_everyone()
    return "trained"

try:
    print(f"<rank {rank}: {train(model, optimizer, loader)}>")
except willfit.WillNotFit as error:
    print(f"<rank {rank}: {error}>")
"""


def launched(tmp_path: Path, processes: int, short: int) -> str:
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    done = subprocess.run(
        [*command, str(script), str(short)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("processes", [2, 4])
def test_one_rank_that_is_short_stops_all_with_one_bill(tmp_path: Path, processes: int) -> None:
    said = launched(tmp_path, processes, short=processes - 1)
    assert said.count("DOES NOT FIT") == 1
    assert f"<rank 0: rank {processes - 1} of {processes}: train() was not run: it will not fit on T4" in said
    for rank in range(1, processes):
        assert f"<rank {rank}: not run, because of rank {processes - 1} of {processes}: rank 0 says why>" in said


def test_all_ranks_train_where_all_fit(tmp_path: Path) -> None:
    said = launched(tmp_path, 2, short=9)
    assert sorted(re.findall("<.*?>", said)) == ["<rank 0: trained>", "<rank 1: trained>"]  # they write when they like


# -- the batch size ----------------------------------------------------------------------------------------------------


def build(batch_size: int) -> tuple[Any, ...]:
    model = torch.nn.Linear(1024, 1024, device="meta")
    return model, torch.optim.SGD(model.parameters()), torch.zeros(batch_size, 1024)


def total(model: Any, batch: Any) -> torch.Tensor:
    return model(batch).sum()


def test_the_batch_size_is_the_largest_that_fits() -> None:
    @willfit.find_batch_size(job=build, loss=total, on="T4", capacity="128 MiB", starting_batch_size=50_000)
    def train(batch_size: int) -> int:
        return batch_size

    size = train()
    parts = {"loss": total, "on": "T4", "capacity": "128 MiB"}
    assert willfit.predict(*build(size), **parts).verdict != "does not fit"
    assert willfit.predict(*build(size + 1), **parts).verdict == "does not fit"


def test_it_goes_no_further_than_it_is_told() -> None:
    @willfit.find_batch_size(job=build, loss=total, on="T4", starting_batch_size=32)
    def train(batch_size: int, more: str) -> tuple[int, str]:
        return batch_size, more

    assert train("arguments") == (32, "arguments")


def test_parts_among_the_arguments_are_found() -> None:
    @willfit.find_batch_size(loss=total, on="T4", capacity="128 MiB", starting_batch_size=50_000)
    def train(batch_size: int, model: Any, optimizer: Any, batch: Any) -> int:
        return batch_size

    @willfit.find_batch_size(job=build, loss=total, on="T4", capacity="128 MiB", starting_batch_size=50_000)
    def built(batch_size: int) -> int:
        return batch_size

    assert train(*build(8)) == built()


def test_what_cannot_be_predicted_is_tried_as_accelerate_does() -> None:
    sizes: list[int] = []

    @willfit.find_batch_size(starting_batch_size=100, on="T4")
    def train(batch_size: int) -> int:
        sizes.append(batch_size)
        if batch_size > 85:
            raise RuntimeError("CUDA out of memory.")
        return batch_size

    with pytest.warns(WillfitWarning, match=r"the batch size of train\(\) could not be predicted"):
        assert train() == 81
    assert sizes == [100, 90, 81]


def test_a_model_that_does_not_fit_at_all_is_refused() -> None:
    @willfit.find_batch_size(job=build, loss=total, on="T4", capacity="1 MiB")
    def train(batch_size: int) -> None:
        raise AssertionError("it was called")

    with pytest.raises(WillNotFit, match="not even one sample fits"):
        train()


@pytest.mark.parametrize("size", [0, -1, "8", True])
def test_a_starting_size_that_is_none_is_refused(size: Any) -> None:
    with pytest.raises(willfit.UsageError, match="starting_batch_size"):
        willfit.find_batch_size(starting_batch_size=size)


def test_a_gpu_that_is_none_is_refused_at_once() -> None:
    with pytest.raises(willfit.UsageError, match="T5"):
        willfit.find_batch_size(on="T5")
