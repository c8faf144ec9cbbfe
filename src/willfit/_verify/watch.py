"""``willfit.watch``: the user's own first steps on a GPU, measured as they happen."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from willfit._errors import UnavailableError
from willfit._footprint import Footprint
from willfit._placement import optimizers_of
from willfit._replay import PhasePeak
from willfit._trace.following import Follower, phases_and_modules
from willfit._trace.trace import JobSummary, Phase, Role, Trace
from willfit._verify.compare import compare
from willfit._verify.surroundings import OTHERS, context_of_this_process, driver_version, versions
from willfit._verify.verification import Measurement, Verification, parse_tolerance
from willfit._verify.verify import TOLERANCE

if TYPE_CHECKING:
    from torch import nn

    from willfit._job import Loss
    from willfit._run import Step


class Watch:
    """Watches a GPU's memory through the first steps of a training loop, by hooks that it takes off again.

    It reads the allocator's own counts when a phase begins, records nothing and runs nothing. Once, when it starts, it
    resets the peaks that ``torch.cuda.max_memory_allocated()`` and the like report.

    Example:
        >>> with willfit.watch(model, optimizer, batch) as watched:  # doctest: +SKIP
        ...     train(model, optimizer, loader)
        >>> print(watched.verification)  # doctest: +SKIP
    """

    verification: Verification | None = None
    """What came out; None until so many steps were made, or where fewer than one was."""

    def __init__(
        self,
        predicted: Footprint,
        optimizer: Any,
        others: int,
        tolerance: float,
    ) -> None:
        assert predicted.device is not None
        assert predicted.device.index is not None
        self._predicted = predicted
        self._index = predicted.device.index
        self._optimizers = {id(getattr(each, "optimizer", each)) for each in optimizers_of(optimizer)}
        self._others = others
        self._tolerance = tolerance
        self._done: Callable[[Verification], None] = lambda verification: None
        self._stack = ExitStack()
        self._meter: _Meter | None = None

    def when_done(self, call: Callable[[Verification], None]) -> None:
        """Have this called with the verification, once it is there."""
        self._done = call

    def __enter__(self) -> Watch:
        torch.cuda.reset_peak_memory_stats(self._index)
        self._meter = _Meter(self._index, self._others, self._predicted.steps, self._finish)
        self._stack.enter_context(phases_and_modules(self._meter))
        self._stack.callback(register_optimizer_step_pre_hook(self._steps_now).remove)
        self._stack.callback(register_optimizer_step_post_hook(self._stepped).remove)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._meter is not None and kind is None:
            self._meter.close()
        self._finish()

    def _is_watched(self, optimizer: Any) -> bool:
        return not self._optimizers or id(optimizer) in self._optimizers

    def _steps_now(self, optimizer: Any, *_: Any) -> None:
        if self._meter is not None and self._is_watched(optimizer):
            self._meter.enter("optimizer step")

    def _stepped(self, optimizer: Any, *_: Any) -> None:
        if self._meter is not None and self._is_watched(optimizer):
            self._meter.optimizer_steps += 1

    def _finish(self) -> None:
        """Take the hooks off, and compare what was read."""
        meter, self._meter = self._meter, None
        self._stack.close()
        if meter is None or not meter.optimizer_steps:
            return
        device = self._predicted.device
        assert device is not None
        measurement = Measurement(
            self._predicted,
            tuple(meter.peaks),
            f"its first steps on the {device.name} that is here",
            measured_context=context_of_this_process(self._index),
            driver=driver_version(),
            versions=versions(),
            notes=("peaks are those up to the end of each phase", *((OTHERS,) if self._others else ())),
            has_reserved=not self._others,
            cumulative=True,
            comparable=frozenset((peak.step, peak.phase) for peak in meter.peaks),
        )
        self.verification = compare("watch", measurement, self._tolerance)
        self._done(self.verification)


class _Meter(Follower):
    """Reads the allocator's counts whenever a phase begins."""

    def __init__(self, index: int, others: int, steps: int, finished: Callable[[], None]) -> None:
        super().__init__((0, 0), 0)
        self.peaks: list[PhasePeak] = []
        self.optimizer_steps = 0
        self._index = index
        self._others = others
        self._steps = steps
        self._finished = finished
        self._open: tuple[int, Phase] = (0, "placement")

    def enter(self, phase: Phase, step: int | None = None) -> None:
        """The job enters a phase; a forward after an optimizer step begins a step."""
        if phase == "forward" and self.step <= self.optimizer_steps:
            if self.optimizer_steps == self._steps:
                self.close()
                self._finished()
                return
            step = self.optimizer_steps + 1
        super().enter(phase, step)

    def enter_module(self, module: torch.nn.Module) -> None:
        """The first module of all begins the first step."""
        if self.phase == "placement":
            self.enter("forward", 1)

    def _phase_changed(self) -> None:
        self.close()
        self._open = (self.step, self.phase)

    def close(self) -> None:
        """The phase is over."""
        stats = torch.cuda.memory_stats(self._index)
        self.peaks.append(
            PhasePeak(
                *self._open,
                max(0, stats["allocated_bytes.all.peak"] - self._others),
                max(0, stats["reserved_bytes.all.peak"] - self._others),
                max(0, stats["allocated_bytes.all.current"] - self._others),
            )
        )

    def collect_garbage(self) -> None:
        """Nothing: the program runs as it would."""

    def leave_module(self) -> None:
        """Nothing."""

    def mark_role(self, tensors: Iterable[Any], role: Role, module: str | None = None) -> None:
        """Nothing: roles are not measured."""

    def mark_live_temporaries(self, role: Role) -> None:
        """Nothing."""

    def _module_changed(self) -> None:
        raise AssertionError("modules are not followed")

    def place(self, meta: torch.Tensor, role: Role, module: str, original: torch.Tensor) -> torch.Tensor:
        """Never called: the program places its tensors itself."""
        raise AssertionError("a watch places nothing")

    def as_parameter(self, tensor: torch.Tensor, kind: type[torch.nn.Parameter], requires_grad: bool) -> torch.Tensor:
        """Never called."""
        raise AssertionError("a watch places nothing")

    def own_cpu_tensor(self, tensor: torch.Tensor) -> None:
        """Never called."""

    def trace(self, steps: int, job: JobSummary) -> Trace:
        """Never called."""
        raise AssertionError("a watch records nothing")


