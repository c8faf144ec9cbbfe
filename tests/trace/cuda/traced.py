"""What willfit records for a call that record_kernels.py recorded, and the comparison."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from record_attention import events
from record_kernels import CALLS

from willfit._devices import Device
from willfit._trace.cuda import counting, cub, indexing, sparse, values
from willfit._trace.recorder import Recorder
from willfit._trace.runtime import cuda_runtime, nothing_left_behind

DATA = Path(__file__).parents[2] / "data"


def traced(prepare: Callable[[], Callable[[], Any]], gpu: list[int]) -> tuple[list[int], Recorder]:
    """The call's allocations and frees as willfit records them, and the recorder."""
    *capability, multiprocessors = gpu
    device = Device(
        name="any", total=10**14, context=0, compute_capability=tuple(capability), multiprocessors=multiprocessors
    )
    with nothing_left_behind():
        recorder = Recorder(device.compute_capability, device.multiprocessors)
        with cuda_runtime(recorder, device):
            run = prepare()
            start = len(recorder._events)
            for backward in (False, True):  # the workspaces of cuBLAS are not the matter here
                recorder.state["cublas", backward, 0] = -1
            kept = run()
            seen = [event for event in recorder._events[start:] if event]
            sizes = [(abs(event), recorder._sizes[abs(event) - 1] if event > 0 else -1) for event in seen]
            recorder.release_all()
            del kept, run
    return events(sizes), recorder


def recorded(family: str) -> Any:
    """A decorator for the test of a family: once for each recorded call, as ``row``."""
    data = json.loads((DATA / f"{family}_emulator.json").read_text())

    def decorate(test: Any) -> Any:
        names = [f"{name}-sm_{major}{minor}" for name, (major, minor, _), *_ in data["calls"]]
        test = pytest.mark.parametrize("row", data["calls"], ids=names)(test)
        reason = f"recorded with torch {data['torch']}"
        return pytest.mark.skipif(torch.__version__.split("+")[0] != data["torch"], reason=reason)(test)

    return decorate


def of(family: str, row: list[Any]) -> list[int]:
    """What willfit records for a recorded call."""
    name, gpu, given, _ = row
    return traced(lambda: CALLS[family][name][1](**given), gpu)[0]


@pytest.fixture
def as_the_emulator(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the stand-in for the CUDA driver answers: all that is read back is zero, and two blocks fit at once."""
    like_the_emulator(monkeypatch.setattr)


def like_the_emulator(patch: Callable[..., None]) -> None:
    """Patch the policy for values, and CUB's occupancy."""
    patch(values, "number_nonzero", lambda *_, **__: 0)
    patch(indexing, "number_repeated", lambda *_, **__: 0)
    patch(counting, "number_unique", lambda *_, **__: 0)
    patch(sparse, "number_unique", lambda *_, **__: 0)
    patch(counting, "largest_counted", lambda *_, **__: 0)
    patch(cub, "blocks_per_multiprocessor", lambda *_: 2)
