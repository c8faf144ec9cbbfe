"""What a run and its tests are set to: marker before command line before environment before ini file, decided once."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import cache, partial
from typing import TYPE_CHECKING, Any, Final, Literal

import pytest

from willfit._peaks import PEAKS, Peak

if TYPE_CHECKING:
    from willfit._pytest.tolerance import Tolerance

AS_MARKED: Final[Any] = type("AsMarked", (), {"__repr__": lambda self: "<as marked>"})()
"""The default of an argument of the fixture's that the marker, or what comes after it, decides."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What a check is held to."""

    on: Any = None
    """A GPU's name, a size, a `willfit.Device`; None: the GPU of this process."""
    limit: int | None = None
    """Bytes that the peak may have."""
    peak: Peak = "required"
    """Which peak that is, and which one a tolerance calls the total."""
    tolerance: Tolerance | None = None
    """By how much it may differ from its baseline; None: not at all."""
    steps: int = 3
    """Optimizer steps that are predicted."""
    baseline: bool = False
    """Whether it is compared with its baseline."""

    def but(self, changes: Mapping[str, Any]) -> Settings:
        """With these changes; None stands for the default. Raises `UsageError` for what cannot be."""
        defaults: dict[str, Any] = {field.name: field.default for field in fields(Settings)}
        if unknown := [name for name in changes if name not in defaults]:
            from willfit._errors import UsageError

            raise UsageError(f"unknown argument {unknown[0]!r}: there are {', '.join(defaults)}")
        values = {
            name: defaults[name] if value is None else _PARSERS[name](value)
            for name, value in changes.items()
            if value is not AS_MARKED
        }
        return replace(self, **values)


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSettings:
    """What a whole run is set to."""

    check: Settings
    """What checks are held to whose markers say nothing else."""
    update: Literal["", "all", "new"]
    """Which baselines are written: "all", or the "new" ones that are missing; "": the latter, unless this is CI."""
    is_ci: bool
    """Whether a missing baseline is a failure."""
    json: str | None
    """Where the results go."""
    summary: int | None
    """So many of the largest footprints are shown at the end; 0: all."""
    junit: bool
    """Whether figures go into the properties of JUnit XML."""
    cap_workers: bool
    """Whether ``-n auto`` is capped."""


# -- what a value may be ------------------------------------------------------------------------------------------


def _device(value: Any) -> Any:
    if isinstance(value, str):
        _look_up(value)
    elif not str(value).startswith("cuda"):  # a torch.device
        from willfit._devices import resolve_device

        resolve_device(value)
    return value


@cache  # a marker may be that of a thousand tests
def _look_up(name: str) -> None:
    from willfit._devices import resolve_device

    if not name.startswith("cuda"):  # a GPU of this process is looked for when the test runs
        resolve_device(name)


def _size(what: str, value: Any) -> int:
    from willfit._units import parse_size

    return parse_size(value, what)


def _peak(value: Any) -> str:
    if value not in PEAKS:
        _refuse(f"peak must be one of {', '.join(PEAKS)}: found {value!r}")
    return str(value)


def _tolerance(value: Any) -> Tolerance | None:
    from willfit._pytest.tolerance import Tolerance, parse_tolerance

    return value if isinstance(value, Tolerance) else parse_tolerance(value)


def _number(what: str, least: int, value: Any) -> int:
    number = int(value) if isinstance(value, str) and value.strip().isdecimal() else value
    if not isinstance(number, int) or isinstance(number, bool) or number < least:
        _refuse(f"{what}, {least} or more: found {value!r}")
    return int(number)


def _switch(name: str, value: Any) -> bool:
    words = {"1": True, "true": True, "on": True, "yes": True, "0": False, "false": False, "off": False, "no": False}
    switch = words.get(value.strip().lower(), value) if isinstance(value, str) else value
    if not isinstance(switch, bool):
        _refuse(f"{name} must be true or false: found {value!r}")
    return bool(switch)


def _refuse(sentence: str) -> None:
    from willfit._errors import UsageError

    raise UsageError(sentence)


_PARSERS: Final[dict[str, Callable[[Any], Any]]] = {
    "on": _device,
    "limit": partial(_size, "limit"),
    "peak": _peak,
    "tolerance": _tolerance,
    "steps": partial(_number, "steps must be a number of optimizer steps", 1),
    "baseline": partial(_switch, "baseline"),
    "json": str,
    "summary": partial(_number, "summary must be a number of footprints", 0),
    "junit": partial(_switch, "junit"),
    "cap_workers": partial(_switch, "cap_workers"),
}

# -- where values come from --------------------------------------------------------------------------------------

