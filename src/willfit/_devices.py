"""GPUs: what one of them can hold, found by its name, by a size, or in this process.

The catalogue is in _device_catalogue.py, the GPU of this process in _device_here.py.
"""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any, Final, Literal

from willfit._errors import UsageError
from willfit._units import format_size, parse_size

if TYPE_CHECKING:
    import torch

_ASSUMED: Final[Any] = None  # the default of a field that __post_init__ fills in, and says so in assumptions

# Bytes that a process takes outside of PyTorch's allocator (context, loaded kernels, cuBLAS, cuDNN), lazy loading.
CONTEXTS: Final[tuple[tuple[tuple[int, int], int, str], ...]] = (
    ((0, 0), 330_000_000, "an estimate, as none was measured before Turing"),
    ((7, 5), 141_426_688, "as measured on a T4 with torch 2.11 and CUDA 12.8"),
    ((8, 0), 434_110_464, "as measured on an A100 with CUDA 12.8"),
    ((8, 6), 446_693_376, "as measured on an RTX 6000 Ada"),
    ((9, 0), 641_728_512, "as measured on an H100 (610 to 614 MiB with drivers 535 to 570)"),
)
"""(the lowest compute capability that it stands for, bytes, where the figure comes from), rising."""


def context_for(compute_capability: tuple[int, int], vendor: str = "nvidia") -> tuple[int, str]:
    """The context of a card of this compute capability, in bytes, and where the figure comes from.

    >>> context_for((7, 5))
    (141426688, 'as measured on a T4 with torch 2.11 and CUDA 12.8')
    """
    if vendor != "nvidia":
        _, size, origin = CONTEXTS[-1]  # the largest, to be on the safe side
        return size, f"{origin}, for want of one measured with ROCm"
    _, size, origin = next(row for row in reversed(CONTEXTS) if compute_capability >= row[0])
    return size, origin


@dataclass(frozen=True, kw_only=True, slots=True)
class Device:
    """A GPU: how much its driver reports, how much of it a process takes for itself, and what kind it is.

    Only the name and the total are required; what else is left out is assumed, and `assumptions` says so. Raises
    `UsageError` for a total that the context leaves nothing of, and for other figures that cannot be.
    To test with, make one of any size, exact to the byte with ``context=0``:

    >>> toy = Device(name="toy", total=64 * 2**20, context=0)
    >>> toy.capacity
    67108864
    >>> toy.assumptions
    ('compute capability 8.0 assumed', '108 multiprocessors assumed, as an A100 has')
    """

    name: str
    """What it is called here, and what `find_device` takes: "T4", "A100-80GB", "24 GiB"."""

    total: int
    """Bytes as the driver reports them: ``torch.cuda.get_device_properties().total_memory``."""

    context: int = _ASSUMED
    """Bytes that a process takes outside of the allocator: context, loaded kernels, cuBLAS, cuDNN; without NCCL."""

    compute_capability: tuple[int, int] = _ASSUMED
    """(major, minor) as torch reports them; on AMD those of the gfx name, (9, 0) for gfx90a. See `vendor` first."""

    multiprocessors: int = _ASSUMED
    """Streaming multiprocessors (AMD: compute units); some kernels size their temporaries by it."""

    vendor: Literal["nvidia", "amd"] = "nvidia"
    """Who made it."""

    driver_name: str = ""
    """What the driver calls it: "NVIDIA A100-SXM4-80GB"; empty if there is no such card."""

    aliases: tuple[str, ...] = ()
    """What else it is known by: "H100 SXM"."""

    memory_bandwidth: int | None = None
    """Bytes a second between the GPU and its own memory, by the data sheet; None if not known."""

    host_bandwidth: int | None = None
    """Bytes a second from the host to the GPU, one direction, by the link's rating; None if not known."""

    available: int | None = None
    """Bytes that the allocator may hold, where that is known or given; None: the total less the context."""

    index: int | None = None
    """torch's index of a GPU found in this process; None for all others."""

    other_processes: tuple[str, ...] = ()
    """Who else holds memory on a GPU found here: "python (pid 1234): 3.20 GiB"."""

    assumptions: tuple[str, ...] = ()
    """What was assumed about it and not known, a phrase each."""

    sources: tuple[str, ...] = ()
    """Where the figures come from: "total: ...", "context: ..."."""

    def __post_init__(self) -> None:
        assumed: list[str] = []
        if self.compute_capability is None:
            object.__setattr__(self, "compute_capability", (8, 0))
            assumed.append("compute capability 8.0 assumed")
        if self.context is None:
            context, origin = context_for(self.compute_capability, self.vendor)
            object.__setattr__(self, "context", context)
            assumed.append(f"context assumed: {origin}")
        if self.multiprocessors is None:
            object.__setattr__(self, "multiprocessors", 108)
            assumed.append("108 multiprocessors assumed, as an A100 has")
        object.__setattr__(self, "assumptions", (*self.assumptions, *assumed))
        if self.total < 1 or self.context < 0:
            raise UsageError(f"{self.name}: not a card's: total {self.total} bytes, context {self.context} bytes")
        if self.available is None and self.total <= self.context:
            raise UsageError(
                f"{self.name}: {format_size(self.total)} is no more than the {format_size(self.context)} "
                "that a process takes for its context; give a larger card, or Device(..., context=0) for a fake one"
            )
        if self.available is not None and not 0 <= self.available <= self.total:
            raise UsageError(
                f"{self.name}: a capacity of {format_size(self.available)} is not within "
                f"the {format_size(self.total)} that the card has"
            )

    @property
    def capacity(self) -> int:
        """Bytes that the allocator may hold: `available` where it is given, else the total less the context.

        >>> find_device("T4").capacity == 15655829504 - 141426688
        True
        """
        return self.total - self.context if self.available is None else self.available

    def less(self, size: int) -> Device:
        """The same GPU with this many bytes fewer for the allocator: those of tensors outside the job.

        >>> Device(name="toy", total=100, context=10).less(20).capacity
        70
        """
        assert size >= 0, size
        return replace(self, available=max(0, self.capacity - size))


