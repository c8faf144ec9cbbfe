"""``@willfit.guard``: predicts what a training function needs when it is called, and refuses before its first line.

``WILLFIT=off``, ``warn`` or ``raise`` in the environment goes before what the code says.
"""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar, overload

from willfit._errors import JobError, UsageError
from willfit._preflight import Job, Preflight, WillfitWarning

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator
    from lightning.fabric import Fabric

    from willfit._devices import Device
    from willfit._job import Loss
    from willfit._run import Step
    from willfit._trace.trace import Engine

__all__ = ["WillfitWarning", "guard"]

P = ParamSpec("P")
T = TypeVar("T")


@overload
def guard(function: Callable[P, T], /) -> Callable[P, T]: ...
@overload
def guard(
    *,
    on: str | int | Device | torch.device | None = None,
    capacity: str | int | None = None,
    action: Literal["raise", "warn"] = "raise",
    advise: bool = True,
    steps: int = 3,
    step: Step | None = None,
    loss: Loss | None = None,
    engine: Engine = "symbolic",
    verify: bool | str = False,
    tolerance: str | float = "2%",
    model: str | None = None,
    optimizer: str | None = None,
    batch: str | None = None,
    shapes: Literal["longest", "first"] | None = None,
    accelerator: Accelerator | None = None,
    fabric: Fabric | None = None,
) -> Callable[[Callable[P, T]], Callable[P, T]]: ...
def guard(
    function: Any = None,
    /,
    *,
    on: Any = None,
    capacity: Any = None,
    action: Any = "raise",
    advise: Any = True,
    steps: Any = 3,
    step: Any = None,
    loss: Any = None,
    engine: Any = "symbolic",
    verify: Any = False,
    tolerance: Any = "2%",
    model: Any = None,
    optimizer: Any = None,
    batch: Any = None,
    shapes: Any = None,
    accelerator: Any = None,
    fabric: Any = None,
) -> Any:
    """Predict what a training function needs each time it is called, and refuse before its first line if it won't fit.

    Model, optimizer and batch are found among the arguments by their types, as docs/guard.md tells; a DataLoader gives
    its largest, without being used up. The job predicted is ``steps`` steps on it, not the function's
    own lines.
    Coroutine and generator functions are checked when they first run: at ``await``, at the first ``next()``.

    Args:
        function: what to guard: a function or method, also a classmethod or staticmethod.
        on: a GPU's name ("A100-80GB"), a size ("24 GiB"), a device here ("cuda:1"), or a `willfit.Device`. None: the
            GPU that this process would use when the function is called.
        capacity: what the allocator may hold, in bytes or as "14 GiB", in place of the device's own figure.
        action: "raise" `WillNotFit`, or "warn" with a `WillfitWarning` and run on.
        advise: with the refusal, say what would make the job fit: each change is predicted, which may take a minute.
        steps: how many optimizer steps to predict.
        step: ``step(model, optimizer, batch)``, one whole optimisation step; without it the loss, backward,
            ``optimizer.step()``, ``optimizer.zero_grad()``.
        loss: ``loss(model, batch)``, a scalar tensor; without it ``model(**batch).loss``.
        engine: "symbolic", or "emulated" for PyTorch's own CUDA code on an emulated GPU, as in `willfit.predict`.
        verify: hold the prediction against a measurement, and warn where they differ by more than ``tolerance``: True
            for the most faithful that this machine has, or "cuda", "emulated" or "cpu", as in `willfit.verify`, before
            the function runs; "watch" while it runs, as `willfit.watch` does.
        tolerance: how far they may be apart, "2%".
        model: the name of the parameter that is the model, where types leave it open; "self.net" for an attribute.
        optimizer: the name of the parameter that is the optimizer.
        batch: the name of the parameter that is the batch, or the loader of it.
        shapes: which batch of a loader is predicted: "longest", the largest that it can give, found in up to 1,000
            samples, or the "first". None: the longest where the dataset can be indexed, else the first.
        accelerator: the `accelerate.Accelerator` that the function trains with. The default step is then as it does
            it, and its processes agree before any of them raises.
        fabric: the `lightning.fabric.Fabric` that the function trains with, likewise.

    Raises:
        UsageError: when decorating, for an option that cannot be; when called, for arguments that leave it open what
            the job is, or if no GPU is named and none is here.
        WillNotFit: when called; carries ``footprint`` and ``advice``.
        JobError: when called and the job could not be predicted (a warning with action="warn").
        UnavailableError: likewise, where this machine lacks what the emulated engine needs.

    Example:
        >>> import torch, willfit
        >>> @willfit.guard(on="T4", loss=lambda model, batch: model(batch).sum())
        ... def train(model, optimizer, batch):
        ...     return "trained"
        >>> model = torch.nn.Linear(1024, 1024, device="meta")
        >>> train(model, torch.optim.AdamW(model.parameters()), torch.zeros(8, 1024))
        'trained'
        >>> model = torch.nn.Linear(65536, 65536, device="meta")  # 16 GiB
        >>> train(model, torch.optim.AdamW(model.parameters()), torch.zeros(8, 65536))  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        willfit._errors.WillNotFit: train() was not run: it will not fit on T4...
    """
    preflight = Preflight(
        on=on,
        capacity=capacity,
        action=action,
        advise=advise,
        steps=steps,
        engine=engine,
        verify=verify,
        tolerance=tolerance,
    )
    options = _Options(preflight, step, loss, model, optimizer, batch, shapes, accelerator, fabric)
    return functools.partial(_guarded, options) if function is None else _guarded(options, function)


