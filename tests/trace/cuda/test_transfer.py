"""What moves between the host and the GPU take there besides, by copy_kernel_cuda of PyTorch's Copy.cu.

Sizes are arithmetic: a MiB for each 256 x 1024 floats. ``python tests/trace/cuda/test_transfer.py`` compares each with
what PyTorch's own code does on an emulated GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import willfit

MIB = 2**20
ROWS, COLUMNS = 1024, 1024  # 4 MiB of floats
Move = Callable[[torch.Tensor], Any]


def host(*, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.zeros(ROWS, COLUMNS, dtype=dtype)


MOVES: dict[str, tuple[Move, float]] = {
    "to the host as it is": (lambda x: host().copy_(x), 0),
    "to the host, turned": (lambda x: host().copy_(x.t()), 4),
    "to the host, turned on both sides": (lambda x: host().t().copy_(x.t()), 0),
    "to the host, every second column": (lambda x: x[:, ::2].cpu(), 2),
    "to the host, a transposed view keeps its strides": (lambda x: x.t().cpu(), 0),
    "to the host, expanded": (lambda x: host().copy_(x[:, :1]), 4),
    "to the host, converted there": (lambda x: host(dtype=torch.float16).copy_(x), 0),
    "to the host, converted there, turned": (lambda x: host(dtype=torch.float16).copy_(x.t()), 4),
    "to the host without waiting, converted here": (lambda x: host(dtype=torch.float16).copy_(x, non_blocking=True), 2),
    "to the host without waiting, turned and converted": (
        lambda x: host(dtype=torch.float16).copy_(x.t(), non_blocking=True),
        2 + 2,
    ),
    "to the GPU as it is": (lambda x: x.copy_(host()), 0),
    "to the GPU, turned on the host": (lambda x: x.copy_(host().t()), 0),
    "to the GPU, into a turned one": (lambda x: x.t().copy_(host()), 4),
    "to the GPU, converted on the host": (lambda x: x.copy_(host(dtype=torch.float64)), 0),
    "to the GPU without waiting, converted there": (
        lambda x: x.copy_(host(dtype=torch.float64), non_blocking=True),
        8,
    ),
    "to the GPU, one number": (lambda x: x.t()[0, 0].copy_(torch.tensor(1.0)), 0),
}


def taken(move: Move, engine: Any = "symbolic") -> float:
    """MiB on the GPU at the peak, beyond the batch."""

    def step(model: Any, optimizer: Any, batch: torch.Tensor) -> None:
        move(batch)

    model = nn.Linear(1, 1)
    batch = torch.zeros(ROWS, COLUMNS)
    footprint = willfit.predict(model, None, batch, step, on="A100-40GB", steps=1, engine=engine)
    placement, *others = footprint.phases
    peak = max((phase.peak_allocated for phase in others), default=placement.peak_allocated)
    return (peak - placement.peak_allocated) / MIB


@pytest.mark.parametrize("name", MOVES)
def test_a_move_takes_what_it_converts_and_puts_in_order(name: str) -> None:
    move, expected = MOVES[name]
    assert taken(move) == expected


def test_a_step_says_what_it_moves() -> None:
    def step(model: Any, optimizer: Any, batch: torch.Tensor) -> None:
        there = batch.cpu()
        batch.copy_(there[:512].repeat(2, 1))
        batch[0].to("cpu", torch.float64)

    footprint = willfit.predict(nn.Linear(1, 1), None, torch.zeros(ROWS, COLUMNS), step, on="T4", steps=2)
    assert footprint.transfers is not None
    assert (footprint.transfers.to_host, footprint.transfers.to_gpu) == (4 * MIB + 4 * COLUMNS, 4 * MIB)
    assert footprint.transfers.paged == 0


if __name__ == "__main__":
    for name, (move, expected) in MOVES.items():
        print(f"{name}: {expected} {taken(move, 'emulated')}")
