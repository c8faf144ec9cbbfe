"""The probe and the watch, on a GPU that is emulated: all tests of test_on_a_gpu.py, in a process that has one."""

from __future__ import annotations

import re
from pathlib import Path

import machine


def test_all_that_needs_a_gpu_works_on_an_emulated_one() -> None:
    said = machine.run_on_emulated_gpu(
        *("-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(Path(__file__).parent)),
        *("-W", "ignore", str(Path(__file__).with_name("test_on_a_gpu.py"))),
    )
    passed = re.search(r"(\d+) passed", said)
    assert passed, said
    assert int(passed[1]) >= 15
    assert "skipped" not in said, said
