"""Advice: what is proposed, what becomes of it, and in which order it is shown."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import willfit
from willfit import _remedies
from willfit._advice import Option
from willfit._remedies.remedy import Change, NotApplicable

MIB = 2**20


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.relu(self.up(x)))


class Net(nn.Module):
    """Blocks, and a loss of its own as Transformers' models have."""

    def __init__(self, width: int = 256, depth: int = 6) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        for block in self.blocks:
            x = block(x)
        return {"loss": x.square().mean()}


class WithLoss(Net):
    def forward(self, x: torch.Tensor) -> Any:  # type: ignore[override]
        from types import SimpleNamespace

        return SimpleNamespace(**super().forward(x))


def job(samples: int = 2048, **options: Any) -> tuple[nn.Module, torch.optim.Optimizer, dict[str, torch.Tensor]]:
    model = WithLoss(**options)
    return model, torch.optim.AdamW(model.parameters(), lr=1e-3), {"x": torch.zeros(samples, 256)}


def card(mib: int) -> willfit.Device:
    return willfit.Device(name="toy", total=mib * MIB, context=0)


def by_title(advice: willfit.Advice) -> dict[tuple[str, ...], Option]:
    return {option.titles: option for option in (*advice.options, *advice.partial)}


def same(one: willfit.Footprint, other: willfit.Footprint) -> bool:
    """But for the names of the lines that allocated."""
    figures = ("bill", "peak_allocated", "peak_reserved", "required", "phases", "verdict")
    return all(getattr(one, name) == getattr(other, name) for name in figures)


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let these remedies alone propose anything: each change is a prediction of its own, and takes its time."""

    def choose(*names: str, **others: Any) -> None:
        monkeypatch.setattr(_remedies, "_OWN", {name: _remedies._OWN[name] for name in names} | others)

    return choose


@pytest.fixture(scope="module")
def advice() -> willfit.Advice:
    return willfit.advise(*job(), on=card(140))


def test_the_job_as_it_is_does_not_fit(advice: willfit.Advice) -> None:
    assert advice.footprint.verdict == "does not fit"
    assert advice.footprint == willfit.predict(*job(), on=card(140))


def test_all_options_fit_and_what_is_partial_does_not(advice: willfit.Advice) -> None:
    assert advice.options
    assert all(option.verdict in ("fits", "tight") for option in advice.options)
    assert all(option.verdict == "does not fit" and option.saved > 0 for option in advice.partial)


def test_the_least_disruptive_comes_first(advice: willfit.Advice) -> None:
    levels = ["same results", "slower", "trains otherwise"]
    first, *rest = advice.options
    assert all(levels.index(first.disruption) <= levels.index(option.disruption) for option in rest)


@pytest.mark.parametrize("number", range(3))
def test_the_code_runs_when_pasted_and_gives_what_was_predicted(advice: willfit.Advice, number: int) -> None:
    option = advice.options[number]
    model, optimizer, batch = job()
    names: dict[str, Any] = {"torch": torch, "model": model, "optimizer": optimizer, "batch": batch}
    exec(option.code, names)
    parts = (names["model"], names["optimizer"], names["batch"], names.get("step"))
    assert same(willfit.predict(*parts, on=card(140)), option.footprint)


def test_the_figures_of_checkpointing_are_those_of_the_arithmetic(only: Callable[..., None]) -> None:
    only("activation checkpointing")
    # What blocks keep: of 8 MiB (2048 x 256 x 4) their input and the output of the first layer's ReLU, 4 times as wide,
    # and that layer's output is dropped. With checkpointing the input alone.
    found = by_title(willfit.advise(*job(), on=card(100)))["activation checkpointing",]
    before = willfit.predict(*job(), on=card(100))
    forward = {f.phase: f.peak_allocated for f in before.phases if f.step == 1}
    after = {f.phase: f.peak_allocated for f in found.footprint.phases if f.step == 1}
    input_of_a_block = 2048 * 256 * 4
    assert forward["forward"] - after["forward"] == 5 * 4 * input_of_a_block  # of 6 blocks, one is computed at a time


def test_what_is_on_already_is_not_proposed(only: Callable[..., None]) -> None:
    only("optimizer", "precision")
    model, _, batch = job()
    fused = torch.optim.AdamW(model.parameters(), fused=True)
    advice = willfit.advise(model, fused, batch, on=card(60))
    titles = {title for titles in by_title(advice) for title in titles}
    assert not any("fused" in title or "one parameter at a time" in title for title in titles)
    model.half()
    advice = willfit.advise(model, torch.optim.AdamW(model.parameters()), batch, on=card(60))
    assert ("precision", "the weights are of 16 bits already") in advice.not_applicable


def test_bfloat16_is_proposed_where_the_gpu_has_it(only: Callable[..., None]) -> None:
    only("precision")
    old = willfit.Device(name="old", total=60 * MIB, context=0, compute_capability=(7, 5))
    advice = willfit.advise(*job(), on=old)
    titles = {title for titles in by_title(advice) for title in titles} | set(advice.unhelpful)
    assert "autocast to float16" in titles
    assert not any("bfloat16" in title for title in titles)


class Hoarder(nn.Module):
    """Keeps what it does not use: 40, 20 and 10 MiB, each of which a remedy throws away."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 1)
        for name, mib in KEPT.items():
            self.register_buffer(name, torch.zeros(mib * MIB // 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x).sum()


KEPT = {"forty": 40, "twenty": 20, "ten": 10}


def throwing_away(name: str, disruption: Any = "same results") -> Callable[[Any], list[Change]]:
    change = Change(name=name, title=name, disruption=disruption, cost="nothing", code=f"del model.{name}")
    return lambda situation: [change]


def hoarding() -> tuple[nn.Module, None, torch.Tensor]:
    return Hoarder(), None, torch.zeros(4, 8)


def test_changes_are_combined_until_it_fits_and_no_more_than_that(only: Callable[..., None]) -> None:
    only(**{name: throwing_away(name) for name in KEPT})
    # beside the 70 MiB are a segment of 20 MiB with cuBLAS's workspace and one of 2 MiB with small tensors;
    # all three changes fit, and two of them do
    advice = willfit.advise(*hoarding(), on=card(44))
    assert [set(option.titles) for option in advice.options] == [{"forty", "twenty"}, {"forty", "ten"}]
    assert [option.titles for option in advice.partial] == [("forty",), ("twenty",), ("ten",)]
    assert [option.saved for option in advice.partial] == [40 * MIB, 20 * MIB, 10 * MIB]


def test_without_combining_single_changes_are_all_there_is(only: Callable[..., None]) -> None:
    only(**{name: throwing_away(name) for name in KEPT})
    advice = willfit.advise(*hoarding(), on=card(44), combine=False)
    assert advice.options == ()
    assert len(advice.partial) == 3


def test_gentle_changes_are_combined_before_a_disruptive_one_is_taken(only: Callable[..., None]) -> None:
    only(forty=throwing_away("forty", "trains otherwise"), twenty=throwing_away("twenty"), ten=throwing_away("ten"))
    first, *rest = willfit.advise(*hoarding(), on=card(67)).options
    assert set(first.titles) == {"twenty", "ten"}
    assert [option.titles for option in rest] == [("forty",)]  # the shortest


def test_nothing_helps_and_that_is_said(only: Callable[..., None]) -> None:
    only("optimizer")
    advice = willfit.advise(*job(), on=card(4))
    assert advice.options == ()
    assert "Nothing that was tried makes it fit on toy" in str(advice)


def test_a_job_that_fits_is_told_what_would_take_less(only: Callable[..., None]) -> None:
    only("optimizer")
    advice = willfit.advise(*job(), on=card(4000))
    assert advice.footprint.verdict == "fits"
    assert advice.options
    assert str(advice).startswith("What would take less on toy")


def test_a_step_of_ones_own_is_kept(only: Callable[..., None]) -> None:
    only("micro-batches", "gradients set to None")

    def step(model: Any, optimizer: Any, batch: Any) -> Any:
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
        return loss

    def wide() -> tuple[Any, ...]:
        model = WithLoss(width=1024, depth=2)
        return model, torch.optim.SGD(model.parameters()), {"x": torch.zeros(512, 1024)}

    options = by_title(willfit.advise(*wide(), step, on=card(1000)))
    halves = options["2 micro-batches of 256",]
    assert "DataLoader(..., batch_size=256)" in halves.code
    none = options["gradients set to None after the step",]
    names: dict[str, Any] = {"torch": torch, "step": step}
    names["model"], names["optimizer"], names["batch"] = wide()
    exec(none.code, names)
    parts = (names[name] for name in ("model", "optimizer", "batch", "step"))
    assert same(willfit.predict(*parts, on=card(1000)), none.footprint)
    # With zeros kept, the gradient of a weight, of 1024 x 4096 floats, is made beside them, and then added.
    assert none.saved >= 4 * 1024 * 4096


def test_micro_batches_of_a_step_of_ones_own_step_once(only: Callable[..., None]) -> None:
    only("micro-batches")

    def step(model: Any, optimizer: Any, batch: Any) -> None:
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    own = by_title(willfit.advise(*job(), step, on=card(1000)))
    plain = by_title(willfit.advise(*job(), on=card(1000)))
    for titles in (("2 micro-batches of 1024",), ("4 micro-batches of 512",)):
        with_loader, whole = own[titles].footprint, plain[titles].footprint
        rest = 2048 * 256 * 4 - with_loader.bill["inputs"]  # the other parts of the batch, which a loader makes later
        assert whole.peak_allocated - rest == with_loader.peak_allocated


def test_what_takes_more_than_what_is_too_much_is_not_tried(only: Callable[..., None]) -> None:
    only("micro-batches", "activation checkpointing")
    small = card(40)
    advice = willfit.advise(*job(), on=small, combine=False)
    skipped = dict(advice.not_applicable)
    assert skipped["2 micro-batches of 1024"] == "with 4 micro-batches of 512 it does not fit either"
    assert skipped["4 micro-batches of 512"] == "with 16 micro-batches of 128 it does not fit either"
    assert "activation checkpointing of every second block" in skipped
    assert set(by_title(advice)) == {("16 micro-batches of 128",), ("activation checkpointing",)}
    all_of_them = by_title(willfit.advise(*job(), on=card(1000)))  # where it fits, each is tried
    for title in skipped:
        assert all_of_them[title,].footprint.on(small).verdict == "does not fit"


# -- remedies that fail ------------------------------------------------------------------------------------------------


def test_a_remedy_that_fails_hides_no_other(only: Callable[..., None]) -> None:
    def broken(situation: Any) -> list[Change]:
        raise RuntimeError("out of ideas")

    def nothing(situation: Any) -> list[Change]:
        raise NotApplicable("not on Mondays")

    def bad_code(situation: Any) -> list[Change]:
        return [Change(name="bad", title="bad code", disruption="slower", cost="none", code="model.no_such_method()")]

    only("optimizer", broken=broken, nothing=nothing, bad=bad_code)
    advice = willfit.advise(*job(), on=card(140))
    reasons = dict(advice.not_applicable)
    assert reasons["broken"] == "RuntimeError: out of ideas"
    assert reasons["nothing"] == "not on Mondays"
    assert "no_such_method" in reasons["bad code"]
    assert by_title(advice)


def test_a_job_that_cannot_be_predicted_raises() -> None:
    model, optimizer, _ = job()
    with pytest.raises(willfit.JobError, match="the batch holds no tensors"):
        willfit.advise(model, optimizer, {}, on=card(100))


def test_without_a_gpu_one_must_be_named() -> None:
    with pytest.raises(willfit.UsageError, match="name one as in advise"):
        willfit.advise(*job())


# -- nothing of the user's changes -------------------------------------------------------------------------------------


def test_the_users_job_is_as_before(only: Callable[..., None]) -> None:
    only("optimizer", "activation checkpointing", "precision", "LoRA")
    model, optimizer, batch = job(samples=64)
    model(**batch).loss.backward()
    optimizer.step()
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict(), batch))
    gradients = [parameter.grad.clone() for parameter in model.parameters()]  # type: ignore[union-attr]
    parameters, forward = list(map(id, model.parameters())), model.blocks[0].forward
    random = torch.get_rng_state()
    willfit.advise(model, optimizer, batch, on=card(30))
    assert torch.equal(torch.get_rng_state(), random)
    assert list(map(id, model.parameters())) == parameters
    assert model.blocks[0].forward == forward
    assert all(p.requires_grad and p.dtype == torch.float32 for p in model.parameters())
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), gradients, strict=True))  # type: ignore[arg-type]
    after = model.state_dict(), optimizer.state_dict(), batch
    assert str(before) == str(after)


