"""What of the user's globals belongs to a job."""

import subprocess
import sys
from typing import Any, ClassVar

import pytest
import torch

import willfit

head = torch.nn.Linear(3000, 3000)  # never used by Net, which has an attribute of that name


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = torch.nn.Linear(256, 1000, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x).sum()


def test_an_attribute_is_no_mention_of_a_global() -> None:
    net = Net()
    footprint = willfit.predict(net, torch.optim.SGD(net.parameters(), lr=0.1), {"x": torch.zeros(4, 256)}, on="T4")
    # 256 x 1000 fp32, rounded up to 512 B
    assert footprint.bill["parameters"] == -(-256 * 1000 * 4 // 512) * 512


def test_the_first_bill_of_a_process_draws_no_random_number() -> None:
    code = """
import random, torch, willfit
net = torch.nn.Linear(2, 2)
footprint = willfit.predict(net, None, torch.zeros(1, 2), loss=lambda m, x: m(x).sum(), on="T4")
before = random.getstate()
str(footprint)
print(random.getstate() == before)
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["True"]


class Everywhere:
    """As accelerate's states: all objects of the class keep their attributes in it."""

    _shared_state: ClassVar[dict[str, Any]] = {}

    def __init__(self) -> None:
        self.__dict__ = self._shared_state


def test_objects_that_share_their_attributes_do_so_in_a_prediction_and_in_it_alone() -> None:
    made_before, net = Everywhere(), Net()
    made_before.steps = 1  # type: ignore[attr-defined]

    def step(model: Any, optimizer: Any, batch: Any) -> None:
        made_before.steps += 1  # type: ignore[attr-defined]
        assert made_before.steps == Everywhere().steps  # type: ignore[attr-defined]
        model(batch).backward()
        optimizer.step()

    willfit.predict(net, torch.optim.SGD(net.parameters(), lr=0.1), torch.zeros(4, 256), step, on="T4", steps=2)
    assert Everywhere().steps == made_before.steps == 1  # type: ignore[attr-defined]


accelerator: Any = None


def test_a_global_accelerator_is_copied_with_its_scaler() -> None:
    """It says that it is its own copy; its scaler is also the prepared optimizer's."""
    accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")
    from accelerate.state import AcceleratorState

    global accelerator
    accelerator, net = accelerate.Accelerator(cpu=True), Net()
    own = accelerator.scaler = torch.amp.GradScaler("cpu")
    optimizer = accelerator.prepare(torch.optim.SGD(net.parameters(), lr=0.1))
    optimizer.scaler = own
    address = id(own)

    def step(model: Any, optimizer: Any, batch: Any) -> None:
        assert accelerator.scaler is optimizer.scaler
        assert id(accelerator.scaler) != address
        model(batch).backward()

    try:
        willfit.predict(net, optimizer, torch.zeros(4, 256), step, on="T4", steps=1)
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
        accelerator = None
