"""A copy of a job that may be changed: what a remedy works on, and what it does to optimizers and batches."""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from willfit._copying import Copier
from willfit._globals import exchanged_globals
from willfit._placement import optimizers_of, tensors_of

Step = Callable[[Any, Any, Any], Any]

# Values of tensors up to so many elements are kept: masks, lengths, positions.
_MOST_ELEMENTS = 2**17


@dataclass(frozen=True, slots=True)
class Job:
    """What `willfit.predict` takes. Its parts may be changed in place where it is a copy."""

    model: nn.Module
    optimizer: Any
    batch: Any
    step: Step | None = None
    loss: Callable[[Any, Any], torch.Tensor] | None = None

    def but(self, **parts: Any) -> Job:
        """The job with other parts."""
        return replace(self, **parts)


@contextmanager
def copied(job: Job) -> Iterator[Job]:
    """A copy of the job without the memory of its tensors; what is done to it does not reach the user's own.

    Within the block, globals that the step reaches are copies too. Parameters and buffers are on meta; small tensors of
    whole numbers, which a step may read, keep their values.
    """
    copier = _OnMeta().copier
    parts = {name: copier.copy(getattr(job, name)) for name in ("model", "optimizer", "batch", "step", "loss")}
    with exchanged_globals(copier):
        yield Job(**parts)


class _OnMeta:
    """Copies tensors without their memory, with all that hangs on them."""

    def __init__(self) -> None:
        self.copier = Copier(self._tensor)

    def _tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.numel() <= _MOST_ELEMENTS and not tensor.is_floating_point() and tensor.device.type != "meta":
            copied = tensor.detach().to("cpu", copy=True)
        else:
            copied = torch.empty_like(tensor.detach(), device="meta")
        if isinstance(tensor, nn.Parameter):  # of a class of its own where bitsandbytes has packed it
            copied = torch.Tensor._make_subclass(type(tensor), copied, tensor.requires_grad)
        else:
            copied.requires_grad_(tensor.requires_grad)
        self.copier.memo[id(tensor)] = copied  # before its hooks, which may lead to it again
        if tensor.is_leaf and tensor.grad is not None:
            copied.grad = self.copier.copy(tensor.grad)
        for name, value in vars(tensor).items():
            setattr(copied, name, self.copier.copy(value))
        for hook in (tensor._backward_hooks or {}).values():
            copied.register_hook(self.copier.copy(hook))
        for hook in (getattr(tensor, "_post_accumulate_grad_hooks", None) or {}).values():
            copied.register_post_accumulate_grad_hook(self.copier.copy(hook))
        return copied


@contextmanager
def quiet() -> Iterator[None]:
    """Within the block no warning is given and errors alone are logged: the same would be said for every change."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


# -- optimizers --------------------------------------------------------------------------------------------------------


@contextmanager
def held_back(optimizer: Any) -> Iterator[None]:
    """Within the block optimizers neither step nor clear gradients, as between the parts of a batch."""
    each = list(optimizers_of(optimizer))
    for one in each:
        vars(one).update(step=_closure_alone, zero_grad=_nothing)
    try:
        yield
    finally:
        for one in each:
            del vars(one)["step"], vars(one)["zero_grad"]


def _closure_alone(closure: Callable[[], Any] | None = None) -> Any:
    return None if closure is None else closure()


def _nothing(*_: Any, **__: Any) -> None:
    return None


# -- batches -----------------------------------------------------------------------------------------------------------


def batch_size(batch: Any) -> int | None:
    """Samples in a batch: the first dimension that most of its tensors have; None where they have none."""
    sizes = Counter(tensor.size(0) for tensor in tensors_of(batch) if tensor.dim())
    return sizes.most_common(1)[0][0] if sizes else None


def sequence_length(batch: Any) -> int | None:
    """Tokens in each sample: the second dimension that all matrices of whole numbers have; None where they differ."""
    sizes = {t.size(1) for t in tensors_of(batch) if t.dim() == 2 and not t.is_floating_point()}
    return sizes.pop() if len(sizes) == 1 else None


def with_batch_size(batch: Any, size: int) -> Any:
    """The batch with so many samples: its own first ones, over again where there are fewer."""
    own = batch_size(batch)
    return mapped(batch, lambda t: _resized(t, 0, size) if t.dim() and t.size(0) == own else t)


def with_sequence_length(batch: Any, length: int) -> Any:
    """The batch with so many tokens in each sample."""
    own = sequence_length(batch)
    return mapped(batch, lambda t: _resized(t, 1, length) if t.dim() >= 2 and t.size(1) == own else t)


def _resized(tensor: torch.Tensor, dim: int, size: int) -> torch.Tensor:
    if tensor.numel() // max(1, tensor.size(dim)) * size > _MOST_ELEMENTS:
        tensor = tensor.detach().to("meta").requires_grad_(tensor.requires_grad)
    where = torch.arange(size, device="cpu") % max(1, tensor.size(dim))
    if tensor.device.type != "cpu":
        where = where.to(tensor.device)
    return tensor.detach().index_select(dim, where).requires_grad_(tensor.requires_grad)


def mapped(value: Any, function: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """A batch with each tensor replaced by what a function makes of it; containers of the same kinds."""
    return Copier(function).copy(value)
