from __future__ import annotations

import importlib
import pkgutil

import pytest
import rich

import willfit

# pytester forgets modules that a run inside of this process was the first to import. Others that were there before may
# hold what came from them, and the next import makes a second class of the same name.
_OF_OTHERS = ("__main__", "bootstrap", "integrations.", "jupyter", "_win32_console", "_windows", "_windows_renderer")
for package in (rich, willfit):
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if not any(f".{part}" in module.name for part in _OF_OTHERS):
            importlib.import_module(module.name)


@pytest.fixture(autouse=True)
def tests_of_tests_in_their_order(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "pytester" in request.fixturenames:
        request.getfixturevalue("pytester")  # drops the variable
        monkeypatch.setenv("PYTEST_ADDOPTS", "-p no:randomly")
        monkeypatch.delenv("CI", raising=False)  # where no baseline is written; tests of that set it