# -- plain data --------------------------------------------------------------------------------------------------------


def test_it_is_plain_data(advice: willfit.Advice) -> None:
    found = json.loads(json.dumps(advice.to_dict()))
    assert found["device"] == "toy"
    assert found["options"][0]["titles"] == list(advice.options[0].titles)
    assert found["options"][0]["saved"] == advice.footprint.peak_reserved - found["options"][0]["peak_reserved"]


def test_shares_are_what_each_of_several_gpus_holds(only: Callable[..., None]) -> None:
    only()
    # 64 MiB of weights, on a batch of next to nothing: at the peak there are weights, momentum and gradients
    model = nn.Linear(4096, 4096, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), momentum=0.9, foreach=False)
    advice = willfit.advise(
        model, optimizer, torch.zeros(1, 4096), loss=lambda model, x: model(x).sum(), on=card(4), combine=False
    )
    sizes = {(share.stage, share.gpus): share.size for share in advice.shares}
    rest = advice.footprint.peak_allocated - 3 * 64 * MIB
    for gpus in (2, 4, 8):
        assert sizes[1, gpus] == pytest.approx(2 * 64 * MIB + 64 * MIB / gpus + rest, abs=64 * 1024)
        assert sizes[2, gpus] == pytest.approx(64 * MIB + 2 * 64 * MIB / gpus + rest, abs=64 * 1024)
        assert sizes[3, gpus] == pytest.approx(3 * 64 * MIB / gpus + rest, abs=64 * 1024)


def test_the_text_has_80_columns(advice: willfit.Advice) -> None:
    from willfit._render.advice import advice_text

    text = advice_text(advice, everything=True)
    assert all(len(line) <= 80 for line in text.split("\n") if not line.startswith("       "))
    assert text.isascii()
    for heading in ("1. ", "Would save nothing", "Does not apply"):
        assert heading in text
