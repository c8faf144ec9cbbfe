"""What a remedy is: a function from the situation to the changes of the job that it proposes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from typing import Literal, get_args

from willfit._changing import Job
from willfit._devices import Device
from willfit._footprint import Footprint

Disruption = Literal["same results", "slower", "trains otherwise"]
"""What a change costs: nothing about what is computed, up to rounding; time; what is trained, or how exactly."""

DISRUPTIONS: tuple[Disruption, ...] = get_args(Disruption)
"""From least to most."""


class NotApplicable(Exception):  # noqa: N818 - an answer, not an error
    """A remedy has nothing to propose; the message says why."""


@dataclass(frozen=True)
class Situation:
    """What a remedy may look at before it proposes anything."""

    job: Job
    """A copy, on meta: to look at, not to change."""
    device: Device
    predict: Callable[[], Footprint]

    @cached_property
    def footprint(self) -> Footprint:
        """What the job needs as it is. The first look may take a prediction."""
        return self.predict()


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """One way to change a job, as its user would change their code."""

    name: str
    """A short one, to ask for it by: ``"lora"``."""
    title: str
    """``"LoRA of rank 16"``."""
    disruption: Disruption
    cost: str
    """What it costs, in a phrase: recomputation, quality, speed."""
    code: str
    """The lines to add, where ``model``, ``optimizer`` and ``batch`` are what was predicted.

    They are run to get the changed job, unless ``apply`` says how."""
    apply: Callable[[Job], Job] | None = None
    """Change a copy of the job, in place or by returning another, where its lines cannot be run without GPU or data."""
    makes_weights: bool = False
    """The lines make parameters, whose values nobody needs here."""
    micro_batches: int = 1
    """The step is to go through the batch in so many parts."""
    loss_scaling: bool = False
    """The step is to scale the loss, with a GradScaler."""
    order: int = 0
    """Changes with lower numbers go first: what replaces modules, what wraps them, the optimizer, the step."""
    kind: str = ""
    """No two changes of one kind go together; by default the kind is the remedy that proposed it."""
    lighter: str = ""
    """The name of a change of the same kind that always takes less: where that one is too much, so is this."""
    packages: tuple[str, ...] = ()
    """Packages that the code imports beside torch."""
    environment: dict[str, str] = field(default_factory=dict)
    """Variables to set before Python starts, such as PYTORCH_CUDA_ALLOC_CONF."""

    @property
    def missing(self) -> tuple[str, ...]:
        """The packages that are not installed here."""
        return tuple(name for name in self.packages if not _is_installed(name))


Remedy = Callable[[Situation], Iterable[Change]]
"""Proposes changes, the gentlest first. Raises `NotApplicable` where there are none."""


def _is_installed(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True
