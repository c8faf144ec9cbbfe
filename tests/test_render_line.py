from __future__ import annotations

import torch

from willfit import Device, Footprint, predict
from willfit._render.line import line_text

MIB = 2**20
TOY = Device(name="toy", total=40 * MIB, context=2 * MIB)


def footprint(optimizer: type[torch.optim.Optimizer]) -> Footprint:
    model = torch.nn.Linear(512, 512, bias=False, device="meta")
    made = optimizer(model.parameters(), lr=0.1)  # type: ignore[call-arg]
    return predict(model, made, torch.zeros(4, 512), loss=lambda m, x: m(x).sum(), on=TOY)


def test_one_line_has_what_is_needed_and_the_largest_roles() -> None:
    # a weight of 512 x 512 in float32 and its gradient, and two workspaces of cuBLAS: segments of 20, 2 and 2 MiB,
    # and 2 MiB of context
    expected = "needs 26.00 MiB: workspaces 16.25 MiB, parameters 1.00 MiB, gradients 1.00 MiB, ..."
    line = line_text(footprint(torch.optim.SGD))
    assert expected.startswith(line.removesuffix(", ..."))
    assert line.count("MiB") == 3


def test_it_is_no_longer_than_80_columns() -> None:
    for optimizer in (torch.optim.SGD, torch.optim.AdamW):
        line = line_text(footprint(optimizer))
        assert 60 < len(line) <= 80
        assert line.endswith(", ...")
