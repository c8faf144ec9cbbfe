"""A callback for Lightning's `Trainer`, whichever name the package goes by."""

from __future__ import annotations

import importlib
import itertools
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any, Literal
from unittest.mock import patch

import torch
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_unflatten

from willfit._changing import mapped
from willfit._errors import JobError, UnavailableError
from willfit._placement import OnHost, optimizers_of
from willfit._preflight import Job
from willfit._standins import Silent
from willfit._trace.surroundings import nothing_left_behind
from willfit._worst_batch import BATCHES, largest
from willfit.integrations._callbacks import TrainingCheck, training_batch
from willfit.integrations._wrappers import unwrapped

if TYPE_CHECKING:
    from willfit._devices import Device
    from willfit._trace.trace import Engine

# The same code under two names, each with classes of its own.
_PACKAGES = ("lightning.pytorch", "pytorch_lightning")

# What gives data to a training_step(dataloader_iter), which draws and moves its batches itself.
_DRAWN_BY_THE_STEP = "_DataLoaderIterDataFetcher"


def _callback_class() -> Any:
    for package in sorted(_PACKAGES, key=lambda name: name not in sys.modules):  # first the one that is in use
        with suppress(ImportError):
            return importlib.import_module(package).Callback
    return None  # said when a callback is made


_Callback = _callback_class()


class WillfitCallback(_Callback or object):  # type: ignore[misc]
    """Predict what a Trainer's steps need when training begins, and refuse before the first if they won't fit.

    What is predicted is Lightning's own loop: ``training_step`` and the module's other hooks, through strategy and
    precision plugin, with accumulation, clipping, optimizers and schedulers, on the longest batch that the data can
    give. A module that optimizes by hand is followed as it is. Where several processes train, all raise or none.

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
        UnavailableError: at once, if Lightning is not installed.
        UsageError: at once, for an option that cannot be; when training begins, if no GPU is named and none is here.
        WillNotFit: when training begins; carries ``footprint`` and ``advice``.
        JobError: likewise, if the job could not be predicted (a warning with action="warn").

    Example:
        >>> trainer = lightning.Trainer(callbacks=[WillfitCallback(on="T4")])  # doctest: +SKIP
        >>> trainer.fit(module, loader)  # doctest: +SKIP
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
        if _Callback is None:
            raise UnavailableError("lightning is not installed: pip install 'willfit[lightning]'")
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

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Check the job. Called by the Trainer before the first batch, when model and optimizers are prepared."""
        if self._check.is_off():
            return
        name = f"{type(trainer).__name__}.fit()"
        with ExitStack() as while_checked:

            def job() -> Job:
                made = _job(name, trainer, self._check.shapes)
                while_checked.enter_context(_apart(trainer))
                return made

            self._check.begin(name, job)
        self._check.watch()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Training is over, and with it what watches it."""
        self._check.end()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Likewise."""
        self._check.end()


def _job(name: str, trainer: Any, shapes: str | None) -> Job:
    """A batch through the Trainer's loop, as a job."""
    fetcher = trainer.fit_loop._data_fetcher
    _, buckets = unwrapped(trainer.strategy.model)
    module, optimizers = trainer.lightning_module, trainer.optimizers
    batch, which = _batch(name, trainer, fetcher, shapes)
    kinds = " + ".join(type(optimizer).__name__ for optimizer in optimizers)
    if kinds == "_MockOptimizer":  # configure_optimizers gave None
        kinds, optimizers = "no optimizer", None
    taken = f"Taken from the Trainer: {type(module).__name__}, {kinds}, {trainer.precision}, {which} batch of its data."
    return Job(name, module, optimizers, OnHost(batch), _Step(trainer, type(fetcher), buckets), taken=taken)


