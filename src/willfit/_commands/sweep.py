"""``willfit sweep TARGET``: what fits where."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from willfit._commands.options import DOES_NOT_FIT, FITS, add_engine, add_steps, add_target, positive
from willfit._commands.streams import stdout_as_stderr, write, write_json
from willfit._render.paper import colour_wanted


def add(commands: Any) -> None:
    """Add the command to the parser's."""
    parser = commands.add_parser(
        "sweep",
        help="predict a training job in many ways on many GPUs",
        description="Predicts a training job in many ways on many GPUs, and prints a table of what fits where.",
        epilog="Exit codes: 0 something fits, 1 nothing does, 2 wrong usage or a target that cannot be imported, "
        "3 it could not be predicted.",
        allow_abbrev=False,
    )
    add_target(parser)
    parser.add_argument("--on", metavar="GPUS", required=True, type=_words, help='by commas, such as "T4,A100-80GB"')
    parser.add_argument(
        "--method",
        metavar="METHODS",
        type=_words,
        default=["full"],
        help='by commas: "full" for the job as it is, or changes such as "lora", "qlora", "checkpointing", "adamw8bit" '
        'and "lora+checkpointing"; a name that there is none of is answered with all that there are (default: full)',
    )
    parser.add_argument(
        "--batch", metavar="SIZES", type=_sizes, default=[], help='samples, by commas, such as "1,2,4,8"'
    )
    parser.add_argument(
        "--seq-len",
        metavar="LENGTHS",
        type=_sizes,
        default=[],
        help='tokens in each, such as "512,2048"',
    )
    add_steps(parser)
    add_engine(parser)
    parser.add_argument(
        "--format",
        choices=("text", "csv", "json"),
        default="text",
        help="of what goes to stdout (default: %(default)s)",
    )
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from willfit._devices import resolve_device
    from willfit._target import imported

    for name in arguments.on:
        resolve_device(name)  # a wrong one is refused before anything is imported
    aside = nullcontext() if arguments.format == "text" else stdout_as_stderr()
    with aside, _progress_bar() as progress, imported(arguments.target) as build:
        job = build()
        from willfit._sweep import sweep

        found = sweep(
            *job,
            on=arguments.on,
            methods=arguments.method,
            batch_sizes=arguments.batch,
            sequence_lengths=arguments.seq_len,
            steps=arguments.steps,
            engine=arguments.engine,
            progress=progress,
        )
    if arguments.format == "json":
        write_json(found.to_dict())
    elif arguments.format == "csv":
        write(found.to_csv().rstrip("\n"))
    else:
        from willfit._render.sweep import sweep_text

        write(sweep_text(found, color=colour_wanted(sys.stdout)))
    fitting = [cell for cell in found.cells if cell.footprint is not None and cell.footprint.verdict != "does not fit"]
    return FITS if fitting else DOES_NOT_FIT


@contextmanager
def _progress_bar() -> Iterator[Callable[[int, int, str], None]]:
    """A bar on a terminal alone, gone when it is over."""
    if not sys.stderr.isatty():
        yield lambda done, total, words: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}")
    with Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=sys.stdout.isatty()) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total, words: bar.update(task, completed=done, total=total, description=words)


def _words(text: str) -> list[str]:
    found = [word.strip() for word in text.split(",")]
    if not all(found):
        raise argparse.ArgumentTypeError(f"must be names between commas: found {text!r}")
    return found


def _sizes(text: str) -> list[int]:
    return [positive(word) for word in _words(text)]
