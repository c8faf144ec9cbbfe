"""By how much a prediction may differ from its baseline: ``"total:2%"``, ``"activations:64MiB, gradients:1%"``."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

from willfit._errors import UsageError
from willfit._trace.trace import ROLES
from willfit._units import parse_size

TOTAL: Final = "total"
_PERCENT = re.compile(r"([0-9]+(?:\.[0-9]+)?|\.[0-9]+) ?%")


@dataclass(frozen=True, slots=True)
class Amount:
    """A size, or a share of what the baseline has."""

    text: str
    size: int = 0
    share: Fraction = Fraction(0)

    def of(self, baseline: int) -> int:
        """The bytes by which a figure may differ from this one of the baseline's."""
        return self.size + int(baseline * self.share)


@dataclass(frozen=True, slots=True)
class Tolerance:
    """What may differ by how much: roles, and the total, which is the peak that the test is about.

    Where the total has an entry, roles without one are free. Where only roles have entries, other roles may not differ.
    Without any entry nothing may.
    """

    amounts: tuple[tuple[str, Amount], ...] = ()

    def amount(self, key: str) -> Amount | None:
        """The entry of a role or of the total."""
        return dict(self.amounts).get(key)

    def __str__(self) -> str:
        return ", ".join(f"{key}:{amount.text}" for key, amount in self.amounts)


def parse_tolerance(value: str | Iterable[str]) -> Tolerance:
    """The tolerance that a text or several stand for; an amount alone is that of the total.

    Raises `UsageError` for what is no role, no size and no percentage.

    >>> str(parse_tolerance("2%")), str(parse_tolerance(["total: 2 %", "activations:64MiB"]))
    ('total:2%', 'total:2 %, activations:64MiB')
    >>> parse_tolerance("activation:2%")
    Traceback (most recent call last):
    willfit._errors.UsageError: tolerance 'activation:2%' is for no role: there are total, parameters, buffers, \
gradients, optimizer states, activations, inputs, workspaces, temporaries
    """
    texts = [value] if isinstance(value, str) else list(value) if isinstance(value, Iterable) else [value]
    if not all(isinstance(text, str) for text in texts):
        raise UsageError(f'tolerance must be text such as "total:2%", or a list of such: found {value!r}')
    amounts: dict[str, Amount] = {}
    for entry in (entry.strip() for text in texts for entry in text.split(",")):
        if not entry:
            continue
        key, _, amount = entry.rpartition(":")
        key = key.strip() or TOTAL
        if key not in (TOTAL, *ROLES):
            raise UsageError(f"tolerance {entry!r} is for no role: there are {', '.join((TOTAL, *ROLES))}")
        if key in amounts:
            raise UsageError(f"tolerance has {key} twice: {amounts[key].text} and {amount.strip()}")
        amounts[key] = _amount(amount.strip())
    return Tolerance(tuple(amounts.items()))


def _amount(text: str) -> Amount:
    if match := _PERCENT.fullmatch(text):
        return Amount(text, share=Fraction(match[1]) / 100)
    if text in ("0", "0%", "0 B"):
        return Amount(text)
    return Amount(text, size=parse_size(text, "tolerance"))
