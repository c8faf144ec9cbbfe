from __future__ import annotations

import asyncio
import inspect
import os
import pickle
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from willfit import Device, Footprint, JobError, UnavailableError, UsageError, WillNotFit, _remedies, predict
from willfit.guard import WillfitWarning, guard

ROOMY = Device(name="roomy", total=2**30, context=0)
SMALL = Device(name="small", total=4 * 2**20, context=0)


def loss(model: Any, batch: Any) -> Any:
    return model(batch).sum()


@dataclass
class Job:
    model: nn.Module
    optimizer: torch.optim.Optimizer
    batch: torch.Tensor

    @property
    def args(self) -> tuple[Any, ...]:
        return self.model, self.optimizer, self.batch


@pytest.fixture
def job() -> Job:
    model = nn.Linear(512, 512)
    return Job(model, torch.optim.AdamW(model.parameters()), torch.ones(4, 512))


@pytest.fixture(autouse=True)
def _unset(monkeypatch: pytest.MonkeyPatch) -> None:
    """No action from outside, and of all remedies one, as each change is a prediction of its own."""
    monkeypatch.delenv("WILLFIT", raising=False)
    monkeypatch.setattr(_remedies, "_OWN", {"optimizer": _remedies._OWN["optimizer"]})


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """What predict was called with; it goes on predicting."""
    seen: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def spy(*args: Any, **kwargs: Any) -> Footprint:
        seen.append((args, kwargs))
        return predict(*args, **kwargs)

    monkeypatch.setattr("willfit._predict.predict", spy)
    return seen


def tight_for(job: Job) -> Device:
    """A card with no byte to spare."""
    need = predict(*job.args, loss=loss, on=ROOMY).peak_reserved
    return Device(name="snug", total=need, context=0)


# -- refusing and letting pass -----------------------------------------------------------------------------------------


def test_it_refuses_before_the_first_line(job: Job) -> None:
    ran = []

    @guard(on=SMALL, loss=loss)
    def train(model: Any, optimizer: Any, batch: Any) -> None:
        ran.append(1)

    weight = job.model.weight.clone()  # type: ignore[operator]
    version = job.batch._version
    with pytest.raises(WillNotFit) as refusal:
        train(*job.args)
    assert not ran
    footprint = refusal.value.footprint
    assert footprint.verdict == "does not fit"
    assert footprint.device == SMALL
    assert str(refusal.value).startswith(
        "train() was not run: it will not fit on small. Taken from the call: model='model' (Linear), "
        f"optimizer='optimizer' (AdamW), batch='batch' (Tensor).\n\n{footprint}"
    )
    assert torch.equal(job.model.weight, weight)  # type: ignore[arg-type]
    assert not job.optimizer.state
    assert job.model.weight.grad is None
    assert job.batch._version == version


def test_a_refusal_says_what_would_make_it_fit(job: Job) -> None:
    with pytest.raises(WillNotFit) as refused:
        guard(on=SMALL, loss=loss)(train)(*job.args)
    advice = refused.value.advice
    assert advice is not None
    assert str(advice) in str(refused.value)
    assert pickle.loads(pickle.dumps(refused.value)).advice.to_dict() == advice.to_dict()
    with pytest.raises(WillNotFit) as refused:
        guard(on=SMALL, loss=loss, advise=False)(train)(*job.args)
    assert refused.value.advice is None
    assert "make it fit" not in str(refused.value)


def test_what_fits_runs_as_it_is(job: Job) -> None:
    @guard(on=ROOMY, loss=loss)
    def train(model: Any, optimizer: Any, batch: Any, *rest: int, flag: bool = False) -> Any:
        return model, optimizer, batch, rest, flag

    state = torch.get_rng_state()
    assert train(*job.args, 1, 2, flag=True) == (*job.args, (1, 2), True)
    assert torch.equal(torch.get_rng_state(), state)


