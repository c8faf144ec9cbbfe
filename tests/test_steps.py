"""When a call of the user's step counts as an optimizer step, and when another call follows."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import willfit

NONE_MADE = "the step makes no optimizer step: each call is counted as one"


def parts() -> tuple[nn.Module, torch.optim.Optimizer, torch.Tensor]:
    model = nn.Linear(64, 64, bias=False)
    return model, torch.optim.SGD(model.parameters(), lr=0.1), torch.zeros(8, 64)


def calls_of(footprint: willfit.Footprint) -> list[int]:
    """How often the step was called for each optimizer step, by the forward phases."""
    return [sum((each.step, each.phase) == (n, "forward") for each in footprint.phases) for n in (1, 2, 3)]


def test_an_update_by_hand_counts_as_a_step() -> None:
    def step(model: Any, optimizer: Any, batch: Any) -> None:
        model(batch).sum().backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.1 * parameter.grad
                parameter.grad = None

    footprint = willfit.predict(*parts(), step, on="T4")
    assert calls_of(footprint) == [1, 1, 1]
    assert NONE_MADE in footprint.assumptions


def test_calls_that_keep_gradients_are_micro_steps() -> None:
    calls = [0]

    def step(model: Any, optimizer: Any, batch: Any) -> None:
        model(batch).sum().backward()
        calls[0] += 1
        if calls[0] % 4 == 0:
            optimizer.step()
            optimizer.zero_grad()

    footprint = willfit.predict(*parts(), step, on="T4")
    assert calls_of(footprint) == [4, 4, 4]
    assert NONE_MADE not in footprint.assumptions


def test_gradients_that_nobody_ever_uses_are_noticed() -> None:
    def step(model: Any, optimizer: Any, batch: Any) -> None:
        model(batch).sum().backward()

    footprint = willfit.predict(*parts(), step, on="T4")
    assert calls_of(footprint)[1:] == [1, 1]
    assert NONE_MADE in footprint.assumptions
