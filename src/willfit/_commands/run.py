"""``willfit run SCRIPT``: what a training script needs that knows nothing of willfit."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from willfit._commands.check import exit_code, print_answers
from willfit._commands.options import EXIT_CODES, add_capacity, add_format
from willfit._commands.streams import progress_line, stdout_as_stderr, write, write_json
from willfit._errors import UnavailableError, UsageError
from willfit._render.paper import colour_wanted
from willfit._trace.trace import ENGINES

if TYPE_CHECKING:
    from willfit._devices import Device
    from willfit._footprint import Footprint
    from willfit._trace.trace import Engine

_STEPS = 2  # the first makes the optimizer's states, the second finds them there


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser's."""
    parser = commands.add_parser(
        "run",
        help="run a training script without a GPU up to its second optimizer step",
        description="Runs a training script, as it is, up to its second optimizer step, and prints the bill. It finds "
        "the GPU that is named, and needs none. What it writes goes to a folder that is gone afterwards, and nothing "
        "leaves the machine.",
        epilog=EXIT_CODES,
        allow_abbrev=False,
    )
    parser.add_argument("--on", metavar="GPU", help="as for check")
    add_capacity(parser)
    parser.add_argument(
        "--engine",
        choices=ENGINES,
        help="what the script runs on: fake tensors (symbolic), or PyTorch's own CUDA code on an emulated GPU "
        "(emulated), which needs Linux, a CUDA build of PyTorch (this Python's, or that of the one that "
        "WILLFIT_CUDA_PYTHON names) and a C compiler (default: emulated where it can)",
    )
    parser.add_argument("--strict", action="store_true", help="a tight fit does not count as one: exit code 1")
    add_format(parser)
    parser.add_argument("script", metavar="SCRIPT", help="train.py, run as python would run it")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="ARGS", help="the script's own")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from willfit._devices import all_devices, resolve_device

    device = resolve_device(arguments.on, arguments.capacity)
    if not Path(arguments.script).is_file():
        raise UsageError(f"there is no file {arguments.script!r} here ({Path.cwd()})")
    script = (arguments.script, *arguments.arguments)
    with stdout_as_stderr(), progress_line() as progress:  # what the script prints is no part of the answer
        if device is None:
            from willfit._which_fit import which_fit

            answers = which_fit(lambda on: footprint_of_script(script, on, arguments.engine), all_devices(), progress)
            footprint = None
        else:
            progress(f"running {arguments.script} as on a {device.name}")
            footprint = footprint_of_script(script, device, arguments.engine)
    if footprint is None:
        return print_answers(answers, arguments.format == "json", arguments.strict)
    if arguments.format == "json":
        write_json(footprint.to_dict())
    else:
        from willfit._render.text import bill_text

        write(bill_text(footprint, color=colour_wanted(sys.stdout)))
    return exit_code([footprint.verdict], arguments.strict)


def footprint_of_script(script: tuple[str, ...], device: Device, engine: Engine | None = None) -> Footprint:
    """What a script, with its arguments, needs on a GPU; by the emulated engine where that is not said and it can.

    Raises `UnavailableError` where it cannot be run, `JobError` for what it raised itself, and `TraceError` where
    it does what fake tensors cannot do.
    """
    from willfit._allocator_settings import AllocatorSettings
    from willfit._emulator.engine import trace_of
    from willfit._emulator.launch import run_emulated
    from willfit._footprint import footprint_of
    from willfit._script.symbolic import trace_of_script

    settings = AllocatorSettings.from_environment()
    if engine != "symbolic":
        try:
            trace = trace_of(run_emulated(None, None, device, _STEPS, script=script), device)
            return footprint_of(trace, device, settings)
        except UnavailableError:
            if engine == "emulated":
                raise
    return footprint_of(trace_of_script(script, device, _STEPS), device, settings)
