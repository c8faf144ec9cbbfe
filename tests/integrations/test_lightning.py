"""The callback in a Trainer of Lightning's, and the guard in a loop of Fabric's, on the CPU as if for a T4."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import willfit
from willfit import WillfitWarning, WillNotFit

lightning = pytest.importorskip("lightning", reason="lightning is not installed")
pytestmark = pytest.mark.filterwarnings("default")  # of Lightning's

from lightning.pytorch.loggers.logger import Logger  # noqa: E402
from lightning.pytorch.plugins import MixedPrecision  # noqa: E402

from willfit.integrations.lightning import WillfitCallback  # noqa: E402

WIDTH = 64


def layers(size: int) -> int:
    """What two linear layers take, of so many bytes an element, in blocks of 512 B."""
    return 2 * (WIDTH * WIDTH * size + max(512, WIDTH * size))


class Module(lightning.LightningModule):  # type: ignore[misc,name-defined]
    def __init__(self, optimizer: Any = torch.optim.SGD) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Dropout(0.1), nn.Linear(WIDTH, WIDTH))
        self.made = optimizer
        self.losses: list[float] = []

    def on_train_epoch_start(self) -> None:
        self.outputs: list[torch.Tensor] = []  # a hook that the step relies on

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        loss = self.net(batch[0]).square().mean()
        self.outputs.append(loss.detach())
        self.log("loss", loss, prog_bar=True)
        self.logger and self.logger.experiment.add_scalar("loss", loss)
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Any, index: int) -> None:
        self.losses.append(float(outputs["loss"]))

    def configure_optimizers(self) -> Any:
        optimizer = self.made(self.parameters(), lr=1e-3)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]


class Counting(lightning.Callback):  # type: ignore[misc,name-defined]
    def __init__(self) -> None:
        self.batches = 0

    def on_train_batch_start(self, *_: Any) -> None:
        self.batches += 1


class Recording(Logger):
    """A logger that keeps what it is given."""

    name, version = "recording", 0

    def __init__(self) -> None:
        self.metrics: list[Any] = []

    @property
    def experiment(self) -> Any:
        return self

    def add_scalar(self, name: str, value: Any) -> None:
        self.metrics.append((name, float(value)))

    def log_metrics(self, metrics: Any, step: Any = None) -> None:
        self.metrics.append((metrics, step))

    def log_hyperparams(self, *_: Any, **__: Any) -> None: ...


def trainer(*callbacks: Any, **options: Any) -> Any:
    quiet = dict.fromkeys(("enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    return lightning.Trainer(
        **{"accelerator": "cpu", "max_steps": 2, "logger": False, **quiet, **options}, callbacks=list(callbacks)
    )


def rows(count: int = 32, batch_size: int = 4, **options: Any) -> Any:
    torch.manual_seed(1)
    return DataLoader(TensorDataset(torch.randn(count, WIDTH)), batch_size=batch_size, **options)


def footprint(module: Any = None, data: Any = None, steps: int = 3, **options: Any) -> willfit.Footprint:
    """What the callback predicts, by the refusal of a card on which nothing fits."""
    callback = WillfitCallback(on="T4", capacity="1 KiB", advise=False, steps=steps)
    with pytest.raises(WillNotFit) as refused:
        trainer(callback, **options).fit(module or Module(), data if data is not None else rows())
    return refused.value.footprint


# -- the Trainer -------------------------------------------------------------------------------------------------------


def test_it_refuses_before_the_first_step() -> None:
    module, counting = Module(), Counting()
    before = {name: parameter.clone() for name, parameter in module.named_parameters()}
    callback = WillfitCallback(on="T4", capacity="1 KiB", advise=False)
    with pytest.raises(WillNotFit, match=r"Trainer.fit\(\) was not run: it will not fit on T4\.") as refused:
        trainer(callback, counting).fit(module, rows())
    assert "Taken from the Trainer: Module, SGD, 32-true, the first batch" in str(refused.value)
    assert not counting.batches
    assert all(torch.equal(before[name], parameter) for name, parameter in module.named_parameters())


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_training_goes_on_as_if_nobody_had_looked(precision: Any) -> None:
    """Dropout, shuffling, accumulation: losses, logs, counters and hooks of others are the same."""
    seen = []
    for callbacks in ([], [WillfitCallback(on="T4")]):
        module, counting, logger = Module(torch.optim.AdamW), Counting(), Recording()
        lightning.seed_everything(5, verbose=False)
        options = {"precision": precision, "accumulate_grad_batches": 2, "gradient_clip_val": 0.5, "logger": logger}
        job = trainer(*callbacks, counting, max_steps=3, log_every_n_steps=1, **options)
        job.fit(module, rows(shuffle=True))
        progress = job.fit_loop.state_dict()
        seen.append((module.losses, counting.batches, logger.metrics, job.global_step, progress))
        assert job.strategy.root_device == module.device == torch.device("cpu")
    assert seen[0] == seen[1]
    assert len(seen[0][0]) == 6


def test_the_longest_batch_decides() -> None:
    class Lengths(Dataset[Any]):
        def __init__(self, *lengths: int) -> None:
            self.lengths = lengths

        def __len__(self) -> int:
            return len(self.lengths)

        def __getitem__(self, index: int) -> torch.Tensor:
            return torch.zeros(self.lengths[index], WIDTH)

    def loader(*lengths: int) -> Any:
        return DataLoader(Lengths(*lengths), batch_size=2, collate_fn=lambda rows: [nn.utils.rnn.pad_sequence(rows)])

    mixed, long = footprint(data=loader(2, 2, 2, 900)), footprint(data=loader(900, 900))
    assert mixed.bill["inputs"] == 900 * 2 * WIDTH * 4
    assert mixed.peak_allocated == long.peak_allocated


@pytest.mark.parametrize(("precision", "size"), [("32-true", 4), ("bf16-true", 2), ("16-true", 2), ("64-true", 8)])
def test_precision_of_parameters_and_inputs(precision: Any, size: int) -> None:
    found = footprint(data=rows(64, 64), precision=precision)
    assert found.bill["parameters"] == layers(size)
    assert found.bill["inputs"] == 64 * WIDTH * size


def test_mixed_precision_is_lightnings() -> None:
    """Each weight is cast; Lightning caches none, so both stay until backward. Loss scaling takes its own."""
    plain, mixed = (footprint(data=rows(512, 512), precision=precision) for precision in ("32-true", "bf16-mixed"))
    scaled = footprint(data=rows(512, 512), plugins=[MixedPrecision("16-mixed", "cpu")])
    casts = [a for a in mixed._trace.allocations if a.size == 2 * WIDTH * WIDTH and a.phase == "forward"]
    assert len(casts) == 3 * 2
    assert not [a for a in plain._trace.allocations if a.size == 2 * WIDTH * WIDTH]
    assert any("GradScaler" in each for each in scaled.assumptions)


def test_gradients_are_accumulated() -> None:
    """An optimizer step after three batches, each moved to the GPU when its turn comes and dropped after it."""
    found = footprint(data=rows(96, 4), accumulate_grad_batches=3, steps=2)
    moved = [a for a in found._trace.allocations if a.role == "inputs"]
    assert [a.step for a in moved] == [1, 1, 1, 2, 2, 2]
    assert {a.size for a in moved} == {4 * WIDTH * 4}
    assert found.bill["inputs"] == 4 * WIDTH * 4


def test_clipping_is_lightnings() -> None:
    """The norm of each gradient is a number of its own, in a tensor of 512 B."""
    plain, clipped = footprint(), footprint(gradient_clip_val=1.0)
    made = [len(each._trace.allocations) for each in (plain, clipped)]
    assert made[1] > made[0]


def test_what_is_logged_stays_on_the_gpu() -> None:
    class Silent(Module):
        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            return self.net(batch[0]).square().mean()

    assert footprint(Module()).peak_allocated > footprint(Silent()).peak_allocated


class Gan(lightning.LightningModule):  # type: ignore[misc,name-defined]
    """Two optimizers, stepped by hand."""

    automatic_optimization = False

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.one, self.other = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def training_step(self, batch: Any, index: int) -> None:
        made = self.one(batch[0])
        for optimizer, loss in zip(
            self.optimizers(), (self.other(made).mean(), self.other(made.detach()).mean()), strict=True
        ):
            self.toggle_optimizer(optimizer)
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
            self.untoggle_optimizer(optimizer)

    def configure_optimizers(self) -> Any:
        return [torch.optim.Adam(self.one.parameters()), torch.optim.Adam(self.other.parameters())], []


def test_several_optimizers_stepped_by_hand() -> None:
    found = footprint(Gan())
    assert found._trace.job.optimizer == "Adam + Adam"
    assert found.bill["optimizer states"] == 2 * layers(4)  # steps are counted on the host
    assert [mark.step for mark in found._trace.marks if mark.phase == "backward"] == [1, 1, 2, 2, 3, 3]


def test_without_an_optimizer() -> None:
    class ByHand(Module):
        def configure_optimizers(self) -> None: ...

    assert footprint(ByHand()).bill["optimizer states"] == 0


class Bytes(Dataset[Any]):
    def __len__(self) -> int:
        return 256

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.zeros(WIDTH, dtype=torch.uint8)


def test_batches_are_prepared_where_lightning_does() -> None:
    """On the host before they are moved, on the GPU after: bytes there, and floats here are never there together."""

    class OnHost(Module):
        def on_before_batch_transfer(self, batch: Any, index: int) -> Any:
            assert batch.device.type == "cpu"
            return [batch.double()] if self.trainer.training else batch

        def on_after_batch_transfer(self, batch: Any, index: int) -> Any:
            assert batch[0].device.type == "cuda" or not self.trainer.callbacks  # in the prediction
            return [batch[0].float()]

    found = footprint(OnHost(), DataLoader(Bytes(), batch_size=256))
    assert {a.size for a in found._trace.allocations if a.role == "inputs"} == {256 * WIDTH * 8}
    assert found.bill["inputs"] == 0  # the doubles are dropped when they are floats


def test_a_datamodule_prepares_them_too() -> None:
    class Data(lightning.LightningDataModule):  # type: ignore[misc,name-defined]
        def train_dataloader(self) -> Any:
            return DataLoader(Bytes(), batch_size=8)

        def on_before_batch_transfer(self, batch: Any, index: int) -> Any:
            return [batch.float()]

    found = footprint(data=Data())
    assert found.bill["inputs"] == 8 * WIDTH * 4


def test_several_loaders_at_once() -> None:
    class Both(Module):
        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            return super().training_step([torch.cat([batch["a"][0], batch["b"][0]])], index)

    found = footprint(Both(), {"a": rows(8, 4), "b": rows(8, 8)})
    assert found.bill["inputs"] == (4 + 8) * WIDTH * 4


def test_a_step_may_draw_its_batches_itself() -> None:
    class Drawing(Module):
        def training_step(self, dataloader_iter: Iterator[Any]) -> torch.Tensor:
            batch, _, _ = next(dataloader_iter)
            return self.net(batch[0].to(self.device)).mean()

    moved = [a for a in footprint(Drawing())._trace.allocations if a.size == 4 * WIDTH * 4 and "to_copy" in a.op]
    assert [a.step for a in moved] == [1, 2, 3]


@pytest.mark.parametrize("shapes", [None, "longest"])
def test_a_stream_loses_nothing(shapes: Any) -> None:
    class Stream(IterableDataset[Any]):
        def __init__(self) -> None:
            self.source = iter([(torch.full((WIDTH,), float(index)),) for index in range(8)])

        def __iter__(self) -> Any:
            return self.source

    class Seeing(Module):
        def on_train_batch_start(self, batch: Any, index: int) -> None:
            if batch[0].device.type == "cpu":  # and no prediction
                seen.append(int(batch[0][0, 0]))

    seen: list[int] = []
    trainer(WillfitCallback(on="T4", shapes=shapes), max_steps=-1, max_epochs=1).fit(
        Seeing(), DataLoader(Stream(), batch_size=2)
    )
    assert seen == [0, 2, 4, 6]


def test_action_warn_trains_on() -> None:
    module = Module()
    with pytest.warns(WillfitWarning, match="will not fit on T4"):
        trainer(WillfitCallback(on="T4", capacity="1 KiB", action="warn")).fit(module, rows())
    assert len(module.losses) == 2


def test_the_environment_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WILLFIT", "off")
    trainer(WillfitCallback(on="T4", capacity="1 KiB")).fit(Module(), rows())


def test_without_a_gpu_one_must_be_named() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(willfit.UsageError, match="name one"):
        trainer(WillfitCallback()).fit(Module(), rows())


@pytest.mark.parametrize("options", [{"shapes": "short"}, {"action": "shout"}, {"on": "T5"}])
def test_wrong_options_are_refused_at_once(options: dict[str, Any]) -> None:
    with pytest.raises(willfit.UsageError):
        WillfitCallback(**options)


def test_a_hook_that_raises_is_named() -> None:
    class Failing(Module):
        def on_before_batch_transfer(self, batch: Any, index: int) -> Any:
            raise ValueError("no such column")

    with pytest.raises(willfit.JobError, match="on_before_batch_transfer raised ValueError: no such column"):
        trainer(WillfitCallback(on="T4")).fit(Failing(), rows())


def test_nothing_of_it_stays() -> None:
    from willfit._trace.fake import FakeCudaTensor

    job = trainer(WillfitCallback(on="T4"), precision="bf16-mixed")
    job.fit(Module(), rows())
    assert len(job.callbacks) == 1
    assert not vars(job.precision_plugin).keys() & {"convert_input"}
    gc.collect()
    assert not [each for each in gc.get_objects() if type(each) is FakeCudaTensor]


def test_the_older_name_of_the_package() -> None:
    older = pytest.importorskip("pytorch_lightning", reason="pytorch_lightning is not installed")

    class Older(older.LightningModule):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(WIDTH, WIDTH)

        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            return self.net(batch[0]).mean()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.1)

    callback = WillfitCallback(on="T4", capacity="1 KiB", advise=False)
    options = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)
    with pytest.raises(WillNotFit) as refused:
        older.Trainer(accelerator="cpu", max_steps=1, callbacks=[callback], **options).fit(Older(), rows())
    assert refused.value.footprint.bill["inputs"] == 4 * WIDTH * 4


RANKS = """
import sys, torch, lightning, willfit
from willfit.integrations.lightning import WillfitCallback

