"""``@willfit.guard``: predicts what a training function needs when it is called, and refuses before its first line.

``WILLFIT=off``, ``warn`` or ``raise`` in the environment goes before what the code says.
"""

from __future__ import annotations

import functools
import inspect
import os
import sys
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NoReturn, ParamSpec, TypeVar, overload

from willfit._errors import JobError, UnavailableError, UsageError, WillNotFit
from willfit._trace.trace import ENGINES, Engine

if TYPE_CHECKING:
    import torch

    from willfit._arguments import Found
    from willfit._devices import Device
    from willfit._footprint import Footprint
    from willfit._job import Loss
    from willfit._run import Step
    from willfit._verify.verification import Verification

P = ParamSpec("P")
T = TypeVar("T")

_ENVIRONMENT = "WILLFIT"
_ACTIONS = ("raise", "warn")


class WillfitWarning(UserWarning):
    """What the guard says where it does not refuse: a tight fit, a job that it could not follow, action="warn"."""


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
) -> Any:
    """Predict what a training function needs each time it is called, and refuse before its first line if it won't fit.

    Model, optimizer and batch are found among the arguments by their types, as docs/guard.md tells; a DataLoader gives
    its first batch without being used up. The job predicted is ``steps`` steps on it, not the function's own lines.
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
    options = _Options(
        on, capacity, action, advise, steps, step, loss, engine, verify, tolerance, model, optimizer, batch
    )
    return functools.partial(_guarded, options) if function is None else _guarded(options, function)


@dataclass(frozen=True, slots=True)
class _Options:
    on: Any
    capacity: Any
    action: Any
    advise: Any
    steps: Any
    step: Any
    loss: Any
    engine: Any
    verify: Any
    tolerance: Any
    model: Any
    optimizer: Any
    batch: Any

    def __post_init__(self) -> None:
        if self.action not in _ACTIONS:
            raise UsageError(f'action must be "raise" or "warn": found {self.action!r}')
        if not isinstance(self.advise, bool):
            raise UsageError(f"advise must be True or False: found {self.advise!r}")
        if not isinstance(self.steps, int) or isinstance(self.steps, bool) or self.steps < 1:
            raise UsageError(f"steps must be a number of optimizer steps, 1 or more: found {self.steps!r}")
        for name in ("step", "loss"):
            if (value := getattr(self, name)) is not None and not callable(value):
                raise UsageError(f"{name} must be a function or None: found {value!r}")
        if self.step is not None and self.loss is not None:
            raise UsageError("step= and loss= are both given: a step has its own loss; leave out one of them")
        if self.engine not in ENGINES:
            raise UsageError(f"engine must be one of {', '.join(map(repr, ENGINES))}: found {self.engine!r}")
        for name in ("model", "optimizer", "batch"):
            if (value := getattr(self, name)) is not None and not isinstance(value, str):
                raise UsageError(
                    f'{name} must be the name of a parameter, such as {name}="{name}": found {type(value).__name__}'
                )
        self._check_device()
        self._check_verification()

    def _check_verification(self) -> None:
        if self.verify is False:
            return
        from willfit._verify.verification import parse_tolerance
        from willfit._verify.verifier import check_verifier

        parse_tolerance(self.tolerance)
        if self.verify not in (True, "watch"):
            check_verifier(self.verify)

    def _check_device(self) -> None:
        from willfit._devices import Device, resolve_device
        from willfit._units import parse_size

        if self.capacity is not None:
            parse_size(self.capacity, "capacity")
        here = self.on is None or str(self.on).startswith("cuda")  # looked for when the function is called
        if isinstance(self.on, Device) or not here:
            resolve_device(self.on, self.capacity)


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
        options = self._options
        action = _action_of_environment() or options.action
        if action == "off":
            return _Call(args, kwargs)

        from willfit._arguments import find
        from willfit._devices import resolve_device
        from willfit._predict import predict

        device = resolve_device(options.on, options.capacity)
        if device is None:
            raise UsageError(
                f"{self._name} is guarded for the GPU of this process, and none is here: "
                f'name one as in guard(on="T4"), or set {_ENVIRONMENT}=off'
            )
        names = {"model": options.model, "optimizer": options.optimizer, "batch": options.batch}
        try:
            found = find(self._function, args, kwargs, several=options.step is not None, **names)
            args, kwargs = found.args, found.kwargs
            if _is_traced(found.model):
                return _Call(args, kwargs)
            footprint = predict(
                *(found.model, found.optimizer, found.batch, options.step),
                loss=options.loss,
                on=device,
                steps=options.steps,
                capacity=options.capacity,
                engine=options.engine,
            )
        except (JobError, UnavailableError) as error:
            if action == "raise":
                if sys.version_info >= (3, 11):
                    error.add_note(
                        f"Raised by the guard of {self._name}, which runs all the same with {_ENVIRONMENT}=warn."
                    )
                raise
            warnings.warn(f"{self._name} runs unchecked, as it could not be predicted: {error}", WillfitWarning, 3)
            return _Call(args, kwargs)

        notes = f"Taken from the call: {found.taken}."
        stateless = found.optimizer is None and options.step is None
        if stateless:
            notes += (
                " Optimizer states are not counted: if there will be some, pass the optimizer, or make it in step=."
            )
        if footprint.verdict == "does not fit" and action == "raise":
            self._refuse(found, device, footprint, notes)
        if footprint.verdict != "fits":
            verdict = "will not fit" if footprint.verdict == "does not fit" else "is a tight fit"
            warnings.warn(f"{self._name} {verdict} on {device.name}. {notes}\n\n{footprint}", WillfitWarning, 3)
        elif stateless:
            warnings.warn(f"{self._name} fits on {device.name}. {notes}", WillfitWarning, 3)
        return _Call(args, kwargs, self._verified(found, device))

    def _refuse(self, found: Found, device: Device, footprint: Footprint, notes: str) -> NoReturn:
        options = self._options
        message = f"{self._name} was not run: it will not fit on {device.name}. {notes}\n\n{footprint}"
        advice = None
        if options.advise:
            from willfit._advise import advise
            from willfit._commands.streams import progress_line

            with progress_line() as progress:
                advice = advise(
                    *(found.model, found.optimizer, found.batch, options.step),
                    loss=options.loss,
                    on=device,
                    capacity=options.capacity,
                    steps=options.steps,
                    engine=options.engine,
                    progress=progress,
                )
            message += f"\n\n{advice}"
        raise WillNotFit(message, footprint, advice)

    def _verified(self, found: Found, device: Device) -> AbstractContextManager[Any]:
        """Verify now, and warn of what differs; or return what will, while the function runs."""
        options = self._options
        if options.verify is False:
            return nullcontext()
        from willfit._verify.verifier import JobToVerify
        from willfit._verify.verify import verify_job
        from willfit._verify.watch import watch

        parts = (found.model, found.optimizer, found.batch, options.step)
        try:
            if options.verify == "watch":
                on = options.on if str(options.on).startswith("cuda") else None
                watched = watch(*parts, loss=options.loss, on=on, steps=options.steps, tolerance=options.tolerance)
                watched.when_done(self._warn_of)
                return watched
            job = JobToVerify(*parts, options.loss, options.on, options.capacity, options.steps)
            using = None if options.verify is True else options.verify
            self._warn_of(verify_job(job, options.tolerance, using))
        except (JobError, UnavailableError) as error:
            warnings.warn(f"what {self._name} needs could not be verified: {error}", WillfitWarning, 4)
        return nullcontext()

    def _warn_of(self, verification: Verification) -> None:
        if not verification.agrees:
            warnings.warn(f"what {self._name} needs is not what was predicted.\n\n{verification}", WillfitWarning, 5)


def _action_of_environment() -> str | None:
    action = os.environ.get(_ENVIRONMENT) or None
    if action not in (None, "off", *_ACTIONS):
        raise UsageError(f"{_ENVIRONMENT}={action} in the environment: it must be off, warn or raise")
    return action


def _is_traced(model: torch.nn.Module) -> bool:
    """Whether the call is itself part of a step that is being predicted."""
    from willfit._trace.fake import FakeCudaTensor

    return any(isinstance(parameter, FakeCudaTensor) for parameter in model.parameters())
