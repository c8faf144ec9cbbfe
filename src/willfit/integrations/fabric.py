"""Loops that `lightning.fabric.Fabric` sets up: its step for the guard."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from willfit.integrations._wrappers import unwrapped

if TYPE_CHECKING:
    from willfit._job import Loss
    from willfit._run import Step


def prepared_job(fabric: Any, model: Any, step: Step | None, loss: Loss | None) -> tuple[Any, Step]:
    """The model without what distributes it, and one step as Fabric makes it.

    Without ``step``, that is what Fabric's guides write: the loss, ``fabric.backward``, the optimizer's step and
    ``zero_grad``.

    Raises `JobError` for a model that is sharded over several GPUs.
    """
    is_set_up = hasattr(model, "_forward_module")
    bare, buckets = unwrapped(model._forward_module if is_set_up else model)
    if is_set_up and buckets is not None:  # a twin of Fabric's wrapper, without DistributedDataParallel in it
        twin = object.__new__(type(model))
        vars(twin).update(vars(model), _modules={**model._modules, "_forward_module": bare})
        bare = twin
    return model if is_set_up and buckets is None else bare, functools.partial(_step, fabric, step, loss, buckets)


def _step(fabric: Any, step: Any, loss: Any, buckets: Any, model: Any, optimizer: Any, batch: Any) -> Any:
    from willfit._job import default_step

    if buckets is not None:
        fabric._strategy._backward_sync_control = None  # no_backward_sync has nothing to hold back
    return (step or default_step(loss, fabric.backward))(model, optimizer, batch)
