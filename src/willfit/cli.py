"""The command line: ``willfit check TARGET``, ``willfit devices``.

Exit codes: 0 it fits, 1 it does not, 2 wrong usage or a target that cannot be imported, 3 it could not be predicted,
130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from typing import TYPE_CHECKING, Any

from willfit import __version__
from willfit._errors import UsageError, WillfitError
from willfit._render.paper import colour_wanted

if TYPE_CHECKING:
    from willfit._devices import Device
    from willfit._footprint import Footprint
    from willfit._which_fit import Answer

FITS, DOES_NOT_FIT, USAGE, COULD_NOT_TELL, INTERRUPTED = 0, 1, 2, 3, 130

Progress = Callable[[str], None]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code. Raises SystemExit(2) for options that are wrong."""
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except KeyboardInterrupt:
        return INTERRUPTED
    except WillfitError as error:
        _report(error)
        return USAGE if isinstance(error, UsageError) else COULD_NOT_TELL
    except SystemExit as error:
        _say(f"error: the training step called sys.exit({error.code!r}): it could not be predicted")
        return COULD_NOT_TELL
    except Exception:
        traceback.print_exc()
        _say("error: this is a bug in willfit, please report it with the lines above")
        return COULD_NOT_TELL


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="willfit",
        description="Predicts what a PyTorch training step needs on a GPU, before it runs, with no GPU.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"willfit {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    check = commands.add_parser(
        "check",
        help="predict a training job, and whether it fits a GPU",
        description="Predicts a training job: the itemised bill, and whether it fits a GPU.",
        epilog="Exit codes: 0 it fits, 1 it does not, 2 wrong usage or a target that cannot be imported, "
        "3 it could not be predicted.",
        allow_abbrev=False,
    )
    check.add_argument(
        "target",
        metavar="TARGET",
        help="a function without arguments that returns (model, optimizer, batch) or (model, optimizer, batch, step): "
        "path/to/train.py:build or package.train:build",
    )
    check.add_argument(
        "--on",
        metavar="GPU",
        help='a GPU by its name ("T4", "A100-80GB"; see `willfit devices`), a size ("24 GiB"), or one here ("cuda:0"); '
        "by default the GPU of this process, and without one every GPU that willfit knows",
    )
    check.add_argument(
        "--capacity", metavar="SIZE", help='what the allocator may hold, such as "14 GiB", in place of the GPU\'s own'
    )
    check.add_argument(
        "--steps", metavar="N", type=_positive, default=3, help="optimizer steps to follow (default: %(default)s)"
    )
    check.add_argument("--strict", action="store_true", help="a tight fit does not count as one: exit code 1")
    _add_format(check)
    check.set_defaults(run=_check)

    devices = commands.add_parser(
        "devices", help="list the GPUs that willfit knows", description="Lists the GPUs that willfit knows.",
        allow_abbrev=False,
    )  # fmt: skip
    _add_format(devices)
    devices.set_defaults(run=_devices)
    return parser


def _add_format(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--format", choices=("text", "json"), default="text", help="of what goes to stdout (default: %(default)s)"
    )


def _positive(text: str) -> int:
    number = int(text) if text.isascii() and text.isdigit() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number, at least 1: found {text!r}")
    return number


# -- willfit check -----------------------------------------------------------------------------------------------------


def _check(arguments: argparse.Namespace) -> int:
    as_json = arguments.format == "json"
    with _stdout_as_stderr() if as_json else nullcontext(), _progress() as progress:
        footprint, answers = _predict(arguments, progress)
    if footprint is None:
        return _print_answers(answers, as_json, arguments.strict)
    if as_json:
        _print_json(footprint.to_dict())
    else:
        from willfit._render.text import bill_text

        _print(bill_text(footprint, color=colour_wanted(sys.stdout)))
    if footprint.verdict == "tight":
        from willfit._render.sentences import tightness

        _say(f"warning: it fits, but tightly. {tightness(footprint)}")
    return _exit_code([footprint.verdict], arguments.strict)


def _predict(arguments: argparse.Namespace, progress: Progress) -> tuple[Footprint | None, tuple[Answer, ...]]:
    """The footprint on the GPU that is asked for or here; without one, the answers for all."""
    from willfit._devices import all_devices, resolve_device
    from willfit._target import imported

    device = resolve_device(arguments.on, arguments.capacity)  # a wrong --on is refused before anything is imported
    progress(f"importing {arguments.target}")
    with imported(arguments.target) as build:
        job = build()
        from willfit._predict import predict
        from willfit._which_fit import which_fit

        if device is not None:
            progress(f"following {arguments.steps} steps as on {device.name}")
            return predict(*job, on=arguments.on, capacity=arguments.capacity, steps=arguments.steps), ()
        return None, which_fit(lambda on: predict(*job, on=on, steps=arguments.steps), all_devices(), progress)


def _print_answers(answers: tuple[Answer, ...], as_json: bool, strict: bool) -> int:
    if as_json:
        _print_json(_answers_dict(answers))
    else:
        from willfit._render.fits import fits_text

        lines = {each.device.name: each.footprint if each.footprint is not None else each.error for each in answers}
        _print(fits_text(lines, color=colour_wanted(sys.stdout)))
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


# -- willfit devices ---------------------------------------------------------------------------------------------------


def _devices(arguments: argparse.Namespace) -> int:
    from willfit._devices import all_devices

    if arguments.format == "json":
        _print_json([_device_dict(device) for device in all_devices()])
    else:
        from willfit._render.devices import devices_text

        _print(devices_text(all_devices(), color=colour_wanted(sys.stdout)))
    return FITS


def _device_dict(device: Device) -> dict[str, Any]:
    keys = (
        *("name", "driver_name", "aliases", "vendor", "total", "context", "capacity", "compute_capability"),
        *("multiprocessors", "memory_bandwidth", "host_bandwidth", "assumptions", "sources"),
    )
    return {key: list(value) if isinstance(value := getattr(device, key), tuple) else value for key in keys}


# -- streams -----------------------------------------------------------------------------------------------------------


def _print(text: str) -> None:
    """To stdout; characters that it cannot take are escaped, and a reader that has gone away is no error."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _print_json(value: Any) -> None:
    _print(json.dumps(value, indent=2))


def _say(sentence: str) -> None:
    print(f"willfit: {sentence}", file=sys.stderr)


def _report(error: WillfitError) -> None:
    """One message; where the user's own code raised, with its lines and no others."""
    from willfit._target import user_frames

    frames = user_frames(error.__cause__) if error.__cause__ is not None else ""
    if frames:
        print(frames, file=sys.stderr)
    _say(f"error: {error}")


@contextmanager
def _stdout_as_stderr() -> Iterator[None]:
    """What the user's code prints goes to stderr, from libraries in C and child processes too."""
    sys.stdout.flush()
    saved = os.dup(1)
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(saved, 1)
        os.close(saved)


@contextmanager
def _progress() -> Iterator[Progress]:
    """A line that says what is being done, on a terminal alone, gone when it is over."""
    if not sys.stderr.isatty():
        yield lambda words: None
        return
    from rich.console import Console
    from rich.live import Live
    from rich.spinner import Spinner

    spinner = Spinner("dots", "")
    # What the user's code prints passes above the line, but stays on its own stream.
    with Live(spinner, console=Console(stderr=True), transient=True, redirect_stdout=sys.stdout.isatty()):
        yield lambda words: spinner.update(text=f"willfit: {words}")
