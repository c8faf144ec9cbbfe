"""The GPU of this process: what it can hold now, and who else is on it."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any

from willfit._devices import Device, all_devices
from willfit._errors import UsageError
from willfit._units import format_size


def current_device() -> Device | None:
    """The GPU that this process would use, or None if torch finds none."""
    import torch

    return device_here() if torch.cuda.is_available() else None


def device_here(index: int | None = None) -> Device:
    """A GPU that this process has, as it is now.

    Its capacity is what the driver says is free plus all that this process has reserved: the job's own tensors, if
    they are on the card already, are in it, and so is nothing that others hold. Whoever knows of further tensors of
    this process that will stay takes them off with `Device.less`. The context is there already and so not in the
    capacity; `Device.context` still says what it takes, for the need of the whole process.

    Asking the driver starts CUDA on that GPU, as the job itself would. `index` is torch's; without it, the current GPU.
    Raises `UsageError` if there is no such GPU.
    """
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if index is None and count:
        index = torch.cuda.current_device()
    if index is None or index >= count:
        raise UsageError(_not_here(index, count, built_for_gpus=bool(torch.version.cuda or torch.version.hip)))

    properties: Any = torch.cuda.get_device_properties(index)
    free, _ = torch.cuda.mem_get_info(index)
    total = int(properties.total_memory)
    available = min(free + torch.cuda.memory_reserved(index), total)
    if fraction := getattr(torch.cuda, "get_per_process_memory_fraction", None):  # from torch 2.8 on
        available = min(available, int(fraction(index) * total))

    card = _known(properties.name, total)
    is_amd = torch.version.hip is not None
    processes, notes = _other_processes(properties) if not is_amd else ((), ("other processes are not named on AMD",))
    known: dict[str, Any] = {} if card is None else {
        "context": card.context,
        "memory_bandwidth": card.memory_bandwidth,
        "host_bandwidth": card.host_bandwidth,
    }  # fmt: skip
    return Device(
        name=properties.name,
        driver_name=properties.name,
        total=total,
        available=available,
        compute_capability=(properties.major, properties.minor),
        multiprocessors=properties.multi_processor_count,
        vendor="amd" if is_amd else "nvidia",
        index=index,
        other_processes=processes,
        assumptions=notes + tuple(note for note in (card.assumptions if card else ()) if note.startswith("context")),
        sources=("total: the driver", "capacity: the driver, now"),
        **known,
    )


def _not_here(index: int | None, count: int, *, built_for_gpus: bool) -> str:
    """Why a GPU is not there, and what to do."""
    asked = "cuda" if index is None else f"cuda:{index}"
    if count:
        found = f"this process has {count} GPU{'s' if count > 1 else ''}, the last is cuda:{count - 1}"
    else:
        found = "this process has no GPU" if built_for_gpus else "this build of torch has no CUDA"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    why = f" (CUDA_VISIBLE_DEVICES={visible})" if visible is not None else ""
    return f'on="{asked}": {found}{why}; name a GPU instead, such as on="T4", or give a size'


def _known(name: str, total: int) -> Device | None:
    """The card of the catalogue with this driver's name and about this size."""
    same = (card for card in all_devices() if name in (card.driver_name, *card.aliases))
    return next((card for card in same if abs(card.total - total) < total * 0.05), None)


def _other_processes(properties: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Who else holds memory on the GPU, by NVML, and what could not be found out."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception as error:  # no NVML, no driver, no permission: all the same here
        return (), (f"other processes on the GPU are not named: NVML cannot be asked ({error})",)
    try:
        handle = nvml_handle(pynvml, properties)
        running = {
            process.pid: process.usedGpuMemory
            for ask in (pynvml.nvmlDeviceGetComputeRunningProcesses, pynvml.nvmlDeviceGetGraphicsRunningProcesses)
            for process in ask(handle)
        }
        own = running.pop(os.getpid(), None)
        notes = () if own is not None or not running else (
            "this process is not among those that NVML lists, as in a container: one of the others may be this one",
        )  # fmt: skip
        return tuple(_describe(pynvml, pid, used) for pid, used in sorted(running.items())), notes
    except Exception as error:
        return (), (f"other processes on the GPU are not named: NVML does not say ({error})",)
    finally:
        with suppress(Exception):
            pynvml.nvmlShutdown()


def nvml_handle(pynvml: Any, properties: Any) -> Any:
    """NVML's handle of a GPU of torch's. Their indices differ (CUDA_VISIBLE_DEVICES, order), so by UUID or PCI bus."""
    uuid = str(getattr(properties, "uuid", ""))
    for prefix in ("GPU-", "MIG-") if uuid else ():
        with suppress(pynvml.NVMLError):
            return pynvml.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith(prefix) else prefix + uuid)
    bus = f"{properties.pci_domain_id:08X}:{properties.pci_bus_id:02X}:{properties.pci_device_id:02X}.0"
    return pynvml.nvmlDeviceGetHandleByPciBusId(bus)


def _describe(pynvml: Any, pid: int, used: int | None) -> str:
    """A process as a person reads it: "python (pid 1234): 3.20 GiB"."""
    name = "process"
    with suppress(Exception):
        path = pynvml.nvmlSystemGetProcessName(pid)
        name = os.path.basename((path.decode() if isinstance(path, bytes) else path).split(" ")[0]) or name
    return f"{name} (pid {pid}): {'size not known' if used is None else format_size(used)}"
