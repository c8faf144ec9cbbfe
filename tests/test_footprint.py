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
    assert held["optimizer states"] == {"": 2 * 2 * 256 * 512 * 4}  # two moments of two weights
    assert held["inputs"] == {"": 64 * 256 * 4}
