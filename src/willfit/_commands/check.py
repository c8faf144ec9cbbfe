"""``willfit check [TARGET]``: predict a training job, and whether it fits; without TARGET, those of pyproject.toml."""

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
from willfit._commands.targets import CI_FORMATS, check_one, check_project
from willfit._errors import UsageError
from willfit._render.paper import colour_wanted

if TYPE_CHECKING:
    from willfit._advice import Advice
    from willfit._footprint import Footprint
    from willfit._which_fit import Answer


def add(commands: Any) -> None:
    """Add the command to the parser's."""
    parser = commands.add_parser(
        "check",
        help="predict a training job, and whether it fits a GPU",
        description="Predicts a training job: the itemised bill, and whether it fits a GPU. Without TARGET, all that "
        "pyproject.toml has under [[tool.willfit.target]], each held to its GPUs and its limit.",
        epilog=EXIT_CODES,
        allow_abbrev=False,
    )
    add_target(parser, optional=True)
    parser.add_argument(
        "--on",
        metavar="GPU",
        help='a GPU by its name ("T4", "A100-80GB"; see `willfit devices`), a size ("24 GiB"), or one here ("cuda:0"); '
        "by default the GPU of this process, and without one every GPU that willfit knows",
    )
    add_capacity(parser)
    add_steps(parser)
    add_engine(parser)
    parser.add_argument(
        "--advise",
        action=argparse.BooleanOptionalAction,
        help="say what would make it fit, or take less (by default where it does not fit)",
    )
    parser.add_argument("--all", action="store_true", help="of the advice show everything, and not three options")
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument(
        "--max-batch", action="store_true", help="find the largest batch that fits, in place of predicting this one"
    )
    sizes.add_argument("--max-seq-len", action="store_true", help="find the longest sequences that fit, likewise")
    parser.add_argument("--strict", action="store_true", help="a tight fit does not count as one: exit code 1")
    parser.add_argument(
        "--changed",
        nargs="*",
        metavar="FILE",
        help="of the targets in pyproject.toml, only those that depend on one of these files",
    )
    add_format(parser, *CI_FORMATS)
    parser.set_defaults(run=_run, defaults=parser.get_default)


def _run(arguments: argparse.Namespace) -> int:
    if arguments.target is None:
        return check_project(arguments, _given(arguments, *_OF_ONE_TARGET))
    if arguments.changed is not None:
        raise UsageError("--changed is for the targets of pyproject.toml, and not for one that is given")
    if arguments.format in CI_FORMATS:
        if of_the_bill := _given(arguments, *_OF_THE_BILL):
            raise UsageError(f"{of_the_bill[0]} is for --format text and json, and not for {arguments.format}")
        return check_one(arguments)
    as_json = arguments.format == "json"
    if arguments.max_batch or arguments.max_seq_len:
        return _largest(arguments, as_json)
    with stdout_as_stderr() if as_json else nullcontext(), progress_line() as progress:
        footprint, answers, advice = _predict(arguments, progress)
    if footprint is None:
        return print_answers(answers, as_json, arguments.strict)
    if as_json:
        write_json(footprint.to_dict() | ({} if advice is None else {"advice": advice.to_dict()}))
    elif advice is not None:
        from willfit._render.advice import advice_text

        write("\n" + advice_text(advice, everything=arguments.all, color=colour_wanted(sys.stdout)))
    if footprint.verdict == "tight":
        from willfit._render.sentences import tightness

        say(f"warning: it fits, but tightly. {tightness(footprint)}")
    return exit_code([footprint.verdict], arguments.strict)


_OF_THE_BILL = ("advise", "all", "max_batch", "max_seq_len")
_OF_ONE_TARGET = ("on", "capacity", "steps", "engine", *_OF_THE_BILL)


