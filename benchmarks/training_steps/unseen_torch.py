"""Steps in plain PyTorch that were chosen when the rules were done."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from training_steps.case import (
    Batch,
    adamw,
    arrays,
    case,
    fp16,
    optim,
    plain,
    step,
    tokens,
    trainable,
    with_loss,
    xy,
)


class Mixer(nn.Module):
    def __init__(self, places: int = 196, width: int = 384) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 16, 16)
        self.places = nn.ModuleList(
            nn.Sequential(nn.Linear(places, 256), nn.GELU(), nn.Linear(256, places)) for _ in range(3)
        )
        self.channels = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
            for _ in range(3)
        )
        self.head = nn.Linear(width, 100)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> Any:
        x = self.patches(x).flatten(2)
        for place, channel in zip(self.places, self.channels, strict=True):
            x = x + place(x)
            x = (x.mT + channel(x.mT)).mT
        return with_loss(F.cross_entropy(self.head(x.mean(2)), y))


class Dense(nn.Module):
    """Concatenated features, squeeze and excitation, weights with spectral norm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 32, 3, padding=1))
        self.layers = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(32 + 16 * i), nn.ReLU(), nn.Conv2d(32 + 16 * i, 16, 3, padding=1))
            for i in range(4)
        )
        self.gate = nn.Sequential(nn.Linear(96, 24), nn.SiLU(), nn.Linear(24, 96), nn.Sigmoid())
        self.head = nn.Linear(96, 10)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> Any:
        x = self.stem(x)
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        x = x * self.gate(x.mean((2, 3)))[:, :, None, None]
        return with_loss(F.cross_entropy(self.head(F.adaptive_max_pool2d(x, 1).flatten(1)), y, label_smoothing=0.1))


class Codes(nn.Module):
    """A vector-quantised autoencoder with straight-through gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv1d(8, 64, 4, stride=2, padding=1), nn.ReLU(), nn.Conv1d(64, 32, 3, padding=2, dilation=2)
        )
        self.book = nn.Embedding(512, 32)
        self.decoder = nn.Sequential(
            nn.ConvTranspose1d(32, 64, 4, stride=2, padding=1), nn.ReLU(), nn.Conv1d(64, 8, 3, padding=1)
        )

    def forward(self, x: torch.Tensor) -> Any:
        z = self.encoder(x).transpose(1, 2)
        flat = z.reshape(-1, 32)
        nearest = torch.cdist(flat, self.book.weight).argmin(1)
        code = self.book(nearest).view_as(z)
        loss = F.mse_loss(code, z.detach()) + 0.25 * F.mse_loss(z, code.detach())
        return with_loss(loss + F.smooth_l1_loss(self.decoder((z + (code - z).detach()).transpose(1, 2)), x))


class Sharper(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.ReflectionPad2d(1),
            nn.Conv2d(3, 48, 3),
            nn.PReLU(),
            nn.Conv2d(48, 48, 3, padding=1),
            nn.InstanceNorm2d(48, affine=True),
            nn.PReLU(),
            nn.Conv2d(48, 12, 3, padding=1),
            nn.PixelShuffle(2),
        )

    def forward(self, x: torch.Tensor, target: torch.Tensor) -> Any:
        out = self.layers(x) + F.interpolate(x, scale_factor=2, mode="bicubic", align_corners=False)
        change = (out[..., 1:, :] - out[..., :-1, :]).abs().mean() + (out[..., 1:] - out[..., :-1]).abs().mean()
        return with_loss((out - target).square().add(1e-6).sqrt().mean() + 0.01 * change)


class Rotary(nn.Module):
    """Attention with complex rotations, a gated activation and grouped queries, with F.scaled_dot_product_attention."""

    def __init__(self, width: int = 512, words: int = 12000) -> None:
        super().__init__()
        self.embed = nn.Embedding(words, width)
        self.norms = nn.ModuleList(nn.RMSNorm(width) for _ in range(5))
        self.q, self.kv, self.out = (
            nn.Linear(width, width, bias=False),
            nn.Linear(width, width // 2, bias=False),
            nn.Linear(width, width, bias=False),
        )
        self.gate, self.up, self.down = (
            nn.Linear(width, 1408, bias=False),
            nn.Linear(width, 1408, bias=False),
            nn.Linear(1408, width, bias=False),
        )

    def turn(self, x: torch.Tensor) -> torch.Tensor:
        angles = torch.outer(
            torch.arange(x.size(2), device=x.device), 10000 ** (-torch.arange(0, 64, 2, device=x.device) / 64)
        )
        pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], 32, 2))
        return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(-2).type_as(x)

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> Any:
        x = self.embed(input_ids)
        for i in range(2):
            h = self.norms[2 * i](x)
            q = self.q(h).unflatten(-1, (8, 64)).transpose(1, 2)
            k, v = (part.unflatten(-1, (2, 64)).transpose(1, 2) for part in self.kv(h).chunk(2, -1))
            a = F.scaled_dot_product_attention(self.turn(q), self.turn(k), v, is_causal=True, enable_gqa=True)
            x = x + self.out(a.transpose(1, 2).flatten(2))
            h = self.norms[2 * i + 1](x)
            x = x + self.down(F.silu(self.gate(h)) * self.up(h))
        logits = F.linear(self.norms[4](x), self.embed.weight).float()
        return with_loss(
            F.cross_entropy(logits.view(-1, logits.size(-1)), labels.view(-1))
            + 1e-4 * logits.logsumexp(-1).square().mean()
        )


class Neighbours(nn.Module):
    """Soft nearest neighbours: top-k, gather, scatter, Gumbel softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(128, 256), nn.Softplus(), nn.Linear(256, 64))
        self.keys = nn.Parameter(torch.zeros(4096, 64))
        self.router = nn.Linear(64, 8)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> Any:
        z = F.normalize(self.net(x), dim=-1)
        score, index = (z @ self.keys.t()).topk(16, dim=-1)
        near = (score.softmax(-1)[..., None] * self.keys[index]).sum(1)
        route = F.gumbel_softmax(self.router(near), tau=0.5, hard=True)
        load = torch.zeros(4096, device=x.device).scatter_add_(0, index.flatten(), score.flatten())
        order = score.sum(1).argsort(descending=True)
        return with_loss(
            F.cross_entropy(near[order], y) + load.std() + (route.mean(0) * route.mean(0).clamp_min(1e-6).log()).sum()
        )


