"""What a prediction depends on besides the test itself, so that a baseline says under what it was made."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Iterable, Mapping
from dataclasses import fields
from functools import cache
from typing import TYPE_CHECKING, Any

from packaging.version import InvalidVersion, Version

if TYPE_CHECKING:
    from willfit._footprint import Footprint

_ALWAYS = ("torch", "willfit")


def fingerprint(model: Any, optimizer: Any, footprint: Footprint) -> dict[str, str]:
    """Versions of torch, of willfit and of the libraries of model and optimizer; device, dtypes, allocator, steps.

    Nothing else changes the answer: not the machine, its operating system or Python, nor how torch was built.
    """
    facts = {
        "allocator": _changed(footprint._settings),
        "device": footprint.device.name if footprint.device is not None else "none",
        "dtype": ", ".join(sorted(name for name, _ in footprint.job.dtypes)),
        "steps": str(footprint.steps),
    }
    for package in sorted({*_ALWAYS, *_packages(model, optimizer)}):
        if version := _version(package):
            facts[package] = version
    return facts


def differences(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """How two of them differ, in words: "torch 2.13.0, now 2.14.0".

    >>> differences({"torch": "2.13.0", "steps": "3"}, {"torch": "2.14.0", "steps": "3", "peft": "0.17.0"})
    'peft none, now 0.17.0; torch 2.13.0, now 2.14.0'
    """
    keys = sorted(key for key in {*before, *now} if before.get(key) != now.get(key))
    return "; ".join(f"{key} {before.get(key) or 'none'}, now {now.get(key) or 'none'}" for key in keys)


def _packages(model: Any, optimizer: Any) -> Iterable[str]:
    """The packages of the classes of a model's modules and of optimizers, where they are installed libraries."""
    from willfit._placement import optimizers_of

    classes = {type(each) for each in (*model.modules(), *optimizers_of(optimizer))}
    for name in {cls.__module__.partition(".")[0] for cls in classes}:
        file = getattr(sys.modules.get(name), "__file__", None) or ""
        if "site-packages" in file or "dist-packages" in file:  # else it is what is tested
            yield name


@cache
def _version(package: str) -> str:
    """Without the local part, which says how it was built."""
    try:
        return Version(importlib.metadata.version(package)).public
    except (importlib.metadata.PackageNotFoundError, InvalidVersion):
        return ""


def _changed(settings: Any) -> str:
    """The allocator's settings that are not PyTorch's defaults."""
    changed = [
        f"{field.name}={value}"
        for field in fields(settings)
        if field.name != "ignored" and (value := getattr(settings, field.name)) != field.default
    ]
    return ", ".join(changed) or "default"
