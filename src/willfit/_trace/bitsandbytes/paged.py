"""Paged optimizer states: managed memory, which the driver moves between the GPU and the host page by page.

Source: get_paged in bitsandbytes/functional.py, get_state_buffer in bitsandbytes/optim/optimizer.py.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from willfit._trace.fake import META, FakeCudaTensor
from willfit._trace.recorder import Recorder
from willfit._units import format_size


class PagedMemory:
    """Managed memory of a job: none of PyTorch's allocator, so no allocation is recorded."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._sentence = ""

    def allocate(self, *shape: int, dtype: torch.dtype = torch.float32, device: Any = None) -> torch.Tensor:
        """``bitsandbytes.functional.get_paged``."""
        self._recorder.paged += math.prod(shape) * dtype.itemsize
        self._recorder.assumptions.pop(self._sentence, None)
        self._sentence = (
            f"paged optimizer states, {format_size(self._recorder.paged)}, lie in managed memory and not in the peaks: "
            "the driver brings them to the GPU as the optimizer uses them, and to the host where room is short"
        )
        self._recorder.assume(self._sentence)
        return paged_tensor(shape, dtype)


def paged_tensor(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """A fake tensor in managed memory."""
    with torch._C._DisableTorchDispatch():
        tensor = FakeCudaTensor.wrap(torch.empty(shape, dtype=dtype, device=META))
    tensor.is_paged = True  # type: ignore[attr-defined]
    tensor.page_deviceid = 0  # type: ignore[attr-defined]
    return tensor
