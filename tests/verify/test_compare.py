"""Prediction and measurement side by side: errors, where they part, and what counts as agreeing."""

from __future__ import annotations

import json
import pickle
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hand_made import MIB, ROOMY, footprint, measurement, peaks_of, trace_of

from willfit import Device, UsageError, VerificationFailed
from willfit._replay import OutOfMemoryPlace, PhasePeak
from willfit._trace.trace import Phase
from willfit._verify.compare import compare
from willfit._verify.verification import Difference, Measurement, parse_tolerance, relative

SIZES = {"weights": 4 * MIB, "activations": 8 * MIB, "gradients": 4 * MIB, "extra": 2 * MIB, "larger": 10 * MIB}
PREDICTED = trace_of(
    SIZES,
    ("weights", 0, "placement"),
    ("activations", 1, "forward"),
    ("gradients", 1, "backward"),
    ("activations", 1, "backward"),
    ("gradients", 1, "optimizer step"),
)


def test_the_same_trace_agrees_to_the_byte() -> None:
    found = compare("test", measurement(PREDICTED, PREDICTED), 0.0)
    assert found.agrees
    assert found.error == found.peak_error == 0
    assert found.first_difference is None
    assert [(each.step, each.phase) for each in found.phases] == [
        *((0, "placement"), (1, "forward"), (1, "backward"), (1, "optimizer step")),
    ]
    backward = found.phases[2]
    assert backward.measured.peak_allocated == 16 * MIB  # weights, activations, gradients
    assert backward.measured.allocated_at_end == 8 * MIB
    assert found.check() is found


def test_what_is_larger_is_an_error_of_that_phase_and_named() -> None:
    measured = trace_of(
        SIZES,
        ("weights", 0, "placement"),
        ("larger", 1, "forward"),
        ("gradients", 1, "backward"),
        ("larger", 1, "backward"),
        ("gradients", 1, "optimizer step"),
        module="encoder",
    )
    found = compare("test", measurement(PREDICTED, measured), 0.02)
    assert not found.agrees
    assert found.phases[0].error == 0
    # allocated in forward: 12 MiB predicted, 14 measured; reserved: both from segments of their own, 4 + 20 and 4 + 10
    assert found.phases[1].errors()["peak_allocated"] == pytest.approx(-2 / 14)
    assert found.first_difference == Difference(1, "forward", "encoder", "aten.larger", "train.py:1", 8 * MIB, 10 * MIB)
    assert found.peak_error == pytest.approx(-2 / 18)


def test_one_allocation_more_is_named_whichever_side_has_it() -> None:
    more = trace_of(
        SIZES,
        ("weights", 0, "placement"),
        ("activations", 1, "forward"),
        ("gradients", 1, "backward"),
        ("activations", 1, "backward"),
        ("gradients", 1, "optimizer step"),
        ("extra", 1, "optimizer step"),
    )
    assert compare("test", measurement(PREDICTED, more), 0.0).first_difference == Difference(
        1, "optimizer step", "layer", "aten.extra", "train.py:3", 0, 2 * MIB
    )
    assert compare("test", measurement(more, PREDICTED), 0.0).first_difference == Difference(
        1, "optimizer step", "layer", "aten.extra", "train.py:3", 2 * MIB, 0
    )


def test_within_the_tolerance_it_agrees_and_still_says_where() -> None:
    sizes = SIZES | {"activations": 8 * MIB + 4096}
    measured = trace_of(
        sizes,
        ("weights", 0, "placement"),
        ("activations", 1, "forward"),
        ("gradients", 1, "backward"),
        ("activations", 1, "backward"),
        ("gradients", 1, "optimizer step"),
    )
    found = compare("test", measurement(PREDICTED, measured), 0.02)
    assert found.agrees
    assert found.error < 0
    assert found.first_difference is not None
    assert found.first_difference.phase == "forward"
    assert "within what is allowed" in str(found)


