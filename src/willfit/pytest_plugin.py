"""The pytest plugin: ``@pytest.mark.willfit(on="T4", limit="14 GiB")`` and the fixture ``willfit``.

At start-up it imports nothing but pytest, pluggy and the standard library; its parts are in willfit/_pytest.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Any

import pytest

from willfit._pytest.settings import RunSettings, Settings, add_options, of_item, resolve

if TYPE_CHECKING:
    from willfit._devices import Device
    from willfit._footprint import Footprint
    from willfit._pytest.fixture import WillfitFixture
    from willfit._pytest.run import Run

__all__ = ["WillfitFixture"]

_SETTINGS: pytest.StashKey[RunSettings] = pytest.StashKey()
_RUN: pytest.StashKey[Run] = pytest.StashKey()
_WORKERS: pytest.StashKey[str] = pytest.StashKey()
_WRONG: pytest.StashKey[dict[str, None]] = pytest.StashKey()
_USED: pytest.StashKey[bool] = pytest.StashKey()
_GATHERED, _REFUSED = "willfit", "willfit_refused"  # our entries in xdist's workeroutput

_MARKERS = (
    'willfit(on=None, limit=None, peak="required", tolerance=None, steps=3, baseline=False): what willfit.check(model, '
    'optimizer, batch) holds the job to: it fits the GPU `on`, its peak ("required", "reserved" or "allocated") is '
    "within `limit`, and with `baseline` it is what it was, within `tolerance`.",
    'willfit_requires(vram): skip the test where the real GPU has less memory than `vram`, such as "24 GiB".',
)


def __getattr__(name: str) -> Any:
    if name == "WillfitFixture":
        from willfit._pytest.fixture import WillfitFixture

        return WillfitFixture
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


# -- set up --------------------------------------------------------------------------------------------------------


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of the command line and the ini file."""
    add_options(parser)


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    """Make the hooks known that a conftest.py may have."""
    from willfit import hookspecs

    pluginmanager.add_hookspecs(hookspecs)


def pytest_configure(config: pytest.Config) -> None:
    """Make the markers known, for --strict-markers and --markers, and decide the settings."""
    for marker in _MARKERS:
        config.addinivalue_line("markers", marker)
    config.stash[_SETTINGS] = resolve(config)


def pytest_report_header(config: pytest.Config) -> str | None:
    """Say so where the number of workers was capped."""
    words = config.stash.get(_WORKERS, None)
    return None if words is None else f"willfit: {words}"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Refuse wrong markers before any test runs, all of them at once."""
    refused: dict[str, list[str]] = {}  # what is wrong, and with which tests
    is_used = False
    for item in items:
        try:
            _settings_of(item)
            if item.get_closest_marker("willfit_requires") is not None:
                from willfit._pytest.requires import required_memory

                required_memory(item)
        except pytest.UsageError as error:
            refused.setdefault(str(error).removeprefix(item.nodeid), []).append(item.nodeid)
        is_used = is_used or "willfit" in getattr(item, "fixturenames", ())
    wrong = [
        f"{first}{f' and {len(others)} more' if others else ''}{what}" for what, (first, *others) in refused.items()
    ]
    if wrong and hasattr(config, "workeroutput"):  # where an exception would be an internal error of xdist's
        config.workeroutput[_REFUSED] = wrong
        items.clear()
    elif wrong:
        raise pytest.UsageError(*wrong)
    if is_used:
        _run_of(config).collected(items)


# -- tests ---------------------------------------------------------------------------------------------------------


@pytest.fixture(name="willfit")
def _willfit(request: pytest.FixtureRequest) -> WillfitFixture:
    """Predicts training steps, and fails the test if they need more than its ``willfit`` marker allows."""
    from willfit._pytest.fixture import WillfitFixture

    request.node.stash[_USED] = True
    return WillfitFixture(request.node, _settings_of(request.node), _run_of(request.config))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test that the GPU here is too small for."""
    if item.get_closest_marker("willfit_requires") is not None:
        from willfit._pytest.requires import skip_where_too_small

        skip_where_too_small(item)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """Warn of a test that is marked and passes without the fixture: nothing was checked."""
    yield
    if _USED not in item.stash and any(marker.name == "willfit" for marker in item.own_markers):
        from willfit.guard import WillfitWarning

        item.warn(
            WillfitWarning(f"{item.name} has the marker willfit, and checks nothing: it does not use the fixture")
        )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the bill of its checks to a test's report."""
    report = yield
    run = item.config.stash.get(_RUN, None)
    if run is not None:
        from willfit._pytest.report import attach

        attach(item, call, report)
        run.reported(item, report)
    return report


