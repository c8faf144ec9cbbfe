"""Loops that `accelerate.Accelerator` runs: its step for the guard, and a batch size that is predicted, not tried."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, overload

from willfit._errors import JobError, UnavailableError, UsageError, WillNotFit
from willfit._preflight import Preflight, WillfitWarning
from willfit.integrations._ranks import of_all
from willfit.integrations._wrappers import unwrapped

if TYPE_CHECKING:
    import torch

    from willfit._devices import Device
    from willfit._job import Loss
    from willfit._run import Step

FunctionOfBatchSize = Callable[..., Any]


def prepared_job(accelerator: Any, model: Any, step: Step | None, loss: Loss | None) -> tuple[Any, Step]:
    """The model without what distributes it, and one step as the accelerator makes it.

    Without ``step``, that is what Accelerate's guides write: the loss, ``accelerator.backward``, the optimizer's step
    and ``zero_grad``, within ``accelerator.accumulate(model)``. It steps once in ``gradient_accumulation_steps`` calls.

    Raises `JobError` for a model that is sharded over several GPUs.
    """
    model, buckets = unwrapped(model)
    return model, functools.partial(_step, accelerator, step, loss, buckets)


def _step(accelerator: Any, step: Any, loss: Any, buckets: Any, model: Any, optimizer: Any, batch: Any) -> Any:
    if step is not None:
        return step(model, optimizer, batch)
    from willfit._job import default_step

    with accelerator.accumulate(model):
        return default_step(loss, accelerator.backward)(model, optimizer, batch)


# -- the batch size ----------------------------------------------------------------------------------------------------


@overload
def find_batch_size(function: FunctionOfBatchSize, /) -> FunctionOfBatchSize: ...
@overload
def find_batch_size(
    *,
    starting_batch_size: int = 128,
    reduce_batch_size_fn: Callable[[], int] | None = None,
    job: Callable[[int], tuple[Any, ...]] | None = None,
    step: Step | None = None,
    loss: Loss | None = None,
    on: str | int | Device | torch.device | None = None,
    capacity: str | int | None = None,
) -> Callable[[FunctionOfBatchSize], FunctionOfBatchSize]: ...
def find_batch_size(
    function: Any = None,
    /,
    *,
    starting_batch_size: int = 128,
    reduce_batch_size_fn: Any = None,
    job: Any = None,
    step: Any = None,
    loss: Any = None,
    on: Any = None,
    capacity: Any = None,
) -> Any:
    """Call a function with the largest batch size that fits, predicted instead of found by running out of memory.

    In the place of ``accelerate.utils.find_executable_batch_size``, and used as it is: the function's first parameter
    is the batch size. Where nothing can be predicted it warns, and that decorator does what it does.

    Args:
        function: ``function(batch_size, *args)``.
        starting_batch_size: the largest to use.
        reduce_batch_size_fn: for accelerate's decorator, where the function runs out of memory all the same.
        job: ``job(batch_size)``, which gives (model, optimizer, batch) or (model, optimizer, batch, step). Without it
            they are looked for among the function's arguments, as in `willfit.guard`.
        step: ``step(model, optimizer, batch)``, one whole optimisation step.
        loss: ``loss(model, batch)``, a scalar tensor.
        on: the GPU, as in `willfit.predict`. None: the one that this process would use.
        capacity: what the allocator may hold, in place of the device's own figure.

    Raises:
        UsageError: at once, for a batch size, a GPU or a capacity that is none.
        WillNotFit: when called, if not even one sample fits.

    Example:
        >>> import torch, willfit
        >>> def build(batch_size):
        ...     model = torch.nn.Linear(1024, 1024, device="meta")
        ...     return model, torch.optim.AdamW(model.parameters()), torch.zeros(batch_size, 1024)
        >>> @willfit.find_batch_size(job=build, loss=lambda model, x: model(x).sum(), on="T4", starting_batch_size=64)
        ... def train(batch_size):
        ...     return batch_size
        >>> train()
        64
    """
    if not isinstance(starting_batch_size, int) or isinstance(starting_batch_size, bool) or starting_batch_size < 1:
        raise UsageError(f"starting_batch_size must be a number of samples, 1 or more: found {starting_batch_size!r}")
    Preflight(on=on, capacity=capacity)  # refuses a GPU or a size that is none
    if function is None:
        return functools.partial(
            find_batch_size,
            starting_batch_size=starting_batch_size,
            reduce_batch_size_fn=reduce_batch_size_fn,
            job=job,
            step=step,
            loss=loss,
            on=on,
            capacity=capacity,
        )

    @functools.wraps(function)
    def sized(*args: Any, **kwargs: Any) -> Any:
        from accelerate.utils import find_executable_batch_size

        name, size = f"{getattr(function, '__name__', 'the function')}()", starting_batch_size
        try:
            parts = job(size) if job is not None else _among(function, size, args, kwargs, several=step is not None)
            size = _largest(name, parts, size, step, loss, on, capacity)
        except (JobError, UnavailableError, UsageError) as error:
            text = f"the batch size of {name} could not be predicted, and is tried from {size} down: {error}"
            warnings.warn(text, WillfitWarning, 2)
        tried = find_executable_batch_size(function, _smallest_of_all(size), reduce_batch_size_fn)
        return tried(*args, **kwargs)

    return sized


def _among(function: Any, size: int, args: tuple[Any, ...], kwargs: dict[str, Any], several: bool) -> tuple[Any, ...]:
    from willfit._arguments import find

    found = find(function, (size, *args), kwargs, several=several)
    return found.model, found.optimizer, found.batch


def _largest(name: str, parts: tuple[Any, ...], most: int, step: Any, loss: Any, on: Any, capacity: Any) -> int:
    """The largest batch size that fits, up to ``most``."""
    from willfit._changing import batch_size, with_batch_size
    from willfit._devices import resolve_device
    from willfit._largest import largest_batch
    from willfit._predict import predict

    if resolve_device(on, capacity) is None:
        raise UsageError('no GPU is here: name one as in on="T4"')
    model, optimizer, batch, *own = parts
    model, _ = unwrapped(model)
    if batch_size(batch) is not None:
        batch = with_batch_size(batch, most)
    job = (model, optimizer, batch, *(own or [step]))
    if predict(*job, loss=loss, on=on, capacity=capacity).verdict != "does not fit":
        return most
    found = largest_batch(*job, loss=loss, on=on, capacity=capacity)
    if not found.size and found.beyond is not None:
        raise WillNotFit(f"{name} was not run: not even one sample fits.\n\n{found.beyond}", found.beyond)
    return min(most, found.size)


def _smallest_of_all(size: int) -> int:
    """The smallest of what the processes that train together found, so that all use the same."""
    sizes: list[int] = of_all(size)
    return min(sizes)
