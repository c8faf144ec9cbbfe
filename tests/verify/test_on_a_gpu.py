"""Verification on a GPU of this process: a probe before training, and a watch of its first steps.

test_verify_cuda.py runs all of it on an emulated GPU too, where tensors hold nothing: what is compared is memory.
"""

from __future__ import annotations

import gc
import random
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import accelerate
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import willfit
from willfit import JobError, UnavailableError, verify, watch
from willfit._real import history
from willfit.guard import WillfitWarning

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="this process has no GPU")


@pytest.fixture(autouse=True)
def the_older_interface_of_cudnn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_CUDNN_V8_API_DISABLED", "1")
    monkeypatch.setenv("TORCH_CUDNN_SDPA_DEPRIORITIZED", "1")


@pytest.fixture(autouse=True)
def nothing_stays() -> Iterator[None]:
    """What is allocated, cached or hooked afterwards is what was before."""
    before = state()
    yield
    assert state() == before


def state() -> tuple[Any, ...]:
    gc.collect()
    torch._C._cuda_clearCublasWorkspaces()
    torch.cuda.empty_cache()
    optim: Any = sys.modules["torch.optim.optimizer"]  # torch.optim binds the name to something else
    hooks = torch.nn.modules.module._global_forward_pre_hooks, optim._global_optimizer_pre_hooks
    return (
        torch.cuda.memory_allocated(),
        torch.cuda.memory_reserved(),
        [len(each) for each in hooks],
        torch.autograd._engine_run_backward,  # type: ignore[attr-defined]
        torch.cuda.empty_cache,
        history.is_on(),
        torch._C._autograd._profiler_enabled(),
    )


class Batch(dict[str, torch.Tensor]):
    pass


def job(device: str = "cuda", width: int = 1024) -> tuple[nn.Module, Any, Batch]:
    layers = [nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.1), nn.Linear(width, 10)]
    model = nn.Sequential(*layers).to(device)
    optimizer = torch.optim.AdamW(model.parameters())
    batch = Batch(x=torch.zeros(256, width, device=device), y=torch.zeros(256, dtype=torch.long, device=device))
    return model, optimizer, batch


def loss(model: Any, batch: Any) -> Any:
    return cross_entropy(model(batch["x"]), batch["y"])


def train(model: Any, optimizer: Any, batch: Any, steps: int = 5) -> None:
    for _ in range(steps):
        loss(model, batch).backward()
        optimizer.step()
        optimizer.zero_grad()


# -- probe -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", ["cuda", "cpu", "meta"])
def test_a_probe_agrees_wherever_the_model_is(device: str) -> None:
    model, optimizer, batch = job(device)
    found = verify(model, optimizer, batch, loss=loss)
    assert (found.verifier, found.passed_over) == ("cuda", ())
    assert found.error == 0, str(found)
    assert [(each.step, each.phase) for each in found.phases] == [(0, "placement"), (1, "forward"), (1, "backward")]
    parameters = sum(4 * p.numel() for p in model.parameters())
    assert found.phases[0].measured.allocated_at_end >= parameters + 256 * 1024 * 4 + 256 * 8
    assert found.phases[0].measured.peak_reserved is not None
    assert found.measurement.measured_context is not None
    assert found.measurement.driver


def test_tensors_beside_the_job_are_not_counted() -> None:
    beside = torch.zeros(2**24, device="cuda")
    model, optimizer, batch = job()
    found = verify(model, optimizer, batch, loss=loss)
    assert found.error == 0, str(found)
    assert found.phases[0].measured.allocated_at_end < beside.nbytes
    assert found.phases[0].measured.peak_reserved is None
    assert "not the job's are on the card" in str(found)


