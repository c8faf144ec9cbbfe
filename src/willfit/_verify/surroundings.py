"""What surrounds a measurement on this machine: versions, the driver, what lies outside of PyTorch's allocator."""

from __future__ import annotations

import importlib.metadata
import os
import sys
from contextlib import suppress

OTHERS = "tensors that are not the job's are on the card, in segments that they share: reserved memory is not compared"
"""What is said where there are some."""

_PACKAGES = ("transformers", "peft", "accelerate", "bitsandbytes", "lightning", "torchvision", "timm", "trl")


def versions() -> tuple[tuple[str, str], ...]:
    """Of PyTorch, CUDA, and the packages in this process that models are made of."""
    import torch

    found = [("torch", str(torch.__version__))]
    if torch.version.cuda:
        found.append(("cuda", torch.version.cuda))
    for name in _PACKAGES:
        if name in sys.modules:
            with suppress(importlib.metadata.PackageNotFoundError):
                found.append((name, importlib.metadata.version(name)))
    return tuple(found)


def driver_version() -> str:
    """Of the NVIDIA driver; "" where NVML does not say."""
    with suppress(Exception):  # no NVML, no driver, no permission: all the same here
        import pynvml

        pynvml.nvmlInit()
        try:
            version = pynvml.nvmlSystemGetDriverVersion()
        finally:
            pynvml.nvmlShutdown()
        return version.decode() if isinstance(version, bytes) else str(version)
    return ""


def context_of_this_process(index: int) -> int | None:
    """Bytes that this process holds on a GPU besides what PyTorch's allocator has reserved: the context, by NVML.

    None where NVML does not say, as in a container that hides the process's number.
    """
    import torch

    with suppress(Exception):
        import pynvml

        from willfit._device_here import nvml_handle

        pynvml.nvmlInit()
        try:
            handle = nvml_handle(pynvml, torch.cuda.get_device_properties(index))
            used = {each.pid: each.usedGpuMemory for each in pynvml.nvmlDeviceGetComputeRunningProcesses(handle)}
        finally:
            pynvml.nvmlShutdown()
        own = used.get(os.getpid())
        return None if own is None else int(own) - torch.cuda.memory_reserved(index)
    return None
