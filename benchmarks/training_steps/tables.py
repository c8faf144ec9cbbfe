"""Sequences, embedding tables and graphs."""

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
    case,
    fp16,
    optim,
    plain,
    step,
    tokens,
    with_loss,
    xy,
)


class Recurrent(nn.Module):
    def __init__(self, kind: str, **options: Any) -> None:
        super().__init__()
        self.embed = nn.Embedding(5000, 128)
        self.rnn = getattr(nn, kind)(128, 256, batch_first=True, **options)
        self.head = nn.Linear(256 * (2 if options.get("bidirectional") else 1), 5000)

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> Any:
        with torch.backends.cudnn.flags(enabled=False):
            out, _ = self.rnn(self.embed(input_ids))
        return with_loss(F.cross_entropy(self.head(out).flatten(0, 1), labels.flatten()))


class Cells(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.LSTMCell(64, 512), nn.Linear(512, 10)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> Any:
        state = None
        for t in range(x.size(1)):
            state = self.cell(x[:, t], state)
        return with_loss(F.cross_entropy(self.head(state[0]), y))


class Recommender(nn.Module):
    """Embedding tables, some gathered and some in bags, a dot product and a tower."""

    def __init__(self, rows: int = 400_000, width: int = 64, sparse: bool = False, bags: bool = False) -> None:
        super().__init__()
        self.users, self.items = (nn.Embedding(n, width, sparse=sparse) for n in (rows, rows // 4))
        self.bag = nn.EmbeddingBag(50_000, width, mode="mean", sparse=sparse) if bags else None
        self.tower = nn.Sequential(nn.Linear(width * (3 if bags else 2), 256), nn.ReLU(), nn.Linear(256, 1))

    def forward(
        self, user_ids: torch.Tensor, item_ids: torch.Tensor, history_ids: torch.Tensor, clicked: torch.Tensor
    ) -> Any:
        user, item = self.users(user_ids), self.items(item_ids)
        parts = [user, item] + ([self.bag(history_ids)] if self.bag is not None else [])
        score = self.tower(torch.cat(parts, dim=1)).squeeze(1) + (user * item).sum(1)
        return with_loss(F.binary_cross_entropy_with_logits(score, clicked))


def two(dense: str, sparse: str) -> Callable[[Any], Any]:
    def build(model: Any) -> Any:
        tables = [model.users.weight, model.items.weight]
        rest = [p for p in model.parameters() if all(p is not t for t in tables)]
        return {"dense": getattr(torch.optim, dense)(rest), "sparse": getattr(torch.optim, sparse)(tables, lr=1e-2)}

    return build


def both(model: Any, optimizers: Any, batch: Batch) -> None:
    model(**batch).loss.backward()
    for optimizer in optimizers.values():
        optimizer.step()
        optimizer.zero_grad()


CLICKS = arrays(user_ids=(2048,), item_ids=(2048,), history_ids=(2048, 20), clicked=(2048,))

case(
    "lstm-without-cudnn",
    gpu="T4",
    model=lambda: Recurrent("LSTM", num_layers=2),
    optimizer=adamw,
    batch=tokens(16, 40),
    step=step(clip=0.5),
)
case(
    "gru-bidirectional-without-cudnn",
    gpu="RTX3090",
    model=lambda: Recurrent("GRU", bidirectional=True),
    optimizer=adamw,
    batch=tokens(16, 30),
    step=plain,
)
case(
    "lstm-amp-fp16-without-cudnn",
    gpu="V100-16GB",
    model=lambda: Recurrent("LSTM"),
    optimizer=adamw,
    batch=tokens(16, 30),
    step=fp16,
)
case("lstm-cells", gpu="T4", model=Cells, optimizer=adamw, batch=xy(32, 20, 64), step=plain)
case(
    "recommender-dense",
    gpu="A100-40GB",
    model=Recommender,
    optimizer=optim("Adagrad", lr=1e-2),
    batch=CLICKS,
    step=plain,
)
case(
    "recommender-sparse-adam",
    gpu="T4",
    model=lambda: Recommender(sparse=True),
    optimizer=two("Adam", "SparseAdam"),
    batch=CLICKS,
    step=both,
)
case(
    "recommender-sparse-sgd",
    gpu="T4",
    model=lambda: Recommender(sparse=True),
    optimizer=optim("SGD"),
    batch=CLICKS,
    step=plain,
)
case(
    "recommender-sparse-momentum",
    gpu="A100-40GB",
    model=lambda: Recommender(rows=20_000, sparse=True),
    optimizer=optim("SGD", momentum=0.9),
    batch=CLICKS,
    step=plain,
)
case(
    "recommender-sparse-adagrad-bags",
    gpu="RTX3090",
    model=lambda: Recommender(rows=30_000, sparse=True, bags=True),
    optimizer=optim("Adagrad", lr=1e-2),
    batch=CLICKS,
    step=step(accumulate=2),
)
case("recommender-bags", gpu="RTX4090", model=lambda: Recommender(bags=True), optimizer=adamw, batch=CLICKS, step=plain)


class Graph(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(128, 128) for _ in range(3))
        self.head = nn.Linear(128, 40)

    def forward(self, x: torch.Tensor, edges_ids: torch.Tensor, y_ids: torch.Tensor) -> Any:
        source, target = edges_ids
        for layer in self.layers:
            x = layer(x)
            x = F.relu(torch.zeros_like(x).index_add(0, target, x[source])) + x
        pooled = torch.zeros(100, 128, device=x.device).scatter_add(0, (y_ids % 100)[:, None].expand(-1, 128), x)
        return with_loss(F.cross_entropy(self.head(x), y_ids) + pooled.pow(2).mean())


case(
    "graph-fp32",
    gpu="A100-40GB",
    model=Graph,
    optimizer=adamw,
    batch=arrays(x=(20000, 128), edges_ids=(2, 60000), y_ids=(20000,)),
    step=plain,
)
