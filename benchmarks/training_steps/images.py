"""Convolutional networks: of images, volumes and waves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from training_steps.case import (
    Batch,
    adamw,
    arrays,
    bf16,
    case,
    classifier,
    fp16,
    optim,
    plain,
    with_loss,
    xy,
)


def convolution(i: int, o: int, size: int = 3, **options: Any) -> list[Callable[[], nn.Module]]:
    return [
        lambda: nn.Conv2d(i, o, size, padding=size // 2, bias=False, **options),
        lambda: nn.BatchNorm2d(o),
        lambda: nn.ReLU(inplace=True),
    ]


CNN = classifier(
    *convolution(3, 64),
    *convolution(64, 128, stride=2),
    lambda: nn.MaxPool2d(2),
    *convolution(128, 256),
    lambda: nn.AdaptiveAvgPool2d(1),
    nn.Flatten,
    lambda: nn.Linear(256, 100),
)


class UNet(nn.Module):
    def __init__(self, up: str, width: int = 32, norm: str = "group") -> None:
        super().__init__()
        widths = [width, 2 * width, 4 * width]
        self.inputs = nn.Conv2d(3, width, 3, padding=1)
        self.down = nn.ModuleList(self.block(w, w, norm) for w in widths)
        self.shrink = nn.ModuleList(nn.Conv2d(w, 2 * w, 3, stride=2, padding=1) for w in widths)
        self.middle = self.block(8 * width, 8 * width, norm)
        self.grow = nn.ModuleList(
            nn.ConvTranspose2d(2 * w, w, 2, stride=2) if up == "transposed" else nn.Conv2d(2 * w, w, 1)
            for w in reversed(widths)
        )
        self.up = nn.ModuleList(self.block(2 * w, w, norm) for w in reversed(widths))
        self.outputs = nn.Conv2d(width, 3, 1)
        self.mode = up

    @staticmethod
    def block(i: int, o: int, norm: str) -> nn.Module:
        return nn.Sequential(
            nn.GroupNorm(8, i) if norm == "group" else nn.BatchNorm2d(i), nn.SiLU(), nn.Conv2d(i, o, 3, padding=1)
        )

    def forward(self, x: torch.Tensor, target: torch.Tensor) -> Any:
        x = self.inputs(x)
        kept = []
        for block, shrink in zip(self.down, self.shrink, strict=False):
            x = x + block(x)
            kept.append(x)
            x = shrink(x)
        x = self.middle(x)
        for grow, block in zip(self.grow, self.up, strict=False):
            if self.mode != "transposed":
                x = F.interpolate(x, scale_factor=2, mode=self.mode)
            x = block(torch.cat([grow(x), kept.pop()], dim=1))
        return with_loss(F.mse_loss(self.outputs(x), target))


def channels_last(build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: build().to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def last(batch: Callable[[], Batch]) -> Callable[[], Batch]:
    return lambda: {
        n: t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t for n, t in batch().items()
    }


SGD = optim("SGD", lr=0.1, momentum=0.9)
PICTURES = arrays(x=(8, 3, 96, 96), target=(8, 3, 96, 96))

case("cnn-fp32", gpu="T4", model=CNN, optimizer=SGD, batch=xy(32, 3, 64, 64), step=plain)
case(
    "cnn-amp-fp16-channels-last",
    gpu="RTX3090",
    model=channels_last(CNN),
    optimizer=SGD,
    batch=last(xy(32, 3, 64, 64)),
    step=fp16,
)
case("cnn-fp16-odd", gpu="V100-16GB", model=CNN, optimizer=SGD, batch=xy(13, 3, 61, 47), step=fp16)
case("cnn-amp-bf16", gpu="A100-40GB", model=CNN, optimizer=adamw, batch=xy(16, 3, 64, 64), step=bf16)
case(
    "depthwise-fp32",
    gpu="RTX4090",
    optimizer=SGD,
    batch=xy(16, 3, 64, 64),
    step=plain,
    model=classifier(
        *convolution(3, 64),
        *convolution(64, 64, groups=64),
        *convolution(64, 128, 1),
        *convolution(128, 128, 5, groups=128, stride=2),
        lambda: nn.AvgPool2d(2),
        lambda: nn.Dropout2d(0.1),
        nn.Flatten,
        lambda: nn.Linear(128 * 16 * 16, 10),
    ),
)
case("unet-nearest-fp32", gpu="T4", model=lambda: UNet("nearest"), optimizer=adamw, batch=PICTURES, step=plain)
case("unet-transposed-amp-fp16", gpu="T4", model=lambda: UNet("transposed"), optimizer=adamw, batch=PICTURES, step=fp16)
case(
    "unet-bilinear-batch-norm",
    gpu="A100-40GB",
    model=lambda: UNet("bilinear", norm="batch"),
    optimizer=adamw,
    batch=PICTURES,
    step=plain,
)
case(
    "unet-nearest-channels-last",
    gpu="RTX3090",
    model=channels_last(lambda: UNet("nearest")),
    optimizer=adamw,
    batch=last(PICTURES),
    step=fp16,
)


class Volumes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv3d(1, 16, 3, padding=1),
            nn.InstanceNorm3d(16, affine=True),
            nn.LeakyReLU(0.1, inplace=True),
            nn.MaxPool3d(2),
            nn.Conv3d(16, 32, 3, padding=1),
            nn.BatchNorm3d(32),
            nn.ELU(),
            nn.Upsample(scale_factor=2, mode="trilinear"),
            nn.Conv3d(32, 1, 1),
        )

    def forward(self, x: torch.Tensor, target: torch.Tensor) -> Any:
        out = self.layers(x)
        probability = out.sigmoid()
        dice = 1 - 2 * (probability * target).sum() / (probability.sum() + target.sum() + 1e-6)
        return with_loss(dice + F.binary_cross_entropy_with_logits(out, target))


case(
    "volumes-fp32",
    gpu="RTX3090",
    model=Volumes,
    optimizer=adamw,
    batch=arrays(x=(2, 1, 32, 48, 40), target=(2, 1, 32, 48, 40)),
    step=plain,
)


class Waves(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv1d(1, 64, 80, stride=4),
            nn.BatchNorm1d(64),
            nn.ReLU(),
            nn.MaxPool1d(4),
            nn.Conv1d(64, 128, 3),
            nn.GroupNorm(1, 128),
            nn.ReLU(),
        )
        self.head = nn.Linear(128, 29)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> Any:
        logits = self.head(self.layers(x).mean(-1))
        return with_loss(
            F.cross_entropy(logits, y)
            + 0.1 * F.kl_div(logits.log_softmax(-1), logits.detach().softmax(-1), reduction="batchmean")
        )


case("waves-fp32", gpu="V100-16GB", model=Waves, optimizer=adamw, batch=xy(16, 1, 16000), step=plain)
