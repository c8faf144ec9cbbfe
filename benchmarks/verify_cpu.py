"""Predictions for the CPU against real steps in this machine's memory: ``python benchmarks/verify_cpu.py [NAME ...]``.

Writes the table of docs/verification.md to stdout, and with ``--record FILE`` a record for each.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from cpu_cases import JOBS

import willfit
from willfit._verify.records import record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(JOBS)}")
    parser.add_argument("--record", type=Path)
    options = parser.parse_args()
    print("| model | predicted | measured | error | largest of any phase | seconds |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for name in options.names or JOBS:
        torch.manual_seed(0)
        model, optimizer, batch, step = JOBS[name]()
        start = time.perf_counter()
        found = willfit.verify(model, optimizer, batch, step, using="cpu", steps=2)
        predicted = max(each.predicted.peak_allocated for each in found.phases)
        measured = max(each.measured.peak_allocated for each in found.phases)
        seconds = time.perf_counter() - start
        cells = (
            name,
            f"{predicted:,}",
            f"{measured:,}",
            f"{found.peak_error:+.4%}",
            f"{found.error:+.3%}",
            f"{seconds:.0f}",
        )
        print(f"| {' | '.join(cells)} |", flush=True)
        if options.record:
            record(found, options.record)


if __name__ == "__main__":
    main()
