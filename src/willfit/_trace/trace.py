"""What one traced job did: every allocation and free, in order. Plain data, free of torch."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from typing import Literal, get_args

from willfit._errors import UsageError

Role = Literal[
    "parameters", "buffers", "gradients", "optimizer states", "activations", "inputs", "workspaces", "temporaries"
]
Phase = Literal["placement", "forward", "backward", "optimizer step"]
Engine = Literal["symbolic", "emulated"]

ROLES: tuple[Role, ...] = get_args(Role)
PHASES: tuple[Phase, ...] = get_args(Phase)
ENGINES: tuple[Engine, ...] = get_args(Engine)


def check_engine(engine: object) -> None:
    """Raise `UsageError` for an engine that is none."""
    if engine not in ENGINES:
        raise UsageError(f"engine must be one of {', '.join(map(repr, ENGINES))}: found {engine!r}")


@dataclass(frozen=True, slots=True)
class Allocation:
    """One storage asked of the caching allocator."""

    size: int
    """Bytes asked for, before the allocator rounds them up."""
    role: Role
    """What the storage turned out to be."""
    step: int
    """0 is placement; the steps count from 1."""
    phase: Phase
    module: str
    """Path of the module that was running, or whose backward was, or whose parameter an optimizer's state is for:
    ``"model.layers.0.mlp"``; "" outside of all."""
    op: str
    """The operator: ``"aten.mm.default"``."""
    source: str
    """The user's line that led to it: ``"train.py:12"``; "" where none is known."""
    stream: int = 0
    """The CUDA stream it was made on; 0 is the default one."""


@dataclass(frozen=True, slots=True)
class Mark:
    """From event number ``event`` on, the job is in this step and phase."""

    event: int
    step: int
    phase: Phase


@dataclass(frozen=True, slots=True)
class Transfers:
    """What crosses the link between the host and the GPU in one step, in bytes."""

    to_host: int = 0
    to_gpu: int = 0
    paged: int = 0
    """Managed memory that the step uses, which the driver moves only where the GPU has no room for it."""


@dataclass(frozen=True, slots=True)
class JobSummary:
    """What kind of job it is, for the sentences of the bill."""

    model: str
    """The model's class."""
    optimizer: str
    """The optimizer's class; "" without one."""
    parameters: int
    """Elements, each shared tensor once."""
    trainable: int
    """Elements of the parameters that need a gradient."""
    dtypes: tuple[tuple[str, int], ...]
    """Elements by dtype, the most common first: ``(("bfloat16", 8_030_261_248),)``."""
    batch: str
    """Names and shapes: ``"input_ids 1 x 2048, labels 1 x 2048"``."""


@dataclass(frozen=True, slots=True)
class Trace:
    """Every allocation and free of a few training steps, in order.

    ``events`` holds one integer per event: ``i + 1`` allocates ``allocations[i]``, ``-(i + 1)`` frees it, and 0 stands
    for ``torch.cuda.empty_cache()``.
    """

    allocations: tuple[Allocation, ...]
    events: array[int]
    marks: tuple[Mark, ...]
    job: JobSummary
    assumptions: tuple[str, ...] = ()
    """What was decided or not modelled, in sentences for people."""
    convolution_workspace: int = 0
    """Upper bound in bytes on the workspace that cuDNN may take beside what was traced; 0 without convolutions."""
    steps: int = field(default=1)
    """How many optimisation steps were traced."""
    target: Literal["cuda", "cpu"] = "cuda"
    """Whose allocator gets the requests: PyTorch's caching one, or the CPU's, which gives what it is asked for."""
    engine: Engine = "symbolic"
    """What followed the job: the rules on fake tensors, or PyTorch's own CUDA code on an emulated GPU."""
    transfers: tuple[Transfers, ...] = ()
    """Of each step, from the first; empty where the engine does not know them."""
    is_repeatable: bool = True
    """False where the job drew random numbers on the host, so that it may go another way the next time."""
    reads_batch: bool = True
    """False where nothing asked what the batch holds, so that the job goes the same way whatever that is."""
