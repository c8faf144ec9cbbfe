"""Compare willfit's trace of the samples with a recorded file: ``PYTHONHASHSEED=0 python compare.py FILE``.

Prints JSON: operators compared, calls equal and calls in all, and for each operator that differs the largest
difference of the peak within one call, in bytes (predicted less true), or what went wrong.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from samples import moved, operators, run, samples, text

import willfit._trace.cuda
from willfit._devices import find_device
from willfit._trace.cuda import counting, cub, indexing, values
from willfit._trace.recorder import Recorder
from willfit._trace.runtime import cuda_runtime, nothing_left_behind

assert willfit._trace.cuda  # its import registers the rules


def traced(recorder: Recorder, entry, sample) -> str:
    recorder.enter("forward")
    recorder.state.clear()
    for backward in (False, True):
        recorder.state["cublas", backward, 0] = -1
    arguments = moved(sample, lambda t: torch.empty_like(t.detach(), device="cuda").requires_grad_(t.requires_grad))
    start = len(recorder._events)
    kept = run(entry, arguments)
    events = [(event > 0, recorder._sizes[abs(event) - 1]) for event in recorder._events[start:]]
    recorder.release_all()
    del kept
    return text(events)


def peak(events: str) -> int:
    held = most = 0
    for word in events.split():
        held += int(word)
        most = max(most, held)
    return most


def like_the_emulator() -> None:
    """All that is read back there is zero, and CUB's occupancy is taken as two blocks."""
    values.number_nonzero = indexing.number_repeated = lambda *_, **__: 0
    counting.number_unique = counting.largest_counted = lambda *_, **__: 0
    cub.blocks_per_multiprocessor = lambda *_: 2


def main(path: Path) -> None:
    truth = json.loads(path.read_text())["calls"]
    like_the_emulator()
    calls = [
        (name, entry, sample, truth[name][key])
        for name, entry in operators()
        if name in truth
        for key, sample in samples(entry)
        if key in truth[name]
    ]
    device = find_device("A100-80GB")
    recorder = Recorder(device.compute_capability, device.multiprocessors)
    equal = 0
    differ: dict[str, int | str] = {}
    with nothing_left_behind(), cuda_runtime(recorder, device):
        for name, entry, sample, expected in calls:
            try:
                found = traced(recorder, entry, sample)
            except Exception as error:
                differ[name] = f"{type(error).__name__}: {error}"[:100]
                continue
            if found == expected:
                equal += 1
                continue
            difference = peak(found) - peak(expected)
            if not isinstance(differ.get(name), str) and abs(difference) >= abs(int(differ.get(name, 0))):
                differ[name] = difference
    print(json.dumps({"operators": len(truth), "calls": len(calls), "equal": equal, "differ": differ}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
