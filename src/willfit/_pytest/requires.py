"""The marker ``willfit_requires``: skips a test where the real GPU is too small for it."""

from __future__ import annotations

import pytest

from willfit._errors import UsageError
from willfit._units import format_size, parse_size

MARKER = "willfit_requires"


def required_memory(item: pytest.Item) -> int:
    """Bytes that the test's markers ask for, the most of them; 0 without any.

    Raises `pytest.UsageError` for a marker that cannot be, and names the test.
    """
    most = 0
    for marker in item.iter_markers(MARKER):
        try:
            if marker.args:
                raise UsageError(f'arguments go by keyword, as in {MARKER}(vram="24 GiB"): found {marker.args[0]!r}')
            if unknown := [name for name in marker.kwargs if name != "vram"]:
                raise UsageError(f"unknown argument {unknown[0]!r}: there is vram")
            if "vram" not in marker.kwargs:
                raise UsageError(f'vram is missing, as in {MARKER}(vram="24 GiB")')
            most = max(most, parse_size(marker.kwargs["vram"], "vram"))
        except UsageError as error:
            raise pytest.UsageError(f"{item.nodeid}: marker {MARKER}: {error}") from None
    return most


def skip_where_too_small(item: pytest.Item) -> None:
    """Mark the test to be skipped unless the GPU of this process has, in all, what the test asks for."""
    required = required_memory(item)
    if not required:
        return
    from willfit._device_here import current_device

    device = current_device()
    if device is None:
        reason = f"needs a GPU with {format_size(required)}, and none is here"
    elif device.total < required:
        reason = f"needs a GPU with {format_size(required)}: {device.name} has {format_size(device.total)}"
    else:
        return
    item.add_marker(pytest.mark.skip(reason=reason))
