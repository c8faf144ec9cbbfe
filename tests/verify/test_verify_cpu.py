"""Verification in this machine's memory: what torch.profiler saw, against the prediction for the CPU."""

from __future__ import annotations

import gc
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from torch import nn
from torch.nn import functional
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from willfit import JobError, UnavailableError, Verification, VerificationFailed, verify
from willfit._verify import cpu

Job = tuple[Any, ...]


def classify(model: Any, batch: Any) -> Any:
    return cross_entropy(model(batch["x"]), batch["y"])


def job(model: nn.Module, *shape: int, optimizer: Any = torch.optim.AdamW) -> Job:
    batch = {"x": torch.randn(shape), "y": torch.randint(0, 10, shape[:1])}
    return model, optimizer(model.parameters()), batch, None, classify


def perceptron() -> Job:
    layers = [nn.Linear(512, 1024), nn.ReLU(), nn.Dropout(0.1), nn.LayerNorm(1024), nn.GELU(), nn.Linear(1024, 10)]
    return job(nn.Sequential(*layers), 256, 512)


def convolutions() -> Job:
    layers: list[nn.Module] = []
    for before, after in ((3, 32), (32, 64)):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)]
    return job(nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 64, 10)), 8, 3, 32, 32)


def channels_last() -> Job:
    model, optimizer, batch, *rest = convolutions()
    batch["x"] = batch["x"].to(memory_format=torch.channels_last)
    return model.to(memory_format=torch.channels_last), optimizer, batch, *rest


class Attention(nn.Module):
    def __init__(self, again: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(2000, 128)
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(128, 4, 512, batch_first=True) for _ in range(3))
        self.head = nn.Linear(128, 10)
        self.again = again

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids)
        for layer in self.layers:
            x = checkpoint(layer, x, use_reentrant=False) if self.again else layer(x)
        return self.head(x.mean(1))  # type: ignore[no-any-return]


def attention(again: bool = False) -> Job:
    model = Attention(again)
    batch = {"x": torch.randint(0, 2000, (16, 64)), "y": torch.randint(0, 10, (16,))}
    return model, torch.optim.AdamW(model.parameters()), batch, None, classify


def mixed_precision() -> Job:
    model, optimizer, batch, *_ = attention()

    def step(model: Any, optimizer: Any, batch: Any) -> Any:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = classify(model, batch)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss

    return model, optimizer, batch, step, None


class Branches(nn.Module):
    """One tensor that several use: their gradients meet."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(512, 512) for _ in range(4))
        self.head = nn.Linear(512, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = x + functional.silu(layer(x)) * x.sigmoid()
        return self.head(x)  # type: ignore[no-any-return]


def branches() -> Job:
    return job(Branches(), 512, 512, optimizer=lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9))


JOBS: list[Callable[[], Job]] = [perceptron, convolutions, channels_last, attention, mixed_precision, branches]


def verified(made: Job, **options: Any) -> Verification:
    model, optimizer, batch, step, loss = made
    return verify(model, optimizer, batch, step, loss=loss, using="cpu", **options)


@pytest.mark.parametrize("make", JOBS, ids=lambda make: make.__name__)
def test_peaks_are_those_that_torch_s_profiler_saw(make: Callable[[], Job]) -> None:
    torch.manual_seed(0)
    found = verified(make(), tolerance="2%" if make is mixed_precision else "0.5%")  # oneDNN's scratch for bfloat16
    assert abs(found.peak_error) < 0.001, str(found)
    assert found.agrees, str(found)
    assert {(each.step, each.phase) for each in found.phases} >= {(0, "placement"), (3, "optimizer step")}


def test_checkpointed_activations_are_not_kept() -> None:
    kept, again = verified(attention()), verified(attention(again=True))
    assert again.agrees
    assert _forward(again) < _forward(kept)


def _forward(found: Verification) -> int:
    return next(each.measured.allocated_at_end for each in found.phases if each.phase == "forward")


@settings(max_examples=12, deadline=None)
@given(
    channels=some.sampled_from((3, 5, 16, 20, 64)),
    out=some.sampled_from((8, 16, 30, 64)),
    window=some.sampled_from((1, 3, 5)),
    stride=some.sampled_from((1, 2)),
    size=some.integers(10, 40),
    images=some.integers(1, 4),
)
def test_convolutions_of_any_shape(channels: int, out: int, window: int, stride: int, size: int, images: int) -> None:
    """At the peak of the pass; oneDNN's own scratch, which depends on the processor, may be up to a megabyte."""
    layers = [nn.Conv2d(channels, out, window, stride, window // 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    found = verified(job(nn.Sequential(*layers, nn.Linear(out, 10)), images, channels, size, size), steps=1)
    for each in found.phases:
        assert abs(each.predicted.peak_allocated - each.measured.peak_allocated) <= 2**20, str(found)
        assert abs(each.predicted.allocated_at_end - each.measured.allocated_at_end) <= 1024, str(found)


def test_values_that_are_known_on_the_cpu_are_so_in_the_prediction() -> None:
    """A schedule that Python reads decides how much is taken: both sides read the same."""
    warmup = torch.tensor([1.0, 2.0, 3.0])

    def step(model: Any, optimizer: Any, batch: Any) -> None:
        width = int((warmup.cumsum(0) * 100)[-1].item())  # 600
        (model(batch).sum() + torch.ones(width, width).sum()).backward()
        optimizer.step()
        optimizer.zero_grad()

    model = nn.Linear(64, 64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    found = verify(model, optimizer, torch.randn(8, 64), step, using="cpu", tolerance="0.1%")
    assert found.agrees, str(found)
    assert max(each.measured.peak_allocated for each in found.phases) > 600 * 600 * 4


# -- differences are found ---------------------------------------------------------------------------------------------


def test_an_operator_that_takes_more_than_is_known_of_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu_rules = cpu_rules_without("native_batch_norm_backward")
    monkeypatch.setattr("willfit._trace.cpu.recorder.cpu_rules", lambda: cpu_rules)
    found = verified(convolutions(), tolerance=0)
    assert not found.agrees
    assert found.first_difference is not None
    assert found.first_difference.op == "aten.native_batch_norm_backward"
    with pytest.raises(VerificationFailed, match=r"operator\s+aten.native_batch_norm_backward"):
        found.check()


def cpu_rules_without(name: str) -> dict[Any, Any]:
    from willfit._trace.cpu.kernels import cpu_rules

    return {op: rule for op, rule in cpu_rules().items() if name not in op._schema.name}


# -- refusals ----------------------------------------------------------------------------------------------------------


def test_more_than_this_machine_has_is_refused_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "_measured", lambda job: pytest.fail("it ran"))
    model = nn.Linear(2**20, 2**20, device="meta")  # 4 TiB
    with pytest.raises(
        UnavailableError, match=r"would take 9011[.]21 GiB or more of this machine's memory, of which .* GiB"
    ):
        verify(model, torch.optim.SGD(model.parameters()), torch.zeros(1), loss=lambda m, x: m(x), using="cpu")


def test_what_only_the_steps_need_is_refused_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "available_memory", lambda: 2**20)
    monkeypatch.setattr(cpu, "_measured", lambda job: pytest.fail("it ran"))
    model = nn.Linear(16, 16)
    with pytest.raises(UnavailableError, match=r"of which 1\.00 MiB is available"):
        verify(model, None, torch.zeros(2**15, 16), loss=lambda m, x: m(x).relu().sum(), using="cpu")


def test_a_profiler_at_work_is_left_alone() -> None:
    model = nn.Linear(4, 4)
    with (
        torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]),
        pytest.raises(UnavailableError, match=r"cpu: torch.profiler is at work in this process"),
    ):
        verify(model, None, torch.zeros(2, 4), loss=lambda m, x: m(x).sum(), using="cpu")


