"""``willfit verify TARGET``: predict a training job, run it for real, and compare."""

from __future__ import annotations

import argparse
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from willfit._commands.options import DOES_NOT_FIT, FITS, add_capacity, add_format, add_steps, add_target
from willfit._commands.streams import progress_line, say, stdout_as_stderr, write, write_json
from willfit._render.paper import colour_wanted
from willfit._verify.records import DEFAULT


def add(commands: Any) -> None:
    """Add the command to the parser's."""
    parser = commands.add_parser(
        "verify",
        help="predict a training job, run it for real, and compare the two",
        description="Predicts a training job, runs it for real, and compares the two phase by phase: on the GPU that "
        "is here, on an emulated one, or in this machine's memory.",
        epilog="Exit codes: 0 they agree, 1 they do not, 2 wrong usage or a target that cannot be imported, "
        "3 it could not be predicted, or not be measured here.",
        allow_abbrev=False,
    )
    add_target(parser)
    parser.add_argument(
        "--on",
        metavar="GPU",
        help='the GPU that the prediction is for, as in `willfit check`: "T4", "24 GiB", "cuda:0"; '
        "by default the GPU of this process",
    )
    add_capacity(parser)
    add_steps(parser)
    parser.add_argument(
        "--tolerance",
        metavar="SHARE",
        default="2%",
        help='how far predicted and measured may be apart in any figure of any phase, such as "0.5%%" (default: 2%%)',
    )
    parser.add_argument(
        "--with",
        dest="using",
        metavar="VERIFIER",
        help="cuda: forward and backward on the GPU that is here; emulated: PyTorch's own CUDA code on an emulated "
        "GPU; cpu: this machine's memory; by default the first of them that can be used",
    )
    parser.add_argument(
        "--record",
        nargs="?",
        const=DEFAULT,
        type=Path,
        metavar="FILE",
        help=f"append what was predicted and measured to a file of JSON lines (by default {DEFAULT})",
    )
    add_format(parser)
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from willfit._devices import resolve_device
    from willfit._target import imported
    from willfit._verify.verification import parse_tolerance
    from willfit._verify.verifier import JobToVerify, check_verifier

    as_json = arguments.format == "json"
    tolerance = parse_tolerance(arguments.tolerance)  # what is wrong is refused before anything is imported
    check_verifier(arguments.using)
    resolve_device(arguments.on, arguments.capacity)
    with stdout_as_stderr() if as_json else nullcontext(), progress_line() as progress:
        progress(f"importing {arguments.target}")
        with imported(arguments.target) as build:
            model, optimizer, batch, *step = build()
            from willfit._verify.verify import verify_job

            progress("predicting and measuring")
            job = JobToVerify(
                model,
                optimizer,
                batch,
                step[0] if step else None,
                on=arguments.on,
                capacity=arguments.capacity,
                steps=arguments.steps,
                target=arguments.target,
            )
            verification = verify_job(job, tolerance, arguments.using)
    if as_json:
        write_json(verification.to_dict())
    else:
        from willfit._render.verification import verification_text

        write(verification_text(verification, color=colour_wanted(sys.stdout)))
    if arguments.record is not None:
        from willfit._verify.records import record

        record(verification, arguments.record)
        say(f"recorded in {arguments.record}")
    return FITS if verification.agrees else DOES_NOT_FIT
