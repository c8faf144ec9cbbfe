"""What Lightning's loops need, predicted and as they ran: ``python benchmarks/lightning_jobs.py [NAME ...]``.

Each job is predicted by the callback (Fabric's by the guard) on the CPU, and then run by Lightning itself, on the GPU
that willfit's emulator shows: three optimizer steps, and the peaks that PyTorch's allocator reports at the end.
``WILLFIT_CUDA_PYTHON`` names a Python with a CUDA build of PyTorch and with Lightning, where this one's is for the CPU.
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import warnings

import lightning
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

import willfit

GPU, STEPS, WORDS, LENGTH = "T4", 3, 8000, 256


class Tokens(Dataset):
    def __len__(self):
        return 256

    def __getitem__(self, index):
        return torch.randint(0, WORDS, (LENGTH + 1,))


class Images(Dataset):
    def __len__(self):
        return 512

    def __getitem__(self, index):
        return torch.randn(3, 64, 64), index % 10


def transformer(width=512, layers=4):
    layer = nn.TransformerEncoderLayer(width, 8, 4 * width, dropout=0.1, batch_first=True, norm_first=True)
    encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
    return nn.Sequential(nn.Embedding(WORDS, width), encoder, nn.Linear(width, WORDS))


def loss_of(model, ids):
    return F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())


class LanguageModel(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = transformer()

    def training_step(self, ids, index):
        loss = loss_of(self.net, ids)
        self.log("loss", loss, prog_bar=True, on_step=True, on_epoch=True)
        self.log_dict({"perplexity": loss.exp(), "tokens": float(ids.numel())})
        return loss

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-3)
        scheduler = torch.optim.lr_scheduler.LinearLR(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class Classifier(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        parts = [nn.Flatten(), nn.Linear(3 * 64 * 64, 2048), nn.BatchNorm1d(2048), nn.ReLU(), nn.Dropout(0.1)]
        self.net = nn.Sequential(*parts, nn.Linear(2048, 2048), nn.ReLU(), nn.Linear(2048, 10))

    def on_after_batch_transfer(self, batch, index):
        images, labels = batch
        return images * 2 - 1, labels

    def training_step(self, batch, index):
        images, labels = batch
        loss = F.cross_entropy(self.net(images), labels)
        self.log("loss", loss)
        return {"loss": loss, "images": images}

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


class Gan(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.generator = nn.Sequential(nn.Linear(128, 2048), nn.ReLU(), nn.Linear(2048, 3 * 64 * 64), nn.Tanh())
        self.critic = nn.Sequential(nn.Linear(3 * 64 * 64, 1024), nn.LeakyReLU(0.2), nn.Linear(1024, 1))

    def training_step(self, batch, index):
        one, two = self.optimizers()
        real = batch[0].flatten(1)
        made = self.generator(torch.randn(len(real), 128, device=self.device))
        yes = torch.ones(len(real), 1, device=self.device)
        judged = F.binary_cross_entropy_with_logits

        self.toggle_optimizer(two)
        loss = judged(self.critic(real), yes) + judged(self.critic(made.detach()), 0 * yes)
        two.zero_grad()
        self.manual_backward(loss)
        self.clip_gradients(two, 1.0, "norm")
        two.step()
        self.untoggle_optimizer(two)

        self.toggle_optimizer(one)
        fooled = judged(self.critic(made), yes)
        one.zero_grad()
        self.manual_backward(fooled)
        one.step()
        self.untoggle_optimizer(one)
        self.log_dict({"critic": loss, "generator": fooled}, prog_bar=True)

    def configure_optimizers(self):
        return [torch.optim.Adam(part.parameters(), 2e-4) for part in (self.generator, self.critic)], []


TRAINER = {  # the module, its data, the batch size, the Trainer's arguments
    "bf16-mixed, 4 accumulated, clipped": (
        LanguageModel, Tokens, 8, {"precision": "bf16-mixed", "accumulate_grad_batches": 4, "gradient_clip_val": 1.0}
    ),
    "16-mixed": (LanguageModel, Tokens, 8, {"precision": "16-mixed"}),
    "16-mixed, 2 accumulated, clipped": (
        LanguageModel, Tokens, 4, {"precision": "16-mixed", "accumulate_grad_batches": 2, "gradient_clip_val": 0.5}
    ),
    "32-true, clipped by value": (
        LanguageModel, Tokens, 4, {"gradient_clip_val": 0.5, "gradient_clip_algorithm": "value"}
    ),
    "bf16-true, clipped": (LanguageModel, Tokens, 8, {"precision": "bf16-true", "gradient_clip_val": 1.0}),
    "images, 3 accumulated": (Classifier, Images, 64, {"accumulate_grad_batches": 3}),
    "images, 16-true": (Classifier, Images, 64, {"precision": "16-true"}),
    "GAN by hand": (Gan, Images, 64, {}),
    "GAN by hand, 16-mixed": (Gan, Images, 64, {"precision": "16-mixed"}),
}  # fmt: skip
FABRIC = {  # the precision, and whether gradients are clipped
    "Fabric, 32-true": ("32-true", False),
    "Fabric, bf16-mixed": ("bf16-mixed", False),
    "Fabric, bf16-true, clipped": ("bf16-true", True),
}


def train(name, **options):
    """Run a job of the Trainer's on the accelerator of the options."""
    make, data, size, arguments = TRAINER[name]
    arguments = dict(arguments)
    if options["accelerator"] == "cpu" and arguments.get("precision") == "16-mixed":  # else it is bf16-mixed there
        del arguments["precision"]
        arguments["plugins"] = [MixedPrecision("16-mixed", "cpu")]
    off = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    steps = STEPS * (2 if make is Gan else 1)  # Lightning counts those of each optimizer
    trainer = lightning.Trainer(devices=1, max_steps=steps, **off, **arguments, **options)
    trainer.fit(make(), DataLoader(data(), batch_size=size))