class Module(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(256, 256)
    def training_step(self, batch, index):
        loss = self.net(batch).mean()
        self.log("loss", loss, sync_dist=True)
        return loss
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)

class Callback(WillfitCallback):
    def on_train_start(self, trainer, module):
        if trainer.global_rank == 1:
            WillfitCallback.__init__(self, on="T4", capacity="1 MiB", advise=False)
        try:
            super().on_train_start(trainer, module)
        except willfit.WillNotFit as error:
            buckets = error.footprint.bill["buffers"]
            print(f"<{trainer.global_rank}: {str(error).splitlines()[0]} {buckets}>", flush=True)
            raise

torch.set_num_threads(1)
trainer = lightning.Trainer(accelerator="cpu", devices=2, strategy="ddp_fork", max_steps=1, logger=False,
    enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, callbacks=[Callback(on="T4")])
try:
    trainer.fit(Module(), torch.utils.data.DataLoader(torch.zeros(64, 256), batch_size=4))
except Exception as error:
    print(error)
"""


def test_one_rank_that_is_short_stops_all(tmp_path: Path) -> None:
    """DistributedDataParallel's buckets are counted: 256 x 256 weights and 256 biases in float32, in one bucket."""
    (tmp_path / "train.py").write_text(RANKS)
    command = [sys.executable, "train.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr
    assert "<0: rank 1 of 2: Trainer.fit() was not run: it will not fit on T4." in done.stdout
    assert "<1: not run, because of rank 1 of 2: rank 0 says why" in done.stdout
    assert done.stdout.count(f" {4 * (256 * 256 + 256)}>") == 2


# -- Fabric ------------------------------------------------------------------------------------------------------------


def set_up(**options: Any) -> tuple[Any, ...]:
    torch.manual_seed(0)
    fabric = lightning.Fabric(accelerator="cpu", devices=1, **options)
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH))
    model, optimizer = fabric.setup(model, torch.optim.AdamW(model.parameters()))
    return fabric, model, optimizer, fabric.setup_dataloaders(rows(64, 8, shuffle=True))