@cache
def all_devices() -> tuple[Device, ...]:
    """Every GPU of the catalogue and of plugins, smallest first.

    >>> "T4" in [device.name for device in all_devices()]
    True
    """
    from willfit._device_catalogue import CATALOGUE
    from willfit._plugins import plugins

    by_name = {device.name: device for device in CATALOGUE}
    for devices in plugins().hook.willfit_devices():
        by_name |= {device.name: device for device in devices}
    return tuple(sorted(by_name.values(), key=lambda device: (device.total, device.name)))


def find_device(name: str, among: Iterable[Device] | None = None) -> Device:
    """The GPU of this name, among those given or else the whole catalogue.

    Case, spaces, hyphens and the words of vendors do not matter. A name in full goes before a part of one: first the
    catalogue's, where the plain one is the usual card ("A100-80GB" the SXM one, "RTX 3080" that with 10 GB), then the
    driver's and others. A part of a name will do if only one card has it.

    Raises `UsageError` for a name that is unknown (the message has the nearest) or a part of several ("A100").

    >>> find_device("nvidia a100-sxm4-80gb").name, find_device("4090").name
    ('A100-80GB', 'RTX 4090')
    >>> find_device("V100")
    Traceback (most recent call last):
    willfit._errors.UsageError: 'V100' may be any of V100-16GB, V100-32GB: say which
    """
    devices = all_devices() if among is None else tuple(among)
    found = _matches(name, devices)
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(device.name for device in found)
        raise UsageError(f"{name!r} may be any of {names}: say which")
    names_by_key = {_key(device.name): device.name for device in devices}
    near = difflib.get_close_matches(_key(name), names_by_key, n=3, cutoff=0.5)
    nearest = f"the nearest are {', '.join(names_by_key[key] for key in near)}; " if near else ""
    raise UsageError(
        f"{name!r} is no GPU that willfit knows: {nearest}`willfit devices` lists all, "
        'and a size such as "24 GiB" stands for any card of that size'
    )