def watch(
    model: nn.Module,
    optimizer: Any,
    batch: Any,
    step: Step | None = None,
    *,
    loss: Loss | None = None,
    on: str | int | torch.device | None = None,
    steps: int = 3,
    tolerance: str | float = TOLERANCE,
) -> Watch:
    """Predict a training job, and measure its first steps on this GPU while the user's own code runs them.

    Use it as a context around the training. After ``steps`` optimizer steps, or at the end if there are fewer, it takes
    its hooks off and holds what it read against the prediction: `Watch.verification`.

    Args:
        model: as for `willfit.predict`, before anything of the training has run.
        optimizer: whose steps are counted; None counts those of all.
        batch: the first, which the prediction is made with.
        step: what one step of the training does, for the prediction; the training itself is not changed.
        loss: ``loss(model, batch)``, for the prediction.
        on: the GPU of this process that is used, "cuda:1"; None: the current one.
        steps: how many optimizer steps to watch.
        tolerance: how far predicted and measured may be apart, "2%".

    Raises:
        UnavailableError: this process has no GPU.
        UsageError, JobError: as `willfit.predict` raises them.
    """
    from willfit._job import tensors_outside
    from willfit._predict import predict

    allowed = parse_tolerance(tolerance)
    if not torch.cuda.is_available():
        raise UnavailableError("watch measures a GPU of this process, and it has none; willfit.verify works without")
    predicted = predict(model, optimizer, batch, step, loss=loss, on=on if on is not None else "cuda", steps=steps)
    if predicted.device is None or predicted.device.index is None:
        raise UnavailableError(f"watch measures a GPU of this process: name one as in on='cuda:0', found {on!r}")
    others = tensors_outside(model, optimizer, batch, predicted.device.index)
    return Watch(predicted, optimizer, others, allowed)
