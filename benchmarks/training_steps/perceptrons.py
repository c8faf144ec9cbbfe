"""Perceptrons, with every optimizer of torch.optim once."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from training_steps.case import (
    Batch,
    adamw,
    bf16,
    case,
    classifier,
    fp16,
    optim,
    perceptron,
    plain,
    step,
    xy,
)

MLP = perceptron(1000, 3000, 2999, 10)


def optimizer_case(
    name: str, optimizer: Callable[[nn.Module], Any], gpu: str = "T4", step: Any = plain, note: str = ""
) -> None:
    case(f"mlp-{name}", gpu=gpu, model=MLP, optimizer=optimizer, batch=xy(256, 1000), step=step, note=note)


optimizer_case("adadelta", optim("Adadelta"))
optimizer_case("adafactor-foreach", optim("Adafactor", foreach=True))
optimizer_case("adagrad", optim("Adagrad"), "V100-16GB")
optimizer_case("adagrad-fused", optim("Adagrad", fused=True))
optimizer_case("adam-amsgrad", optim("Adam", amsgrad=True, weight_decay=0.01), "RTX3090")
optimizer_case(
    "adam-fused-amp-fp16-clip", optim("Adam", fused=True), "RTX3090", step(dtype=torch.float16, scale=True, clip=1.0)
)
optimizer_case("adam-capturable", optim("Adam", capturable=True))
optimizer_case("adamw-for-loop", optim("AdamW", foreach=False))
optimizer_case("adamw-maximize-decoupled", optim("AdamW", maximize=True))
optimizer_case("adamax", optim("Adamax"))
optimizer_case("asgd", optim("ASGD"))
optimizer_case("nadam", optim("NAdam", decoupled_weight_decay=True, weight_decay=0.01))
optimizer_case("radam", optim("RAdam"))
optimizer_case("rmsprop-centered", optim("RMSprop", centered=True, momentum=0.9))
optimizer_case("rprop", optim("Rprop"))
optimizer_case("rprop-for-loop", optim("Rprop", foreach=False))
optimizer_case("sgd-nesterov", optim("SGD", momentum=0.9, nesterov=True, weight_decay=1e-4))
optimizer_case("sgd-fused", optim("SGD", momentum=0.9, fused=True), "H200")
optimizer_case("sgd-for-loop-weight-decay", optim("SGD", foreach=False, weight_decay=1e-4))
for name in ("Adadelta", "Adafactor", "Adagrad", "Adam", "Adamax", "NAdam", "RAdam", "RMSprop"):
    optimizer_case(f"{name.lower()}-for-loop", optim(name, foreach=False))
optimizer_case(
    "asgd-for-loop",
    optim("ASGD", foreach=False, t0=0),  # it averages from then on
    note="the emulator averages in the first step too, as it reads 0 for a number that is 1",
)
optimizer_case("adamw-fused", optim("AdamW", fused=True))
optimizer_case("clip-by-infinity-norm", adamw, step=step(clip=1.0, clipping={"norm_type": math.inf}))
optimizer_case("clip-for-loop", adamw, step=step(clip=1.0, clipping={"foreach": False}))
optimizer_case("adamw-8-microbatches", adamw, "A100-40GB", step(dtype=torch.bfloat16, accumulate=8))
case(
    "matrices-muon",
    gpu="A100-40GB",
    optimizer=optim("Muon", lr=1e-3),
    step=plain,
    batch=xy(128, 512),
    model=classifier(
        *[lambda: nn.Linear(512, 1536, bias=False), nn.ReLU, lambda: nn.Linear(1536, 512, bias=False)] * 2
    ),
)
case(
    "mlp-lbfgs",
    gpu="T4",
    model=perceptron(200, 300, 10),
    optimizer=optim("LBFGS", lr=1.0, max_iter=4, history_size=3),
    batch=xy(64, 200),
    step=lambda m, o, b: closure(m, o, b),
    note="LBFGS stops by values",
)
case(
    "mlp-odd-shapes-fp32",
    gpu="V100-16GB",
    model=perceptron(1021, 2053, 769, 13),
    optimizer=adamw,
    batch=xy(127, 1021),
    step=plain,
)
case(
    "mlp-odd-shapes-amp-fp16",
    gpu="T4",
    model=perceptron(1021, 2053, 769, 13),
    optimizer=adamw,
    batch=xy(127, 1021),
    step=fp16,
)
case(
    "mlp-bf16-gelu",
    gpu="H200",
    optimizer=adamw,
    batch=lambda: {**xy(512, 2048)(), "x": torch.zeros(512, 2048, dtype=torch.bfloat16)},
    step=plain,
    model=lambda: perceptron(2048, 4096, 4096, 1000, activation=nn.GELU)().to(torch.bfloat16),
)
case(
    "mlp-silu-norms-dropout",
    gpu="RTX4090",
    optimizer=adamw,
    batch=xy(300, 784),
    step=bf16,
    model=classifier(
        lambda: nn.Linear(784, 2000),
        lambda: nn.BatchNorm1d(2000),
        nn.SiLU,
        lambda: nn.Dropout(0.2),
        lambda: nn.Linear(2000, 2000),
        lambda: nn.LayerNorm(2000),
        nn.Mish,
        lambda: nn.Linear(2000, 10),
    ),
)
case(
    "mlp-ema",
    gpu="T4",
    model=lambda: WithAverage(MLP()),
    optimizer=adamw,
    batch=xy(256, 1000),
    step=step(after=lambda m: m.average()),
)
case(
    "mlp-activations",
    gpu="RTX3090",
    optimizer=adamw,
    batch=xy(1024, 512),
    step=plain,
    model=classifier(
        *(
            layer
            for act in (nn.Tanh, nn.ELU, nn.LeakyReLU, nn.Hardswish, nn.Softplus, nn.PReLU, nn.Sigmoid, nn.ReLU6)
            for layer in (lambda: nn.Linear(512, 512), act)
        ),
        lambda: nn.Linear(512, 1024),
        lambda: nn.GLU(-1),
        lambda: nn.Linear(512, 10),
    ),
)


def closure(model: Any, optimizer: Any, batch: Batch) -> None:
    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = model(**batch).loss
        value.backward()
        return value

    optimizer.step(loss)


class WithAverage(nn.Module):
    """A model and its exponential moving average."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.averages = nn.ParameterList(
            [nn.Parameter(torch.empty_like(p), requires_grad=False) for p in model.parameters()]
        )

    def forward(self, **batch: torch.Tensor) -> Any:
        return self.model(**batch)

    def average(self) -> None:
        with torch.no_grad():
            averages, now = list(self.averages), list(self.model.parameters())
            torch._foreach_mul_(averages, 0.999)
            torch._foreach_add_(averages, torch._foreach_mul(now, 0.001))