def resolve_device(
    on: str | int | Device | torch.device | None = None,
    capacity: str | int | None = None,
    among: Iterable[Device] | None = None,
) -> Device | None:
    """The GPU that a prediction is for, or None if neither argument is given and this process has none.

    `on` is the name of a GPU ("T4", see `find_device`); else a size ("24 GiB", or bytes), which is then the card's
    total; "cuda", "cuda:1" or a torch.device for a GPU of this process; a `Device` as it is; or None for the GPU that
    this process would use. `capacity` ("14 GiB", or bytes) is what the allocator may hold, instead of what that GPU
    would leave it.

    Raises `UsageError` for anything else, for a GPU that is not there, and for a capacity beyond the card's total.

    >>> resolve_device("24 GiB").capacity == 24 * 2**30 - 434110464
    True
    >>> resolve_device("T4", capacity="14 GiB").capacity == 14 * 2**30
    True
    """
    device = _resolve(on, among)
    if capacity is None:
        return device
    size = parse_size(capacity, "capacity")
    if device is not None:
        return replace(device, available=size)
    context, _ = context_for((8, 0))
    return Device(name=f"a capacity of {format_size(size)}", total=size + context, available=size)


def _resolve(on: str | int | Device | torch.device | None, among: Iterable[Device] | None) -> Device | None:
    if isinstance(on, Device):
        return on
    if on is None:
        from willfit._device_here import current_device

        return current_device()
    if isinstance(on, int) and not isinstance(on, bool):
        if on < 1024:
            raise UsageError(f'on={on} would be a card of {on} bytes: for a GPU of this process write on="cuda:{on}"')
        return Device(name=format_size(on), total=on)
    if "torch" in sys.modules and isinstance(on, sys.modules["torch"].device):
        on = str(on)
        if not on.startswith("cuda"):
            raise UsageError(f'on={on!r} is not a GPU: give "cuda", or the name of one such as "T4"')
    if not isinstance(on, str):
        raise UsageError(f'on must be the name of a GPU such as "T4", a size, a Device or a torch.device: found {on!r}')
    if match := re.fullmatch(r"cuda(?::([0-9]+))?", on):
        from willfit._device_here import device_here

        return device_here(None if match[1] is None else int(match[1]))
    devices = all_devices() if among is None else tuple(among)
    if _matches(on, devices) or not _LIKE_A_SIZE.fullmatch(on):
        return find_device(on, devices)
    return Device(name=on, total=parse_size(on, "on"))


# Words in the names of GPUs that tell none from another ("quadro" does: the Quadro RTX 6000 is not the RTX 6000 Ada).
_VENDOR_WORDS = frozenset({"nvidia", "amd", "tesla", "geforce", "instinct", "rtx", "gpu", "generation", "edition"})
_LIKE_A_SIZE = re.compile(r"\s*[-+]?[0-9.,_]+\s*([kmgtp]?i?b|[kmgtp]i?|[kmgtp]?bytes?)\s*", re.IGNORECASE)
_MEMORY_WORD = re.compile(r"[0-9]+gb")


@cache
def _words(name: str) -> frozenset[str]:
    """The words of a name that matter.

    >>> sorted(_words("NVIDIA A100-SXM4-80 GB")), sorted(_words("rtx4070ti"))
    (['80gb', 'a100', 'sxm'], ['4070', 'ti'])
    """
    text = re.sub(r"[^a-z0-9.]+", " ", name.lower())
    text = re.sub(r"\b([0-9]+) ?(?:g|gb|gib)\b", r"\1gb", text)
    text = re.sub(r"\bsxm[0-9]?\b", "sxm", text)
    text = re.sub(r"\brtx(?=[a-z]?[0-9])", "rtx ", text)
    text = re.sub(r"([0-9]{4})(?=ti|super|ada)", r"\1 ", text)
    return frozenset(text.split()) - _VENDOR_WORDS


def _key(name: str) -> str:
    """The words of a name as one, for likeness.

    >>> _key("RTX 4070 Ti")
    '4070ti'
    """
    return "".join(sorted(_words(name)))


def _matches(name: str, devices: Iterable[Device]) -> tuple[Device, ...]:
    """The GPUs that a name may mean: by name in full, else by another name in full, else by a part of its names."""
    words = _words(name)
    if all(_MEMORY_WORD.fullmatch(word) for word in words):
        return ()  # "80 GB" is a size
    named = [(device, [_words(n) for n in (device.name, device.driver_name, *device.aliases)]) for device in devices]
    for found in (
        tuple(device for device, names in named if words == names[0]),
        tuple(device for device, names in named if words in names),
        tuple(device for device, names in named if words <= frozenset().union(*names)),
    ):
        if found:
            return found
    return ()