def train_by_fabric(name, accelerator, guard):
    """Run a job of Fabric's. ``guard`` makes of the loop what is called, given Fabric and the step."""
    precision, clips = FABRIC[name]
    fabric = lightning.Fabric(accelerator=accelerator, devices=1, precision=precision)
    model = transformer()
    model, optimizer = fabric.setup(model, torch.optim.AdamW(model.parameters(), lr=1e-3))

    def step(model, optimizer, ids):
        fabric.backward(loss_of(model, ids))
        if clips:
            fabric.clip_gradients(model, optimizer, max_norm=1.0)
        optimizer.step()
        optimizer.zero_grad()

    def loop(model, optimizer, loader):
        for _, ids in zip(range(STEPS), loader, strict=False):
            step(model, optimizer, ids)

    guard(fabric, step)(loop)(model, optimizer, fabric.setup_dataloaders(DataLoader(Tokens(), batch_size=8)))


def predicted(name):
    """The peaks, by the refusal of a card on which nothing fits."""
    from willfit.integrations.lightning import WillfitCallback

    options = {"on": GPU, "capacity": "1 MiB", "advise": False, "steps": STEPS}
    try:
        if name in FABRIC:
            train_by_fabric(name, "cpu", lambda fabric, step: willfit.guard(fabric=fabric, step=step, **options))
        else:
            train(name, accelerator="cpu", callbacks=[WillfitCallback(**options)])
    except willfit.WillNotFit as refused:
        return refused.footprint.peak_allocated, refused.footprint.peak_reserved
    raise AssertionError(f"{name} was not refused")


def measured(name):
    """The peaks after the job was run on an emulated GPU, in a process of its own."""
    from willfit._devices import resolve_device
    from willfit._emulator.build import runtime_for
    from willfit._emulator.interpreter import cuda_interpreter
    from willfit._emulator.launch import environment

    interpreter = cuda_interpreter()
    ran = subprocess.run(
        [interpreter.python, __file__, "--run", name],
        env=environment(runtime_for(interpreter), resolve_device(GPU)),
        capture_output=True,
        text=True,
        check=False,
    )
    if ran.returncode:
        raise SystemExit(f"{name} did not run:\n{ran.stderr}")
    return tuple(json.loads(ran.stdout.splitlines()[-1]))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--run", metavar="NAME", help="run this one on the GPU of this process, and print its peaks")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.manual_seed(0)
    if options.run:
        if options.run in FABRIC:
            train_by_fabric(options.run, "cuda", lambda fabric, step: lambda loop: loop)
        else:
            train(options.run, accelerator="gpu")
        print(json.dumps([torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()]))
        return
    print(f"lightning {lightning.__version__}, torch {torch.__version__}, {GPU}: peak allocated, peak reserved")
    for name in options.names or [*TRAINER, *FABRIC]:
        mine, real = predicted(name), measured(name)
        differs = " ".join(f"{a / b - 1:+.3%}" if a != b else "to the byte" for a, b in zip(mine, real, strict=True))
        print(f"{name:36} {real[0]:>13,} {real[1]:>13,}  {differs}", flush=True)


if __name__ == "__main__":
    main()
