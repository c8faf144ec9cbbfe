from __future__ import annotations

from typing import Any

import pytest

from willfit import UsageError
from willfit._pytest.tolerance import TOTAL, Tolerance, parse_tolerance


@pytest.mark.parametrize(
    ("text", "key", "of", "amount"),
    [
        ("total:2%", TOTAL, 1000, 20),
        ("2%", TOTAL, 1000, 20),
        ("64MiB", TOTAL, 1, 64 * 2**20),
        ("optimizer states: 1 GiB", "optimizer states", 7, 2**30),
        ("activations:0.5 %, total:1%", "activations", 1999, 9),  # rounded down to a byte
        (["activations:64 MiB", "total:1%,gradients:.5%"], "gradients", 200, 1),
        ("gradients:0", "gradients", 200, 0),
    ],
)
def test_amounts(text: Any, key: str, of: int, amount: int) -> None:
    found = parse_tolerance(text).amount(key)
    assert found is not None
    assert found.of(of) == amount


def test_nothing_is_tolerated_without_a_word() -> None:
    assert parse_tolerance("") == parse_tolerance([]) == Tolerance()
    assert Tolerance().amount(TOTAL) is None


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("activation:2%", "tolerance 'activation:2%' is for no role: there are total, parameters, buffers"),
        ("total:2", "tolerance '2' has no unit that willfit takes"),
        ("total:2 percent", "tolerance '2 percent' has a unit that willfit does not know"),
        ("total:-2%", "tolerance '-2%' is negative"),
        ("total:", "tolerance '' is not a number and a unit"),
        ("total:1%, 2%", "tolerance has total twice: 1% and 2%"),
        (0.02, 'tolerance must be text such as "total:2%", or a list of such: found 0.02'),
        ([1], r"tolerance must be text .*: found \[1\]"),
    ],
)
def test_what_is_no_tolerance_is_refused(value: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_tolerance(value)