def pytest_report_teststatus(
    report: pytest.TestReport | pytest.CollectReport,
) -> tuple[str, str, str] | None:
    """A letter and a word of its own for a test that a check failed."""
    if not hasattr(report, "willfit"):
        return None
    from willfit._pytest.report import status

    return status(report)


# -- what willfit's own hooks answer where nobody else does --------------------------------------------------------


@pytest.hookimpl(trylast=True)
def pytest_willfit_generate_device(on: Any) -> str | int | Device | None:
    """What the settings say."""
    return on  # type: ignore[no-any-return]


@pytest.hookimpl(trylast=True)
def pytest_willfit_generate_fingerprint(model: Any, optimizer: Any, footprint: Footprint) -> dict[str, str]:
    """Versions, device, dtypes and settings."""
    from willfit._pytest.fingerprint import fingerprint

    return fingerprint(model, optimizer, footprint)


@pytest.hookimpl(trylast=True)
def pytest_willfit_generate_sections(item: pytest.Item, footprint: Footprint) -> list[tuple[str, str]]:
    """The bill, as long as the verbosity asks for."""
    from willfit._pytest.report import bill_sections

    return bill_sections(item, footprint)


# -- xdist ---------------------------------------------------------------------------------------------------------


@pytest.hookimpl(optionalhook=True, wrapper=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> Generator[None, int, int]:
    """Cap ``-n auto`` by what the tests need, if asked to."""
    workers = yield
    if resolve(config).cap_workers:  # comes before pytest_configure
        from willfit._pytest.workers import capped

        workers, config.stash[_WORKERS] = capped(config, workers)
    return workers


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """Take over what a worker gathered."""
    output = getattr(node, "workeroutput", {})
    if _GATHERED in output:
        _run_of(node.config).merge(output[_GATHERED])
    node.config.stash.setdefault(_WRONG, {}).update(dict.fromkeys(output.get(_REFUSED, ())))


# -- at the end ----------------------------------------------------------------------------------------------------


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Write baselines and results; a worker leaves it to the controller."""
    config = session.config
    if config.stash.get(_WRONG, None):
        session.exitstatus = pytest.ExitCode.USAGE_ERROR
    run = config.stash.get(_RUN, None)
    settings = config.stash[_SETTINGS]
    if run is None and (settings.json, settings.summary) != (None, None):
        run = _run_of(config)
    if run is None:
        return
    if hasattr(config, "workeroutput"):
        config.workeroutput[_GATHERED] = run.to_text()
        return
    ended = exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.NO_TESTS_COLLECTED)
    run.finish(complete=ended and not config.getoption("collectonly", False))
    if run.wrong and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """The largest footprints, if asked for, and what was written."""
    for refusal in config.stash.get(_WRONG, {}):
        terminalreporter.line(f"ERROR: {refusal}", red=True)
    run = config.stash.get(_RUN, None)
    if run is not None:
        from willfit._pytest.report import summarize

        summarize(terminalreporter, run)


# -- once in a run, once in a test ---------------------------------------------------------------------------------


def _settings_of(item: pytest.Item) -> Settings:
    return of_item(item, item.config.stash[_SETTINGS])


def _run_of(config: pytest.Config) -> Run:
    if _RUN not in config.stash:
        from willfit._pytest.run import Run

        config.stash[_RUN] = Run(config, config.stash[_SETTINGS])
    return config.stash[_RUN]
