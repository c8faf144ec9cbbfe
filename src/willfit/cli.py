"""The command line: ``willfit check TARGET``, ``willfit verify TARGET`` and others.

Exit codes: 0 it fits, 1 it does not, 2 wrong usage or a target that cannot be imported, 3 it could not be predicted,
130 interrupted.
"""

from __future__ import annotations

import argparse
import traceback
from collections.abc import Sequence

from willfit import __version__
from willfit._commands import accuracy, check, devices, run, sweep, verify
from willfit._commands.options import COULD_NOT_TELL, INTERRUPTED, USAGE
from willfit._commands.streams import report, say
from willfit._errors import UsageError, WillfitError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code. Raises SystemExit(2) for options that are wrong."""
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except KeyboardInterrupt:
        return INTERRUPTED
    except WillfitError as error:
        report(error)
        return USAGE if isinstance(error, UsageError) else COULD_NOT_TELL
    except SystemExit as error:
        say(f"error: the training step called sys.exit({error.code!r}): it could not be predicted")
        return COULD_NOT_TELL
    except Exception:
        traceback.print_exc()
        say("error: this is a bug in willfit, please report it with the lines above")
        return COULD_NOT_TELL


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="willfit",
        description="Predicts what a PyTorch training step needs on a GPU, before it runs, with no GPU.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"willfit {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in (check, run, sweep, verify, accuracy, devices):
        command.add(commands)
    return parser
