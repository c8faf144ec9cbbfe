"""Hooks by which other packages extend willfit, and by which a test suite changes what its pytest plugin does.

A package names a module of its own under the entry point group ``willfit``; functions in it that carry
``@willfit.hookimpl`` are called when a job is predicted. In its pyproject.toml::

    [project.entry-points.willfit]
    my_cards = "my_package.willfit_hooks"

The hooks of the pytest plugin, ``pytest_willfit_*``, go into a conftest.py like any other of pytest's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    import pytest

    from willfit._devices import Device
    from willfit._footprint import Footprint
    from willfit._remedies.remedy import Remedy
    from willfit._trace.kernels import Call
    from willfit._verify.verifier import Verifier

hookspec = pluggy.HookspecMarker("willfit")
hookimpl = pluggy.HookimplMarker("willfit")


@hookspec
def willfit_devices() -> Iterable[Device]:  # type: ignore[empty-body]
    """GPUs to know by name; one that the catalogue has by the same name is replaced."""


@hookspec
def willfit_remedies() -> Mapping[str, Remedy]:  # type: ignore[empty-body]
    """What may make a job fit that does not: functions that propose changes, by the name of the remedy."""


@hookspec
def willfit_kernel_rules() -> Mapping[str, Callable[[Call], Any]]:  # type: ignore[empty-body]
    """What operators allocate besides their outputs: a rule for each, by name as in ``"my_library::scan"``."""


@hookspec
def willfit_verifiers() -> Iterable[Verifier]:  # type: ignore[empty-body]
    """Further ways to measure what a job takes; one that willfit has by the same name is replaced."""


# -- of the pytest plugin ------------------------------------------------------------------------------------------

_of_pytest = pluggy.HookspecMarker("pytest")  # what pytest.hookspec is, without importing pytest


@_of_pytest(firstresult=True)
def pytest_willfit_generate_device(item: pytest.Item, on: Any) -> str | int | Device | None:
    """The GPU that a test is for, in place of ``on`` that its settings say; the first that is not None counts."""


@_of_pytest(firstresult=True)
def pytest_willfit_generate_fingerprint(  # type: ignore[empty-body]
    item: pytest.Item, model: Any, optimizer: Any, footprint: Footprint
) -> dict[str, str]:
    """What a baseline depends on besides the test, in place of willfit's own account of it."""


@_of_pytest
def pytest_willfit_update_fingerprint(item: pytest.Item, footprint: Footprint, fingerprint: dict[str, str]) -> None:
    """Change what a baseline depends on, in place: add the version of a library, drop what does not matter."""


@_of_pytest(firstresult=True)
def pytest_willfit_generate_sections(  # type: ignore[empty-body]
    item: pytest.Item, footprint: Footprint
) -> list[tuple[str, str]]:
    """The sections, titles and texts, that a check adds to its test's report, in place of the bill."""


@_of_pytest
def pytest_willfit_update_sections(item: pytest.Item, footprint: Footprint, sections: list[tuple[str, str]]) -> None:
    """Change the sections that a check adds to its test's report, in place."""
