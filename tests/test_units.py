from __future__ import annotations

import re
from contextlib import suppress
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from willfit._errors import UsageError
from willfit._units import UNITS, format_size, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1 B", 1),
        ("1 kB", 1_000),
        ("1 MB", 1_000_000),
        ("1 GB", 1_000_000_000),
        ("1 TB", 1_000_000_000_000),
        ("1 KiB", 1_024),
        ("1 MiB", 1_048_576),
        ("1 GiB", 1_073_741_824),
        ("1 TiB", 1_099_511_627_776),
        ("24GiB", 24 * 1_073_741_824),
        ("14.58 GiB", 15_655_155_793),  # 14.58 * 2**30 = 15655155793.92, rounded down
        (".5 KiB", 512),
        ("0.1 GB", 100_000_000),  # exact, where a float would give 100000000.00000001
        ("007 B", 7),
        (4096, 4096),
    ],
)
def test_sizes_that_are_taken(text: str | int, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("text", "nearest"),
    [
        ("24 G", '"24 GiB" or "24 GB"'),
        ("24", '"24 GiB" or "24 GB" or "24 B"'),
        ("24gb", '"24 GB"'),
        ("24 Gb", '"24 GB"'),
        ("24gib", '"24 GiB"'),
        ("24 GIB", '"24 GiB"'),
        ("24 gibibytes", '"24 GiB"'),
        ("24 gigabytes", '"24 GB"'),
        ("24 gigs", '"24 GiB" or "24 GB"'),
        ("1.5 KB", '"1.5 kB"'),
        ("512 m", '"512 MiB" or "512 MB"'),
        ("100 bytes", '"100 B"'),
        (" 24 GiB", '"24 GiB"'),
        ("24  GiB", '"24 GiB"'),
        ("24. GiB", '"24 GiB"'),
        ("24,000 MiB", '"24000 MiB"'),
        ("24_000 MiB", '"24000 MiB"'),
    ],
)
def test_a_misspelling_is_refused_with_the_nearest_right_one(text: str, nearest: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_size(text, "limit")
    assert str(caught.value).startswith(f"limit {text!r} ")
    assert str(caught.value).endswith(f"did you mean {nearest}?")


@pytest.mark.parametrize(
    "text", ["24 MBxyz", "", "GiB", "nan GiB", "inf GiB", "1e3 MiB", "1 PB", "24 GiB 1", "\u0661 GiB", "0x10 B"]
)
def test_what_is_no_size_is_refused_with_the_units(text: str) -> None:
    with pytest.raises(UsageError, match="B, kB, MB, GB, TB, KiB, MiB, GiB, TiB"):
        parse_size(text)


@pytest.mark.parametrize(
    "text", [0, -1, "0 GiB", "0.0 B", "0.9 B", "-1 GiB", " -1 GiB", True, False, 1.5, None, float("nan")]
)
def test_less_than_a_byte_and_what_is_no_text_are_refused(text: object) -> None:
    with pytest.raises(UsageError):
        parse_size(text)  # type: ignore[arg-type]


def test_a_refusal_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="did you mean"):
        parse_size("24 G")


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (512, "512 B"),
        (1023, "1023 B"),
        (1024, "1.00 KiB"),
        (8_519_680, "8.12 MiB"),
        (141_426_688, "134.88 MiB"),
        (2**30 - 2**20, "1023.00 MiB"),
        (2**30 - 1, "1.00 GiB"),  # and not 1024.00 MiB
        (2**30, "1.00 GiB"),
        (15_655_829_504, "14.58 GiB"),
        (2**40, "1024.00 GiB"),
        (-8_519_680, "-8.12 MiB"),
        (-1, "-1 B"),
    ],
)
def test_sizes_as_people_read_them(size: int, text: str) -> None:
    assert format_size(size) == text


@given(st.integers(1, 2**50), st.sampled_from(sorted(UNITS)), st.sampled_from(["", " "]))
def test_whole_numbers_are_exact(number: int, unit: str, space: str) -> None:
    assert parse_size(f"{number}{space}{unit}") == number * UNITS[unit]


@given(st.integers(0, 10**6), st.integers(0, 999_999), st.sampled_from(sorted(UNITS)))
def test_fractions_are_rounded_down(whole: int, millionths: int, unit: str) -> None:
    exact = (whole + Fraction(millionths, 10**6)) * UNITS[unit]
    text = f"{whole}.{millionths:06d} {unit}"
    if exact < 1:
        with pytest.raises(UsageError):
            parse_size(text)
    else:
        assert parse_size(text) <= exact < parse_size(text) + 1


@given(st.integers(1, 2**50))
def test_what_is_shown_can_be_read_back(size: int) -> None:
    text = format_size(size)
    assert abs(parse_size(text) - size) <= UNITS[text.split()[1]] * 0.005 + 1
    assert format_size(-size) == f"-{text}"


@given(st.one_of(st.text(), st.from_regex(r"[-+ ]*[0-9._,]* *[a-zA-Z]*", fullmatch=True)))
def test_any_text_is_read_or_refused_by_its_own_name(text: str) -> None:
    with suppress(UsageError):
        assert parse_size(text) >= 1
        return
    with pytest.raises(UsageError) as caught:
        parse_size(text)
    assert repr(text) in str(caught.value)


@given(st.from_regex(r"[0-9]{1,9}[ _,]{0,2}(\.[0-9]{1,3})? {0,2}[kKmMgGtT]?i?[bB]?", fullmatch=True))
def test_what_is_suggested_is_taken(text: str) -> None:
    with suppress(UsageError):
        parse_size(text)
        return
    with pytest.raises(UsageError) as caught:
        parse_size(text)
    for suggestion in re.findall(r'"([^"]+)"', str(caught.value).partition("did you mean")[2]):
        with suppress(UsageError):  # a number below one byte is refused for that
            assert parse_size(suggestion) >= 1
            continue
        with pytest.raises(UsageError, match="at least one byte"):
            parse_size(suggestion)
