"""How close predictions come: every case, against what PyTorch's own allocator did; writes docs/fidelity.md.

    python benchmarks/fidelity.py                  predict every case, compare with the recorded truth, write the page
    python benchmarks/fidelity.py NAME ...         predict and print these cases alone
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
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# The emulator has neither cuDNN's attention nor its graph API: the same choice here, as PyTorch honours these.
os.environ |= {"TORCH_CUDNN_SDPA_DEPRIORITIZED": "1", "TORCH_CUDNN_V8_API_DISABLED": "1"}

import torch

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PAGE = ROOT / "docs" / "fidelity.md"
sys.path.insert(0, str(HERE))

from training_steps import CASES, PLAIN, SEEN, ZOO  # noqa: E402

VERSION = torch.__version__.split("+")[0]


def truth_path(version: str = VERSION) -> Path:
    return HERE / f"truth-{version}.jsonl"


def read_truth(version: str = VERSION) -> dict[str, dict[str, Any]]:
    return {line["case"]: line for line in map(json.loads, truth_path(version).read_text().splitlines())}


@dataclass(frozen=True)
class Row:
    """A case as predicted, beside what was measured; ``error`` says why there is no prediction."""

    name: str
    truth: dict[str, Any]
    allocated: int = 0
    reserved: int = 0
    seconds: float = 0.0
    error: str = ""

    def difference(self, what: str) -> int:
        return int(getattr(self, what) - self.truth[f"peak_{what}"])

    def relative(self, what: str) -> float:
        return float(self.difference(what) / self.truth[f"peak_{what}"])


def predict(name: str, truth: dict[str, Any]) -> Row:
    import willfit

    case = CASES[name]
    with torch.device("meta"):
        model = case.model()
    optimizer = case.optimizer(model)
    start = time.perf_counter()
    try:
        footprint = willfit.predict(model, optimizer, case.batch(), case.step, on=case.gpu)
    except willfit.WillfitError as error:
        return Row(name, truth, error=" ".join(str(error).split()))
    return Row(name, truth, footprint.peak_allocated, footprint.peak_reserved, time.perf_counter() - start)


# -- recording ---------------------------------------------------------------------------------------------------------


def record(names: list[str], python: str, emulator: str) -> None:
    """Measure these cases, a process for each GPU, and put them into the truth file; the others stay."""
    truth = read_truth() if truth_path().exists() else {}
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
    truth_path().write_text("".join(json.dumps(truth[name]) + "\n" for name in CASES if name in truth))


# -- the page ----------------------------------------------------------------------------------------------------------


def table_start(name: str, truth: dict[str, Any]) -> str:
    """The part of a case's row that depends on no prediction."""
    return f"| {name} | {truth['gpu']} | {truth['peak_allocated']:,} | {truth['peak_reserved']:,} |"


def _table_row(row: Row) -> str:
    start = table_start(row.name, row.truth)
    if row.error:
        return f"{start} no prediction: {row.error[:200].replace('|', '/')} | | |"
    cells = []
    for what in ("allocated", "reserved"):
        difference = row.difference(what)
        cells.append("exact" if difference == 0 else f"{difference:+,} ({row.relative(what):+.2%})")
    return f"{start} {cells[0]} | {cells[1]} | {CASES[row.name].note} |"


def summary(rows: list[Row]) -> list[str]:
    predicted = [row for row in rows if not row.error]
    lines = ["| | exact | median error | worst | below the truth |", "| --- | --- | --- | --- | --- |"]
    for what in ("allocated", "reserved"):
        errors = [row.relative(what) for row in predicted]
        worst = max(predicted, key=lambda row: abs(row.relative(what)))
        below = sum(error < 0 for error in errors)
        which = f"{worst.relative(what):+.2%} ({worst.name})" if worst.difference(what) else "exact"
        exact, median = sum(error == 0 for error in errors), statistics.median(map(abs, errors))
        lines.append(f"| {what} | {exact} of {len(rows)} | {median:.3%} | {which} | {below} |")
    if len(predicted) < len(rows):
        lines.append(f"\n{len(rows) - len(predicted)} could not be predicted.")
    return lines


def versions() -> str:
    packages = ("transformers", "peft", "bitsandbytes")
    return ", ".join([f"torch {VERSION}", *(f"{name} {importlib.metadata.version(name)}" for name in packages)])


def page(rows: list[Row]) -> str:
    head = [
        "| case | GPU | allocated | reserved | allocated: predicted - measured | reserved | |",
        "| --- | --- | ---: | ---: | ---: | ---: | --- |",
    ]
    zoo = [_table_row(row) for row in rows if row.name in ZOO]
    more = [_table_row(row) for row in rows if row.name in SEEN - ZOO]
    last = [_table_row(row) for row in rows if row.name in PLAIN - SEEN]
    quantized = [_table_row(row) for row in rows if row.name not in PLAIN]
    text = (HERE / "fidelity.md.in").read_text()
    for name, lines in {
        "SUMMARY": summary(rows),
        "ZOO": head + zoo,
        "MORE": head + more,
        "LAST": head + last,
        "QUANTIZED": head + quantized,
        "VERSIONS": [versions()],
        "COUNT": [str(len(rows))],
    }.items():
        text = text.replace(f"@{name}@", "\n".join(lines))
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="cases; all of them if none is named")
    parser.add_argument("--record", action="store_true", help="record the truth instead of predicting")
    parser.add_argument("--python", default=os.environ.get("WILLFIT_CUDA_PYTHON", sys.executable))
    shared = ROOT.parent / "shared"
    parser.add_argument("--emulator", default=os.environ.get("WILLFIT_EMULATOR", str(shared / "cuda-emulator" / "run")))
    options = parser.parse_args()
    names = options.names or list(CASES)
    if unknown := set(names) - set(CASES):
        parser.error(f"no such case: {', '.join(sorted(unknown))}")
    if options.record:
        record(names, options.python, options.emulator)
        return
    truth = read_truth()
    rows = []
    for name in names:
        if name not in truth:
            continue
        row = predict(name, truth[name])
        rows.append(row)
        print(f"{row.seconds:6.1f} s  {_table_row(row)}", flush=True)
    print(*summary(rows), sep="\n")
    if not options.names:
        PAGE.write_text(page(rows))


if __name__ == "__main__":
    main()
