"""``willfit accuracy``: how close predictions came, over all records."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from willfit._commands.options import FITS, add_format
from willfit._commands.streams import write, write_json
from willfit._render.paper import colour_wanted
from willfit._verify.records import DEFAULT, accuracy, read


def add(commands: Any) -> None:
    """Add the command to the parser's."""
    parser = commands.add_parser(
        "accuracy",
        help="how close predictions came to what was measured",
        description="Prints the error of predictions over all records that `willfit verify --record` made: the median, "
        "the worst, and how often a prediction was below what was measured.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "files", nargs="*", type=Path, default=[DEFAULT], metavar="FILE", help=f"of records (default: {DEFAULT})"
    )
    add_format(parser)
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    rows = accuracy(each for file in arguments.files for each in read(file))
    if arguments.format == "json":
        write_json([asdict(row) for row in rows])
    else:
        from willfit._render.accuracy import accuracy_text

        write(accuracy_text(rows, color=colour_wanted(sys.stdout)))
    return FITS
