"""What moved, in a sentence and a table, and whether it was tolerated."""

from __future__ import annotations

from typing import Any

import pytest

from willfit._pytest.baseline import Baseline
from willfit._pytest.changes import change_sentence, change_table, is_within
from willfit._pytest.tolerance import parse_tolerance

MIB, GIB = 2**20, 2**30

ROLES = {
    "activations": {"blocks.*.mlp": 3 * GIB, "blocks.*.attn": GIB},
    "optimizer states": {"(outside of modules)": 2 * GIB},
    "parameters": {"blocks.*.mlp": GIB},
}


def baseline(reserved: int = 100 * MIB, peak_at: str = "backward of step 2", **roles: dict[str, int]) -> Baseline:
    changed = {name.replace("_", " "): modules for name, modules in roles.items()}
    merged: dict[str, dict[str, int]] = {**ROLES, **changed}
    allocated = sum(size for modules in merged.values() for size in modules.values())
    return Baseline(
        fingerprint={},
        peak_at=peak_at,
        peak_allocated=allocated,
        peak_reserved=allocated + reserved,
        required=allocated + reserved + 400 * MIB,
        roles=merged,
    )


BEFORE = baseline()


@pytest.mark.parametrize(
    ("after", "sentence"),
    [
        (
            baseline(activations={"blocks.*.mlp": 3 * GIB + 1229 * MIB, "blocks.*.attn": GIB}),
            "activations +1.20 GiB, in blocks.*.mlp; optimizer states and parameters unchanged",
        ),
        (
            baseline(activations={"blocks.*.mlp": 2 * GIB, "blocks.*.attn": GIB + 64 * MIB}),
            "activations -960.00 MiB, in blocks.*.mlp (-1.00 GiB) and blocks.*.attn (+64.00 MiB); "
            "optimizer states and parameters unchanged",
        ),
        (
            baseline(activations={"blocks.*.mlp": 2 * GIB, "blocks.*.attn": GIB + MIB}),  # too little to tell
            "activations -1023.00 MiB, in blocks.*.mlp; optimizer states and parameters unchanged",
        ),
        (
            baseline(activations={"blocks.*.mlp": 2 * GIB, "blocks.*.attn": 2 * GIB}),
            "activations the same in all, but +1.00 GiB in blocks.*.attn and -1.00 GiB in blocks.*.mlp; "
            "optimizer states and parameters unchanged",
        ),
        (
            baseline(optimizer_states={"(outside of modules)": GIB}, gradients=dict.fromkeys("abcde", MIB)),
            "optimizer states -1.00 GiB; gradients +5.00 MiB, in a (+1.00 MiB), b (+1.00 MiB), c (+1.00 MiB) and "
            "2 more; activations and parameters unchanged",
        ),
        (
            baseline(reserved=120 * MIB),
            "activations, optimizer states and parameters unchanged; "
            "required peak +20.00 MiB; reserved peak +20.00 MiB",
        ),
        (
            baseline(peak_at="forward of step 2", parameters={"blocks.*.mlp": GIB + 512}),
            "parameters +512 B, in blocks.*.mlp; activations and optimizer states unchanged; "
            "the peak is now in the forward of step 2, not in the backward of step 2",
        ),
        (
            baseline(optimizer_states={}),
            "optimizer states -2.00 GiB; activations and parameters unchanged",
        ),
    ],
)
def test_sentences(after: Baseline, sentence: str) -> None:
    assert change_sentence(BEFORE, after) == sentence


def more(**differences: int) -> Baseline:
    """The baseline with so many bytes more in the first component of these roles."""
    changed = {}
    for name, difference in differences.items():
        role = name.replace("_", " ")
        modules = ROLES.get(role, {"new": 0})
        first = next(iter(modules))
        changed[name] = {**modules, first: modules[first] + difference}
    return baseline(**changed)  # type: ignore[arg-type]


MOVED = baseline(activations={"blocks.*.mlp": 3 * GIB - 1, "blocks.*.attn": GIB + 1})
TOTAL = BEFORE.required


@pytest.mark.parametrize(
    ("tolerance", "after", "peak", "expected"),
    [
        # exact by default: every role, every component, every peak
        ("", BEFORE, "required", True),
        ("", more(activations=1), "required", False),
        ("", MOVED, "required", False),
        ("", baseline(reserved=100 * MIB + 1), "allocated", False),
        # roles alone: what they allow, the others not at all; what they sum to is not held again
        ("activations:64MiB", more(activations=64 * MIB), "required", True),
        ("activations:64MiB", more(activations=-64 * MIB), "required", True),
        ("activations:64MiB", more(activations=64 * MIB + 1), "required", False),
        ("activations:64MiB", more(activations=1, parameters=1), "required", False),
        ("activations:64MiB", more(gradients=1), "required", False),
        ("activations:1%", MOVED, "required", True),
        ("parameters:1%", MOVED, "required", False),
        ("gradients:1%", more(gradients=1), "required", False),  # 1 % of nothing
        # the total: the roles without an entry are free
        ("total:2%", more(activations=TOTAL // 50), "required", True),
        ("total:2%", more(activations=TOTAL // 50 + 1), "required", False),
        ("total:2%", more(activations=-TOTAL // 2, parameters=TOTAL // 2), "required", True),
        ("total:2%, parameters:0", more(activations=-1, parameters=1), "required", False),
        ("total:1MiB", baseline(reserved=102 * MIB), "required", False),
        ("total:1MiB", baseline(reserved=102 * MIB), "allocated", True),  # the total is the peak of the test
    ],
)
def test_tolerances(tolerance: str, after: Baseline, peak: Any, expected: bool) -> None:
    assert is_within(BEFORE, after, parse_tolerance(tolerance), peak) is expected


def test_the_table_has_what_changed_and_on_request_all() -> None:
    after = more(activations=GIB)
    short = change_table(BEFORE, after)
    assert [line.split()[0] for line in short.splitlines()[1:]] == [
        *("required", "reserved", "allocated", "activations", "blocks.*.mlp"),
    ]
    assert short.splitlines()[-1].split() == ["blocks.*.mlp", "3.00", "GiB", "4.00", "GiB", "+1.00", "GiB"]
    full = change_table(BEFORE, after, everything=True)
    assert "blocks.*.attn" in full
    assert "optimizer states" in full
    assert len(full.splitlines()) == 1 + 3 + 3 + 4
    assert max(map(len, full.splitlines())) <= 80