_HELP: Final = {
    "on": 'GPU that checks are for: a name such as "T4", or a size such as "24 GiB"',
    "limit": 'what the peak of a check may be, such as "14 GiB"',
    "peak": "which peak limits are about: required (default), reserved or allocated",
    "tolerance": 'by how much baselines may differ, such as "total:2%%, activations:64MiB" (default: not at all)',
    "steps": "optimizer steps that are predicted (default: 3)",
    "baseline": "compare every check with its baseline, in the JSON file beside the test's",
    "json": "write all results to this file",
    "summary": "show the N largest footprints at the end (0: all)",
    "junit": "put figures into the properties of JUnit XML (default: true)",
    "cap_workers": "let -n auto of pytest-xdist start no more workers than the GPU has memory for (default: false)",
}
_FLAGS: Final = {"on": "GPU", "limit": "SIZE", "tolerance": "AMOUNTS", "json": "PATH", "summary": "N"}


def add_options(parser: pytest.Parser) -> None:
    """The command line's options and the ini file's."""
    group = parser.getgroup("willfit", "willfit: memory of training steps")
    for name, metavar in _FLAGS.items():
        group.addoption(f"--willfit-{name}", metavar=metavar, default=None, help=_HELP[name])
    for name, words in (
        ("baseline", _HELP["baseline"]),
        ("update", "write the baselines of all checks that run, and drop those that are not used any more"),
        ("update-new-only", "write the baselines that are missing, also where CI is set"),
    ):
        group.addoption(f"--willfit-{name}", action="store_true", default=None, help=words)
    for name, words in _HELP.items():
        parser.addini(f"willfit_{name}", words.replace("%%", "%"), type=_ini_type(name), default=None)
    # pytest's own way: which type the value has differs from version to version
    pytest.Config._add_verbosity_ini(parser, "willfit", help="verbosity of willfit's report sections")


def _ini_type(name: str) -> Any:
    if name in ("baseline", "junit", "cap_workers"):
        return "bool"
    if name in ("steps", "summary"):
        return "int" if pytest.version_tuple >= (8, 4) else "string"
    return "linelist" if name == "tolerance" else "string"


def resolve(config: pytest.Config) -> RunSettings:
    """The settings of a run. Raises `pytest.UsageError` for a value that cannot be, and says where it stands."""
    found = {name: value for name in _HELP if (value := _value(config, name)) is not None}
    checks = {field.name: found.pop(field.name) for field in fields(Settings) if field.name in found}
    _check_verbosity(config)
    update, new_only = config.getoption("willfit_update"), config.getoption("willfit_update_new_only")
    if update and new_only:
        raise pytest.UsageError("--willfit-update and --willfit-update-new-only are both given: leave out one of them")
    return RunSettings(
        check=replace(Settings(), **checks),
        update="all" if update else "new" if new_only else "",
        is_ci=os.environ.get("CI", "").lower() not in ("", "0", "false"),
        **{"json": None, "summary": None, "junit": True, "cap_workers": False, **found},
    )


def _check_verbosity(config: pytest.Config) -> None:
    ini = "verbosity_willfit"
    try:
        if (level := config.getini(ini)) != "auto":
            int(level)
    except (ValueError, pytest.UsageError) as error:
        raise pytest.UsageError(f"{ini} in {_ini_file(config)} must be a number, or auto: {error}") from None


def _ini_file(config: pytest.Config) -> str:
    return config.inipath.name if config.inipath else "the ini file"


def _value(config: pytest.Config, name: str) -> Any:
    variable, ini = f"WILLFIT_PYTEST_{name.upper()}", f"willfit_{name}"
    for where, look in (
        (f"--willfit-{name}", lambda: config.getoption(ini, None)),
        (f"{variable} in the environment", lambda: os.environ.get(variable)),
        (f"{ini} in {_ini_file(config)}", lambda: config.getini(ini)),
    ):
        try:
            if (value := look()) not in (None, "", []):
                return _PARSERS[name](value)
        except (ValueError, TypeError, pytest.UsageError) as error:  # ours is a ValueError, getini raises any of them
            raise pytest.UsageError(f"{where}: {error}") from None
    return None


def of_item(item: pytest.Item, run: RunSettings) -> Settings:
    """What a test's checks are held to: of its markers the nearest goes first, argument by argument.

    The nearest are those of ``pytest.param``, then those of the function, of its class and of its module.

    Raises `pytest.UsageError` for a marker that cannot be, and names the test.
    """
    settings = run.check
    markers = list(item.iter_markers("willfit"))
    if not markers:
        return settings
    of_param = [id(mark) for mark in getattr(getattr(item, "callspec", None), "marks", ())]
    markers.sort(key=lambda mark: id(mark) not in of_param)  # pytest has them after the function's
    for marker in reversed(markers):
        try:
            if marker.args:
                _refuse(f'arguments go by keyword, as in willfit(on="T4"): found {marker.args[0]!r}')
            settings = settings.but(marker.kwargs)
        except ValueError as error:
            raise pytest.UsageError(f"{item.nodeid}: marker willfit: {error}") from None
    return settings