def test_a_probe_changes_nothing() -> None:
    model, optimizer, batch = job()
    model[0].weight.grad = torch.zeros_like(model[0].weight)
    model[1].eval()
    tensors = [*model.parameters(), *model.buffers(), *batch.values(), model[0].weight.grad]
    before = [(tensor.data_ptr(), tensor._version) for tensor in tensors]
    on_gpu, on_cpu, python = torch.cuda.get_rng_state(), torch.get_rng_state(), random.getstate()
    verify(model, optimizer, batch, loss=loss)
    assert [(tensor.data_ptr(), tensor._version) for tensor in tensors[:-1]] == before[:-1]
    assert model[0].weight.grad.data_ptr() == before[-1][0]
    assert [p.grad is None for p in model.parameters()] == [False, True, True, True, True, True]
    assert [module.training for module in model] == [True, False, True, True, True]
    assert not optimizer.state
    assert torch.equal(torch.cuda.get_rng_state(), on_gpu)
    assert torch.equal(torch.get_rng_state(), on_cpu)
    assert random.getstate() == python


def test_buffers_that_forward_changes_are_put_back() -> None:
    model, optimizer, batch = job()
    puts: list[int] = []
    own = torch.UntypedStorage.copy_

    def copy_(self: Any, source: Any, *rest: Any) -> Any:
        puts.append(self.data_ptr())
        return own(self, source, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.UntypedStorage, "copy_", copy_)
        verify(model, optimizer, batch, loss=loss)
    changed = [model[1].running_mean, model[1].running_var, model[1].num_batches_tracked]
    assert {buffer.data_ptr() for buffer in changed} <= set(puts)
    assert not {parameter.data_ptr() for parameter in model.parameters()} & set(puts)


class Interrupted(KeyboardInterrupt):
    pass


@pytest.mark.parametrize(("raised", "becomes"), [(ValueError("half way"), JobError), (Interrupted(), Interrupted)])
def test_a_step_that_does_not_end_leaves_nothing(raised: BaseException, becomes: type[BaseException]) -> None:
    model, optimizer, batch = job()

    def step(model: Any, optimizer: Any, batch: Any) -> None:
        loss(model, batch).backward()
        raise raised

    with pytest.raises(becomes):
        verify(model, optimizer, batch, step, using="cuda")
    assert all(parameter.grad is None for parameter in model.parameters())


def test_memory_that_runs_out_is_found_where_it_was_predicted() -> None:
    """Nothing of 2**40 bytes fits on any card."""
    model, optimizer, batch = job()

    def step(model: Any, optimizer: Any, batch: Any) -> None:
        out = model(batch["x"])
        torch.empty(2**40, dtype=torch.uint8, device="cuda")
        out.sum().backward()

    found = verify(model, optimizer, batch, step)
    assert found.agrees, str(found)
    predicted, measured = found.predicted.out_of_memory, found.measurement.out_of_memory
    assert predicted is not None
    assert measured is not None
    assert (measured.requested, measured.step, measured.phase) == (2**40, 1, "forward")
    assert (measured.op, measured.source) == ("aten.empty", predicted.source)
    assert [each.phase for each in found.phases] == ["placement"]


def test_for_another_card_it_is_not_used() -> None:
    model, optimizer, batch = job()
    other = "T4" if "T4" not in torch.cuda.get_device_name() else "A10"
    with pytest.raises(UnavailableError, match=f"cuda: the GPU here is .*, and the prediction is for {other}"):
        verify(model, optimizer, batch, loss=loss, on=other, using="cuda")
    with pytest.raises(UnavailableError, match="has the capacity that it has"):
        verify(model, optimizer, batch, loss=loss, capacity="2 GiB", using="cuda")


def test_a_history_that_is_recorded_already_is_left_alone() -> None:
    model, optimizer, batch = job()
    torch.cuda.memory._record_memory_history()
    try:
        with pytest.raises(UnavailableError, match="records the history of its memory already"):
            verify(model, optimizer, batch, loss=loss, using="cuda")
        assert history.is_on()
    finally:
        torch.cuda.memory._record_memory_history(enabled=None)


# -- watch -------------------------------------------------------------------------------------------------------------


