"""Where it is not used the plugin costs nothing, and it gets along with pytest's own switches."""

from __future__ import annotations

import subprocess
import sys

import pytest
from toy import JOB

HEAVY = (
    "torch",
    "numpy",
    "rich",
    "transformers",
    "pynvml",
    "packaging",
    "willfit._devices",
    "willfit._footprint",
    "willfit._pytest.run",
)


def test_unused_it_imports_neither_torch_nor_its_own_parts(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytester.makepyfile(
        f"""
import sys

def test_it(request):
    assert "willfit._pytest.settings" in sys.modules
    print("loaded:", *[name for name in {HEAVY} if name in sys.modules])
"""
    )
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    alone = pytester.runpytest_subprocess("-s", "-p", "willfit.pytest_plugin")
    alone.assert_outcomes(passed=1)
    (line,) = [line for line in alone.stdout.lines if "loaded:" in line]
    assert set(line.partition("loaded:")[2].split()) <= {"packaging"}, "pytest imports packaging itself"


def test_the_plugin_alone_imports_only_pytest_and_pluggy() -> None:
    code = (
        "import sys, pytest; old = set(sys.modules); import willfit.pytest_plugin, willfit.hookspecs; "
        "print(*set(sys.modules) - old)"
    )
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert {name.partition(".")[0] for name in printed.split()} <= {"willfit", *sys.stdlib_module_names}
    assert "willfit._devices" not in printed


def test_the_type_of_the_fixture_can_be_named() -> None:
    from willfit._pytest.fixture import WillfitFixture
    from willfit.pytest_plugin import WillfitFixture as Public

    assert Public is WillfitFixture
    with pytest.raises(ImportError, match="cannot import name 'Check'"):
        from willfit.pytest_plugin import Check  # type: ignore[attr-defined]  # noqa: F401


USES_ALL = (
    JOB
    + """
@pytest.mark.willfit(on=TOY, baseline=True)
def test_it(willfit):
    willfit.check(*job, loss=loss)

@pytest.mark.willfit_requires(vram="1 PB"[:2] + "GB")
def test_large():
    pass
"""
)


@pytest.mark.parametrize(
    "arguments",
    [
        ("-p", "no:cacheprovider"),
        ("--strict-markers", "--strict-config", "-Werror"),
        ("-p", "no:junitxml", "-p", "no:subtests"),
        ("--assert=plain",),
        ("--import-mode=importlib",),
        ("-p", "no:logging", "-p", "no:capture"),
    ],
    ids=" ".join,
)
def test_it_works_with(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]) -> None:
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setattr("willfit._device_here.current_device", lambda: None)
    pytester.makepyfile(test_it=USES_ALL)
    pytester.runpytest(*arguments).assert_outcomes(passed=1, skipped=1)
    assert (pytester.path / "test_it.willfit.json").exists()


def test_it_can_be_left_out(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_it(): pass")
    result = pytester.runpytest_subprocess("-p", "no:willfit")
    result.assert_outcomes(passed=1)
    result.stdout.no_fnmatch_line("*willfit*no:*")
