"""Compare willfit's trace of the samples with what was recorded of the installed version.

python compare.py             print JSON: operators and calls compared, calls equal, and for each operator that
                              differs the largest difference of the peak within one call, in bytes (predicted less
                              true), or what went wrong
python compare.py NAME ...    print each call of these operators that differs, and what each side does
python compare.py --all       the same of all operators
python compare.py --write     put what differs into the list of known differences, whose other versions stay
"""

from __future__ import annotations

import argparse
import json
import os
from typing import Any

os.environ["TORCH_CUDNN_V8_API_DISABLED"] = "1"  # the emulator lacks cuDNN's newer interface

import recorded
import torch
from samples import described, moved, operators, run, samples, text

import willfit._trace.cuda
from willfit._devices import find_device
from willfit._trace.cuda import counting, cub, indexing, losses, values
from willfit._trace.recorder import Recorder
from willfit._trace.runtime import cuda_runtime, nothing_left_behind

assert willfit._trace.cuda  # its import registers the rules

VERSION = torch.__version__.partition("+")[0]


def traced(recorder: Recorder, entry: Any, sample: Any) -> str:
    """The allocations and frees that willfit expects."""
    recorder.enter("forward")
    recorder.state.clear()
    for library in ("cublas", "cublaslt"):
        for backward in (False, True):
            recorder.state[library, backward, 0] = -1
    arguments = moved(sample, lambda t: torch.empty_like(t.detach(), device="cuda").requires_grad_(t.requires_grad))
    start = len(recorder._events)
    kept = run(entry, arguments)
    events = [(event > 0, recorder._sizes[abs(event) - 1]) for event in recorder._events[start:]]
    recorder.release_all()
    del kept
    return text(events)


def peak(events: str) -> int:
    """The most that is held at once."""
    held = most = 0
    for word in events.split():
        held += int(word)
        most = max(most, held)
    return most


def like_the_emulator() -> None:
    """All that is read back there is zero, and CUB's occupancy is taken as two blocks."""
    values._answer = lambda *_: 0
    losses._lengths = lambda _, lengths, __: [0] * lengths.numel()
    values.number_nonzero = indexing.number_repeated = lambda *_, **__: 0
    counting.number_unique = counting.largest_counted = lambda *_, **__: 0
    cub.blocks_per_multiprocessor = lambda *_: 2


def compare(names: list[str], in_detail: bool) -> dict[str, Any]:
    """What differs, of all operators or of these."""
    truth = recorded.read(VERSION)
    like_the_emulator()
    calls = [
        (name, entry, key, sample)
        for name, entry in operators()
        if name in truth and (not names or name in names)
        for key, sample in samples(entry)
        if key in truth[name]
    ]
    device = find_device("A100-80GB")
    recorder = Recorder(device.compute_capability, device.multiprocessors)
    equal = 0
    differ: dict[str, int | str] = {}
    with nothing_left_behind(), cuda_runtime(recorder, device):
        for name, entry, key, sample in calls:
            expected = truth[name][key]
            try:
                found = traced(recorder, entry, sample)
            except Exception as error:
                found = differ[name] = f"{type(error).__name__}: {error}"[:100]
            else:
                if found == expected:
                    equal += 1
                    continue
                difference = peak(found) - peak(expected)
                if not isinstance(differ.get(name), str) and abs(difference) >= abs(int(differ.get(name, 0))):
                    differ[name] = difference
            if in_detail:
                print(f"{name} {key} {described(sample)}\n  found    {found}\n  expected {expected}")
    return {"operators": len({name for name, *_ in calls}), "calls": len(calls), "equal": equal, "differ": differ}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    result = compare(options.names, in_detail=options.all or bool(options.names))
    print(json.dumps(result))
    if options.write:
        recorded.write_known(VERSION, result["differ"])


if __name__ == "__main__":
    main()