@dataclass(frozen=True, slots=True)
class _Options:
    preflight: Preflight
    step: Any
    loss: Any
    model: Any
    optimizer: Any
    batch: Any
    shapes: Any
    accelerator: Any
    fabric: Any

    def __post_init__(self) -> None:
        for name in ("step", "loss"):
            if (value := getattr(self, name)) is not None and not callable(value):
                raise UsageError(f"{name} must be a function or None: found {value!r}")
        if self.step is not None and self.loss is not None:
            raise UsageError("step= and loss= are both given: a step has its own loss; leave out one of them")
        for name in ("model", "optimizer", "batch"):
            if (value := getattr(self, name)) is not None and not isinstance(value, str):
                raise UsageError(
                    f'{name} must be the name of a parameter, such as {name}="{name}": found {type(value).__name__}'
                )
        if self.shapes not in (None, "longest", "first"):
            raise UsageError(f'shapes must be "longest", "first" or None: found {self.shapes!r}')
        if self.accelerator is not None and self.fabric is not None:
            raise UsageError("accelerator= and fabric= are both given: leave out the one that does not train")


def _guarded(options: _Options, function: Any) -> Any:
    if isinstance(function, (classmethod, staticmethod)):
        return type(function)(_guarded(options, function.__func__))
    check = _Check(options, function)
    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def guarded(*args: Any, **kwargs: Any) -> Any:
            call = check(args, kwargs)
            with call.watched:
                return await function(*call.args, **call.kwargs)

    elif inspect.isgeneratorfunction(function):

        @functools.wraps(function)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            call = check(args, kwargs)
            with call.watched:
                return (yield from function(*call.args, **call.kwargs))

    else:

        @functools.wraps(function)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            call = check(args, kwargs)
            with call.watched:
                return function(*call.args, **call.kwargs)

    return guarded


@dataclass(frozen=True, slots=True)
class _Call:
    """How to call the function, and what to do around it."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    job: Job | None = None
    watched: AbstractContextManager[Any] = field(default_factory=nullcontext)


class _Check:
    """What happens before a guarded function's first line."""

    def __init__(self, options: _Options, function: Any) -> None:
        if isinstance(function, type) or not callable(function):
            raise UsageError(
                f'guard takes a function, and its options by keyword, as in guard(on="T4"): found {function!r}'
            )
        try:
            parameters = inspect.signature(function).parameters
        except ValueError as error:
            raise UsageError(f"{function!r} does not say what its parameters are, so it cannot be guarded") from error
        takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        for name in ("model", "optimizer", "batch"):
            wanted = getattr(options, name)
            if wanted is not None and not takes_any and wanted.partition(".")[0] not in parameters:
                raise UsageError(f"{name}={wanted!r} names no parameter: they are {', '.join(parameters) or 'none'}")
        self._options = options
        self._function = function
        self._name = f"{getattr(function, '__name__', type(function).__name__)}()"

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Call:
        """How to call the function. Raises what `guard` raises."""
        options, preflight = self._options, self._options.preflight
        if preflight.action_now() == "off":
            return _Call(args, kwargs)

        if options.accelerator is None and options.fabric is None:
            call, warning = self._look(preflight, args, kwargs)
        else:
            call, warning = self._look_together(preflight, args, kwargs)
        if warning is not None:
            warnings.warn(warning, WillfitWarning, 3)
        return (
            _Call(call.args, call.kwargs) if call.job is None else replace(call, watched=preflight.verified(call.job))
        )

    def _look_together(self, preflight: Preflight, args: Any, kwargs: Any) -> tuple[_Call, str | None]:
        """In each of the processes that train together: all raise, or none."""
        from willfit.integrations._ranks import agreed, world_size

        if world_size() > 1:  # the advice of one process would keep the others waiting
            preflight = replace(preflight, advise=False)
        calls = []

        def look() -> str | None:
            call, warning = self._look(preflight, args, kwargs)
            calls.append(call)
            return warning

        warning = agreed(look)
        return calls[0], warning

    def _look(self, preflight: Preflight, args: Any, kwargs: Any) -> tuple[_Call, str | None]:
        """How to call the function, and what to warn of."""
        from willfit._arguments import find

        options, device = self._options, preflight.device(self._name)
        names = {"model": options.model, "optimizer": options.optimizer, "batch": options.batch}
        try:
            several = options.step is not None
            found = find(self._function, args, kwargs, several=several, shapes=options.shapes, **names)
            args, kwargs = found.args, found.kwargs
            if _is_traced(found.model):
                return _Call(args, kwargs), None
            model, step, loss = found.model, options.step, options.loss
            if options.accelerator is not None:
                from willfit.integrations.accelerate import prepared_job

                (model, step), loss = prepared_job(options.accelerator, model, step, loss), None
            elif options.fabric is not None:
                from willfit.integrations import fabric

                (model, step), loss = fabric.prepared_job(options.fabric, model, step, loss), None
        except JobError as error:
            return _Call(args, kwargs), preflight.unpredicted(self._name, error)
        job = Job(self._name, model, found.optimizer, found.batch, step, loss, f"Taken from the call: {found.taken}.")
        return _Call(args, kwargs, job), preflight.check(job, device)


def _is_traced(model: torch.nn.Module) -> bool:
    """Whether the call is itself part of a step that is being predicted."""
    from willfit._trace.fake import FakeCudaTensor

    return any(isinstance(parameter, FakeCudaTensor) for parameter in model.parameters())
