"""Attention masks of Transformers: it asks whether it is being traced before it reads a mask's values.

It leaves out masks that mask nothing, which it sees by their values. A tensor without values is said to be fake, and so
the masks are built that are built under tracing, whichever engine runs the job.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch

from willfit._trace.following import Follower


@contextmanager
def masks_as_under_tracing(follower: Follower) -> Iterator[None]:
    """While the body runs, Transformers takes tensors on the follower's GPU for fake ones."""

    def is_fake(value: Any) -> bool:
        if not isinstance(value, torch.Tensor) or not follower.has_no_values(value):
            return False
        follower.assume(
            "attention masks are made, as Transformers does for batches with padding; for a batch without any it may "
            "leave them out and need less"
        )
        return True

    imports = sys.modules.get("transformers.utils.import_utils")
    if not hasattr(imports, "is_fake_tensor"):
        yield
        return
    with patch.object(imports, "is_fake_tensor", is_fake):
        yield
