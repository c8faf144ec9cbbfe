"""A small job, as a project has it: a function that returns model, optimizer, batch and step."""

import torch
from torch import nn


class Tagger(nn.Module):
    def __init__(self, words: int = 20_000, width: int = 512, tags: int = 50) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, width)
        self.layers = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.head = nn.Linear(width, tags)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.layers(self.embedding(ids)))


def step(model, optimizer, batch):
    ids, tags = batch
    logits = model(ids)
    nn.functional.cross_entropy(logits.flatten(0, 1), tags.flatten()).backward()
    optimizer.step()
    optimizer.zero_grad()


def build(batch_size: int = 32, length: int = 256):
    with torch.device("meta"):  # which takes no memory
        model = Tagger()
        batch = torch.zeros(batch_size, length, dtype=torch.long), torch.zeros(batch_size, length, dtype=torch.long)
    return model, torch.optim.AdamW(model.parameters()), batch, step
