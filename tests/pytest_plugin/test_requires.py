from __future__ import annotations

import pytest
import toy  # noqa: F401 - what is patched here is what the runs see

from willfit import Device

TESTS = """
import pytest

@pytest.fixture
def costly():
    raise AssertionError("a test that is skipped sets nothing up")

@pytest.mark.willfit_requires(vram=2**30)
def test_exactly():
    pass

@pytest.mark.willfit_requires(vram=2**30 + 1)
def test_a_byte_more(costly):
    pass

@pytest.mark.willfit_requires(vram="2 GiB")
class TestIt:
    @pytest.mark.willfit_requires(vram="1 MiB")
    def test_the_most_that_markers_ask_for(self, costly):
        pass
"""


def test_it_skips_where_the_card_is_smaller(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("willfit._device_here.current_device", lambda: Device(name="toy", total=2**30))
    pytester.makepyfile(test_it=TESTS)
    result = pytester.runpytest("-rs")
    result.assert_outcomes(passed=1, skipped=2)
    result.stdout.fnmatch_lines(
        [
            "SKIPPED [[]1] test_it.py:11: needs a GPU with 1.00 GiB: toy has 1.00 GiB",
            "SKIPPED [[]1] test_it.py:17: needs a GPU with 2.00 GiB: toy has 1.00 GiB",
        ]
    )


def test_it_skips_where_there_is_no_card(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("willfit._device_here.current_device", lambda: None)
    pytester.makepyfile(test_it=TESTS)
    result = pytester.runpytest("-rs")
    result.assert_outcomes(skipped=3)
    result.stdout.fnmatch_lines(["SKIPPED * needs a GPU with 2.00 GiB, and none is here"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("'24 GiB'", "arguments go by keyword, as in willfit_requires(vram=\"24 GiB\"): found '24 GiB'"),
        ("", 'vram is missing, as in willfit_requires(vram="24 GiB")'),
        ("vram='24 G'", "vram '24 G' has no unit that willfit takes*"),
        ("ram='24 GB'", "unknown argument 'ram': there is vram"),
    ],
)
def test_wrong_markers_are_refused_at_collection(pytester: pytest.Pytester, arguments: str, message: str) -> None:
    pytester.makepyfile(
        test_it=f"import pytest\n\n@pytest.mark.willfit_requires({arguments})\ndef test_it(): raise AssertionError"
    )
    result = pytester.runpytest()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: test_it.py::test_it: marker willfit_requires: {message}"])
