"""The emulated verifier against what PyTorch's own allocator did: ``python benchmarks/verify_emulated.py [NAME ...]``.

Runs every case of training_steps under the emulator of the willfit that is installed, and compares its peaks with those
of truth-VERSION.jsonl, which were recorded with another emulator, and with willfit's own prediction.
``WILLFIT_CUDA_PYTHON`` names a Python with a CUDA build of PyTorch, where this one's is built for the CPU.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import torch

import willfit
from willfit._verify.records import record

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from training_steps import CASES, ZOO  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--zoo", action="store_true", help="the cases of the zoo alone")
    parser.add_argument("--record", type=Path, help="append a record for each to this file")
    options = parser.parse_args()
    version = torch.__version__.partition("+")[0]
    lines = (HERE / f"truth-{version}.jsonl").read_text().splitlines()
    truth = {line["case"]: line for line in map(json.loads, lines)}
    names = options.names or [name for name in CASES if name in truth and (not options.zoo or name in ZOO)]
    print(f"willfit of {Path(willfit.__file__).parent}, torch {version}")
    as_recorded = as_predicted = 0
    for name in names:
        case = CASES[name]
        with torch.device("meta"):
            model = case.model()
        start = time.perf_counter()
        try:
            found = willfit.verify(
                model, case.optimizer(model), case.batch(), case.step, on=case.gpu, using="emulated", tolerance=0
            )
        except willfit.WillfitError as error:
            print(f"{name:40} {type(error).__name__}: {' '.join(str(error).split())[:200]}", flush=True)
            continue
        measured = [
            max(getattr(each.measured, figure) or 0 for each in found.phases)
            for figure in ("peak_allocated", "peak_reserved")
        ]
        recorded = [truth[name]["peak_allocated"], truth[name]["peak_reserved"]]
        as_recorded += measured == recorded
        as_predicted += found.agrees
        differs = "" if measured == recorded else f" recorded {recorded}"
        predicted = "as predicted" if found.agrees else f"predicted {found.error:+.3%}: {found.first_difference}"
        print(f"{name:40} {measured}{differs} {predicted} {time.perf_counter() - start:.0f} s", flush=True)
        if options.record:
            record(found, options.record)
    print(f"{len(names)} cases: {as_recorded} as recorded to the byte, {as_predicted} as predicted in every phase")


if __name__ == "__main__":
    main()