def mean(model: Any, batch: Any) -> torch.Tensor:
    return model(batch[0]).square().mean()  # type: ignore[no-any-return]


def of_fabric(step: Any = None, **options: Any) -> willfit.Footprint:
    fabric, *parts = set_up(**options)
    loss = None if step else mean

    @willfit.guard(on="T4", capacity="1 KiB", advise=False, fabric=fabric, loss=loss, step=step and step(fabric))
    def train(model: Any, optimizer: Any, loader: Any) -> None:
        raise AssertionError("it was not to run")

    with pytest.raises(WillNotFit) as refused:
        train(*parts)
    return refused.value.footprint


def test_the_step_is_fabrics() -> None:
    found = of_fabric()
    assert (found._trace.job.model, found._trace.job.optimizer) == ("Sequential", "AdamW")
    assert found.bill["inputs"] == 8 * WIDTH * 4
    assert {a.module for a in found._trace.allocations if a.role == "parameters"} == {"0", "1"}


def test_precision_is_fabrics() -> None:
    plain, mixed, half = (of_fabric(precision=each) for each in ("32-true", "bf16-mixed", "bf16-true"))
    casts = [a for a in mixed._trace.allocations if a.size == 2 * WIDTH * WIDTH and a.phase == "forward"]
    assert len(casts) == 3 * 2
    assert not [a for a in plain._trace.allocations if a.size == 2 * WIDTH * WIDTH]
    assert half.bill["parameters"] == layers(2)