def _given(arguments: argparse.Namespace, *names: str) -> list[str]:
    """Those of these options that are not as they are by default."""
    changed = [name for name in names if getattr(arguments, name) != arguments.defaults(name)]
    return [f"--{name.replace('_', '-')}" for name in changed]


def _predict(
    arguments: argparse.Namespace, progress: Progress
) -> tuple[Footprint | None, tuple[Answer, ...], Advice | None]:
    """The footprint on the GPU that is asked for or here, with advice; without one, the answers for all."""
    from willfit._devices import all_devices, resolve_device
    from willfit._target import imported
    from willfit._which_fit import which_fit

    device = resolve_device(arguments.on, arguments.capacity)  # a wrong --on is refused before anything is imported
    steps = arguments.steps
    if arguments.engine == "emulated" and not arguments.advise:
        from willfit._predict import predict_target

        def of_target(on: Any) -> Footprint:
            return predict_target(arguments.target, on=on, capacity=arguments.capacity, steps=steps)

        if device is not None:
            progress(f"running {steps} steps on an emulated {device.name}")
            return _shown(of_target(arguments.on), arguments), (), None
        return None, which_fit(of_target, all_devices(), progress), None
    progress(f"importing {arguments.target}")
    with imported(arguments.target) as build:
        job = build()
        from willfit._predict import predict

        if device is None:
            return None, which_fit(lambda on: predict(*job, on=on, steps=steps), all_devices(), progress), None
        options: dict[str, Any] = {"capacity": arguments.capacity, "steps": steps, "engine": arguments.engine}
        progress(f"following {steps} steps as on {device.name}")
        footprint = _shown(predict(*job, on=arguments.on, **options), arguments)
        if arguments.advise is False or (arguments.advise is None and footprint.verdict != "does not fit"):
            return footprint, (), None
        from willfit._advise import advise

        return footprint, (), advise(*job, on=arguments.on, progress=progress, **options)


def _shown(footprint: Footprint, arguments: argparse.Namespace) -> Footprint:
    """Print the bill at once, where it is text: advice takes longer."""
    if arguments.format == "text":
        from willfit._render.text import bill_text

        write(bill_text(footprint, color=colour_wanted(sys.stdout)))
    return footprint


def _largest(arguments: argparse.Namespace, as_json: bool) -> int:
    from willfit._devices import resolve_device
    from willfit._target import imported

    if resolve_device(arguments.on, arguments.capacity) is None:
        option = "--max-batch" if arguments.max_batch else "--max-seq-len"
        raise UsageError(f"{option} is for a GPU, and none is here: name one as in --on T4")
    with stdout_as_stderr() if as_json else nullcontext(), progress_line() as progress:
        progress(f"importing {arguments.target}")
        with imported(arguments.target) as build:
            job = build()
            from willfit._largest import largest_batch, largest_sequence

            progress("following the job with batches of several sizes")
            find = largest_batch if arguments.max_batch else largest_sequence
            found = find(
                *job,
                on=arguments.on,
                capacity=arguments.capacity,
                steps=arguments.steps,
                engine=arguments.engine,
            )
    if as_json:
        write_json(found.to_dict())
    else:
        from willfit._render.largest import largest_text

        write(largest_text(found, color=colour_wanted(sys.stdout)))
    return FITS if found.size else DOES_NOT_FIT


def print_answers(answers: tuple[Answer, ...], as_json: bool, strict: bool) -> int:
    if as_json:
        write_json(_answers_dict(answers))
    else:
        from willfit._render.fits import fits_text

        lines = {each.device.name: each.footprint if each.footprint is not None else each.error for each in answers}
        write(fits_text(lines, color=colour_wanted(sys.stdout)))
    return exit_code([each.footprint.verdict for each in answers if each.footprint is not None], strict)


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


def exit_code(verdicts: Sequence[str | None], strict: bool) -> int:
    good = ("fits",) if strict else ("fits", "tight")
    return FITS if any(verdict in good for verdict in verdicts) else DOES_NOT_FIT
