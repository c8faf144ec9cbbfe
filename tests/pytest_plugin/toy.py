"""A job so small that a test of a test takes no time, and cards to hold it."""

from __future__ import annotations

from typing import Any

# What a run by pytester imports anew is forgotten when it is over: here is all that such runs use.
import willfit._device_here
import willfit._pytest.changes
import willfit._pytest.fingerprint
import willfit._pytest.fixture
import willfit._pytest.requires
import willfit._pytest.workers
import willfit._render.line
import willfit._render.text
import willfit._which_fit  # noqa: F401
from willfit import Footprint, predict

JOB = """
import pytest, torch
from torch import nn
from willfit import Device

TOY = Device(name="toy", total=2**30, context=2**20)
SMALL = Device(name="small", total=4 * 2**20, context=0)


class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(2))
        self.head = nn.Linear(width, 1)

    def forward(self, x):
        for block in self.blocks:
            x = block(x).relu()
        return self.head(x)


def build(width=64, optimizer=torch.optim.SGD):
    model = Net(width)
    return model, optimizer(model.parameters(), lr=0.1), torch.ones(4, width)


def loss(model, batch):
    return model(batch).sum()


job = build()
"""
"""The head of a test file: ``willfit.check(*job, loss=loss)`` on `TOY` fits."""


def footprint(width: int = 64, **options: Any) -> Footprint:
    """What the job of `JOB` needs."""
    names: dict[str, Any] = {"__name__": "toy_job"}
    exec(JOB, names)
    return predict(*names["build"](width), loss=names["loss"], **{"on": names["TOY"], **options})


TOY = footprint()
"""What it needs on the card of that name."""