def test_a_step_of_ones_own_may_clip() -> None:
    """Fabric raises where the norm of the gradients is not finite, which is taken not to be."""

    def step(fabric: Any) -> Any:
        def step(model: Any, optimizer: Any, batch: Any) -> None:
            fabric.backward(mean(model, batch))
            fabric.clip_gradients(model, optimizer, max_norm=1.0)
            optimizer.step()
            optimizer.zero_grad()

        return step

    clipped = of_fabric(step, precision="bf16-mixed")
    assert len(clipped._trace.allocations) > len(of_fabric(precision="bf16-mixed")._trace.allocations)


def test_a_loop_goes_on_as_if_nobody_had_looked() -> None:
    def train(fabric: Any, model: Any, optimizer: Any, loader: Any) -> list[float]:
        losses = []
        for batch in loader:
            loss = mean(model, batch)
            fabric.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(float(loss))
        return losses

    fabric, *parts = set_up(precision="bf16-mixed")
    torch.manual_seed(3)
    alone = train(fabric, *parts)
    fabric, *parts = set_up(precision="bf16-mixed")
    torch.manual_seed(3)
    guarded = willfit.guard(on="T4", fabric=fabric, loss=mean)(lambda model, optimizer, loader: train(fabric, *parts))
    assert guarded(*parts) == alone


def test_one_that_trains_is_enough() -> None:
    with pytest.raises(willfit.UsageError, match="both given"):
        willfit.guard(fabric=object(), accelerator=object())  # type: ignore[call-overload]