class Watcher(nn.Module):
    """nn.MultiheadAttention whose weights are looked at, weight norm, a learnt query."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.utils.parametrizations.weight_norm(nn.Linear(96, 256))
        self.attention = nn.MultiheadAttention(256, 8, dropout=0.1, batch_first=True)
        self.query = nn.Parameter(torch.zeros(1, 4, 256))
        self.head = nn.Bilinear(256, 256, 12)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> Any:
        h = torch.tanh(self.first(x))
        out, weights = self.attention(self.query.expand(x.size(0), -1, -1), h, h)
        entropy = -(weights * (weights + 1e-9).log()).sum(-1).mean()
        return with_loss(F.cross_entropy(self.head(out[:, 0], out[:, 1]), y) + 0.01 * entropy)


def lion(model: Any, _: Any, batch: Batch) -> None:
    """An optimizer written by hand."""
    model(**batch).loss.backward()
    with torch.no_grad():
        parameters = trainable(model)
        gradients = [p.grad for p in parameters]
        norm = torch.linalg.vector_norm(torch.stack([g.norm() for g in gradients]))
        torch._foreach_mul_(gradients, (1.0 / (norm + 1e-6)).clamp(max=1.0))
        for p in parameters:
            p.mul_(1 - 1e-3).add_(p.grad.sign(), alpha=-1e-4)
            p.grad = None


case("mixer-fp32", gpu="T4", model=Mixer, optimizer=adamw, batch=xy(16, 3, 224, 224), step=plain)
case(
    "mixer-amp-bf16-clip",
    gpu="RTX4090",
    model=Mixer,
    optimizer=adamw,
    batch=xy(16, 3, 224, 224),
    step=step(dtype=torch.bfloat16, clip=1.0),
)
case(
    "dense-connections-fp32",
    gpu="T4",
    model=Dense,
    optimizer=optim("SGD", lr=0.1, momentum=0.9),
    batch=xy(16, 3, 48, 48),
    step=plain,
)
case(
    "dense-connections-amp-fp16",
    gpu="V100-16GB",
    model=Dense,
    optimizer=optim("NAdam"),
    batch=xy(16, 3, 48, 48),
    step=fp16,
)
case("codes-fp32", gpu="RTX3090", model=Codes, optimizer=optim("Adam"), batch=arrays(x=(16, 8, 2048)), step=plain)
case(
    "sharper-fp32",
    gpu="T4",
    model=Sharper,
    optimizer=adamw,
    batch=arrays(x=(4, 3, 64, 64), target=(4, 3, 128, 128)),
    step=plain,
)
case(
    "sharper-amp-fp16",
    gpu="A100-40GB",
    model=Sharper,
    optimizer=adamw,
    batch=arrays(x=(4, 3, 64, 64), target=(4, 3, 128, 128)),
    step=fp16,
)
case(
    "rotary-bf16",
    gpu="A100-40GB",
    model=lambda: Rotary().to(torch.bfloat16),
    optimizer=adamw,
    batch=tokens(4, 512),
    step=plain,
)
case(
    "rotary-amp-fp16-clip",
    gpu="T4",
    model=Rotary,
    optimizer=adamw,
    batch=tokens(2, 300),
    step=step(dtype=torch.float16, scale=True, clip=math.pi),
)
case("neighbours-fp32", gpu="RTX3090", model=Neighbours, optimizer=adamw, batch=xy(1000, 128), step=plain)
case("watcher-fp32", gpu="T4", model=Watcher, optimizer=optim("Adamax"), batch=xy(32, 50, 96), step=plain)
case("watcher-amp-fp16", gpu="RTX3090", model=Watcher, optimizer=optim("RAdam"), batch=xy(32, 50, 96), step=fp16)
case("mixer-optimizer-by-hand", gpu="T4", model=Mixer, optimizer=optim("SGD"), batch=xy(8, 3, 224, 224), step=lion)
