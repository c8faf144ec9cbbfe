"""``willfit.largest_batch``: the largest batch that fits, found with few traces.

While the operators of a step stay the same, the size of each of its allocations is affine in the batch: two traces give
those of every other batch. What they give is then checked by traces of that batch and the next one up.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Literal

from willfit._allocator_settings import AllocatorSettings
from willfit._changing import Job, batch_size, copied, quiet, sequence_length, with_batch_size, with_sequence_length
from willfit._devices import Device, resolve_device
from willfit._errors import JobError, UsageError
from willfit._footprint import Footprint, footprint_of
from willfit._parallel import each_of
from willfit._predict import followed
from willfit._replay import replay
from willfit._trace.trace import Engine, Trace, check_engine

if TYPE_CHECKING:
    import torch
    from torch import nn

    from willfit._job import Loss
    from willfit._run import Step

What = Literal["batch size", "sequence length"]

SCHEMA = 1
"""Version of ``Largest.to_dict()``."""

_MOST = 2**20  # samples, or tokens in one: beyond that none are looked for
_TOKENS = 64  # sequences are made longer by as many


_NO_SAMPLES = "the batch has no dimension of samples, so that it cannot be made larger"
_NO_TOKENS = "the batch has no tensors of tokens: whole numbers, a row for each sample, and all rows of one length"


@dataclass(frozen=True)
class Largest:
    """The largest batch, or the longest sequences, with which a job fits."""

    what: What
    size: int
    """Samples in a batch, or tokens in a sequence; 0 where not even the smallest fits."""
    footprint: Footprint | None
    """The job of that size; None where not even the smallest fits."""
    beyond: Footprint | None
    """The job of the next size up, which does not fit; None where no larger one is looked for: a million samples fit,
    or the model has positions for no more tokens."""
    traces: int
    """How often the job was followed to find it."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, as docs/schema.md describes them; sizes are bytes."""
        return {
            "schema": SCHEMA,
            "what": self.what,
            "size": self.size,
            "traces": self.traces,
            "footprint": None if self.footprint is None else self.footprint.to_dict(),
            "beyond": None if self.beyond is None else self.beyond.to_dict(),
        }

    @property
    def next_size(self) -> int:
        """The next size up."""
        return self.size + (1 if self.what == "batch size" else _TOKENS)

    def __int__(self) -> int:
        return self.size

    def __str__(self) -> str:
        from willfit._render.largest import largest_text

        return largest_text(self)


def largest_batch(
    model: nn.Module,
    optimizer: Any,
    batch: Any,
    step: Step | None = None,
    *,
    loss: Loss | None = None,
    on: str | int | Device | torch.device | None = None,
    capacity: str | int | None = None,
    steps: int = 3,
    engine: Engine = "symbolic",
) -> Largest:
    """The largest batch with which the job fits a GPU, tightly perhaps: one sample more, and it does not.

    Takes what `willfit.predict` takes; the samples of the batch given are used over again in larger ones. Reserved
    memory does not always grow with the batch, as freed blocks may happen to fit better: where a size above the next
    one up would fit again, it is not looked for.

    Raises:
        UsageError: no GPU is named and none is here.
        JobError: the job cannot be predicted, or its batch has no dimension of samples.

    Example:
        >>> import torch, willfit
        >>> model = torch.nn.Linear(1024, 1024, bias=False)
        >>> optimizer = torch.optim.SGD(model.parameters())
        >>> toy = willfit.Device(name="toy", total=128 * 2**20, context=0)
        >>> job = model, optimizer, torch.zeros(8, 1024)
        >>> largest = willfit.largest_batch(*job, loss=lambda model, batch: model(batch).sum(), on=toy)
        >>> largest.footprint.verdict, largest.beyond.verdict
        ('tight', 'does not fit')
    """
    return _largest("batch size", Job(model, optimizer, batch, step, loss), on, capacity, steps, engine)


def largest_sequence(
    model: nn.Module,
    optimizer: Any,
    batch: Any,
    step: Step | None = None,
    *,
    loss: Loss | None = None,
    on: str | int | Device | torch.device | None = None,
    capacity: str | int | None = None,
    steps: int = 3,
    engine: Engine = "symbolic",
) -> Largest:
    """The longest sequences, in multiples of 64 tokens, with which the job fits a GPU; else as `largest_batch`.

    Raises what `largest_batch` raises.
    """
    return _largest("sequence length", Job(model, optimizer, batch, step, loss), on, capacity, steps, engine)


def _largest(what: What, job: Job, on: Any, capacity: Any, steps: int, engine: Engine) -> Largest:
    check_engine(engine)
    device = resolve_device(on, capacity)
    if device is None:
        raise UsageError('the largest batch is for a GPU, and none is here: name one as in on="T4"')
    return _Search(what, job, device, steps, engine).largest()


