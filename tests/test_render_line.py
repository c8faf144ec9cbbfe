from __future__ import annotations

import pytest
import torch

from willfit import Device, Footprint, predict
from willfit._render.line import line_text

MIB = 2**20
TOY = Device(name="toy", total=40 * MIB, context=2 * MIB)


def footprint(on: Device | None) -> Footprint:
    model = torch.nn.Linear(512, 512, bias=False, device="meta")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return predict(model, optimizer, torch.zeros(4, 512), loss=lambda m, x: m(x).sum(), on=on)


def test_one_line_has_verdict_need_room_and_the_bill() -> None:
    line = line_text(footprint(TOY))
    # a weight of 512 x 512 in float32 and its gradient, and two workspaces of cuBLAS: segments of 20, 2 and 2 MiB,
    # and 2 MiB of context
    assert line.startswith("toy: fits: needs 26.00 MiB of 40.00 MiB: workspaces 16.25 MiB, parameters 1.00 MiB, ")
    assert "gradients 1.00 MiB" in line
    assert "optimizer states" not in line
    assert "\n" not in line


def test_without_a_device_it_says_what_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("willfit._device_here.current_device", lambda: None)
    assert line_text(footprint(None)).startswith("needs ")
