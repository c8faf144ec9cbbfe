"""How many workers ``-n auto`` may start so that all of their tests fit the GPU at the same time."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from willfit._errors import UsageError
from willfit._pytest.baseline import SUFFIX, read
from willfit._pytest.run import CACHE
from willfit._units import format_size


def capped(config: pytest.Config, workers: int) -> tuple[int, str]:
    """So many workers at most, and in words why.

    However tests are dealt out, workers can at one time hold no more than the largest footprints, one each: a worker
    keeps what its largest test took. The needs are those of the last run, by pytest's cache, else those of baselines.
    """
    needs = sorted(_last_run(config) or _baselines(config), reverse=True)
    if not needs:
        return workers, f"-n auto: {workers} workers, not capped: neither a last run nor baselines tell what tests need"
    name, memory = _free_memory()
    if memory is None:
        return workers, f"-n auto: {workers} workers, not capped: {name}"
    count, taken = 0, 0
    for need in (needs + [0] * workers)[:workers]:
        if taken + need > memory:
            break
        count, taken = count + 1, taken + need
    count = max(1, count)
    if count == workers:
        return workers, f"-n auto: {workers} workers fit {name}, which has {format_size(memory)} free"
    largest = needs[: count + 1]
    which = f"{len(largest)} largest tests need" if len(largest) > 1 else "largest test needs"
    return count, (
        f"-n auto: capped at {count} of {workers} workers: "
        f"the {which} {format_size(sum(largest))}, and {name} has {format_size(memory)} free"
    )


def _last_run(config: pytest.Config) -> list[int]:
    """From pytest's cache, which is not there yet when workers are counted: hence its file."""
    try:
        directory = config.rootpath / os.path.expandvars(config.getini("cache_dir"))
        needs = json.loads((directory / "v" / CACHE).read_text(encoding="utf-8"))
        return [size for size in needs.values() if isinstance(size, int)]
    except (OSError, ValueError, AttributeError):  # no cache, or -p no:cacheprovider, or not ours
        return []


def _baselines(config: pytest.Config) -> list[int]:
    """From the baselines where tests are looked for."""
    needs: list[int] = []
    for argument in config.args:
        place = config.invocation_params.dir / argument.partition("::")[0]
        for path in place.rglob(f"*{SUFFIX}") if place.is_dir() else place.parent.glob(f"{place.stem}{SUFFIX}"):
            needs += _needs_of(path)
    return needs


def _needs_of(path: Path) -> Iterable[int]:
    try:
        return [max(entry.required for entry in entries) for entries in read(path).values()]
    except UsageError:
        return []  # said by the tests that need it


def _free_memory() -> tuple[str, int | None]:
    """The GPU that tests will use and what is free on it, in bytes; or why that is not known.

    Asked of NVML: torch would take memory of the GPU for as long as the run lasts, and seconds.
    """
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception as error:  # no NVML, no driver
        return f"no GPU was found ({error})", None
    try:
        handle = _first_visible(pynvml)
        name = pynvml.nvmlDeviceGetName(handle)
        return name.decode() if isinstance(name, bytes) else name, int(pynvml.nvmlDeviceGetMemoryInfo(handle).free)
    except Exception as error:
        return f"NVML does not say what is free ({error})", None
    finally:
        pynvml.nvmlShutdown()


def _first_visible(pynvml: Any) -> Any:
    """The first of CUDA_VISIBLE_DEVICES, by index or UUID."""
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    if first.isdecimal():
        return pynvml.nvmlDeviceGetHandleByIndex(int(first))
    return pynvml.nvmlDeviceGetHandleByUUID(first)