# -- what is left alone ------------------------------------------------------------------------------------------------


class Interrupted(KeyboardInterrupt):
    pass


def test_a_device_that_says_cpu_is_the_cpu() -> None:
    """In a prediction for a GPU it is taken to say cuda, as scripts do that run on either."""
    device = torch.device("cpu")

    def step(model: Any, optimizer: Any, batch: Any) -> None:
        model(batch + torch.ones(32, device=device)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    model = nn.Linear(32, 32)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert verify(model, optimizer, torch.ones(8, 32), step, using="cpu", tolerance="5%").agrees


@pytest.mark.parametrize("ends", ["well", "with an error", "by Ctrl-C"])
def test_nothing_of_the_user_s_changes(ends: str) -> None:
    model = nn.Sequential(nn.Linear(32, 32), nn.BatchNorm1d(32), nn.Dropout(0.5))
    optimizer = torch.optim.AdamW(model.parameters())
    data, history = torch.ones(2**20), [0.0]
    calls = [0]

    def step(model: Any, optimizer: Any, batch: Any) -> None:
        data.mul_(2)  # the user's own large tensor, in its closure
        loss = model(batch).sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        history.append(1.0)
        calls[0] += 1
        if ends == "with an error":
            raise ValueError("half way")
        if ends == "by Ctrl-C":
            raise Interrupted

    values = {name: value.clone() for name, value in model.state_dict().items()}
    torch_random, python_random = torch.get_rng_state(), random.getstate()
    hooks = len(torch.nn.modules.module._global_forward_pre_hooks)
    batch = torch.ones(8, 32)
    if ends == "well":
        verify(model, optimizer, batch, step, using="cpu")
    else:
        with pytest.raises((JobError, Interrupted)):
            verify(model, optimizer, batch, step, using="cpu")
    assert all(torch.equal(value, values[name]) for name, value in model.state_dict().items())
    assert (len(optimizer.state), history, calls, model.training) == (0, [0.0], [0], True)
    assert bool((data == 1).all())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), torch_random)
    assert random.getstate() == python_random
    assert len(torch.nn.modules.module._global_forward_pre_hooks) == hooks
    assert torch.autograd._engine_run_backward is torch.autograd.graph._engine_run_backward  # type: ignore[attr-defined]
    assert not torch._C._autograd._profiler_enabled()
    gc.collect()


def test_a_model_on_meta_is_verified_with_zeros() -> None:
    with torch.device("meta"):
        model = nn.Linear(128, 10)
    found = verify(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        *job(nn.Linear(1, 1), 8, 128)[2:4],
        loss=classify,
        using="cpu",
    )
    assert found.agrees
    assert found.measurement.versions[0] == ("torch", str(torch.__version__))
