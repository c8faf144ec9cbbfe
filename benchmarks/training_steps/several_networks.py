"""Several networks in one job, and unusual losses."""

from __future__ import annotations

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
    frozen,
    optim,
    perceptron,
    plain,
    step,
    with_loss,
    xy,
)


class Adversaries(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        up = [(100, 256, 4, 1, 0), (256, 128, 4, 2, 1), (128, 64, 4, 2, 1)]
        self.generator = nn.Sequential(
            *(
                layer
                for i, o, k, s, p in up
                for layer in (nn.ConvTranspose2d(i, o, k, s, p, bias=False), nn.BatchNorm2d(o), nn.ReLU(True))
            ),
            nn.ConvTranspose2d(64, 3, 4, 2, 1),
            nn.Tanh(),
        )
        self.critic = nn.Sequential(
            nn.Conv2d(3, 64, 4, 2, 1),
            nn.LeakyReLU(0.2, True),
            nn.Conv2d(64, 128, 4, 2, 1),
            nn.LeakyReLU(0.2, True),
            nn.Flatten(),
            nn.Linear(128 * 64, 1),
        )


def pair(model: Any) -> Any:
    return {
        "generator": torch.optim.Adam(model.generator.parameters(), lr=2e-4),
        "critic": torch.optim.Adam(model.critic.parameters(), lr=2e-4),
    }


def adversarial(penalty: bool) -> Any:
    def run(model: Any, optimizers: Any, batch: Batch) -> None:
        real = batch["x"]
        fake = model.generator(torch.randn(real.size(0), 100, 1, 1, device=real.device))
        optimizers["critic"].zero_grad()
        if penalty:
            between = torch.lerp(
                real, fake.detach(), torch.rand(real.size(0), 1, 1, 1, device=real.device)
            ).requires_grad_()
            (slope,) = torch.autograd.grad(model.critic(between).sum(), between, create_graph=True)
            loss = (
                model.critic(fake.detach()).mean()
                - model.critic(real).mean()
                + 10 * (slope.flatten(1).norm(dim=1) - 1).pow(2).mean()
            )
        else:
            ones = torch.ones(real.size(0), 1, device=real.device)
            loss = F.binary_cross_entropy_with_logits(model.critic(real), ones) + F.binary_cross_entropy_with_logits(
                model.critic(fake.detach()), 1 - ones
            )
        loss.backward()
        optimizers["critic"].step()
        optimizers["generator"].zero_grad()
        (-model.critic(fake).mean()).backward()
        optimizers["generator"].step()

    return run


class Distillation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.teacher = frozen(perceptron(784, 4000, 4000, 1000)().network)
        self.student = perceptron(784, 500, 1000)().network

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> Any:
        with torch.no_grad():
            target = self.teacher(x)
        logits = self.student(x)
        soft = F.kl_div(F.log_softmax(logits / 2, dim=-1), F.softmax(target / 2, dim=-1), reduction="batchmean") * 4
        return with_loss(0.5 * soft + 0.5 * F.cross_entropy(logits, y))


class Pairs(nn.Module):
    """Two towers and a matrix of similarities."""

    def __init__(self, triplet: bool = False) -> None:
        super().__init__()
        self.a, self.b = (perceptron(512, 1024, 256)().network for _ in range(2))
        self.scale = nn.Parameter(torch.ones(()))
        self.triplet = triplet

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> Any:
        a, b = F.normalize(self.a(a), dim=-1), F.normalize(self.b(b), dim=-1)
        if self.triplet:
            distances = torch.cdist(a, b)
            return with_loss(
                F.triplet_margin_loss(a, b, b.roll(1, 0))
                + F.relu(1 - distances).mean()
                + F.cosine_embedding_loss(a, b, torch.ones(a.size(0), device=a.device))
            )
        logits = self.scale.exp() * a @ b.t()
        target = torch.arange(a.size(0), device=a.device)
        return with_loss((F.cross_entropy(logits, target) + F.cross_entropy(logits.t(), target)) / 2)


class Autoencoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = (
            nn.Sequential(nn.Linear(2000, 800), nn.ReLU(), nn.Linear(800, 2 * 64)),
            nn.Sequential(nn.Linear(64, 800), nn.ReLU(), nn.Linear(800, 2000)),
        )

    def forward(self, x: torch.Tensor) -> Any:
        mean, log_variance = self.encoder(x).chunk(2, dim=-1)
        out = self.decoder(mean + torch.randn_like(mean) * (0.5 * log_variance).exp())
        divergence = -0.5 * (1 + log_variance - mean.pow(2) - log_variance.exp()).sum(-1).mean()
        return with_loss(F.binary_cross_entropy(out.sigmoid(), x, reduction="sum") / x.size(0) + divergence)


class Values(nn.Module):
    """Proximal policy optimisation's loss on a stored batch."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(376, 256), nn.Tanh(), nn.Linear(256, 256), nn.Tanh())
        self.mean, self.value, self.spread = nn.Linear(256, 17), nn.Linear(256, 1), nn.Parameter(torch.zeros(17))

    def forward(self, state: torch.Tensor, action: torch.Tensor, before: torch.Tensor, gain: torch.Tensor) -> Any:
        h = self.trunk(state)
        policy = torch.distributions.Normal(self.mean(h), self.spread.exp(), validate_args=False)
        ratio = (policy.log_prob(action).sum(-1) - before).exp()
        gain = (gain - gain.mean()) / (gain.std() + 1e-8)
        surrogate = -torch.min(ratio * gain, ratio.clamp(0.8, 1.2) * gain).mean()
        return with_loss(surrogate + F.smooth_l1_loss(self.value(h).squeeze(-1), gain) - 0.01 * policy.entropy().mean())


case("gan-fp32", gpu="T4", model=Adversaries, optimizer=pair, batch=arrays(x=(64, 3, 32, 32)), step=adversarial(False))
case(
    "gan-gradient-penalty",
    gpu="V100-16GB",
    model=Adversaries,
    optimizer=pair,
    batch=arrays(x=(32, 3, 32, 32)),
    step=adversarial(True),
)
case("distillation-fp32", gpu="T4", model=Distillation, optimizer=adamw, batch=xy(512, 784), step=plain)
case("distillation-amp-bf16", gpu="A100-40GB", model=Distillation, optimizer=adamw, batch=xy(512, 784), step=bf16)
case(
    "contrastive-fp32",
    gpu="RTX3090",
    model=Pairs,
    optimizer=adamw,
    batch=arrays(a=(2048, 512), b=(2048, 512)),
    step=plain,
)
case(
    "contrastive-amp-fp16-clip",
    gpu="T4",
    model=Pairs,
    optimizer=adamw,
    batch=arrays(a=(1023, 512), b=(1023, 512)),
    step=step(dtype=torch.float16, scale=True, clip=1.0),
)
case(
    "triplets-cdist-fp32",
    gpu="T4",
    model=lambda: Pairs(triplet=True),
    optimizer=adamw,
    batch=arrays(a=(500, 512), b=(500, 512)),
    step=plain,
)
case(
    "variational-autoencoder-fp32",
    gpu="T4",
    model=Autoencoder,
    optimizer=optim("Adam"),
    batch=arrays(x=(512, 2000)),
    step=plain,
)
case(
    "policy-gradient-fp32",
    gpu="RTX4090",
    model=Values,
    optimizer=optim("Adam"),
    step=step(clip=0.5),
    batch=arrays(state=(4096, 376), action=(4096, 17), before=(4096,), gain=(4096,)),
)
