"""How close predictions come: every case, against what PyTorch's own allocator did; writes docs/fidelity.md.

    python benchmarks/fidelity.py                  predict every case with the installed PyTorch, compare with the truth
                                                   that was recorded, keep the predictions and write the page
    python benchmarks/fidelity.py NAME ...         predict and print these cases alone
    python benchmarks/fidelity.py --page           write the page from what was kept
    python benchmarks/fidelity.py --record [NAME ...] --python PATH    record the truth, with a CUDA build of PyTorch

The truth is recorded by record.py on a GPU, real or emulated. Paths by argument or environment: --emulator
(WILLFIT_EMULATOR; none: a real GPU), --python (WILLFIT_CUDA_PYTHON), which has to be the CUDA build of the version that
this is run with.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import subprocess
import sys
import time

# The emulator has neither cuDNN's attention nor its graph API: the same choice here, as PyTorch honours these.
os.environ |= {"TORCH_CUDNN_SDPA_DEPRIORITIZED": "1", "TORCH_CUDNN_V8_API_DISABLED": "1"}

import torch
from fidelity_page import (
    CASES,
    HERE,
    PAGE,
    ROOT,
    Row,
    keep,
    page,
    read_truth,
    summary,
    table_row,
    truth_path,
)

VERSION = torch.__version__.split("+")[0]


def predict(name: str) -> Row:
    """What is predicted of a case, beside what was recorded of it."""
    import willfit

    case, truth = CASES[name], read_truth(VERSION)[name]
    with torch.device("meta"):
        model = case.model()
    optimizer = case.optimizer(model)
    try:
        footprint = willfit.predict(model, optimizer, case.batch(), case.step, on=case.gpu)
    except willfit.WillfitError as error:
        return Row(name, truth, error=" ".join(str(error).split()))
    return Row(name, truth, footprint.peak_allocated, footprint.peak_reserved)


def record(names: list[str], python: str, emulator: str) -> None:
    """Measure these cases, a process for each GPU, and put them into the truth file; the others stay."""
    truth = read_truth(VERSION) if truth_path(VERSION).exists() else {}
    for gpu in dict.fromkeys(CASES[name].gpu for name in names):
        chosen = [name for name in names if CASES[name].gpu == gpu]
        command = [emulator, gpu] if emulator else [python]
        command += [str(HERE / "record.py"), *chosen]
        done = subprocess.run(
            command, env=os.environ | {"PYTHON": python}, stdout=subprocess.PIPE, text=True, check=True
        )
        for line in map(json.loads, done.stdout.splitlines()):
            if "peak_allocated" not in line:  # what the emulator lacks, or this version of PyTorch
                print(f"{line['case']}: NOT RECORDED: {line}", flush=True)
                continue
            if line["torch"].split("+")[0] != VERSION:
                sys.exit(f"{python} has torch {line['torch']}, this is {VERSION}")
            truth[line["case"]] = {**line, "by": "emulator" if emulator else "GPU"}
            print(f"{line['case']:36} {line['peak_allocated']:>15,} {line['peak_reserved']:>15,}", flush=True)
    truth_path(VERSION).write_text("".join(json.dumps(truth[name]) + "\n" for name in CASES if name in truth))


def versions() -> str:
    """The packages that cases are built with, as far as they are installed."""
    found = [f"torch {VERSION}"]
    for name in ("transformers", "peft", "bitsandbytes"):
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return ", ".join(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="cases; all of them if none is named")
    parser.add_argument("--record", action="store_true", help="record the truth instead of predicting")
    parser.add_argument("--page", action="store_true", help="write the page from what was kept")
    parser.add_argument("--python", default=os.environ.get("WILLFIT_CUDA_PYTHON", sys.executable))
    shared = ROOT.parent / "shared"
    parser.add_argument("--emulator", default=os.environ.get("WILLFIT_EMULATOR", str(shared / "cuda-emulator" / "run")))
    options = parser.parse_args()
    names = options.names or list(CASES)
    if unknown := set(names) - set(CASES):
        parser.error(f"no such case: {', '.join(sorted(unknown))}")
    if options.page:
        PAGE.write_text(page())
        return
    if options.record:
        record(names, options.python, options.emulator)
        return
    rows = []
    for name in names:
        if name in read_truth(VERSION):
            start = time.perf_counter()
            rows.append(predict(name))
            print(f"{time.perf_counter() - start:6.1f} s  {table_row(rows[-1])}", flush=True)
    print(*summary(rows), sep="\n")
    if not options.names:
        keep(VERSION, versions(), rows)
        PAGE.write_text(page())


if __name__ == "__main__":
    main()
