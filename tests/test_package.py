"""What willfit is from outside: its names, what importing it brings in, what its package ships."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.resources
import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import willfit
import willfit.pytest_plugin

SOURCE = Path(willfit.__file__).parent
MARKERS = ("hookimpl",)  # an object of pluggy's, not a function or class of willfit's own
PUBLIC = [getattr(willfit, name) for name in willfit.__all__ if name not in MARKERS] + [
    willfit.pytest_plugin.WillfitFixture
]


def run(code: str) -> str:
    """What a fresh process prints that runs this."""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip()


def test_all_is_sorted_and_every_name_is_there() -> None:
    assert willfit.__all__ == sorted(willfit.__all__)
    assert all(getattr(willfit, name).__name__ == name for name in willfit.__all__ if name not in MARKERS)
    assert {*willfit.__all__, "__version__"} == set(dir(willfit))


def test_all_is_complete() -> None:
    errors = importlib.import_module("willfit._errors")
    raised = {name for name, value in vars(errors).items() if isinstance(value, type)}
    raised.add("WillfitWarning")
    assert set(willfit._HOMES) | raised | {"guard"} == set(willfit.__all__)


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'willfit' has no attribute 'pedict'"):
        willfit.pedict  # noqa: B018


def test_the_guard_stays_a_function_when_its_module_is_imported() -> None:
    assert run("import willfit.guard, willfit; print(callable(willfit.guard))") == "True"


HEAVY = ("torch", "transformers", "accelerate", "peft", "numpy", "rich", "pynvml")


def test_importing_willfit_and_its_plugin_brings_in_nothing_heavy() -> None:
    code = f"import sys, willfit, willfit.pytest_plugin; print(*[name for name in {HEAVY} if name in sys.modules])"
    assert run(code) == ""


def test_the_command_line_starts_without_torch() -> None:
    assert run("import sys, willfit.cli; print('torch' in sys.modules)") == "False"


# What begins where torch is no longer needed: from the trace on.
PLAIN = (
    *("_allocator", "_allocator_settings", "_device_catalogue", "_devices", "_errors", "_footprint", "_replay"),
    *("_render.text", "_render.fits", "_render.devices", "_trace.trace", "_units", "_which_fit"),
    *("_changed", "_checks", "_project", "_render.checks", "_render.github", "_render.junit", "_render.sarif"),
    *("_verify.verification", "_verify.compare", "_verify.records", "_render.verification", "_render.accuracy"),
)


def test_from_the_trace_on_nothing_imports_torch() -> None:
    imports = ", ".join(f"willfit.{name}" for name in PLAIN)
    assert run(f"import sys, {imports}; print('torch' in sys.modules)") == "False"


def test_extras_are_imported_by_those_alone_who_use_them() -> None:
    modules = [module.name for module in pkgutil.walk_packages([str(SOURCE)], "willfit.")]
    of_pytest = ("willfit.__main__", "willfit.pytest_plugin", "willfit._pytest.")
    without_pytest = [name for name in modules if not name.startswith(of_pytest)]
    code = f"""
import importlib, sys
sys.modules.update(dict.fromkeys(("pytest", "transformers", "peft", "lightning")))  # importing these now raises
for name in {without_pytest}:
    importlib.import_module(name)
print("imported", len({without_pytest}))
"""
    assert run(code) == f"imported {len(without_pytest)}"
    assert len(without_pytest) > 20


def test_the_version_is_that_of_the_distribution() -> None:
    assert willfit.__version__ == importlib.metadata.version("willfit")


def test_the_types_are_shipped() -> None:
    assert importlib.resources.files("willfit").joinpath("py.typed").is_file()


def test_pytest_and_the_command_line_find_willfit() -> None:
    points = {(each.group, each.name): each.value for each in importlib.metadata.distribution("willfit").entry_points}
    assert points["console_scripts", "willfit"] == "willfit.cli:main"
    assert points["pytest11", "willfit"] == "willfit.pytest_plugin"


def members(value: Any) -> list[tuple[str, Any]]:
    """A public callable and, of a class, its own public methods and properties."""
    found = [(value.__qualname__, value)]
    if isinstance(value, type):
        found += [
            (f"{value.__qualname__}.{name}", getattr(item, "__func__", item))
            for name, item in vars(value).items()
            if not name.startswith("_") and (callable(item) or isinstance(item, property | classmethod | staticmethod))
        ]
    return found


@pytest.mark.parametrize(("name", "value"), [pair for each in PUBLIC for pair in members(each)])
def test_everything_public_says_what_it_does(name: str, value: Any) -> None:
    own = vars(value).get("__doc__") if isinstance(value, type) else inspect.getdoc(value)
    assert own, name
    assert not own.startswith(f"{name}("), "the docstring that dataclass makes up"


def test_no_file_is_long() -> None:
    lengths = {
        path.relative_to(SOURCE).as_posix(): len(path.read_bytes().splitlines()) for path in SOURCE.rglob("*.py")
    }
    assert {name: length for name, length in lengths.items() if length > 400} == {}
