"""A small language model, trained for real on the CPU or on a GPU, under a guard that lets it pass.

    python examples/train_small.py
    willfit check examples/train_small.py:build --on T4

It learns this file by heart, letter by letter. Needs torch alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import willfit

CONTEXT = 16  # letters that it sees
Batch = tuple[torch.Tensor, torch.Tensor]


class NextLetter(nn.Sequential):
    """Says which letter follows, from the sixteen before it."""

    def __init__(self, letters: int = 128, width: int = 64) -> None:
        super().__init__(
            nn.Embedding(letters, width),
            nn.Flatten(),
            nn.Linear(CONTEXT * width, 512),
            nn.GELU(),
            nn.Linear(512, letters),
        )


def batches(count: int, size: int = 256) -> Iterator[Batch]:
    letters = torch.tensor([min(ord(letter), 127) for letter in Path(__file__).read_text(encoding="utf-8")])
    windows = letters.unfold(0, CONTEXT + 1, 1)
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        chosen = windows[torch.randint(len(windows), (size,), generator=generator)]
        yield chosen[:, :-1], chosen[:, -1]


def step(model: nn.Module, optimizer: torch.optim.Optimizer, batch: Batch) -> torch.Tensor:
    letters, following = batch
    loss = cross_entropy(model(letters), following)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss


def build() -> tuple[nn.Module, torch.optim.Optimizer, Batch, object]:
    torch.manual_seed(0)
    model = NextLetter()
    return model, torch.optim.AdamW(model.parameters(), lr=3e-3), next(batches(1)), step


@willfit.guard(on="T4", step=step)
def train(model: nn.Module, optimizer: torch.optim.Optimizer, batches: Iterator[Batch]) -> float:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device)
    for number, batch in enumerate(batches):
        loss = step(model, optimizer, tuple(part.to(device) for part in batch)).item()
        if number % 10 == 0:
            print(f"step {number:3}  loss {loss:.3f}")
    return loss


if __name__ == "__main__":
    model, optimizer, _, _ = build()
    train(model, optimizer, batches(101))
