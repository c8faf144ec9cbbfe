"""The steps that the kernel rules were written against, at the sizes at which people run them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from training_steps.case import (
    Batch,
    Step,
    adamw,
    case,
    classes,
    hugging_face,
    lora,
    tokens,
    with_loss,
)


def plain(model: Any, optimizer: Any, batch: Batch) -> None:
    loss = model(**batch).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def amp(dtype: torch.dtype, scale: bool = False, clip: float | None = None, accumulate: int = 1) -> Step:
    def run(model: Any, optimizer: Any, batch: Batch) -> None:
        scaler = torch.amp.GradScaler("cuda", enabled=scale)
        for _ in range(accumulate):
            with torch.autocast("cuda", dtype=dtype):
                loss = model(**batch).loss / accumulate
            scaler.scale(loss).backward()
        if clip is not None:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    return run


class Perceptron(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(784, 2048), nn.ReLU(), nn.Dropout(0.1), nn.Linear(2048, 2048), nn.GELU(), nn.Linear(2048, 10)
        )

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> Any:
        return with_loss(F.cross_entropy(self.layers(x), y))


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10000, 512)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(512, 8, 2048, dropout=0.1, batch_first=True), 6)
        self.head = nn.Linear(512, 10000)

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> Any:
        x = self.head(self.encoder(self.embed(input_ids)))
        return with_loss(F.cross_entropy(x.flatten(0, 1), labels.flatten()))


def llama(size: str, dtype: torch.dtype = torch.bfloat16) -> Callable[[], nn.Module]:
    layers, hidden, inner = {"1b": (16, 2048, 8192), "8b": (32, 4096, 14336)}[size]
    return hugging_face(
        "LlamaForCausalLM",
        "LlamaConfig",
        dtype,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=128256,
        use_cache=False,
    )


def recomputing(build: Callable[[], nn.Module], inputs_need_gradients: bool = False) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        model: Any = build()
        model.gradient_checkpointing_enable()
        if inputs_need_gradients:
            model.enable_input_require_grads()
        return model

    return make


GPT2 = hugging_face("GPT2LMHeadModel", "GPT2Config", use_cache=False)

case(
    "mlp-fp32-sgd",
    gpu="T4",
    model=Perceptron,
    optimizer=lambda m: torch.optim.SGD(m.parameters(), lr=0.1),
    batch=classes(256, 784, inputs="x", labels="y"),
    step=plain,
)
case("encoder-fp32-adamw", gpu="T4", model=Encoder, optimizer=adamw, batch=tokens(16, 256), step=plain)
case(
    "encoder-amp-fp16-clip",
    gpu="T4",
    model=Encoder,
    optimizer=adamw,
    batch=tokens(32, 256),
    step=amp(torch.float16, scale=True, clip=1.0),
)
case(
    "bert-base-amp-fp16",
    gpu="T4",
    model=hugging_face("BertForMaskedLM", "BertConfig"),
    optimizer=adamw,
    batch=tokens(8, 512),
    step=amp(torch.float16, scale=True),
)
case("gpt2-fp32-adamw", gpu="A100-80GB", model=GPT2, optimizer=adamw, batch=tokens(4, 1024), step=plain)
case(
    "gpt2-amp-bf16-accumulate4",
    gpu="A100-80GB",
    model=GPT2,
    optimizer=adamw,
    batch=tokens(4, 1024),
    step=amp(torch.bfloat16, accumulate=4),
)
case(
    "vit-base-amp-bf16",
    gpu="A100-80GB",
    model=hugging_face("ViTForImageClassification", "ViTConfig"),
    optimizer=adamw,
    batch=classes(32, 3, 224, 224),
    step=amp(torch.bfloat16),
)
case(
    "resnet50-fp32-momentum",
    gpu="T4",
    model=hugging_face("ResNetForImageClassification", "ResNetConfig"),
    optimizer=lambda m: torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9),
    batch=classes(32, 3, 224, 224),
    step=plain,
)
case("llama-1b-bf16-adamw", gpu="A100-80GB", model=llama("1b"), optimizer=adamw, batch=tokens(2, 2048), step=plain)
case(
    "llama-1b-bf16-fused-adamw",
    gpu="A100-80GB",
    model=llama("1b"),
    optimizer=lambda m: torch.optim.AdamW(m.parameters(), fused=True),
    batch=tokens(2, 2048),
    step=plain,
)
case("llama-8b-bf16-adamw", gpu="H200", model=llama("8b"), optimizer=adamw, batch=tokens(1, 2048), step=plain)
case(
    "llama-8b-bf16-checkpointing",
    gpu="H200",
    model=recomputing(llama("8b")),
    optimizer=adamw,
    batch=tokens(4, 2048),
    step=plain,
)
case(
    "llama-8b-bf16-lora",
    gpu="A100-80GB",
    model=lora(llama("8b"), 16, ["q_proj", "v_proj"], task_type="CAUSAL_LM"),
    optimizer=adamw,
    batch=tokens(1, 2048),
    step=plain,
)
case(
    "llama-8b-fp16-lora-checkpointing",
    gpu="RTX4090",
    model=recomputing(lora(llama("8b", torch.float16), 16, "all-linear", task_type="CAUSAL_LM"), True),
    optimizer=adamw,
    batch=tokens(1, 1024),
    step=plain,
)