def test_a_watch_measures_whole_steps_of_the_program_itself() -> None:
    model, optimizer, batch = job()
    with watch(model, optimizer, batch, loss=loss) as watched:
        train(model, optimizer, batch)
    found = watched.verification
    assert found is not None
    assert found.verifier == "watch"
    assert abs(found.peak_error) < 0.001, str(found)
    assert found.agrees, str(found)
    assert {(each.step, each.phase) for each in found.phases} >= {(1, "forward"), (3, "optimizer step")}
    assert max(each.step for each in found.phases) == 3
    assert len(optimizer.state) == 6
    optimizer.state.clear()


def test_hooks_are_gone_once_the_steps_were_made() -> None:
    model, optimizer, batch = job()
    calls: list[int] = []
    with watch(model, optimizer, batch, loss=loss, steps=1) as watched:
        watched.when_done(lambda verification: calls.append(len(torch.nn.modules.module._global_forward_pre_hooks)))
        train(model, optimizer, batch, steps=1)
        assert calls == []
        train(model, optimizer, batch, steps=2)
        assert calls == [0]
        assert watched.verification is not None
    assert calls == [0]


def test_fewer_steps_than_wanted_are_compared_as_far_as_they_go() -> None:
    model, optimizer, batch = job()
    with watch(model, optimizer, batch, loss=loss, steps=3) as watched:
        train(model, optimizer, batch, steps=2)
    assert watched.verification is not None
    assert max(each.step for each in watched.verification.phases) == 2
    assert watched.verification.agrees, str(watched.verification)


def test_a_loop_of_accelerate_is_watched_through_its_accumulation() -> None:
    """The optimizer that it has prepared is another object than the one whose steps PyTorch tells of."""
    accelerator = accelerate.Accelerator(gradient_accumulation_steps=2)
    model, optimizer, batch = job()
    model, optimizer = accelerator.prepare(model, optimizer)

    def step(model: Any, optimizer: Any, batch: Any) -> None:
        with accelerator.accumulate(model):
            accelerator.backward(loss(model, batch))
            optimizer.step()
            optimizer.zero_grad()

    with watch(model, optimizer, batch, step=step) as watched:
        for _ in range(10):
            step(model, optimizer, batch)
    found = watched.verification
    assert found is not None
    assert found.agrees, str(found)
    assert max(each.step for each in found.phases) == 3
    accelerator.free_memory()


@pytest.mark.parametrize("steps", [0, 1])
def test_a_program_that_raises_is_not_held_up(steps: int) -> None:
    model, optimizer, batch = job()
    with pytest.raises(ZeroDivisionError), watch(model, optimizer, batch, loss=loss) as watched:  # noqa: PT012
        train(model, optimizer, batch, steps=steps)
        loss(model, batch)
        raise ZeroDivisionError
    assert (watched.verification is None) == (steps == 0)


def test_what_was_not_predicted_is_noticed() -> None:
    model, optimizer, batch = job()
    with watch(model, optimizer, batch, loss=loss) as watched:
        kept = [torch.zeros(2**24, device="cuda")]
        train(model, optimizer, batch)
    assert watched.verification is not None
    assert not watched.verification.agrees
    assert watched.verification.error < -0.5
    assert "was not recorded" in str(watched.verification)
    kept.clear()


# -- the guard ---------------------------------------------------------------------------------------------------------


def test_the_guard_verifies_before_the_function_runs() -> None:
    @willfit.guard(loss=loss, verify="cuda", tolerance="1%")
    def run(model: Any, optimizer: Any, batch: Any) -> str:
        return "ran"

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run(*job()) == "ran"


def test_the_guard_watches_and_warns_of_what_differs() -> None:
    @willfit.guard(loss=loss, verify="watch")
    def run(model: Any, optimizer: Any, batch: Any) -> str:
        extra = torch.zeros(2**24, device="cuda")
        train(model, optimizer, batch)
        del extra
        return "ran"

    with pytest.warns(WillfitWarning, match=r"what run\(\) needs is not what was predicted"):
        assert run(*job()) == "ran"
