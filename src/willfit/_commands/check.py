"""``willfit check TARGET``: predict a training job, and whether it fits."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from willfit._commands.options import (
    DOES_NOT_FIT,
    EXIT_CODES,
    FITS,
    add_capacity,
    add_engine,
    add_format,
    add_steps,
    add_target,
)
from willfit._commands.streams import Progress, progress_line, say, stdout_as_stderr, write, write_json
from willfit._render.paper import colour_wanted

if TYPE_CHECKING:
    from willfit._footprint import Footprint
    from willfit._which_fit import Answer


def add(commands: Any) -> None:
    """Add the command to the parser's."""
    parser = commands.add_parser(
        "check",
        help="predict a training job, and whether it fits a GPU",
        description="Predicts a training job: the itemised bill, and whether it fits a GPU.",
        epilog=EXIT_CODES,
        allow_abbrev=False,
    )
    add_target(parser)
    parser.add_argument(
        "--on",
        metavar="GPU",
        help='a GPU by its name ("T4", "A100-80GB"; see `willfit devices`), a size ("24 GiB"), or one here ("cuda:0"); '
        "by default the GPU of this process, and without one every GPU that willfit knows",
    )
    add_capacity(parser)
    add_steps(parser)
    add_engine(parser)
    parser.add_argument("--strict", action="store_true", help="a tight fit does not count as one: exit code 1")
    add_format(parser)
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    as_json = arguments.format == "json"
    with stdout_as_stderr() if as_json else nullcontext(), progress_line() as progress:
        footprint, answers = _predict(arguments, progress)
    if footprint is None:
        return _print_answers(answers, as_json, arguments.strict)
    if as_json:
        write_json(footprint.to_dict())
    else:
        from willfit._render.text import bill_text

        write(bill_text(footprint, color=colour_wanted(sys.stdout)))
    if footprint.verdict == "tight":
        from willfit._render.sentences import tightness

        say(f"warning: it fits, but tightly. {tightness(footprint)}")
    return _exit_code([footprint.verdict], arguments.strict)


def _predict(arguments: argparse.Namespace, progress: Progress) -> tuple[Footprint | None, tuple[Answer, ...]]:
    """The footprint on the GPU that is asked for or here; without one, the answers for all."""
    from willfit._devices import all_devices, resolve_device
    from willfit._target import imported
    from willfit._which_fit import which_fit

    device = resolve_device(arguments.on, arguments.capacity)  # a wrong --on is refused before anything is imported
    steps = arguments.steps
    if arguments.engine == "emulated":
        from willfit._predict import predict_target

        def of_target(on: Any) -> Footprint:
            return predict_target(arguments.target, on=on, capacity=arguments.capacity, steps=steps)

        if device is not None:
            progress(f"running {steps} steps on an emulated {device.name}")
            return of_target(arguments.on), ()
        return None, which_fit(of_target, all_devices(), progress)
    progress(f"importing {arguments.target}")
    with imported(arguments.target) as build:
        job = build()
        from willfit._predict import predict

        if device is not None:
            progress(f"following {steps} steps as on {device.name}")
            return predict(*job, on=arguments.on, capacity=arguments.capacity, steps=steps), ()
        return None, which_fit(lambda on: predict(*job, on=on, steps=steps), all_devices(), progress)


def _print_answers(answers: tuple[Answer, ...], as_json: bool, strict: bool) -> int:
    if as_json:
        write_json(_answers_dict(answers))
    else:
        from willfit._render.fits import fits_text

        lines = {each.device.name: each.footprint if each.footprint is not None else each.error for each in answers}
        write(fits_text(lines, color=colour_wanted(sys.stdout)))
    return _exit_code([each.footprint.verdict for each in answers if each.footprint is not None], strict)


def _answers_dict(answers: tuple[Answer, ...]) -> dict[str, Any]:
    """As docs/schema.md describes it: the job once, and a row for each GPU."""
    job = next(each.footprint.to_dict() for each in answers if each.footprint is not None)
    keys = ("verdict", "peak_allocated", "peak_reserved", "context", "required", "capacity", "missing", "retries")
    rows = []
    for each in answers:
        found: dict[str, Any] = {} if each.footprint is None else each.footprint.to_dict()
        row = {key: found.get(key) for key in keys}
        rows.append({"name": each.device.name, **row, "traced_on": each.traced_on.name, "error": each.error or None})
    return {"schema": job["schema"], "job": job["job"], "steps": job["steps"], "devices": rows}


def _exit_code(verdicts: Sequence[str | None], strict: bool) -> int:
    good = ("fits",) if strict else ("fits", "tight")
    return FITS if any(verdict in good for verdict in verdicts) else DOES_NOT_FIT
