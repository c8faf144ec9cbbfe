"""Near the limit: whether memory runs out, and at which allocation, against PyTorch's own allocator."""

import json
from pathlib import Path

import pytest
import torch

import willfit
from limits import job
from willfit._allocator_settings import AllocatorSettings
from willfit._replay import Replay, replay
from willfit._trace.trace import Trace

TRUTH = json.loads((Path(__file__).parent / "data" / "limits_emulator.json").read_text())

pytestmark = pytest.mark.skipif(
    torch.__version__.partition("+")[0] != TRUTH["torch"], reason=f"recorded with torch {TRUTH['torch']}"
)


@pytest.fixture(scope="module")
def traces() -> dict[int, Trace]:
    found = {}
    for seed in range(len(TRUTH["unlimited"])):
        with torch.device("meta"):
            model, optimizer, batch, step = job(seed)
        found[seed] = willfit.predict(model, optimizer(model), batch, step, on="T4")._trace
    return found


def ran_out_at(trace: Trace, result: Replay) -> int | None:
    """How many allocations succeeded before memory ran out."""
    if result.out_of_memory is None:
        return None
    return sum(event > 0 for event in trace.events[: len(result.allocated)])


def test_without_a_limit(traces: dict[int, Trace]) -> None:
    predicted = [
        [None, result.peak_allocated, result.peak_reserved, result.retries]
        for result in (replay(trace, None, AllocatorSettings()) for trace in traces.values())
    ]
    assert predicted == TRUTH["unlimited"]


@pytest.mark.parametrize("row", TRUTH["limited"], ids=lambda row: f"job{row[0]}-{row[1]}")
def test_at_the_limit(traces: dict[int, Trace], row: list[int | None]) -> None:
    seed, capacity, *expected = row
    assert seed is not None
    result = replay(traces[seed], capacity, AllocatorSettings())
    assert [ran_out_at(traces[seed], result), result.peak_allocated, result.peak_reserved, result.retries] == expected


def test_the_rows_have_both_outcomes() -> None:
    outcomes = {row[2] is None for row in TRUTH["limited"]}
    assert outcomes == {True, False}
    assert len(TRUTH["limited"]) >= 50