class _Search:
    """Sizes in units of one sample or 64 tokens: those that were followed, and what follows from them for others."""

    def __init__(self, what: What, job: Job, device: Device, steps: int, engine: Engine) -> None:
        self._what, self._job, self._device, self._steps, self._engine = what, job, device, steps, engine
        self._settings = AllocatorSettings.from_environment()
        self._traces: dict[int, Trace] = {}
        self._resized: Callable[[Any, int], Any]
        if what == "batch size":
            measured, self._resized, self._unit, self._most = batch_size(job.batch), with_batch_size, 1, _MOST
        else:
            measured, self._resized, self._unit = sequence_length(job.batch), with_sequence_length, _TOKENS
            self._most = _positions(job.model) // _TOKENS
        if measured is None:
            raise JobError(_NO_SAMPLES if what == "batch size" else _NO_TOKENS)
        if not self._most:
            raise JobError(
                f"sequences are made longer by {_TOKENS} tokens at a time, and the model has positions for "
                f"{_positions(job.model)} only"
            )

    def largest(self) -> Largest:
        self._follow([size for size in self._first() if size <= self._most])
        size = self._guess()
        while True:
            self._follow([each for each in (size, size + 1) if 0 < each <= self._most])
            if size and not self._fits(size):
                size = self._below(size)
            elif size < self._most and self._fits(size + 1):
                size = self._above(size + 1)
            else:
                break
        return Largest(
            self._what,
            size * self._unit,
            self._footprint(size) if size else None,
            self._footprint(size + 1) if size < self._most else None,
            len(self._traces),
        )

    def _first(self) -> list[int]:
        """Sizes that lie apart, as small batches are often done by other kernels; a square needs a third."""
        return [4, 6] if self._what == "batch size" else [4, 6, 8]

    # -- traces --------------------------------------------------------------------------------------------------

    def _follow(self, sizes: list[int]) -> None:
        new = [size for size in sizes if size not in self._traces]
        self._traces.update(zip(new, each_of([_bound(self._trace, size) for size in new]), strict=True))

    def _trace(self, size: int) -> Trace:
        with quiet(), copied(self._job) as job:
            batch = self._resized(job.batch, size * self._unit)
            parts = job.model, job.optimizer, batch, job.step
            return followed(*parts, loss=job.loss, device=self._device, steps=self._steps, engine=self._engine)

    def _footprint(self, size: int) -> Footprint:
        self._follow([size])
        return footprint_of(self._traces[size], self._device, self._settings)

    def _fits(self, size: int) -> bool:
        return self._runs(self._traces[size])

    def _runs(self, trace: Trace) -> bool:
        return replay(trace, self._device.capacity, self._settings, self._device.total).out_of_memory is None

    # -- guesses -------------------------------------------------------------------------------------------------

    def _guess(self) -> int:
        """The largest size that fits by what is known, 0 if none does."""
        high = 1
        while high <= self._most and self._seems_to_fit(high):
            high *= 2
        return self._between(high // 2, min(high, self._most + 1))

    def _between(self, low: int, high: int) -> int:
        """Bisect, where ``low`` seems to fit and ``high`` does not."""
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._seems_to_fit(middle) else (low, middle)
        return low

    def _below(self, size: int) -> int:
        """A size below one that does not fit: what seems right with what is known by now, else the one below."""
        smaller = [each for each in self._traces if each < size and self._fits(each)]
        return self._between(max(smaller, default=0), size)

    def _above(self, size: int) -> int:
        larger = [each for each in self._traces if each > size and not self._fits(each)]
        if larger:
            return self._between(size, min(larger))
        high = size + 1
        while high <= self._most and self._seems_to_fit(high):
            high += high - size
        return self._between(size, min(high, self._most + 1))

    def _seems_to_fit(self, size: int) -> bool:
        if size in self._traces:
            return self._fits(size)
        guessed = self._interpolated(size)
        if guessed is None:
            self._follow([size])
            return self._fits(size)
        return self._runs(guessed)

    def _interpolated(self, size: int) -> Trace | None:
        """The trace of this size, by those of the nearest sizes with the same events; None where there are too few."""
        wanted = 2 if self._what == "batch size" else 3
        near = sorted(self._traces, key=lambda known: abs(known - size))
        if not near:
            return None
        alike = [known for known in near if self._traces[known].events == self._traces[near[0]].events][:wanted]
        if len(alike) < wanted:
            return None
        weights = [_weight(alike, known, size) for known in alike]
        columns = zip(*(self._traces[known].allocations for known in alike), strict=False)
        allocations = tuple(
            replace(row[0], size=max(0, round(sum(w * each.size for w, each in zip(weights, row, strict=True)))))
            for row in columns
        )
        return replace(self._traces[alike[0]], allocations=allocations)


def _positions(model: Any) -> int:
    """Tokens that a model of Transformers can tell the positions of; on fake tensors one too many would be no error."""
    config = getattr(model, "config", None)
    names = ("max_position_embeddings", "n_positions")
    found = [value for name in names if isinstance(value := getattr(config, name, None), int) and value > 0]
    return min(found, default=_MOST)


def _weight(points: list[int], point: int, at: int) -> Fraction:
    """Lagrange's, of what is known at a point for the value somewhere else."""
    weight = Fraction(1)
    for other in points:
        if other != point:
            weight *= Fraction(at - other, point - other)
    return weight


def _bound(function: Callable[[int], Trace], size: int) -> Callable[[], Trace]:
    return lambda: function(size)
