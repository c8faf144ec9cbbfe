"""Sizes: ``"14 GiB"`` <-> bytes. GB and GiB differ by 7 %, so a bare G is refused."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Final

from willfit._errors import UsageError

UNITS: Final[dict[str, int]] = {
    "B": 1,
    "kB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}
"""Every unit that a size may have, in bytes."""

_SIZE = re.compile(rf"([0-9]+(?:\.[0-9]+)?|\.[0-9]+) ?({'|'.join(UNITS)})")
_ALMOST = re.compile(r"\s*([0-9][0-9_,]*(?:\.[0-9]*)?|\.[0-9]+)\s*([a-z]*)\s*", re.IGNORECASE)


def parse_size(text: str | int, what: str = "size") -> int:
    """The bytes that a size such as ``"14 GiB"`` stands for, rounded down to a byte.

    A number (fractions allowed), an optional space, and B, kB, MB, GB, TB (powers of 1000) or KiB, MiB, GiB, TiB
    (powers of 1024), case as written. An int is taken as bytes. Raises `UsageError` for anything else and for less than
    a byte; its message calls the size what `what` says, and names the nearest right spelling.

    >>> parse_size("14 GiB")
    15032385536
    >>> parse_size("1.5kB"), parse_size(4096)
    (1500, 4096)
    >>> parse_size("24 G")
    Traceback (most recent call last):
    willfit._errors.UsageError: size '24 G' has no unit that willfit takes: did you mean "24 GiB" or "24 GB"?
    """
    if isinstance(text, int) and not isinstance(text, bool):
        size = text
    elif not isinstance(text, str):
        raise UsageError(f'{what} must be text such as "14 GiB", or bytes as an int: found {text!r}')
    elif match := _SIZE.fullmatch(text):
        number, unit = match.groups()
        size = int(Fraction(number) * UNITS[unit])
    else:
        raise UsageError(f"{what} {text!r} {_what_is_wrong(text)}")
    if size < 1:
        raise UsageError(f"{what} must be at least one byte: found {text!r}")
    return size


def format_size(size: int) -> str:
    """A size in bytes as people read it: GiB with two decimals, MiB below 1 GiB, then KiB and bytes.

    >>> format_size(15655829504), format_size(141426688), format_size(-8519680), format_size(512)
    ('14.58 GiB', '134.88 MiB', '-8.12 MiB', '512 B')
    """
    magnitude, sign = abs(size), "-" if size < 0 else ""
    for unit, below in (("GiB", "MiB"), ("MiB", "KiB"), ("KiB", "B")):
        if round(magnitude / UNITS[below], 2) >= 1024:  # what would read "1024.00 MiB" is 1.00 GiB
            return f"{sign}{magnitude / UNITS[unit]:.2f} {unit}"
    return f"{sign}{magnitude} B"


def _what_is_wrong(text: str) -> str:
    """The end of the sentence that refuses a text, with the nearest right spelling where there is one."""
    if text.lstrip().startswith("-"):
        return "is negative"
    match = _ALMOST.fullmatch(text)
    if match is None:
        return f'is not a number and a unit: write it as "14 GiB", with one of {", ".join(UNITS)}'
    number = match[1].replace(",", "").replace("_", "").rstrip(".")
    units = _nearest_units(match[2])
    if not units:
        return f"has a unit that willfit does not know: use one of {', '.join(UNITS)}"
    spellings = " or ".join(f'"{number} {unit}"' for unit in units)
    reason = "is not spelled as a size is" if len(units) == 1 else "has no unit that willfit takes"
    return f"{reason}: did you mean {spellings}?"


def _nearest_units(letters: str) -> tuple[str, ...]:
    """The units that somebody who wrote these letters may have meant, powers of 1024 first.

    >>> _nearest_units("gb"), _nearest_units("M"), _nearest_units("bytes"), _nearest_units("xyz")
    (('GB',), ('MiB', 'MB'), ('B',), ())
    """
    lower = letters.lower()
    if not lower:
        return ("GiB", "GB", "B")
    if lower in ("b", "byte", "bytes"):
        return ("B",)
    match = re.fullmatch(r"([kmgt])(?:(i|i?bi)(?:b|bytes?)?|(b|[a-z]*bytes?|bs|b/s)|(ig|igs)?)", lower)
    if match is None:
        return ()
    prefix, binary, decimal = match[1], match[2], match[3]
    units = (f"{prefix.upper()}iB", f"{'k' if prefix == 'k' else prefix.upper()}B")
    return units[:1] if binary else units[1:] if decimal else units
