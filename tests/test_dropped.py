"""What a step lets go of is freed, whoever held it before the first step."""

from __future__ import annotations

import copy
import weakref
from typing import Any

import torch
from torch import nn

import willfit
from willfit._changing import held_back

KEPT = 3 * 2**20  # bytes of what the steps below keep, and no other tensor


def predicted(step: Any, model: nn.Module | None = None) -> willfit.Footprint:
    model = model or nn.Linear(64, 64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return willfit.predict(model, optimizer, torch.zeros(8, 64), step, on="T4", steps=3)


def optimize(model: Any, optimizer: Any, batch: Any) -> None:
    model(batch).sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def freed(footprint: willfit.Footprint) -> list[bool]:
    """Of each tensor of that size, whether it was freed before the end."""
    trace = footprint._trace
    return [-(i + 1) in trace.events for i, each in enumerate(trace.allocations) if each.size == KEPT]


def test_a_list_that_is_replaced() -> None:
    state: dict[str, list[Any]] = {"outputs": []}

    def step(model: Any, optimizer: Any, batch: Any) -> None:
        state["outputs"].append(torch.zeros(KEPT // 4, device=batch.device))
        optimize(model, optimizer, batch)
        state["outputs"] = []

    assert freed(predicted(step)) == [True, True, True]
    assert state == {"outputs": []}


def test_a_buffer_that_is_replaced() -> None:
    """There are four: the one that was there, and one of each step; the last is there at the end."""
    model = nn.Linear(64, 64)
    model.register_buffer("mean", torch.zeros(KEPT // 4))

    def step(model: Any, optimizer: Any, batch: Any) -> None:
        model.mean = model.mean * 0.5
        optimize(model, optimizer, batch)

    assert freed(predicted(step, model)) == [True, True, True, False]


def test_what_the_step_knows_weakly_stays() -> None:
    class Owner:
        scale = 2.0

        def __init__(self) -> None:
            self.table = torch.zeros(4)

    owner = Owner()
    proxy, reference = weakref.proxy(owner), weakref.ref(owner)

    def step(model: Any, optimizer: Any, batch: Any) -> None:
        assert proxy.table is reference().table  # type: ignore[union-attr]
        optimize(model, optimizer, batch * proxy.scale)

    predicted(step)


def test_a_copy_of_a_cpu_tensor_is_on_the_cpu() -> None:
    def step(model: Any, optimizer: Any, batch: Any) -> None:
        copied = copy.deepcopy(torch.zeros(KEPT // 4))
        copied.add_(1)
        assert copied.sum().item() == KEPT // 4
        optimize(model, optimizer, batch)

    assert freed(predicted(step)) == []


def test_an_optimizer_that_is_held_back_still_runs_its_closure() -> None:
    model, called = nn.Linear(2, 2), []
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    before = model.weight.clone()

    def closure() -> float:
        optimizer.zero_grad()
        model(torch.ones(1, 2)).sum().backward()
        called.append(True)
        return 3.0

    with held_back(optimizer):
        assert optimizer.step(closure) == 3.0
    assert called
    assert torch.equal(model.weight, before)
