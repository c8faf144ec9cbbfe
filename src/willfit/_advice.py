"""What would make a job fit, as plain data, free of torch: each figure is that of a changed job, predicted again."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from willfit._devices import Device
from willfit._footprint import Footprint, Verdict
from willfit._trace.trace import Trace, Transfers

if TYPE_CHECKING:
    from willfit._remedies.remedy import Disruption

SCHEMA = 1
"""Version of ``Advice.to_dict()``."""


@dataclass(frozen=True, kw_only=True)
class Option:
    """One way to change the job, of one change or of several, and what the job then needs."""

    titles: tuple[str, ...]
    """The changes, by name."""
    disruption: Disruption
    """What the most disruptive of them costs: "same results", "slower" or "trains otherwise"."""
    costs: tuple[str, ...]
    """What each of them costs, in a phrase."""
    code: str
    """The lines to add."""
    packages: tuple[str, ...]
    """Packages that the lines import."""
    missing: tuple[str, ...]
    """Those of them that are not installed here."""
    environment: dict[str, str]
    """Variables to set before Python starts."""
    footprint: Footprint
    """The changed job's prediction."""
    transfers: Transfers | None
    """What each step moves between the host and the GPU more than before; None where that is not known."""
    saved: int
    """Bytes of reserved memory that the job needs less at its peak; negative if it needs more."""

    @property
    def verdict(self) -> Verdict | None:
        """Whether the changed job fits."""
        return self.footprint.verdict

    @property
    def fits(self) -> bool:
        """Whether the changed job fits, tightly perhaps."""
        return self.footprint.verdict in ("fits", "tight")

    @property
    def transfer_seconds(self) -> float | None:
        """What these transfers take at the least in each step, by the rating of the GPU's link, which works both ways
        at once; None where nothing is moved, or the link is not known.
        """
        bandwidth = None if self.footprint.device is None else self.footprint.device.host_bandwidth
        if self.transfers is None or bandwidth is None:
            return None
        more = max(self.transfers.to_host, self.transfers.to_gpu) + self.transfers.paged
        return more / bandwidth if more > 0 else None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "titles": list(self.titles),
            "disruption": self.disruption,
            "costs": list(self.costs),
            "code": self.code,
            "packages": list(self.packages),
            "missing": list(self.missing),
            "environment": dict(self.environment),
            "saved": self.saved,
            "transfers": None if self.transfers is None else asdict(self.transfers),
            "transfer_seconds": self.transfer_seconds,
            "verdict": self.verdict,
            "peak_allocated": self.footprint.peak_allocated,
            "peak_reserved": self.footprint.peak_reserved,
            "required": self.footprint.required,
        }


@dataclass(frozen=True, slots=True)
class Share:
    """What each of several GPUs would hold, were the job sharded: arithmetic on the trace of one GPU.

    ZeRO's stages divide the optimizer states and what the optimizer step takes besides, then the gradients too, then
    the parameters. Not counted is what communication takes, and the layers that stage 3 puts together to run them.
    """

    gpus: int
    stage: int
    """ZeRO's: 1 shards the optimizer states, 2 the gradients as well, 3 the parameters as well."""
    size: int
    """Bytes of tensors on each GPU at the peak."""
    fits: bool


@dataclass(frozen=True)
class Advice:
    """What would make a job fit on a GPU."""

    footprint: Footprint
    """The job as it is."""
    device: Device
    options: tuple[Option, ...]
    """What fits: the least disruptive first, then the shortest, then others."""
    partial: tuple[Option, ...]
    """Single changes that save memory, but not enough by themselves; those that save most first."""
    unhelpful: tuple[str, ...]
    """Changes that would save nothing."""
    not_applicable: tuple[tuple[str, str], ...]
    """(remedy, why it does not apply or could not be tried)."""
    cards: tuple[str, ...]
    """Other GPUs that the job fits as it is, the smallest first."""
    shares: tuple[Share, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, as docs/schema.md describes them; sizes are bytes."""
        return {
            "schema": SCHEMA,
            "device": self.device.name,
            "verdict": self.footprint.verdict,
            "required": self.footprint.required,
            "capacity": self.footprint.capacity,
            "options": [option.to_dict() for option in self.options],
            "partial": [option.to_dict() for option in self.partial],
            "unhelpful": list(self.unhelpful),
            "not_applicable": [{"remedy": name, "reason": reason} for name, reason in self.not_applicable],
            "cards": list(self.cards),
            "shares": [{"gpus": s.gpus, "stage": s.stage, "bytes": s.size, "fits": s.fits} for s in self.shares],
        }

    def __str__(self) -> str:
        from willfit._render.advice import advice_text

        return advice_text(self)


def shares(footprint: Footprint, device: Device, gpus: tuple[int, ...] = (2, 4, 8)) -> tuple[Share, ...]:
    """What ZeRO leaves on each GPU: the traced tensors, of which it divides some, and the most of them at one time."""
    return tuple(
        Share(count, stage, size, size <= device.capacity)
        for stage in (1, 2, 3)
        for count in gpus
        for size in [_most_of_a_share(footprint._trace, stage, count)]
    )


def _most_of_a_share(trace: Trace, stage: int, gpus: int) -> int:
    sharded = ("optimizer states", "gradients", "parameters")[:stage]
    held = most = 0
    for event in trace.events:
        if event:
            allocation = trace.allocations[abs(event) - 1]
            of_optimizer = allocation.phase == "optimizer step" and allocation.role == "temporaries"
            size = -(-allocation.size // gpus) if of_optimizer or allocation.role in sharded else allocation.size
            held += size if event > 0 else -size
            most = max(most, held)
    return most