def test_the_phase_beyond_the_tolerance_goes_before_one_within() -> None:
    sizes = SIZES | {"weights": 4 * MIB + 512, "gradients": 8 * MIB}
    measured = trace_of(
        sizes,
        ("weights", 0, "placement"),
        ("activations", 1, "forward"),
        ("gradients", 1, "backward"),
        ("activations", 1, "backward"),
        ("gradients", 1, "optimizer step"),
    )
    found = compare("test", measurement(PREDICTED, measured), 0.02)
    assert found.first_difference is not None
    assert found.first_difference.phase == "backward"
    assert (found.first_difference.predicted, found.first_difference.measured) == (4 * MIB, 8 * MIB)


def test_phases_that_one_side_lacks_are_there() -> None:
    shorter = trace_of(SIZES, ("weights", 0, "placement"), ("activations", 1, "forward"))
    found = compare("test", measurement(PREDICTED, shorter), 0.02)
    assert [each.phase for each in found.phases] == ["placement", "forward", "backward", "optimizer step"]
    assert found.phases[2].measured.peak_allocated == 0
    assert not found.agrees
    assert str(found)


def test_phases_that_were_not_measured_are_left_out() -> None:
    some: frozenset[tuple[int, Phase]] = frozenset({(0, "placement"), (1, "forward")})
    shorter = trace_of(SIZES, ("weights", 0, "placement"), ("activations", 1, "forward"))
    found = compare("test", measurement(PREDICTED, shorter, comparable=some), 0.0)
    assert found.agrees
    assert len(found.phases) == 2


def test_phases_that_come_back_in_a_step_count_as_one() -> None:
    """Accumulation: forward, backward, forward, backward. The peak of all, and the end of the last."""
    twice = trace_of(
        SIZES,
        ("weights", 0, "placement"),
        ("activations", 1, "forward"),
        ("activations", 1, "backward"),
        ("larger", 1, "forward"),
        ("larger", 1, "backward"),
    )
    found = compare("test", measurement(twice, twice), 0.0)
    forward = next(each for each in found.phases if each.phase == "forward")
    assert len(found.phases) == 3
    assert forward.measured.peak_allocated == 14 * MIB
    assert forward.measured.allocated_at_end == 14 * MIB


def test_peaks_of_a_running_program_are_those_up_to_the_phase() -> None:
    cumulative = tuple(
        PhasePeak(each.step, each.phase, max(p.peak_allocated for p in peaks_of(PREDICTED)[: i + 1]),
                  max(p.peak_reserved for p in peaks_of(PREDICTED)[: i + 1]), each.allocated_at_end)
        for i, each in enumerate(peaks_of(PREDICTED))
    )  # fmt: skip
    measured = Measurement(footprint(PREDICTED), cumulative, "a test", cumulative=True)
    found = compare("test", measured, 0.0)
    assert found.agrees
    assert found.phases[3].predicted.peak_allocated == 16 * MIB  # that of backward, as the optimizer step has less


def test_without_a_caching_allocator_nothing_is_reserved() -> None:
    plain = trace_of(SIZES, ("weights", 0, "placement"), ("activations", 1, "forward"), target="cpu")
    found = compare("test", measurement(plain, plain, None, has_reserved=False), 0.0)
    assert found.phases[1].measured.peak_reserved is None
    assert set(found.phases[1].errors()) == {"peak_allocated", "allocated_at_end"}
    assert "reserved" not in str(found)


# -- the outcome -------------------------------------------------------------------------------------------------------

SMALL = Device(name="small", total=14 * MIB, context=0, compute_capability=(8, 0), multiprocessors=108)
PLACE = OutOfMemoryPlace(
    1, "backward", "layer", "aten.mm", "train.py:2", 4 * MIB, 12 * MIB, 12 * MIB, 2 * MIB, 14 * MIB
)


