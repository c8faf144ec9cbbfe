"""Records of verifications, and the error over all of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hand_made import MIB, measurement, trace_of

import willfit
from willfit import UsageError
from willfit._render.accuracy import accuracy_text
from willfit._verify.compare import compare
from willfit._verify.records import Accuracy, accuracy, read, record

PLACED = ("weights", 0, "placement")
PREDICTED = trace_of({"weights": 4 * MIB, "a": 12 * MIB}, PLACED, ("a", 1, "forward"))


def a_record(tmp_path: Path, measured: int, name: str = "measured.jsonl") -> Path:
    path = tmp_path / "deep" / name
    real = trace_of({"weights": 4 * MIB, "a": measured}, PLACED, ("a", 1, "forward"))
    record(compare("emulated", measurement(PREDICTED, real), 0.02), path)
    return path


def test_records_are_appended_and_read_again(tmp_path: Path) -> None:
    a_record(tmp_path, 12 * MIB)
    path = a_record(tmp_path, 16 * MIB)
    first, second = read(path)
    assert first["agrees"]
    assert not second["agrees"]
    assert first["willfit"] == willfit.__version__
    assert second["phases"][1]["measured"]["peak_allocated"] == 20 * MIB
    assert {"job", "device", "driver", "versions", "verifier"} <= set(first)


def test_errors_over_all_records(tmp_path: Path) -> None:
    # allocated: 16 MiB predicted, of 16, 28 and 14
    # reserved: 20 MiB predicted, whose first segment has room for 16 more, of 20, 20 + 24 and 20
    for measured in (12 * MIB, 24 * MIB, 10 * MIB - 512):
        path = a_record(tmp_path, measured)
    rows = {row.figure: row for row in accuracy(read(path))}
    allocated = rows["peak allocated"]
    assert (allocated.verifier, allocated.count, allocated.exact, allocated.below) == ("emulated", 3, 1, 1)
    assert allocated.worst == pytest.approx(-12 / 28)
    assert allocated.median == pytest.approx(16 / (14 - 512 / MIB) - 1)
    assert allocated.worst_job == "Net with SGD"
    assert rows["peak reserved"].worst == pytest.approx(-24 / 44)


def test_measured_by_different_means_is_told_apart(tmp_path: Path) -> None:
    path = a_record(tmp_path, 12 * MIB)
    plain = trace_of({"weights": 4 * MIB}, PLACED, target="cpu")
    record(compare("cpu", measurement(plain, plain, None, has_reserved=False), 0.02), path)
    assert {(row.verifier, row.figure) for row in accuracy(read(path))} == {
        ("emulated", "peak allocated"),
        ("emulated", "peak reserved"),
        ("cpu", "peak allocated"),
    }


def test_the_project_s_own() -> None:
    path = Path(__file__).parents[2] / "benchmarks" / "measured.jsonl"
    if not path.exists():
        pytest.skip("benchmarks/ is not here: the tests of an installed willfit")
    rows = {(row.verifier, row.figure): row for row in accuracy(read(path))}
    for figure in ("peak allocated", "peak reserved"):
        assert rows["emulated", figure].count == rows["emulated", figure].exact >= 28
    assert rows["cpu", "peak allocated"].count >= 10
    assert abs(rows["cpu", "peak allocated"].worst) < 0.005


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot be read: No such file.*`willfit verify --record` makes it"):
        read(tmp_path / "none.jsonl")


PHASE = {"predicted": {"peak_allocated": 1, "peak_reserved": 1}, "measured": {"peak_allocated": 1, "peak_reserved": 1}}


@pytest.mark.parametrize(
    "line",
    [
        "no json",
        "{}",
        json.dumps({"verifier": "cpu", "phases": [PHASE]}),
        '{"phases": []}',
        "[1, 2]",
        '{"phases": [{"predicted": 3}]}',
    ],
)
def test_a_line_that_is_no_record_is_named(tmp_path: Path, line: str) -> None:
    path = a_record(tmp_path, 12 * MIB)
    with path.open("a") as file:
        file.write(f"\n{line}\n")
    with pytest.raises(UsageError, match=r"line 3 is no record of a verification"):
        read(path)


def test_a_place_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "deep").write_text("a file")
    with pytest.raises(UsageError, match="cannot be written to"):
        a_record(tmp_path, 12 * MIB)


def test_each_record_is_one_line_of_json(tmp_path: Path) -> None:
    path = a_record(tmp_path, 12 * MIB)
    lines = path.read_text().splitlines()
    assert len(lines) == 1
    assert json.loads(lines[0])["schema"] == 1


def test_the_table(tmp_path: Path) -> None:
    rows: list[Any] = [
        Accuracy("emulated", "peak allocated", 14, 12, 0.0, -0.0123, "Net with SGD", 1),
        Accuracy("emulated", "peak reserved", 14, 14, 0.0, 0.0, "", 0),
    ]
    assert accuracy_text(rows) == (
        "How close predictions came to what was measured\n"
        "  measured by  figure          runs  exact  median    worst  below\n"
        "  emulated     peak allocated    14     12  0.00 %  -1.23 %      1\n"
        "  emulated     peak reserved     14     14  0.00 %    exact      0\n"
        "\n"
        "The worst\n"
        "  - peak allocated, emulated: -1.23 %, Net with SGD"
    )
    assert "No verification is recorded" in accuracy_text([])
