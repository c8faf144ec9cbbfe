"""What a case is, and the pieces that cases are made of: models, batches, optimizers, steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

Batch = dict[str, torch.Tensor]
Step = Callable[[Any, Any, Batch], None]


@dataclass
class Case:
    """A training step: everything is built when it is called, on whichever device is the default then."""

    gpu: str
    model: Callable[[], nn.Module]
    optimizer: Callable[[Any], Any]
    batch: Callable[[], Batch]
    step: Step
    note: str = ""


CASES: dict[str, Case] = {}


def case(name: str, **parts: Any) -> None:
    """Add a case."""
    if name in CASES:
        raise AssertionError(f"two cases are called {name}")
    CASES[name] = Case(**parts)


# -- models ------------------------------------------------------------------------------------------------------------


def hugging_face(name: str, config: str, dtype: torch.dtype = torch.float32, **options: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        with torch.device("cpu"):  # importing transformers reads values of tensors that it makes
            import transformers

            model_class, config_class = getattr(transformers, name), getattr(transformers, config)
        model = model_class(config_class(**options)).to(dtype)
        model.train()
        return model

    return build


def checkpointing(build: Callable[[], nn.Module], reentrant: bool = False) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        model: Any = build()
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        return model

    return make


def lora(build: Callable[[], nn.Module], rank: int, targets: Any, **options: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        with torch.device("cpu"):
            from peft import LoraConfig, get_peft_model

        return get_peft_model(build(), LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets, **options))

    return make


def frozen(model: nn.Module) -> nn.Module:
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model.eval()


def with_loss(loss: torch.Tensor, **more: Any) -> SimpleNamespace:
    return SimpleNamespace(loss=loss, **more)


class Classifier(nn.Module):
    """Any network with cross entropy on top, called as model(x=..., y=...)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> SimpleNamespace:
        return with_loss(cross_entropy(self.network(x), y))


def classifier(*layers: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: Classifier(nn.Sequential(*(layer() for layer in layers)))


def perceptron(*sizes: int, activation: Callable[[], nn.Module] = nn.ReLU) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        layers: list[nn.Module] = []
        for before, after in pairwise(sizes):
            layers += [nn.Linear(before, after), activation()]
        return Classifier(nn.Sequential(*layers[:-1]))

    return build


# -- batches -----------------------------------------------------------------------------------------------------------


def tokens(batch: int, length: int, mask: bool = False, **more: tuple[int, ...]) -> Callable[[], Batch]:
    def make() -> Batch:
        ids = torch.zeros(batch, length, dtype=torch.long)
        out = {"input_ids": ids, "labels": ids.clone()}
        if mask:
            out["attention_mask"] = torch.ones_like(ids)
        return out | {name: torch.zeros(shape, dtype=torch.long) for name, shape in more.items()}

    return make


def classes(*shape: int, labels: str = "labels", inputs: str = "pixel_values") -> Callable[[], Batch]:
    return lambda: {inputs: torch.zeros(shape), labels: torch.zeros(shape[0], dtype=torch.long)}


def xy(*shape: int) -> Callable[[], Batch]:
    return classes(*shape, inputs="x", labels="y")


def arrays(**shapes: tuple[int, ...]) -> Callable[[], Batch]:
    """Floats; whole numbers where the name ends in "ids"."""
    return lambda: {
        n: torch.zeros(s, dtype=torch.long if n.endswith("ids") else torch.float32) for n, s in shapes.items()
    }


# -- optimizers --------------------------------------------------------------------------------------------------------


def trainable(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def optim(name: str, lr: float = 1e-4, **options: Any) -> Callable[[nn.Module], torch.optim.Optimizer]:
    return lambda model: getattr(torch.optim, name)(trainable(model), lr=lr, **options)


adamw = optim("AdamW")


# -- steps -------------------------------------------------------------------------------------------------------------


def plain(model: Any, optimizer: Any, batch: Batch) -> None:
    model(**batch).loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def step(
    *,
    dtype: torch.dtype | None = None,
    scale: bool = False,
    clip: float | None = None,
    accumulate: int = 1,
    keep: bool = False,
    zero: dict[str, Any] | None = None,
    clipping: dict[str, Any] | None = None,
    after: Callable[[Any], None] = lambda model: None,
) -> Step:
    """A step as most training loops have it; ``keep`` holds on to the output until the next one is there."""
    kept: dict[str, Any] = {}

    def run(model: Any, optimizer: Any, batch: Batch) -> None:
        scaler = torch.amp.GradScaler("cuda", enabled=scale)
        for _ in range(accumulate):
            with torch.autocast("cuda", dtype=dtype or torch.float16, enabled=dtype is not None):
                out = model(**batch)
                loss = out.loss / accumulate
            scaler.scale(loss).backward()
            if keep:
                kept["out"] = out
        if clip is not None:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(trainable(model), clip, **(clipping or {}))
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(**(zero or {}))
        after(model)

    return run


bf16 = step(dtype=torch.bfloat16)
fp16 = step(dtype=torch.float16, scale=True)
