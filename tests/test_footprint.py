from __future__ import annotations

import torch
from torch import nn

from willfit import Device, predict


def test_the_bill_by_module_is_the_bill_and_says_where() -> None:
    model = nn.Sequential()
    model.add_module("first", nn.Linear(256, 512, bias=False, device="meta"))
    model.add_module("second", nn.Linear(512, 256, bias=False, device="meta"))
    optimizer = torch.optim.AdamW(model.parameters())
    toy = Device(name="toy", total=2**30, context=0)
    footprint = predict(model, optimizer, torch.zeros(64, 256), loss=lambda m, x: m(x).sum(), on=toy)
    held = footprint.bill_by_module
    assert {role: sum(modules.values()) for role, modules in held.items()} == footprint.bill
    assert held["parameters"] == {"first": 256 * 512 * 4, "second": 512 * 256 * 4}
    assert held["optimizer states"] == {"first": 2 * 256 * 512 * 4, "second": 2 * 256 * 512 * 4}  # two moments each
    assert held["inputs"] == {"": 64 * 256 * 4}


def test_states_of_the_optimizer_are_the_modules_of_the_parameters_that_they_are_for() -> None:
    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1024))
            self.first, self.second = nn.Linear(256, 1024, bias=False), nn.Linear(1024, 1024, bias=False)
            self.second.weight = self.tied = nn.Parameter(torch.ones(1024, 1024))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(self.first(x) * self.scale)

    def loss(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = model(batch)
        return output.sum()

    model = Root()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    expected = {"Root": (1024 + 1024 * 1024) * 4, "first": 256 * 1024 * 4}
    batch = torch.zeros(2, 256)
    assert predict(model, optimizer, batch, loss=loss, on="T4").bill_by_module["optimizer states"] == expected
    loss(model, batch).backward()
    optimizer.step()
    optimizer.zero_grad()
    assert predict(model, optimizer, batch, loss=loss, on="T4").bill_by_module["optimizer states"] == expected