def test_running_out_on_one_side_alone_is_no_agreement() -> None:
    both = measurement(PREDICTED, PREDICTED, SMALL, out_of_memory=PLACE)
    assert compare("test", both, 0.0).same_outcome
    measured_alone = measurement(PREDICTED, PREDICTED, ROOMY, out_of_memory=PLACE)
    predicted_alone = measurement(PREDICTED, PREDICTED, SMALL)
    for one in (measured_alone, predicted_alone):
        found = compare("test", one, 0.0)
        assert found.error == 0
        assert not found.same_outcome
        assert not found.agrees
        assert "memory runs out" in str(found)
        assert "memory does not run out" in str(found)


def test_running_out_where_nothing_was_measured_is_no_difference() -> None:
    """Of a forward pass that does not fit; both tensors get segments of their own, as they are 10 MiB and more."""
    large = trace_of({"a": 12 * MIB, "b": 16 * MIB}, ("a", 0, "placement"), ("b", 1, "forward"))
    some: frozenset[tuple[int, Phase]] = frozenset({(0, "placement")})
    assert compare("test", measurement(large, large, SMALL, comparable=some), 0.0).same_outcome
    assert not compare("test", measurement(large, large, SMALL), 0.0).same_outcome


# -- as data -----------------------------------------------------------------------------------------------------------


def keys_described(heading: str) -> set[str]:
    """The keys in the first table under a heading of docs/schema.md."""
    text = (Path(__file__).parents[2] / "docs" / "schema.md").read_text()
    section = text.split(f"{heading}\n", 1)[1].split("\n#", 1)[0]
    names = re.findall(r"^\| (`[^|]+`) \|", section, re.MULTILINE)
    return {name for cell in names for name in re.findall(r"`(\w+)`", cell)}


def test_its_json_is_that_of_the_schema() -> None:
    found = compare("test", measurement(PREDICTED, PREDICTED, SMALL, out_of_memory=PLACE), 0.02).to_dict()
    assert json.loads(json.dumps(found)) == found
    assert set(found) == keys_described("## A verification")
    assert set(found["phases"][0]) == keys_described("### `phases[]` of a verification")
    assert set(found["phases"][0]["predicted"]) == set(found["phases"][0]["measured"])
    assert found["out_of_memory"]["measured"]["requested"] == 4 * MIB
    assert found["device"]["capacity"] == 14 * MIB


def test_it_travels() -> None:
    found = compare("test", measurement(PREDICTED, PREDICTED), 0.02)
    assert pickle.loads(pickle.dumps(found)) == found
    error = VerificationFailed("no", found)
    assert pickle.loads(pickle.dumps(error)).verification == found


def test_check_raises_with_the_whole_report() -> None:
    found = compare("test", replace(measurement(PREDICTED, PREDICTED), phases=()), 0.02)
    with pytest.raises(VerificationFailed, match="DISAGREES") as caught:
        found.check()
    assert caught.value.verification is found


def test_no_words_of_it_are_those_by_which_programs_recognise_an_error_of_cuda_s() -> None:
    text = str(compare("test", measurement(PREDICTED, PREDICTED, SMALL, out_of_memory=PLACE), 0.02)).lower()
    assert "out of memory" not in text


@pytest.mark.parametrize(
    ("value", "share"), [("2%", 0.02), ("0.5 %", 0.005), (" 1e-1%", 0.001), (0.01, 0.01), (0, 0.0), ("100%", 1.0)]
)
def test_tolerances(value: object, share: float) -> None:
    assert parse_tolerance(value) == pytest.approx(share)


@pytest.mark.parametrize("value", ["2", "two%", "%", "-1%", "101%", -0.1, 1.5, True, None, "2 MiB", float("nan")])
def test_what_is_no_tolerance_is_refused(value: object) -> None:
    with pytest.raises(UsageError, match=r'tolerance must be a share such as "2%"'):
        parse_tolerance(value)


def test_relative_errors_have_the_sign_of_the_prediction() -> None:
    assert relative(110, 100) == pytest.approx(0.1)
    assert relative(90, 100) == pytest.approx(-0.1)
    assert relative(1, 0) == float("inf")