def test_without_parentheses_it_guards_for_the_gpu_here(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    @guard
    def train(model: Any, batch: Any) -> str:
        return "ran"

    here: list[Device | None] = [None]
    monkeypatch.setattr("willfit._device_here.current_device", lambda: here[0])
    with pytest.raises(UsageError, match=r'train\(\) is guarded for the GPU of this process.* guard\(on="T4"\)'):
        train(*job.args[:2])
    here[0] = SMALL
    model = nn.Sequential(nn.Linear(512, 1), Sum())
    with pytest.raises(WillNotFit):
        train(model, job.batch)
    here[0] = ROOMY
    with pytest.warns(WillfitWarning, match="Optimizer states are not counted"):
        assert train(model, job.batch) == "ran"


class Sum(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sum()


def test_as_a_plain_call(job: Job) -> None:
    def train(model: Any, optimizer: Any, batch: Any) -> str:
        return "ran"

    assert guard(on=ROOMY, loss=loss)(train)(*job.args) == "ran"
    with pytest.raises(WillNotFit):
        guard(on=SMALL, loss=loss)(train)(*job.args)


def test_capacity_steps_step_and_loss_go_to_predict(job: Job, calls: list[Any]) -> None:
    def step(model: Any, optimizer: Any, batch: Any) -> None:
        model(batch).sum().backward()
        optimizer.step()

    def train(model: Any, optimizer: Any, batch: Any) -> None: ...

    guard(on="T4", capacity="1 GiB", steps=2, step=step)(train)(*job.args)
    (args, kwargs) = calls[0]
    assert args == (*job.args, step)
    assert kwargs["on"].capacity == 2**30
    assert {name: kwargs[name] for name in ("loss", "steps", "capacity")} == {
        "loss": None,
        "steps": 2,
        "capacity": "1 GiB",
    }
    guard(on=ROOMY, loss=loss)(train)(*job.args)
    assert calls[1][0] == (*job.args, None)
    assert calls[1][1] == {"loss": loss, "on": ROOMY, "steps": 3, "capacity": None, "engine": "symbolic"}
    with pytest.raises(WillNotFit):
        guard(capacity="3 MiB", loss=loss)(train)(*job.args)


def test_names_go_to_the_parts(job: Job, calls: list[Any]) -> None:
    teacher = nn.Linear(1, 1)

    @guard(on=ROOMY, loss=loss, model="student", batch="x")
    def distil(teacher: Any, student: Any, optimizer: Any, x: Any, batch: Any) -> str:
        return "ran"

    assert distil(teacher, *job.args, torch.zeros(9)) == "ran"
    assert calls[0][0] == (*job.args, None)


def test_a_step_gets_several_modules_and_optimizers_by_name() -> None:
    generator, critic = nn.Linear(4, 4), nn.Linear(4, 1)
    opt_g, opt_d = torch.optim.SGD(generator.parameters(), 0.1), torch.optim.AdamW(critic.parameters(), 0.1)

    def step(models: Any, optimizers: Any, batch: Any) -> None:
        models["critic"](models["generator"](batch)).sum().backward()
        optimizers["opt_g"].step()
        optimizers["opt_d"].step()

    @guard(on=ROOMY, step=step)
    def gan(generator: Any, critic: Any, opt_g: Any, opt_d: Any, batch: Any) -> str:
        return "ran"

    assert gan(generator, critic, opt_g, opt_d, torch.ones(2, 4)) == "ran"
    assert generator.training
    assert generator.weight.grad is None


# -- warnings ----------------------------------------------------------------------------------------------------------


def test_action_warn_runs_on(job: Job) -> None:
    @guard(on=SMALL, loss=loss, action="warn")
    def train(model: Any, optimizer: Any, batch: Any) -> str:
        return "ran"

    with pytest.warns(WillfitWarning, match=r"train\(\) will not fit on small.*(?s:.*)DOES NOT FIT") as caught:
        assert train(*job.args) == "ran"
    assert len(caught) == 1
    assert caught[0].filename == __file__


def test_a_tight_fit_is_a_warning(job: Job) -> None:
    @guard(on=tight_for(job), loss=loss)
    def train(model: Any, optimizer: Any, batch: Any) -> str:
        return "ran"

    with pytest.warns(WillfitWarning, match=r"train\(\) is a tight fit on snug") as caught:
        assert train(*job.args) == "ran"
    assert len(caught) == 1


def test_what_cannot_be_predicted_is_raised_or_warned_of(job: Job) -> None:
    def train(model: Any, optimizer: Any, batch: Any) -> str:
        return "ran"

    with pytest.raises(JobError, match="scalar") as error:
        guard(on=ROOMY)(train)(*job.args)
    if sys.version_info >= (3, 11):
        assert "guard of train()" in error.value.__notes__[0]
    with pytest.warns(WillfitWarning, match=r"train\(\) runs unchecked.*scalar"):
        assert guard(on=ROOMY, action="warn")(train)(*job.args) == "ran"


def test_a_job_without_an_optimizer_is_not_passed_over_in_silence(job: Job) -> None:
    def train(model: Any, batch: Any) -> str:
        return "ran"

    with pytest.warns(WillfitWarning, match=r"fits on roomy.*no optimizer.*Optimizer states are not counted"):
        assert guard(on=ROOMY, loss=loss)(train)(job.model, job.batch) == "ran"
    with pytest.raises(WillNotFit, match="Optimizer states are not counted"):
        guard(on=SMALL, loss=loss)(train)(job.model, job.batch)

    def step(model: Any, optimizer: Any, batch: Any) -> None:
        assert optimizer is None
        model(batch).sum().backward()
        torch.optim.SGD(model.parameters(), 0.1).step()

    assert guard(on=ROOMY, step=step)(train)(job.model, job.batch) == "ran"


# -- the environment ---------------------------------------------------------------------------------------------------


def test_the_environment_goes_first(job: Job, monkeypatch: pytest.MonkeyPatch, calls: list[Any]) -> None:
    def train(model: Any, optimizer: Any, batch: Any) -> str:
        return "ran"

    raising, warning = guard(on=SMALL, loss=loss)(train), guard(on=SMALL, loss=loss, action="warn")(train)
    monkeypatch.setenv("WILLFIT", "off")
    assert raising(*job.args) == warning(*job.args) == "ran"
    assert calls == []
    monkeypatch.setenv("WILLFIT", "warn")
    with pytest.warns(WillfitWarning):
        assert raising(*job.args) == "ran"
    monkeypatch.setenv("WILLFIT", "raise")
    with pytest.raises(WillNotFit):
        warning(*job.args)
    monkeypatch.setenv("WILLFIT", "")
    with pytest.raises(WillNotFit):
        raising(*job.args)
    monkeypatch.setenv("WILLFIT", "0")
    with pytest.raises(UsageError, match=r"WILLFIT=0 in the environment: it must be off, warn or raise"):
        raising(*job.args)


def test_switched_off_it_imports_no_torch() -> None:
    code = (
        "import sys, willfit\n"
        "from willfit.guard import guard\n"
        "train = guard(on='T4')(lambda model: model)\n"
        "assert train(1) == 1\n"
        "assert 'torch' not in sys.modules and 'willfit._arguments' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "WILLFIT": "off"})


# -- kinds of functions ------------------------------------------------------------------------------------------------


def test_it_keeps_what_the_function_says_of_itself() -> None:
    def train(model: nn.Module, batch: int = 3) -> str:
        """Trains."""
        return ""

    guarded = guard(on="T4")(train)
    assert (guarded.__name__, guarded.__doc__, guarded.__module__) == ("train", "Trains.", __name__)
    assert guarded.__wrapped__ is train  # type: ignore[attr-defined]
    assert inspect.signature(guarded) == inspect.signature(train)


@pytest.mark.parametrize("device", [ROOMY, SMALL], ids=["fits", "does not fit"])
def test_coroutine_functions(job: Job, device: Device) -> None:
    ran = []

    @guard(on=device, loss=loss)
    async def train(model: Any, optimizer: Any, batch: Any) -> str:
        ran.append(1)
        await asyncio.sleep(0)
        return "ran"

    assert inspect.iscoroutinefunction(train)
    coroutine = train(*job.args)
    if device is ROOMY:
        assert asyncio.run(coroutine) == "ran"
        return
    with pytest.raises(WillNotFit):
        asyncio.run(coroutine)
    assert not ran


def test_generator_functions(job: Job) -> None:
    def train(model: Any, optimizer: Any, batch: Any) -> Any:
        ran.append(1)
        got = yield "first"
        return (yield got)

    ran: list[int] = []
    guarded: Callable[..., Any] = guard(on=ROOMY, loss=loss)(train)
    assert inspect.isgeneratorfunction(guarded)
    running = guarded(*job.args)
    assert next(running) == "first"
    assert running.send("sent") == "sent"
    running.close()

    refused: Iterator[Any] = guard(on=SMALL, loss=loss)(train)(*job.args)
    with pytest.raises(WillNotFit):
        next(refused)
    assert ran == [1]


def test_asynchronous_generators_are_checked_when_called(job: Job) -> None:
    @guard(on=SMALL, loss=loss)
    async def train(model: Any, optimizer: Any, batch: Any) -> AsyncIterator[int]:
        yield 1

    with pytest.raises(WillNotFit):
        train(*job.args)


def test_methods_of_every_kind(job: Job) -> None:
    class Trainer:
        def __init__(self) -> None:
            self.model, self.optimizer = job.model, job.optimizer

        @guard(on=SMALL, loss=loss)
        def method(self, batch: Any) -> str:
            return "ran"

        @classmethod
        @guard(on=SMALL, loss=loss)
        def inner_class(cls, model: Any, optimizer: Any, batch: Any) -> str:
            return "ran"

        @guard(on=SMALL, loss=loss)
        @classmethod
        def outer_class(cls, model: Any, optimizer: Any, batch: Any) -> str:
            return cls.__name__

        @staticmethod
        @guard(on=SMALL, loss=loss)
        def inner_static(model: Any, optimizer: Any, batch: Any) -> str:
            return "ran"

        @guard(on=SMALL, loss=loss)
        @staticmethod
        def outer_static(model: Any, optimizer: Any, batch: Any) -> str:
            return "ran"

        @guard(on=ROOMY, loss=loss)
        @classmethod
        def fitting(cls, model: Any, optimizer: Any, batch: Any) -> str:
            return cls.__name__

    trainer = Trainer()
    with pytest.raises(WillNotFit, match=r"method\(\) was not run.*model='self.model' .*optimizer='self.optimizer'"):
        trainer.method(job.batch)
    for name in ("inner_class", "outer_class", "inner_static", "outer_static"):
        for owner in (Trainer, trainer):
            with pytest.raises(WillNotFit, match=rf"{name}\(\) was not run"):
                getattr(owner, name)(*job.args)
    assert Trainer.fitting(*job.args) == "Trainer"


def test_a_guarded_function_may_call_another(job: Job, calls: list[Any]) -> None:
    @guard(on=ROOMY, loss=loss)
    def inner(model: Any, optimizer: Any, batch: Any) -> str:
        return "ran"

    @guard(on=ROOMY, loss=loss)
    def outer(model: Any, optimizer: Any, batch: Any) -> str:
        return inner(model, optimizer, batch)

    assert outer(*job.args) == "ran"
    assert len(calls) == 2


def test_within_a_prediction_it_stands_aside(job: Job, calls: list[Any]) -> None:
    @guard(on=SMALL, loss=loss)
    def step(model: Any, optimizer: Any, batch: Any) -> None:
        model(batch).sum().backward()
        optimizer.step()

    predict(*job.args, step, on=ROOMY)
    assert calls == []


# -- loaders and iterators ---------------------------------------------------------------------------------------------


def test_a_loader_and_the_random_numbers_are_as_they_were(job: Job) -> None:
    def batches(model: Any, optimizer: Any, loader: Any) -> list[list[float]]:
        return [batch.tolist() for batch in loader] + [torch.rand(2).tolist()]

    loader = DataLoader(
        torch.arange(20.0).reshape(10, 2),  # type: ignore[arg-type]
        batch_size=3,
        shuffle=True,
        generator=torch.Generator().manual_seed(5),
    )
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    assert loader.generator is not None
    torch.manual_seed(0)
    expected = batches(model, optimizer, loader)
    loader.generator.manual_seed(5)
    torch.manual_seed(0)
    assert guard(on=ROOMY, loss=loss)(batches)(model, optimizer, loader) == expected


def test_an_iterator_reaches_the_function_whole(job: Job) -> None:
    @guard(on=ROOMY, loss=loss)
    def train(model: Any, optimizer: Any, stream: Any) -> list[Any]:
        return list(stream)

    items = [job.batch, job.batch * 2]
    assert train(job.model, job.optimizer, iter(items)) == items
    with pytest.raises(UsageError, match="nothing left"):
        train(job.model, job.optimizer, iter([]))


def test_with_action_warn_an_iterator_is_whole_after_a_failed_prediction(job: Job) -> None:
    @guard(on=ROOMY, action="warn")
    def train(model: Any, optimizer: Any, stream: Any) -> list[Any]:
        return list(stream)

    with pytest.warns(WillfitWarning, match="runs unchecked"):
        assert train(job.model, job.optimizer, iter([job.batch])) == [job.batch]


# -- verification ------------------------------------------------------------------------------------------------------


def test_what_was_predicted_is_verified_before_the_first_line(job: Job) -> None:
    parameters = {id(parameter) for parameter in job.model.parameters()}

    @guard(on=ROOMY, loss=loss, verify="cpu")
    def train(model: Any, optimizer: Any, batch: Any) -> set[int]:
        assert all(parameter.grad is None for parameter in model.parameters())
        return {id(parameter) for parameter in model.parameters()}

    assert train(*job.args) == parameters  # filterwarnings is "error"
    assert not job.optimizer.state


def test_a_measurement_that_differs_is_a_warning(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    from willfit._verify import cpu

    predicted = cpu._predicted
    monkeypatch.setattr(cpu, "_predicted", lambda job: predicted(replace(job, optimizer=None)))

    @guard(on=ROOMY, loss=loss, verify="cpu")
    def train(model: Any, optimizer: Any, batch: Any) -> str:
        return "ran"

    with pytest.warns(WillfitWarning, match=r"(?s)what train\(\) needs is not what was predicted.*DISAGREES") as caught:
        assert train(*job.args) == "ran"
    assert caught[0].filename == __file__


def test_what_cannot_be_verified_is_a_warning(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("willfit._verify.cpu.available_memory", lambda: 0)

    @guard(on=ROOMY, loss=loss, verify="cpu")
    def train(model: Any, optimizer: Any, batch: Any) -> str:
        return "ran"

    with pytest.warns(WillfitWarning, match=r"what train\(\) needs could not be verified: .* memory") as caught:
        assert train(*job.args) == "ran"
    assert caught[0].filename == __file__


@pytest.mark.parametrize("action", ["raise", "warn"])
def test_an_engine_that_this_machine_lacks(job: Job, action: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")

    @guard(on=ROOMY, loss=loss, engine="emulated", action=action)
    def train(model: Any, optimizer: Any, batch: Any) -> str:
        return "ran"

    if action == "raise":
        with pytest.raises(UnavailableError, match="needs Linux"):
            train(*job.args)
    else:
        with pytest.warns(WillfitWarning, match=r"train\(\) runs unchecked, .* needs Linux"):
            assert train(*job.args) == "ran"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_there_is_nothing_to_watch_without_a_gpu(job: Job) -> None:
    @guard(on=ROOMY, loss=loss, verify="watch")
    def train(model: Any, optimizer: Any, batch: Any) -> str:
        return "ran"

    with pytest.warns(WillfitWarning, match="could not be verified: watch measures a GPU of this process"):
        assert train(*job.args) == "ran"


def test_what_does_not_fit_is_not_measured(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("willfit._verify.cpu._measured", lambda job: pytest.fail("it was measured"))

    @guard(on=SMALL, loss=loss, verify="cpu")
    def train(model: Any, optimizer: Any, batch: Any) -> str:
        return "ran"

    with pytest.raises(WillNotFit):
        train(*job.args)


# -- options -----------------------------------------------------------------------------------------------------------


def train(model: Any, optimizer: Any, loader: Any) -> None: ...


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"on": "T5"}, "'T5' is no GPU that willfit knows"),
        ({"on": "24 G"}, 'did you mean "24 GiB"'),
        ({"on": 1.5}, "found 1.5"),
        ({"capacity": "14"}, "capacity '14' has no unit"),
        ({"capacity": "99 GiB", "on": "T4"}, "not within"),
        ({"action": "ignore"}, r'action must be "raise" or "warn": found \'ignore\''),
        ({"steps": 0}, "steps must be .* 1 or more: found 0"),
        ({"steps": True}, "found True"),
        ({"step": "step"}, "step must be a function or None: found 'step'"),
        ({"loss": 3}, "loss must be a function or None: found 3"),
        ({"loss": loss, "step": loss}, "step= and loss= are both given"),
        ({"model": nn.Linear(1, 1)}, r'model must be the name of a parameter.*found Linear'),
        ({"engine": "real"}, "engine must be one of 'symbolic', 'emulated': found 'real'"),
        ({"verify": "scales"}, "there is no verifier 'scales': they are"),
        ({"verify": True, "tolerance": "two"}, r'tolerance must be a share such as "2%"'),
        ({"batch": "data"}, "batch='data' names no parameter: they are model, optimizer, loader"),
    ],
)  # fmt: skip
def test_wrong_options_are_refused_when_decorating(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        guard(**options)(train)


@pytest.mark.parametrize("wrong", ["T4", 3, nn.Linear])
def test_what_is_no_function_is_refused(wrong: Any) -> None:
    with pytest.raises(UsageError, match=r'guard takes a function.*guard\(on="T4"\)'):
        guard(wrong)


def test_wrong_arguments_of_a_call_are_refused(job: Job) -> None:
    guarded: Any = guard(on=ROOMY)(train)
    with pytest.raises(UsageError, match=r"no torch\.nn\.Module among the arguments"):
        guarded(1, 2, 3)
    with pytest.raises(UsageError, match="no batch among the arguments"):
        guarded(job.model, job.optimizer, 3)
    with pytest.raises(TypeError, match="optimizer"):
        guarded(job.model)


# -- nobody swallows it ------------------------------------------------------------------------------------------------


def test_accelerate_does_not_try_again(job: Job, calls: list[Any]) -> None:
    memory = pytest.importorskip("accelerate.utils.memory", reason="accelerate is not installed")
    tried, ran = [], []

    @memory.find_executable_batch_size(starting_batch_size=64)
    def search(batch_size: int) -> None:
        tried.append(batch_size)

        @guard(on=SMALL, loss=loss)
        def train(model: Any, optimizer: Any, batch: Any) -> None:
            ran.append(batch_size)

        train(*job.args)

    with pytest.raises(WillNotFit) as refusal:
        search()
    assert (tried, ran, len(calls)) == ([64], [], 1)
    assert not memory.should_reduce_batch_size(refusal.value)

    tried.clear()
    inside = memory.find_executable_batch_size(
        guard(on=SMALL, loss=loss)(lambda batch_size, model, optimizer, batch: tried.append(batch_size)),
        starting_batch_size=64,
    )
    with pytest.raises(WillNotFit):
        inside(*job.args)
    assert (tried, len(calls)) == ([], 2)


def test_lightning_does_not_try_again(job: Job) -> None:
    memory = pytest.importorskip("lightning.pytorch.utilities.memory", reason="lightning is not installed")
    with pytest.raises(WillNotFit) as refusal:
        guard(on=SMALL, loss=loss)(train)(*job.args)
    assert not memory.is_oom_error(refusal.value)


def test_it_is_nothing_that_a_handler_of_out_of_memory_errors_catches(job: Job) -> None:
    with pytest.raises(WillNotFit) as refusal:
        guard(on=SMALL, loss=loss)(train)(*job.args)
    assert not isinstance(refusal.value, (RuntimeError, MemoryError))
