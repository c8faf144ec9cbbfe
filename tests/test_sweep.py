"""Sweeps: methods, sizes and GPUs, each cell as `willfit.predict` and `willfit.advise` have it."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import pytest
import torch
from torch import nn

import willfit

MIB = 2**20
SMALL = willfit.Device(name="small", total=40 * MIB, context=0)
LARGE = willfit.Device(name="large", total=400 * MIB, context=0)


def job() -> tuple[Any, ...]:
    model = nn.Sequential(nn.Linear(1024, 1024), nn.Linear(1024, 1024))
    return model, torch.optim.AdamW(model.parameters()), torch.zeros(8, 1024)


def loss(model: Any, batch: Any) -> Any:
    return model(batch).sum()


@pytest.fixture(scope="module")
def found() -> willfit.Sweep:
    return willfit.sweep(*job(), on=[SMALL, LARGE], methods=["full", "fused+amp"], batch_sizes=[8, 4096], loss=loss)


def test_there_is_a_cell_for_each_way_and_gpu(found: willfit.Sweep) -> None:
    ways = [(cell.method, cell.batch_size, cell.device.name) for cell in found.cells]
    assert ways == [
        (method, size, name) for method in ("full", "fused+amp") for size in (8, 4096) for name in ("small", "large")
    ]


@pytest.mark.parametrize("size", [8, 4096])
@pytest.mark.parametrize("device", [SMALL, LARGE], ids=["small", "large"])
def test_a_cell_is_the_prediction_of_that_batch_on_that_gpu(
    found: willfit.Sweep, size: int, device: willfit.Device
) -> None:
    model, optimizer, _ = job()
    predicted = willfit.predict(model, optimizer, torch.zeros(size, 1024), loss=loss, on=device)
    cell = next(c for c in found.cells if (c.method, c.batch_size, c.device) == ("full", size, device))
    assert cell.footprint is not None
    assert cell.footprint.verdict == predicted.verdict
    assert cell.footprint.peak_reserved == predicted.peak_reserved
    assert cell.footprint.bill == predicted.bill


@pytest.mark.filterwarnings("ignore:CUDA is not available")
def test_a_method_changes_the_job(found: willfit.Sweep) -> None:
    model, _, _ = job()
    model.forward = torch.autocast("cuda", dtype=torch.bfloat16)(model.forward)
    fused = torch.optim.AdamW(model.parameters(), fused=True)
    predicted = willfit.predict(model, fused, torch.zeros(8, 1024), loss=loss, on=LARGE)
    cell = next(c for c in found.cells if (c.method, c.batch_size, c.device) == ("fused+amp", 8, LARGE))
    assert cell.footprint is not None
    assert cell.footprint.bill == predicted.bill


def test_csv_and_json_hold_the_same(found: willfit.Sweep) -> None:
    plain = json.loads(json.dumps(found.to_dict()))
    rows = list(csv.DictReader(io.StringIO(found.to_csv())))
    assert len(rows) == len(plain["cells"]) == 8
    for row, cell in zip(rows, plain["cells"], strict=True):
        assert row == {key: "" if value is None else str(value) for key, value in cell.items()}


def test_the_text_has_a_column_for_each_gpu_and_80_in_all(found: willfit.Sweep) -> None:
    lines = str(found).split("\n")
    assert lines[0].split() == ["method", "batch", "tokens", "small", "large"]
    assert len(lines) == 1 + 4
    assert all(len(line) <= 80 for line in lines)
    assert "no, " in lines[2]  # 4096 samples on the small one


def test_an_unknown_method_is_answered_with_those_that_there_are() -> None:
    with pytest.raises(willfit.UsageError, match=r"method 'lorra' is nothing that can be tried .* fused"):
        willfit.sweep(*job(), on=[LARGE], methods=["lorra"], loss=loss)


def test_a_method_that_fails_leaves_the_others() -> None:
    found = willfit.sweep(*job(), on=[LARGE], methods=["full", "fused+for-loop"], loss=loss)
    assert found.cells[0].footprint is not None
    assert {cell.method for cell in found.cells} == {"full", "fused+for-loop"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"on": []}, "on must name the GPUs"),
        ({"on": ["T5"]}, "T5"),
        ({"on": [LARGE], "batch_sizes": [0]}, "must be 1 or more: found 0"),
        ({"on": [LARGE], "engine": "magic"}, "engine must be one of"),
    ],
)
def test_wrong_usage(options: dict[str, Any], message: str) -> None:
    with pytest.raises(willfit.UsageError, match=message):
        willfit.sweep(*job(), loss=loss, **options)


def test_a_batch_without_tokens_has_no_other_lengths() -> None:
    with pytest.raises(willfit.JobError, match="no tokens in its samples"):
        willfit.sweep(*job(), on=[LARGE], sequence_lengths=[128], loss=loss)
