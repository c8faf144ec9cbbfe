"""``-n auto``, capped by what the tests need and what the GPU has free."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from toy import JOB

from willfit._pytest.run import CACHE
from willfit._pytest.workers import capped

GIB = 2**30


def nvml(*free: int) -> SimpleNamespace:
    """An NVML with cards that have so many bytes free."""
    return SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlShutdown=lambda: None,
        nvmlDeviceGetHandleByIndex=lambda index: range(len(free))[index],
        nvmlDeviceGetHandleByUUID=lambda uuid: {"GPU-a": 0, "GPU-b": 1}[uuid],
        nvmlDeviceGetName=lambda handle: f"Card {handle}",
        nvmlDeviceGetMemoryInfo=lambda handle: SimpleNamespace(free=free[handle]),
    )


@pytest.fixture(autouse=True)
def cards(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    fake = nvml(10 * GIB, 20 * GIB)
    monkeypatch.setitem(sys.modules, "pynvml", fake)  # type: ignore[arg-type]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return fake


def last_run(pytester: pytest.Pytester, needs: dict[str, int]) -> None:
    path = pytester.path / ".pytest_cache" / "v" / CACHE
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(needs), encoding="utf-8")


@pytest.mark.parametrize(
    ("needs", "expected"),
    [
        ([3 * GIB] * 9, 3),
        ([5 * GIB] * 9, 2),
        ([5 * GIB + 1] * 9, 1),
        ([11 * GIB], 1),  # does not fit at all: one at a time is the best there is
        ([6 * GIB, 3 * GIB, GIB, GIB], 3),  # exactly
        ([6 * GIB, 3 * GIB, GIB + 1], 2),
        ([GIB] * 3, 8),  # fewer tests than workers
        ([GIB] * 9, 8),
    ],
)
def test_the_largest_tests_may_all_run_at_once(pytester: pytest.Pytester, needs: list[int], expected: int) -> None:
    last_run(pytester, {f"test_{number}": need for number, need in enumerate(needs)})
    count, words = capped(pytester.parseconfig(), 8)
    assert count == expected
    if expected < 8:
        which = f"{expected + 1} largest tests need" if len(needs) > 1 else "largest test needs"
        assert words.startswith(f"-n auto: capped at {expected} of 8 workers: the {which} ")
        assert words.endswith("and Card 0 has 10.00 GiB free")
    else:
        assert words == "-n auto: 8 workers fit Card 0, which has 10.00 GiB free"


@pytest.mark.parametrize(("visible", "expected"), [("0", 3), ("1", 6), ("1,0", 6), ("GPU-b", 6)])
def test_it_is_the_first_visible_card(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, visible: str, expected: int
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    last_run(pytester, dict.fromkeys("abcdefgh", 3 * GIB))
    assert capped(pytester.parseconfig(), 8)[0] == expected


def test_without_a_last_run_baselines_tell(pytester: pytest.Pytester) -> None:
    place = pytester.mkdir("tests")
    test = JOB + "\n\ndef test_it(willfit):\n    willfit.check(*job, loss=loss, on=TOY, baseline=True)\n"
    (place / "test_it.py").write_text(test, encoding="utf-8")
    pytester.runpytest("-p", "no:cacheprovider").assert_outcomes(passed=1)
    path = place / "test_it.willfit.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["tests"]["test_it"]["check"][0]["required"] = 4 * GIB
    content["tests"]["test_other"] = content["tests"]["test_it"]
    path.write_text(json.dumps(content), encoding="utf-8")
    for arguments in ((), ("tests",), ("tests/test_it.py",), ("tests/test_it.py::test_it",)):
        assert capped(pytester.parseconfig("-p", "no:cacheprovider", *arguments), 8)[0] == 8
    content["tests"]["test_third"] = content["tests"]["test_it"]
    path.write_text(json.dumps(content), encoding="utf-8")
    for arguments in ((), ("tests",), ("tests/test_it.py",), ("tests/test_it.py::test_it",)):
        assert capped(pytester.parseconfig("-p", "no:cacheprovider", *arguments), 8)[0] == 2


@pytest.mark.parametrize("content", ["{", "[]", "7", '{"test": "much"}'])
def test_a_cache_that_is_not_ours_tells_nothing(pytester: pytest.Pytester, content: str) -> None:
    last_run(pytester, {})
    (pytester.path / ".pytest_cache" / "v" / CACHE).write_text(content, encoding="utf-8")
    assert capped(pytester.parseconfig(), 8) == (
        8,
        "-n auto: 8 workers, not capped: neither a last run nor baselines tell what tests need",
    )


def test_without_a_gpu_nothing_is_capped(
    pytester: pytest.Pytester, cards: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_driver(*_: Any) -> None:
        raise RuntimeError("NVML Shared Library Not Found")

    last_run(pytester, {"test": 90 * GIB})
    monkeypatch.setattr(cards, "nvmlDeviceGetMemoryInfo", no_driver)
    assert capped(pytester.parseconfig(), 8) == (
        8,
        "-n auto: 8 workers, not capped: NVML does not say what is free (NVML Shared Library Not Found)",
    )
    monkeypatch.setattr(cards, "nvmlInit", no_driver)
    assert capped(pytester.parseconfig(), 8)[1].endswith("not capped: no GPU was found (NVML Shared Library Not Found)")


CONFTEST = """
import sys
from types import SimpleNamespace

sys.modules["pynvml"] = SimpleNamespace(
    nvmlInit=lambda: None,
    nvmlShutdown=lambda: None,
    nvmlDeviceGetHandleByIndex=lambda index: index,
    nvmlDeviceGetName=lambda handle: "Fake",
    nvmlDeviceGetMemoryInfo=lambda handle: SimpleNamespace(free=10 * 2**30),
)
"""


def test_a_run_is_capped_where_it_is_asked_for(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("xdist", reason="pytest-xdist is not installed")
    monkeypatch.setenv("PYTEST_XDIST_AUTO_NUM_WORKERS", "2")
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile("def test_a(): pass\ndef test_b(): pass")
    last_run(pytester, {"a": 6 * GIB, "b": 6 * GIB})
    result = pytester.runpytest_subprocess("-n", "auto", "-o", "willfit_cap_workers=true")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(
        [
            "willfit: -n auto: capped at 1 of 2 workers: the 2 largest tests need 12.00 GiB, and Fake has 10.00 GiB *",
            "*1 worker*2 items*",
        ]
    )
    for arguments in (("-n", "auto"), ("-n", "2", "-o", "willfit_cap_workers=true")):
        result = pytester.runpytest_subprocess(*arguments)
        result.assert_outcomes(passed=2)
        result.stdout.fnmatch_lines(["*2 workers*2 items*"])
        result.stdout.no_fnmatch_line("willfit: -n auto*")
