"""What goes to the process that emulates a GPU, and what comes back. Plain data, free of torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from willfit._devices import Device
from willfit._replay import OutOfMemoryPlace, PhasePeak
from willfit._trace.trace import Trace

REQUEST, JOB, FREE, LIMITED = "request", "job", "free", "limited"
"""Names of files: the `Request`; the job as wire.py packs it, unless the request names a target; the results of the run
without limit and of that with one, each `Ran` or `Failed`."""


@dataclass(frozen=True)
class Request:
    """What to run."""

    target: str | None
    """Where the process gets the job: a target of the command line to import; None: the packed job."""
    device: Device
    steps: int
    capacity: int | None
    """Bytes that the card's allocator may take; where a run without limit takes more, another has this limit."""
    path: tuple[str, ...]
    """Further directories that the user's modules are imported from."""
    script: tuple[str, ...] = ()
    """A training script and its arguments, to run in place of a job."""


@dataclass(frozen=True)
class Ran:
    """What PyTorch's own allocator did in one run."""

    trace: Trace | None
    """None where memory ran out."""
    phases: tuple[PhasePeak, ...]
    peak_allocated: int
    """``torch.cuda.max_memory_allocated()`` at the end."""
    peak_reserved: int
    """``torch.cuda.max_memory_reserved()`` at the end."""
    retries: int
    """How often cached memory had to be given back before an allocation succeeded."""
    out_of_memory: OutOfMemoryPlace | None
    seconds: dict[str, float] = field(default_factory=dict)
    """What took how long."""
