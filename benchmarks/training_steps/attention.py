"""Transformers of torch.nn, and attention written by hand."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from training_steps.case import (
    adamw,
    arrays,
    case,
    fp16,
    plain,
    step,
    tokens,
    with_loss,
)


class Translation(nn.Module):
    def __init__(
        self, layers: int = 2, width: int = 512, words: int = 8000, first: bool = True, **options: Any
    ) -> None:
        super().__init__()
        self.embed = nn.Embedding(words, width)
        self.transformer = nn.Transformer(
            width, 8, layers, layers, 4 * width, batch_first=True, norm_first=first, **options
        )
        self.head = nn.Linear(width, words)

    def forward(self, source_ids: torch.Tensor, target_ids: torch.Tensor) -> Any:
        mask = nn.Transformer.generate_square_subsequent_mask(target_ids.size(1), device=target_ids.device)
        out = self.transformer(self.embed(source_ids), self.embed(target_ids), tgt_mask=mask, tgt_is_causal=True)
        return with_loss(
            F.cross_entropy(self.head(out).flatten(0, 1), target_ids.flatten(), ignore_index=1, label_smoothing=0.1)
        )


class Encoder(nn.Module):
    def __init__(self, padding: bool, dropout: float = 0.1, **options: Any) -> None:
        super().__init__()
        self.embed = nn.Embedding(5000, 384, padding_idx=0)
        layer = nn.TransformerEncoderLayer(
            384, 6, 1536, dropout=dropout, batch_first=True, activation="gelu", **options
        )
        self.layers = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        self.head = nn.Linear(384, 20)
        self.padding = padding

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> Any:
        out = self.layers(self.embed(input_ids), src_key_padding_mask=input_ids == 0 if self.padding else None)
        return with_loss(F.cross_entropy(self.head(out.mean(1)), labels[:, 0]))


class Attention(nn.Module):
    """Attention as the tutorials write it, with a mask and softmax."""

    def __init__(self, width: int, heads: int, causal: str) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.drop = nn.Dropout(0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        q, k, v = (t.view(batch, length, self.heads, -1).transpose(1, 2) for t in self.qkv(x).chunk(3, dim=-1))
        scores = q @ k.transpose(-2, -1) / math.sqrt(width // self.heads)
        if self.causal == "tril":
            scores = scores.masked_fill(torch.tril(torch.ones(length, length, device=x.device)) == 0, float("-inf"))
        elif self.causal == "triu":
            scores = scores + torch.triu(torch.full((length, length), float("-inf"), device=x.device), diagonal=1)
        elif self.causal == "where":
            allowed = torch.ones(length, length, dtype=torch.bool, device=x.device).tril()
            scores = torch.where(allowed, scores, torch.finfo(scores.dtype).min)
        out = self.drop(scores.softmax(dim=-1)) @ v
        return self.out(out.transpose(1, 2).reshape(batch, length, width))


class Tiny(nn.Module):
    """A decoder as one writes it in an afternoon."""

    def __init__(
        self,
        causal: str,
        width: int = 512,
        layers: int = 3,
        words: int = 10007,
        recompute: bool = False,
        tied: bool = True,
    ) -> None:
        super().__init__()
        self.embed, self.position = nn.Embedding(words, width), nn.Embedding(1024, width)
        self.attention = nn.ModuleList(Attention(width, 8, causal) for _ in range(layers))
        self.inner = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(width),
                nn.Linear(width, 4 * width),
                nn.GELU(),
                nn.Linear(4 * width, width),
                nn.Dropout(0.1),
            )
            for _ in range(layers)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(layers))
        self.head = nn.Linear(width, words, bias=False)
        if tied:
            self.head.weight = self.embed.weight
        self.recompute = recompute

    def block(self, i: int, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention[i](self.norms[i](x))
        return x + self.inner[i](x)

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> Any:
        x = self.embed(input_ids) + self.position(torch.arange(input_ids.size(1), device=input_ids.device))
        for i in range(len(self.norms)):
            x = checkpoint(self.block, i, x, use_reentrant=False) if self.recompute else self.block(i, x)
        logits = self.head(x)
        return with_loss(
            F.cross_entropy(logits[:, :-1].reshape(-1, logits.size(-1)), labels[:, 1:].reshape(-1)), logits=logits
        )


case(
    "transformer-translation-fp32",
    gpu="T4",
    model=Translation,
    optimizer=adamw,
    batch=arrays(source_ids=(16, 61), target_ids=(16, 53)),
    step=plain,
)
case(
    "transformer-translation-amp-bf16",
    gpu="A100-80GB",
    model=lambda: Translation(first=False),
    optimizer=adamw,
    batch=arrays(source_ids=(16, 128), target_ids=(16, 128)),
    step=step(dtype=torch.bfloat16, clip=1.0),
)
case(
    "encoder-padding-mask-amp-fp16",
    gpu="T4",
    model=lambda: Encoder(True),
    optimizer=adamw,
    batch=tokens(32, 100),
    step=fp16,
)
case(
    "encoder-bf16-no-dropout",
    gpu="RTX4090",
    model=lambda: Encoder(False, 0.0, norm_first=True).to(torch.bfloat16),
    optimizer=adamw,
    batch=tokens(32, 100),
    step=plain,
)
case("tiny-tril-fp32", gpu="T4", model=lambda: Tiny("tril"), optimizer=adamw, batch=tokens(8, 256), step=plain)
case(
    "tiny-triu-amp-bf16-keep-output",
    gpu="RTX3090",
    model=lambda: Tiny("triu", tied=False),
    optimizer=adamw,
    batch=tokens(8, 251),
    step=step(dtype=torch.bfloat16, keep=True),
)
case(
    "tiny-where-amp-fp16-checkpoint",
    gpu="V100-16GB",
    model=lambda: Tiny("where", recompute=True),
    optimizer=adamw,
    batch=tokens(8, 256),
    step=step(dtype=torch.float16, scale=True, clip=1.0),
)
case(
    "tiny-checkpoint-fp32-accumulate",
    gpu="A100-40GB",
    model=lambda: Tiny("tril", recompute=True),
    optimizer=adamw,
    batch=tokens(8, 256),
    step=step(accumulate=2),
)
