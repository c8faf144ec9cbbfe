"""A callback for `transformers.Trainer`, and for the trainers that derive from it, as TRL's do."""

from __future__ import annotations

import copy
import functools
import sys
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch.utils.data import Dataset, Subset

from willfit._copying import Copier
from willfit._errors import JobError, UnavailableError, UsageError
from willfit._preflight import Job
from willfit.integrations._callbacks import TrainingCheck, training_batch
from willfit.integrations._wrappers import unwrapped

try:
    from transformers import TrainerCallback
except ImportError:  # said when a callback is made
    TrainerCallback = None  # type: ignore[misc, assignment]

if TYPE_CHECKING:
    from willfit._devices import Device
    from willfit._trace.trace import Engine


class WillfitCallback(TrainerCallback or object):  # type: ignore[misc]
    """Predict what a Trainer's steps need when training begins, and refuse before the first if they won't fit.

    What is predicted is the Trainer's own ``training_step`` with its arguments: micro-batches, mixed precision,
    checkpointing, clipping and optimizer, on the longest batch that its data and collator can give. Where several
    processes train, all raise or none.

    Args:
        on: a GPU's name ("A100-80GB"), a size ("24 GiB"), a device here, or a `willfit.Device`. None: the GPU that the
            Trainer uses.
        capacity: what the allocator may hold, in bytes or as "14 GiB", in place of the device's own figure.
        action: "raise" `WillNotFit`, or "warn" with a `WillfitWarning` and train on.
        advise: with the refusal, say what would make the job fit.
        steps: how many optimizer steps to predict.
        shapes: "longest", "first", or None for the longest where the dataset can be indexed, as in `willfit.guard`.
        engine: "symbolic", or "emulated", as in `willfit.predict`.
        verify: as in `willfit.guard`; "watch" compares the first steps with the prediction.
        tolerance: how far they may be apart, "2%".

    Raises:
        UnavailableError: at once, if Transformers is not installed.
        UsageError: at once, for an option that cannot be; when training begins, if no GPU is named and none is here.
        WillNotFit: when training begins; carries ``footprint`` and ``advice``.
        JobError: likewise, if the job could not be predicted (a warning with action="warn").
    """

    def __init__(
        self,
        *,
        on: str | int | Device | torch.device | None = None,
        capacity: str | int | None = None,
        action: Literal["raise", "warn"] = "raise",
        advise: bool = True,
        steps: int = 3,
        shapes: Literal["longest", "first"] | None = None,
        engine: Engine = "symbolic",
        verify: bool | str = False,
        tolerance: str | float = "2%",
    ) -> None:
        if TrainerCallback is None:
            raise UnavailableError("transformers is not installed: pip install 'willfit[transformers]'")
        self._check = TrainingCheck(
            on=on,
            capacity=capacity,
            action=action,
            advise=advise,
            steps=steps,
            shapes=shapes,
            engine=engine,
            verify=verify,
            tolerance=tolerance,
        )

    def on_train_begin(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        """Check the job. Called by the Trainer when its model and optimizer are prepared."""
        self._check.end()  # of a training that raised
        if self._check.is_off():
            return
        trainer, loader = _trainer_at_work(), parts.get("train_dataloader")
        name = f"{type(trainer).__name__}.train()"
        self._check.begin(name, lambda: _job(name, trainer, loader, self._check.shapes))
        self._check.watch()

    def on_train_end(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        """Training is over, and with it what watches it."""
        self._check.end()


def _trainer_at_work() -> Any:
    """The Trainer that calls: it hands its parts to callbacks, but not itself."""
    from transformers import Trainer

    frame = sys._getframe()
    while frame is not None:
        if isinstance(trainer := frame.f_locals.get("self"), Trainer):
            return trainer
        frame = frame.f_back  # type: ignore[assignment]
    raise UsageError("WillfitCallback is for a transformers.Trainer: Trainer(..., callbacks=[WillfitCallback()])")


def _job(name: str, trainer: Any, loader: Any, shapes: str | None) -> Job:
    """One optimizer step of a Trainer, as a job."""
    model, buckets = unwrapped(trainer.model_wrapped)
    from accelerate.utils import recursively_apply

    batch, which = training_batch(name, loader, shapes)
    if not _holds_tensors(batch):
        raise JobError(
            f"{name}: its loader gives no tensors, as where a trainer generates text as it goes: this is not predicted"
        )
    count = trainer.args.gradient_accumulation_steps
    # Accelerate's loader puts each tensor of all micro-batches on the GPU, but not yet the batch that it draws ahead.
    batches = [recursively_apply(torch.clone, copy.deepcopy(batch)) for _ in range(count)]
    optimizer = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
    taken = f"Taken from the Trainer: {type(model).__name__}, {type(optimizer).__name__}, {which} batch of its data."
    step = functools.partial(_step, _twin(trainer), count, buckets)
    return Job(name, model, trainer.optimizer, batches, step, taken=taken)


def _holds_tensors(batch: Any) -> bool:
    found: list[torch.Tensor] = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        found.append(tensor)
        return tensor

    Copier(note).copy(batch)
    return bool(found)


def _twin(trainer: Any) -> Any:
    """The Trainer in the step: with no callbacks, with its data left where it is, and for one process."""
    twin = copy.copy(trainer)
    twin.callback_handler = copy.copy(trainer.callback_handler)
    twin.callback_handler.callbacks = []
    twin.args = copy.copy(trainer.args)
    twin.args.average_tokens_across_devices = False
    twin._tr_loss = None
    for name in ("train_dataset", "eval_dataset"):
        dataset = getattr(trainer, name, None)
        if dataset is not None and not isinstance(dataset, Dataset) and hasattr(dataset, "__len__"):
            setattr(twin, name, Subset(dataset, range(len(dataset))))  # a prediction copies lists, and no datasets
    return twin


def _step(trainer: Any, count: int, buckets: Any, model: Any, optimizer: Any, batches: Any) -> None:
    """What `transformers.Trainer._run_epoch` does for one optimizer step, but for its logs.

    Its variables live as long as an epoch: here they are the twin's attributes.
    """
    args = trainer.args
    if trainer._tr_loss is None:
        trainer._tr_loss = torch.tensor(0.0, device=args.device)
    micro_batches, items = trainer.get_batch_samples(iter(batches), count, args.device)
    trainer.current_gradient_accumulation_steps = count
    for number, inputs in enumerate(micro_batches, start=1):
        trainer.accelerator.gradient_state._set_sync_gradients(number == count)
        trainer.tr_loss_step = trainer.training_step(model, inputs, items)
        if args.logging_nan_inf_filter:
            bool(torch.isnan(trainer.tr_loss_step) or torch.isinf(trainer.tr_loss_step))
        trainer._tr_loss += trainer.tr_loss_step
    trainer.grad_norm = None
    if args.max_grad_norm is not None and args.max_grad_norm > 0:
        trainer.grad_norm = trainer.accelerator.clip_grad_norm_(model.parameters(), args.max_grad_norm)
    elif hasattr(trainer, "_get_grad_norm"):  # since Transformers 5.0 for the logs: what is not clipped is measured
        trainer.grad_norm = trainer._get_grad_norm(model)
    optimizer.step()
    trainer.lr_scheduler.step()
    model.zero_grad()
