"""Options that commands share, and the exit codes."""

from __future__ import annotations

import argparse

from willfit._trace.trace import ENGINES

FITS, DOES_NOT_FIT, USAGE, COULD_NOT_TELL, INTERRUPTED = 0, 1, 2, 3, 130

EXIT_CODES = (
    "Exit codes: 0 it fits, 1 it does not, 2 wrong usage or a target that cannot be imported, "
    "3 it could not be predicted."
)


def add_target(parser: argparse.ArgumentParser, *, optional: bool = False) -> None:
    """TARGET: where the job comes from."""
    parser.add_argument(
        "target",
        metavar="TARGET",
        nargs="?" if optional else None,
        help="a function without arguments that returns (model, optimizer, batch) or (model, optimizer, batch, step): "
        "path/to/train.py:build or package.train:build",
    )


def add_capacity(parser: argparse.ArgumentParser) -> None:
    """--capacity SIZE."""
    parser.add_argument(
        "--capacity", metavar="SIZE", help='what the allocator may hold, such as "14 GiB", in place of the GPU\'s own'
    )


def add_steps(parser: argparse.ArgumentParser) -> None:
    """--steps N."""
    parser.add_argument(
        "--steps", metavar="N", type=positive, default=3, help="optimizer steps to follow (default: %(default)s)"
    )


def add_engine(parser: argparse.ArgumentParser) -> None:
    """--engine symbolic|emulated."""
    parser.add_argument(
        "--engine",
        choices=ENGINES,
        default=ENGINES[0],
        help="what follows the job: rules on fake tensors, or PyTorch's own CUDA code on an emulated GPU, which needs "
        "a CUDA build of PyTorch and a C compiler (default: %(default)s)",
    )


def add_format(parser: argparse.ArgumentParser, *more: str) -> None:
    """--format text|json, or one of more."""
    parser.add_argument(
        "--format",
        choices=("text", "json", *more),
        default="text",
        help="of what goes to stdout (default: %(default)s)",
    )


def positive(text: str) -> int:
    """A whole number, at least 1."""
    number = int(text) if text.isascii() and text.isdigit() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number, at least 1: found {text!r}")
    return number
