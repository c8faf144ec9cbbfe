"""Several processes that train together: all go on or none, so that nobody waits in a collective for ever."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import torch.distributed as dist

from willfit._errors import JobError, WillfitError, WillNotFit


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def of_all(value: Any) -> list[Any]:
    """The value of each process, in the order of their ranks.

    >>> of_all(3)
    [3]
    """
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def agreed(check: Callable[[], str | None]) -> str | None:
    """Run a check in each process, which raises or returns what to warn of; if it raises in one, all raise.

    The main process raises what the first such one did, with its rank named, the others a line. So it is with
    warnings: the main process gets the first, the others none.
    """
    if world_size() == 1:
        return check()
    raised, warning = None, None
    try:
        warning = check()
    except Exception as error:
        raised = _portable(error)
    outcomes = of_all((raised, warning))
    for place, of in ((0, _raised), (1, _warning)):
        ranks = [rank for rank, outcome in enumerate(outcomes) if outcome[place] is not None]
        if ranks:
            return of(outcomes[ranks[0]][place], ranks)
    return None


def _raised(error: Exception, ranks: list[int]) -> str | None:
    where = f"{_ranks(ranks)} of {world_size()}"
    message = f"{where}: {error}" if dist.get_rank() == 0 else f"not run, because of {where}: rank 0 says why"
    if isinstance(error, WillNotFit):
        raise WillNotFit(message, error.footprint, error.advice)
    raise type(error)(message) if isinstance(error, WillfitError) else JobError(message)


def _warning(warning: str, ranks: list[int]) -> str | None:
    return f"{_ranks(ranks)} of {world_size()}: {warning}" if dist.get_rank() == 0 else None


def _ranks(ranks: list[int]) -> str:
    """Which ranks, in words.

    >>> _ranks([3]), _ranks([0, 2])
    ('rank 3', 'ranks 0, 2')
    """
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"


def _portable(error: Exception) -> Exception:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return JobError(f"{type(error).__name__}: {error}")
    return error
