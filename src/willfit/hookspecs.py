"""Hooks by which other packages extend willfit.

A package names a module of its own under the entry point group ``willfit``; functions in it that carry
``@willfit.hookimpl`` are called when a job is predicted. In its pyproject.toml::

    [project.entry-points.willfit]
    my_cards = "my_package.willfit_hooks"
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from willfit._devices import Device
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