class _Step:
    """A batch through Lightning's loop. It steps its optimizer at the end of each ``accumulate_grad_batches``."""

    def __init__(self, trainer: Any, fetcher_class: Any, buckets: Any) -> None:
        self._trainer, self._fetcher_class, self._buckets = trainer, fetcher_class, buckets
        self._data: Any = None

    def __call__(self, model: Any, optimizers: Any, batch: Any) -> None:
        """What `_TrainingEpochLoop.run` does with a batch, but for validation. Called in a copy of the Trainer."""
        if self._data is None:
            self._begin(list(optimizers_of(optimizers)), batch)
        loop = self._trainer.fit_loop.epoch_loop
        if loop._num_ready_batches_reached():  # and the next epoch begins
            loop.batch_progress.reset_on_run()
        loop.advance(self._data)

    def _begin(self, optimizers: list[Any], batch: Any) -> None:
        trainer, fetcher = self._trainer, self._fetcher_class()
        draws_itself = self._fetcher_class.__name__ == _DRAWN_BY_THE_STEP
        fetcher.setup((_as_drawn(batch.batch) if draws_itself else batch, 0, 0) for _ in itertools.count())
        self._data = iter(fetcher)
        trainer.fit_loop.epoch_loop.restarting = False
        if optimizers and optimizers != trainer.strategy.optimizers:  # advice has put others in their place
            trainer.strategy.optimizers = optimizers
        # what was done on the host already, and the move
        vars(trainer.precision_plugin)["convert_input"] = lambda batch: batch
        for name, hook in (
            ("on_before_batch_transfer", lambda batch, _: batch),
            ("transfer_batch_to_device", lambda batch, *_: batch.move()),
        ):
            vars(_data_hooks(trainer, name))[name] = hook
        call = importlib.import_module(f"{_package_of(trainer)}.trainer.call")
        for name in ("on_train_start", "on_train_epoch_start"):
            call._call_lightning_module_hook(trainer, name)


def _as_drawn(batch: Any) -> Any:
    """The batch in containers of its own, as a step may take them to pieces."""
    return mapped(batch, lambda tensor: tensor)


def _batch(name: str, trainer: Any, fetcher: Any, shapes: str | None) -> tuple[Any, str]:
    """A batch as it is on the host before it is moved, and which it is."""
    combined = trainer.fit_loop._combined_loader
    if getattr(fetcher, "batches", None):
        batch, which = _of_a_stream(fetcher, shapes)
    else:
        found = [training_batch(name, loader, shapes) for loader in combined.flattened]
        batch = tree_unflatten([each for each, _ in found], combined._spec)
        which = " and ".join(dict.fromkeys(each for _, each in found))
    if type(fetcher).__name__ == _DRAWN_BY_THE_STEP:
        return batch, which
    owner = _data_hooks(trainer, "on_before_batch_transfer")
    twin = object.__new__(type(owner))
    vars(twin).update(vars(owner))
    with nothing_left_behind():
        try:
            return twin.on_before_batch_transfer(trainer.precision_plugin.convert_input(batch), 0), which
        except Exception as error:
            raise JobError(f"{name}: on_before_batch_transfer raised {type(error).__name__}: {error}") from error


def _of_a_stream(fetcher: Any, shapes: str | None) -> tuple[Any, str]:
    """A batch of data that does not tell its length, of which Lightning has drawn the first already.

    What is drawn beyond that waits in Lightning's own queue, so that nothing is lost.
    """
    queue = fetcher.batches
    if shapes != "longest":
        return queue[0][0], "the first"
    with torch.random.fork_rng(), suppress(StopIteration):
        while len(queue) < BATCHES:
            queue.append(super(type(fetcher), fetcher).__next__())
    fetcher.done = False
    return largest([batch for batch, _, _ in queue]), f"the largest (of the first {len(queue)})"


def _data_hooks(trainer: Any, name: str) -> Any:
    """The module or the datamodule, whichever has this hook."""
    return trainer._data_connector._datahook_selector.get_instance(name)


def _package_of(trainer: Any) -> str:
    """Under which of its names Lightning is used."""
    module: str = next(base.__module__ for base in type(trainer).__mro__ if base.__module__.startswith(_PACKAGES))
    return module.partition(".trainer")[0]


@contextmanager
def _apart(trainer: Any) -> Iterator[None]:
    """While the body runs, the Trainer is without what its steps must not reach where they are predicted.

    That is callbacks, loggers, profiler, what draws from the data, and the other processes.
    """
    package, loop = _package_of(trainer), trainer.fit_loop
    strategies, profilers = (importlib.import_module(f"{package}.{name}") for name in ("strategies", "profilers"))
    strategy = trainer.strategy
    if isinstance(strategy.model, DistributedDataParallel):
        strategy = strategies.SingleDeviceStrategy(
            strategy.root_device, accelerator=strategy.accelerator, precision_plugin=strategy.precision_plugin
        )
        strategy.connect(trainer.lightning_module)
        strategy.optimizers = trainer.strategy.optimizers
        strategy.lr_scheduler_configs = trainer.strategy.lr_scheduler_configs
    with ExitStack() as stack:
        for owner, attribute, value in (
            (trainer, "callbacks", []),
            (trainer, "_loggers", [Silent() for _ in trainer.loggers]),
            (trainer, "profiler", profilers.PassThroughProfiler()),
            (loop, "_data_fetcher", None),
            (loop._combined_loader, "_iterator", None),
            (trainer._accelerator_connector, "strategy", strategy),
        ):
            stack.enter_context(patch.object(owner, attribute, value))
        yield
