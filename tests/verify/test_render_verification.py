"""The text of a verification."""

from __future__ import annotations

from hand_made import MIB, measurement, trace_of

from willfit._render.verification import signed, verification_text
from willfit._verify.compare import compare

SIZES = {"weights": 4 * MIB, "a": 12 * MIB, "b": 14 * MIB}


def two_steps(name: str) -> tuple[tuple[str, int, str], ...]:
    return (
        ("weights", 0, "placement"),
        *((name, 1, "forward"), (name, 1, "backward")),
        *((name, 2, "forward"), (name, 2, "backward")),
    )


PREDICTED = trace_of(SIZES, *two_steps("a"))  # type: ignore[arg-type]


def test_agreement() -> None:
    found = compare("emulated", measurement(PREDICTED, PREDICTED, notes=("a note",)), 0.02, ("cuda: no GPU",))
    assert verification_text(found) == (
        "AGREES: training Net with SGD, as predicted and as measured by a test: to the\n"
        "byte, in all 5 phases.\n"
        "\n"
        "1,000 parameters, all trainable, in float32; batch: 8 x 10; followed through 1\n"
        "step.\n"
        "\n"
        "As measured, and by how much the prediction differs\n"
        "               peak allocated    peak reserved           at end\n"
        "  placement    4.00 MiB exact  20.00 MiB exact   4.00 MiB exact\n"
        "  steps 1-2\n"
        "    forward   16.00 MiB exact  20.00 MiB exact  16.00 MiB exact\n"
        "    backward  16.00 MiB exact  20.00 MiB exact   4.00 MiB exact\n"
        "\n"
        "To be known\n"
        "  - not taken: cuda: no GPU\n"
        "  - a note"
    )


def test_disagreement() -> None:
    measured = trace_of(SIZES, *two_steps("b"), module="encoder.layers.3")  # type: ignore[arg-type]
    text = verification_text(compare("emulated", measurement(PREDICTED, measured), 0.02))
    assert text.startswith(
        "DISAGREES: training Net with SGD, as predicted and as measured by a test: up to\n"
        "11.1 % apart in any phase, with 2 % allowed."
    )
    assert "    forward   18.00 MiB -11.1 %  20.00 MiB   exact  18.00 MiB -11.1 %\n" in text
    assert text.endswith(
        "Where they part\n"
        "  in the forward of step 1, module encoder.layers.3, operator aten.b, at\n"
        "  train.py:1: 12.00 MiB (12,582,912 B) predicted to be taken and 14.00 MiB\n"
        "  (14,680,064 B) measured to be taken."
    )


def test_every_line_fits_and_is_plain() -> None:
    measured = trace_of(SIZES | {"weights": 1}, *two_steps("b"), module="m" * 90)  # type: ignore[arg-type]
    for width in (64, 80, 100):
        text = verification_text(compare("emulated", measurement(PREDICTED, measured), 0.0), width=width)
        assert text.isascii()
        assert max(map(len, text.splitlines())) <= width, text


def test_errors_are_short_whatever_their_size() -> None:
    assert [signed(error) for error in (0.0, -0.00009, 0.0001, -0.02, 0.5, -0.9999, 1.5, float("inf"))] == [
        *("exact", "< 0.01 %", "+0.01 %", "-2.00 %", "+50.0 %", "-100.0 %", "+150 %", "+inf %"),
    ]
