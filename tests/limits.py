"""Random training jobs for the allocator at its limits, the same on both sides."""

from __future__ import annotations

import itertools
import random
from typing import Any

import torch
from torch import nn
from torch.nn import functional

JOBS = 12
CAPACITIES = (0.90, 0.94, 0.97, 1.0, 1.03, 1.10)
"""Of the peak of allocated memory."""


class Tower(nn.Module):
    """Layers of odd widths, with dropout, norms and skips, whose sizes fragment the cache."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__()
        widths = [rng.randint(200, 3000) for _ in range(rng.randint(3, 9))]
        self.embed = nn.Embedding(rng.randint(1000, 20000), widths[0])
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in widths[1:])
        self.drop = rng.choice([0.0, 0.1])
        self.head = nn.Linear(widths[-1], rng.randint(10, 5000))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids)
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = functional.dropout(functional.gelu(norm(layer(x))), self.drop)
        return self.head(x).logsumexp(-1).mean()


def job(seed: int) -> tuple[nn.Module, Any, Any, Any]:
    """Model, optimizer's maker, batch and step."""
    rng = random.Random(seed)
    model = Tower(rng)
    ids = torch.zeros(rng.randint(8, 64), rng.randint(20, 300), dtype=torch.long, device="cpu")
    kind = rng.choice(["AdamW", "SGD", "Adagrad", "RMSprop"])
    foreach = rng.choice([True, False])

    def optimizer(module: nn.Module) -> torch.optim.Optimizer:
        return getattr(torch.optim, kind)(module.parameters(), lr=0.01, foreach=foreach)

    def step(module: nn.Module, optimizer: torch.optim.Optimizer, batch: torch.Tensor) -> None:
        loss = module(batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return model, optimizer, ids, step
