"""What the step reads of values that are known: the batch's, constants, and what is computed from them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import willfit

MASK = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])
FROM_THE_BATCH = "what the step reads of the batch's values"


class Notes:
    """What a step tells its test: the one object of it that is not copied."""

    def __init__(self) -> None:
        self.items: list[Any] = []

    def __deepcopy__(self, memo: Any) -> Notes:
        return self


class Reader(nn.Module):
    """A model whose step is a function of the batch, for what it reads."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("limit", torch.tensor(2))


def read(function: Any, batch: Any = MASK) -> tuple[Any, str]:
    """What a function (model, batch) of the step returns, and all that was assumed."""
    notes = Notes()

    def step(model: Any, optimizer: Any, batch: Any) -> None:
        notes.items.append(function(model, batch))
        model.linear(torch.ones(2, 4, device="cuda")).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    model = Reader()
    footprint = willfit.predict(model, torch.optim.SGD(model.parameters()), batch, step, on="T4", steps=1)
    return notes.items[0], " ".join(footprint.assumptions)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda model, mask: bool(mask.all()), False),
        (lambda model, mask: bool((mask[:, :2] == 1).all()), True),
        (lambda model, mask: mask.sum(1).max().item(), 3),
        (lambda model, mask: mask[:, : int(mask.sum(1).max())].shape, (2, 3)),
        (lambda model, mask: mask.sum(1).tolist(), [3, 2]),
        (lambda model, mask: tuple(mask.nonzero().shape), (5, 2)),
        (lambda model, mask: tuple(torch.rand(2, 4, device="cuda")[mask.bool()].shape), (5,)),
        (lambda model, mask: tuple(mask.unique().shape), (2,)),
        (lambda model, mask: tuple(torch.unique(mask, dim=1).shape), (2, 3)),
        (lambda model, mask: tuple(torch.bincount(mask.flatten() * 6).shape), (7,)),
        (lambda model, mask: tuple(torch.repeat_interleave(mask[0] + 1).shape), (7,)),
        (lambda model, mask: torch.equal(mask[:, 0], mask[:, 1]), True),
        (lambda model, mask: torch.equal(mask[:, 1], mask[:, 2]), False),
        (lambda model, mask: mask.masked_fill(mask == 0, -100).min().item(), -100),
        (lambda model, mask: mask.to(torch.float16).mean().item(), 0.625),
        (lambda model, mask: mask.cpu().numpy().sum() if _has_numpy() else 5, 5),
        (lambda model, mask: (mask.sum() > model.limit).item(), True),
    ],
)
def test_the_batch_is_read_as_it_is(function: Any, expected: Any) -> None:
    found, assumed = read(function)
    assert found == expected
    assert FROM_THE_BATCH in assumed


def _has_numpy() -> bool:
    try:
        import numpy  # noqa: F401
    except ImportError:
        return False
    return True


def test_changes_in_place_are_followed_through_views() -> None:
    def function(model: Any, mask: Any) -> list[Any]:
        column = mask[:, 3]
        column.fill_(1)
        mask[0].mul_(5)
        return mask.tolist()

    batch = MASK.clone()
    assert read(function, batch)[0] == [[5, 5, 5, 5], [1, 1, 0, 1]]
    assert torch.equal(batch, MASK)


def test_what_was_computed_before_a_change_has_the_values_of_before() -> None:
    def function(model: Any, mask: Any) -> list[Any]:
        doubled, view = mask * 2, mask[0]
        total = doubled.sum()
        mask.zero_()
        doubled.add_(1)
        return [doubled[0].tolist(), view.tolist(), total.item()]

    assert read(function)[0] == [[3, 3, 3, 1], [0, 0, 0, 0], 10]


def test_constants_are_known_and_are_not_the_batch_s() -> None:
    found, assumed = read(lambda model, mask: (torch.arange(5, device="cuda") * 2).tolist())
    assert found == [0, 2, 4, 6, 8]
    assert FROM_THE_BATCH not in assumed


def test_what_weights_and_random_numbers_decide_is_not_known() -> None:
    found, assumed = read(lambda model, mask: model.linear.weight.sum().item())
    assert found == 1
    assert ".item()" in assumed
    found, assumed = read(lambda model, mask: torch.rand(3, device="cuda").sum().item())
    assert found == 1
    assert ".item()" in assumed


def test_something_unknown_written_into_a_tensor_makes_it_and_its_views_unknown() -> None:
    def function(model: Any, mask: Any) -> list[Any]:
        row, other = mask[0], torch.zeros(4, device="cuda")
        other.copy_(model.linear.weight[0].detach())
        mask[1].copy_((model.linear.weight[0] > 0).detach())
        return [row.tolist(), other.tolist()]

    found, assumed = read(function)
    assert found == [[1] * 4, [1.0] * 4]
    assert "values copied from the GPU to the CPU are not known" in assumed


def test_what_weights_decide_is_not_known_either_when_it_has_been_on_the_host() -> None:
    def by_the_host(model: Any, mask: Any) -> bool:
        held = torch.zeros(4, 4, dtype=torch.bool)
        held.copy_(model.linear.weight > 0)  # which leaves the zeros there, as nothing was computed
        return bool(held.to("cuda").all())

    answer, assumed = read(by_the_host)
    assert answer is True  # the policy for all()
    assert "all() depends on values that are not known" in assumed


def test_a_batch_on_meta_has_no_values() -> None:
    found, assumed = read(lambda model, mask: mask.sum(1).max().item(), MASK.to("meta"))
    assert found == 1
    assert FROM_THE_BATCH not in assumed


def test_large_tensors_are_not_kept() -> None:
    found, assumed = read(lambda model, mask: mask.sum().item(), torch.ones(2**17 + 1))
    assert found == 1
    assert FROM_THE_BATCH not in assumed


@pytest.mark.filterwarnings("ignore:.*GradScaler is enabled, but CUDA is not available")
def test_the_scaler_keeps_its_scale_and_the_optimizer_steps() -> None:
    notes = Notes()

    def step(model: Any, optimizer: Any, batch: Any) -> None:
        scaler = torch.amp.GradScaler("cuda", init_scale=1024.0)
        scaler.scale(model.linear(torch.ones(2, 4, device="cuda")).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        notes.items.append(scaler.get_scale())
        optimizer.zero_grad()

    model = Reader()
    footprint = willfit.predict(model, torch.optim.Adam(model.parameters()), MASK, step, on="T4")
    assert notes.items == [1024.0] * 3
    assert footprint.bill["optimizer states"] > 0
    assert any("found_inf" in sentence for sentence in footprint.assumptions)
