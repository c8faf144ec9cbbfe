"""One job on every GPU of the catalogue, traced no more often than the kernels differ."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from willfit._devices import Device
from willfit._errors import JobError
from willfit._footprint import Footprint

# What is on the card at the peak whichever kernels run there.
_ON_ANY_CARD = ("parameters", "buffers", "gradients", "optimizer states", "inputs")


@dataclass(frozen=True, slots=True)
class Answer:
    """Whether a job fits one GPU."""

    device: Device
    traced_on: Device
    """The GPU whose kernels the trace has: one of the same kind, or any where the job cannot fit in the first place."""
    footprint: Footprint | None
    """None where it could not be predicted."""
    error: str = ""
    """Why not."""


def which_fit(
    predict: Callable[[Device], Footprint],
    devices: Iterable[Device],
    progress: Callable[[str], None] = lambda words: None,
) -> tuple[Answer, ...]:
    """Predict a job on each of these GPUs, in their order.

    The job is traced on the largest GPU of each kind (see `kind`), the kind with the largest GPUs first. A kind whose
    largest GPU could not even hold the tensors that are there on any card is answered by the trace of another.

    Raises `JobError` if it cannot be predicted on any of them.
    """
    devices = tuple(devices)
    kinds: dict[tuple[int, int], Device] = {}
    for device in devices:
        largest = kinds.setdefault(kind(device), device)
        if device.capacity > largest.capacity:
            kinds[kind(device)] = device
    traced: dict[tuple[int, int], Footprint] = {}
    errors: dict[tuple[int, int], JobError] = {}
    floor, any_kind = 0, None
    for key, device in sorted(kinds.items(), key=lambda item: -item[1].capacity):
        if any_kind is not None and device.capacity < floor:
            kinds[key], traced[key] = kinds[any_kind], traced[any_kind]
            continue
        progress(f"following the job on {device.name}")
        try:
            traced[key] = predict(device)
        except JobError as error:
            errors[key] = error
            continue
        if any_kind is None:
            any_kind = key
            floor = sum(size for role, size in traced[key].bill.items() if role in _ON_ANY_CARD)
    if not traced:
        raise next(iter(errors.values()))
    progress("replaying it on every GPU")
    return tuple(
        Answer(device, kinds[key], traced[key].on(device))
        if (key := kind(device)) in traced
        else Answer(device, kinds[key], None, str(errors[key]))
        for device in devices
    )


def kind(device: Device) -> tuple[int, int]:
    """The compute capability at which the kernels of this GPU begin to differ from those of older ones.

    Before 7.5 bitsandbytes has no 8-bit products, before 8.0 there is no FlashAttention; 8.6 and 8.9 have less shared
    memory for it than 8.0; 9.0 and 10.0 prefer cuDNN's attention and have larger cuBLAS workspaces; 12.0 has the
    workspaces only. AMD's are taken as 9.0, as they report it.

    >>> kind(Device(name="T4", total=2**34, compute_capability=(7, 5)))
    (7, 5)
    """
    starts = ((0, 0), (7, 5), (8, 0), (8, 6), (9, 0), (12, 0))
    return max(start for start in starts if start <= device.compute_capability)
