"""Settings of PyTorch's allocator, where gaps between blocks decide."""

from __future__ import annotations

import os
from collections.abc import Iterator

from willfit._remedies.remedy import Change, NotApplicable, Situation

_VARIABLE = "PYTORCH_CUDA_ALLOC_CONF"  # from torch 2.9 on PYTORCH_ALLOC_CONF as well
_LEAST_GAPS = 0.02


def allocator(situation: Situation) -> Iterator[Change]:
    """Segments that grow, which leave no gaps; or none that are cut to small pieces."""
    footprint = situation.footprint
    if os.environ.get(_VARIABLE) or os.environ.get("PYTORCH_ALLOC_CONF"):
        raise NotApplicable("the allocator has settings already")
    gaps = footprint.peak_reserved - footprint.peak_allocated
    if gaps < _LEAST_GAPS * footprint.peak_reserved:
        raise NotApplicable("there are hardly any gaps between blocks")
    yield _change(
        "expandable-segments",
        "segments that grow",
        "expandable_segments:True",
        "the same results; not on Windows, and not with every driver",
    )
    yield _change(
        "max-split-size",
        "no cutting of large blocks",
        "max_split_size_mb:128",
        "the same results; memory is asked of the driver more often",
    )


def _change(name: str, title: str, setting: str, cost: str) -> Change:
    return Change(
        name=name,
        title=title,
        disruption="same results",
        cost=cost,
        code=f"# in the environment of the training process: {_VARIABLE}={setting}",
        environment={_VARIABLE: setting},
    )
