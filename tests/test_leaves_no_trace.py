"""A prediction changes nothing: not the user's objects, not torch, not the process; also when the step raises."""

from __future__ import annotations

import copy
import gc
import random
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import StepLR
from torch.utils.checkpoint import checkpoint

from willfit import Device, Footprint, WillfitError, predict
from willfit._trace.fake import OVERRIDES_KEY, FakeCudaTensor

ROOMY = Device(name="roomy", total=2**34, context=0)

Step = Callable[[Any, Any, Any], Any]


class Stop(Exception):  # noqa: N818 - no error
    """What a step raises half way."""


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.norm = nn.BatchNorm1d(8)
        self.dropout = nn.Dropout(0.5)
        self.last = nn.Linear(8, 1)
        self.calls = 0
        self.seen: list[Any] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.seen.append(x)
        return self.last(self.dropout(self.norm(self.first(x)))).mean()


class Job:
    """A job that has trained already: optimizer state, gradients, buffers, a schedule and a scaler."""

    def __init__(self) -> None:
        torch.manual_seed(7)
        self.model = Net()
        self.model.dropout.eval()
        self.optimizer = torch.optim.AdamW(
            [
                {"params": self.model.first.parameters(), "lr": 0.5},
                {"params": [*self.model.norm.parameters(), *self.model.last.parameters()]},
            ]
        )
        self.scheduler = StepLR(self.optimizer, 2)
        self.batch = torch.randn(4, 8)
        self.scaler = torch.amp.GradScaler("cuda", enabled=False)
        self.model(self.batch).backward()
        self.optimizer.step()
        self.scheduler.step()

    def step(self, model: Any, optimizer: Any, batch: Any) -> Any:
        loss = model.train()(batch)
        self.scaler.scale(loss).backward()
        self.scaler.step(optimizer)
        self.scaler.update()
        self.scheduler.step()
        optimizer.zero_grad()
        return loss

    def predict(self, step: Step | None = None, **kwargs: Any) -> Footprint:
        return predict(self.model, self.optimizer, self.batch, step or self.step, on=ROOMY, **kwargs)


@pytest.fixture
def job() -> Job:
    return Job()


def _frozen(value: Any) -> Any:
    """A value that compares by content: tensors as bytes, with what else they carry."""
    if isinstance(value, torch.Tensor):
        return (
            type(value),
            value.requires_grad,
            value._version,
            value.data_ptr(),
            value.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes() if value.dim() else value.item(),
            None if not value.is_leaf or value.grad is None else _frozen(value.grad),
        )
    if isinstance(value, dict):
        return {key if isinstance(key, (str, int)) else id(key): _frozen(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_frozen(item) for item in value]
    return value if isinstance(value, (int, float, str, bool, type(None))) else repr(value)


def _of_modules(model: nn.Module) -> Any:
    return [
        (
            name,
            id(module),
            module.training,
            {key: (id(p), _frozen(p)) for key, p in module._parameters.items()},
            {key: (id(b), _frozen(b)) for key, b in module._buffers.items()},
            {key: list(value) for key, value in vars(module).items() if key.endswith("_hooks")},
            sorted(vars(module)),
        )
        for name, module in model.named_modules()
    ]


def _of_optimizer(optimizer: torch.optim.Optimizer) -> Any:
    return (
        [
            (
                sorted(group),
                [id(p) for p in group["params"]],
                _frozen({k: v for k, v in group.items() if k != "params"}),
            )
            for group in optimizer.param_groups
        ],
        [(id(p), _frozen(state)) for p, state in optimizer.state.items()],
        _frozen(optimizer.defaults),
        {key: list(value) for key, value in vars(optimizer).items() if key.endswith("_hooks")},
        sorted(vars(optimizer)),
        getattr(optimizer.step, "__func__", None) is type(optimizer).step,
    )


def _of_process() -> Any:
    numpy = sys.modules["numpy"]
    names = sorted(name for name in vars(torch.cuda) if not name.startswith("__"))
    return {
        "torch rng": torch.get_rng_state().numpy().tobytes(),
        "python rng": random.getstate(),
        "numpy rng": repr(numpy.random.get_state()),
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "gc": gc.isenabled(),
        "gc thresholds": gc.get_threshold(),
        "grad": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "anomaly": torch.is_anomaly_enabled(),
        "autocast": [(torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in ("cuda", "cpu")],
        "autocast cache": torch.is_autocast_cache_enabled(),
        "autocast nesting": _nesting(),
        "warnings": list(warnings.filters),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "matmul": torch.get_float32_matmul_precision(),
        "cudnn": (torch.backends.cudnn.benchmark, torch.backends.cudnn.enabled, torch.backends.cuda.matmul.allow_tf32),
        "sdp": (torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.math_sdp_enabled()),
        "threads": torch.get_num_threads(),
        "torch.cuda": [(name, id(getattr(torch.cuda, name))) for name in names],
        "nvtx": [(name, id(value)) for name, value in sorted(vars(torch.cuda.nvtx).items()) if callable(value)],
        "torch": [id(torch.clear_autocast_cache), id(torch.autograd._engine_run_backward), id(torch.Tensor.backward)],
        "global hooks": [
            (name, list(value))
            for name, value in sorted(vars(sys.modules["torch.nn.modules.module"]).items())
            if name.startswith("_global") and name.endswith("hooks")
        ],
        "optimizer hooks": [
            (name, list(value))
            for name, value in sorted(vars(sys.modules["torch.optim.optimizer"]).items())
            if name.startswith("_global")
        ],
        "foreach": list(sys.modules["torch.optim.optimizer"]._foreach_supported_types),
        "dispatch key": (
            torch._C._dispatch_tls_is_dispatch_key_included(OVERRIDES_KEY),
            torch._C._dispatch_tls_is_dispatch_key_excluded(OVERRIDES_KEY),
        ),
        "included": [
            key
            for key in ("Python", "PythonTLSSnapshot", "Meta", "AutocastCUDA", "AutocastCPU")
            if torch._C._dispatch_tls_is_dispatch_key_included(key)
        ],
        "modes": torch.utils._python_dispatch._get_current_dispatch_mode_stack(),
        "function modes": torch.overrides._get_current_function_mode_stack(),
        "saved tensors hooks": torch._C._autograd._top_saved_tensors_default_hooks(True),
        "lifting": torch._C._only_lift_cpu_tensors(),
        "cuda initialized": (torch.cuda.is_initialized(), torch.cuda.is_available(), torch.cuda._initialized),
        "seeds": list(torch.cuda._queued_calls),
        "trace function": sys.gettrace(),
        "threads of python": threading.active_count(),
        "excepthook": sys.excepthook,
    }


def _nesting() -> int:
    torch.autocast_increment_nesting()
    return int(torch.autocast_decrement_nesting())


def _everything(job: Job) -> Any:
    return {
        "model": _of_modules(job.model),
        "own attributes": (job.model.calls, [id(x) for x in job.model.seen]),
        "optimizer": _of_optimizer(job.optimizer),
        "scheduler": _frozen(job.scheduler.state_dict()),
        "scaler": (_frozen(job.scaler.state_dict()), job.scaler.is_enabled(), sorted(vars(job.scaler))),
        "batch": _frozen(job.batch),
        "job": sorted(vars(job)),
        **_of_process(),
    }


@pytest.fixture(autouse=True)
def _no_fake_tensor_is_left() -> Iterator[None]:
    yield
    gc.collect()
    assert [type(x) for x in gc.get_objects() if type(x) is FakeCudaTensor] == []


def raises(when: str) -> Step:
    """A step that changes all that it can and raises in the middle of something."""

    def step(model: Any, optimizer: Any, batch: Any) -> None:
        random.random()
        sys.modules["numpy"].random.rand()
        torch.rand(3)
        warnings.simplefilter("error")
        if when == "forward":
            model.first.register_forward_hook(lambda *_: (_ for _ in ()).throw(Stop()))
            model(batch)
        if when == "autocast":
            with torch.autocast("cuda", torch.bfloat16), torch.autocast("cpu"):
                model(batch)
                raise Stop
        if when == "no_grad":
            with torch.no_grad(), torch.device("meta"), torch.inference_mode():
                raise Stop
        if when == "backward":
            loss = model(batch)
            loss.register_hook(lambda _: (_ for _ in ()).throw(Stop()))
            loss.backward()
        if when == "checkpoint":
            calls = []

            def twice(x: Any) -> Any:
                calls.append(x)
                if len(calls) > 1:
                    raise Stop
                return model.first(x)

            checkpoint(twice, batch, use_reentrant=False).sum().backward()
        if when == "optimizer":
            model(batch).backward()
            optimizer.register_step_post_hook(lambda *_: (_ for _ in ()).throw(Stop()))
            optimizer.step()
        if when == "stream":
            with torch.cuda.stream(torch.cuda.Stream()):
                raise Stop
        if when == "saved tensors":
            with torch.autograd.graph.save_on_cpu():
                raise Stop

    return step


PLACES = ["forward", "autocast", "no_grad", "backward", "checkpoint", "optimizer", "stream", "saved tensors"]


def test_a_prediction_changes_nothing(job: Job) -> None:
    before = _everything(job)
    job.predict()
    assert _everything(job) == before


@pytest.mark.parametrize("when", PLACES)
def test_a_step_that_raises_changes_nothing(job: Job, when: str) -> None:
    before = _everything(job)
    with pytest.raises(WillfitError, match="Stop") as caught:
        job.predict(raises(when))
    del caught
    assert _everything(job) == before


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit])
def test_an_interruption_goes_through_and_changes_nothing(job: Job, interruption: type[BaseException]) -> None:
    def step(model: Any, optimizer: Any, batch: Any) -> None:
        model(batch).backward()
        raise interruption

    before = _everything(job)
    with pytest.raises(interruption):
        job.predict(step)
    assert _everything(job) == before


def test_an_interruption_inside_of_an_operator_changes_nothing(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    from willfit._trace.recorder import Recorder

    own, calls = Recorder.allocate, [0]

    def allocate(*args: Any, **kwargs: Any) -> int:
        calls[0] += 1
        if calls[0] == 40:
            raise KeyboardInterrupt
        return own(*args, **kwargs)

    before = _everything(job)
    monkeypatch.setattr(Recorder, "allocate", allocate)
    with pytest.raises(KeyboardInterrupt):
        job.predict()
    monkeypatch.undo()
    assert _everything(job) == before


def test_settings_that_the_step_makes_are_put_back(job: Job) -> None:
    def step(model: Any, optimizer: Any, batch: Any) -> None:
        torch.set_default_dtype(torch.float64)
        torch.set_default_device("meta")
        torch.set_grad_enabled(False)
        torch.set_grad_enabled(True)
        torch.set_autocast_enabled("cuda", True)
        torch.set_autocast_enabled("cpu", True)
        torch.set_autocast_dtype("cuda", torch.bfloat16)
        torch.set_autocast_cache_enabled(False)
        torch.set_float32_matmul_precision("high")
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = True
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cuda.enable_flash_sdp(False)
        torch.autograd.set_detect_anomaly(True, check_nan=False)
        torch.manual_seed(0)
        torch.cuda.manual_seed_all(0)
        random.seed(0)
        sys.modules["numpy"].random.seed(0)
        gc.enable()
        gc.set_threshold(1)
        warnings.simplefilter("error")
        nn.modules.module.register_module_forward_hook(lambda *_: None)
        model.train()
        model.requires_grad_(True)
        model.register_forward_hook(lambda *_: None)
        optimizer.register_step_pre_hook(lambda *_: None)
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(3))]})
        model(batch).backward()
        optimizer.step()

    before = _everything(job)
    job.predict(step)
    assert _everything(job) == before


def test_training_after_a_prediction_is_bit_identical() -> None:
    def train(job: Job) -> list[Any]:
        losses = []
        for _ in range(5):
            loss = job.model.train()(job.batch + random.random())
            loss.backward()
            job.optimizer.step()
            job.scheduler.step()
            losses.append(loss.item())
        return [losses, [p.detach().clone() for p in job.model.parameters()], job.scheduler.get_last_lr()]

    random.seed(3)
    plain = train(Job())
    random.seed(3)
    job = Job()
    for step in (None, raises("autocast"), raises("optimizer")):
        if step is None:
            job.predict()
        else:
            with pytest.raises(WillfitError):
                job.predict(step)
    predicted = train(job)
    assert plain[0] == predicted[0]
    assert all(torch.equal(a, b) for a, b in zip(plain[1], predicted[1], strict=True))
    assert plain[2] == predicted[2]


GLOBAL_LOSSES: list[Any] = []
GLOBAL_STATE = {"count": 0, "nested": {"average": torch.zeros(3)}}
GLOBAL_NUMBER = 0


def test_what_the_step_keeps_outside_of_itself_stays(job: Job) -> None:
    losses: list[Any] = []
    average = {name: p.detach().clone() for name, p in job.model.named_parameters()}
    running = torch.zeros(8, requires_grad=True)
    count = 0

    def step(model: Any, optimizer: Any, batch: Any) -> None:
        nonlocal count
        global GLOBAL_NUMBER
        loss = model(batch) + (running * 2).sum()
        loss.backward()
        optimizer.step()
        losses.append(loss)
        GLOBAL_LOSSES.append(loss.detach())
        GLOBAL_STATE["count"] += 1  # type: ignore[operator]
        GLOBAL_STATE["nested"]["average"].mul_(0.9)  # type: ignore[index]
        GLOBAL_NUMBER += 1
        count += 1
        with torch.no_grad():
            for name, p in model.named_parameters():
                average[name].lerp_(p, 0.1)
            running.add_(1)

    frozen = _frozen([average, running, GLOBAL_STATE])
    before = _everything(job)
    job.predict(step)
    assert (losses, GLOBAL_LOSSES, GLOBAL_NUMBER, count) == ([], [], 0, 0)
    assert _frozen([average, running, GLOBAL_STATE]) == frozen
    assert _everything(job) == before


class Ema:
    """An average of the weights in an object, as many write it."""

    def __init__(self, model: nn.Module) -> None:
        self.shadow = copy.deepcopy(model)
        self.updates = 0

    def update(self, model: nn.Module) -> None:
        self.updates += 1
        with torch.no_grad():
            for own, new in zip(self.shadow.parameters(), model.parameters(), strict=True):
                own.lerp_(new, 0.5)


class Slotted:
    __slots__ = ("history", "total")

    def __init__(self) -> None:
        self.total = torch.zeros(())
        self.history: list[Any] = []


def test_objects_that_the_step_reaches_stay(job: Job) -> None:
    ema, slotted = Ema(job.model), Slotted()

    class Trainer:
        last: Any = None

        def __init__(self) -> None:
            self.ema = ema
            self.slotted = slotted
            self.lock = threading.Lock()

        def step(self, model: Any, optimizer: Any, batch: Any) -> Any:
            loss = model(batch)
            loss.backward()
            optimizer.step()
            self.ema.update(model)
            with self.lock:
                self.last = loss
                self.slotted.total += loss.detach().cpu()
                self.slotted.history.append(loss)
            return loss

    trainer = Trainer()
    frozen = _frozen([list(ema.shadow.parameters()), slotted.total])
    job.predict(trainer.step)
    assert _frozen([list(ema.shadow.parameters()), slotted.total]) == frozen
    assert (trainer.last, slotted.history, ema.updates) == (None, [], 0)


def test_the_batch_stays_when_the_step_changes_it(job: Job) -> None:
    batch = {"x": torch.ones(4, 8), "list": [torch.ones(2)], "own": torch.ones(3, requires_grad=True)}

    def step(model: Any, optimizer: Any, batch: Any) -> None:
        x = batch.pop("x")
        batch["list"].append(x)
        x.add_(1)
        batch["x"] = x
        (model(x) + batch["own"].sum()).backward()
        optimizer.step()

    frozen = _frozen(batch)
    predict(job.model, job.optimizer, batch, step, on=ROOMY)
    assert _frozen(batch) == frozen
    assert list(batch) == ["x", "list", "own"]


def test_a_model_on_meta_stays_there() -> None:
    with torch.device("meta"):
        model = nn.Linear(8, 1)
    optimizer = torch.optim.AdamW(model.parameters())
    identities = [id(p) for p in model.parameters()]
    predict(model, optimizer, torch.ones(2, 8), loss=lambda m, x: m(x).sum(), on=ROOMY)
    assert [id(p) for p in model.parameters()] == identities
    assert all(type(p) is nn.Parameter and p.is_meta and p.grad is None for p in model.parameters())
    assert not optimizer.state


def test_the_same_inside_of_other_contexts(job: Job) -> None:
    outside = job.predict()
    before = _everything(job)
    for context in (
        torch.no_grad,
        torch.inference_mode,
        lambda: torch.autocast("cuda", torch.float16),
        lambda: torch.autocast("cpu"),
        lambda: torch.device("meta"),
        lambda: torch.autograd.graph.save_on_cpu(),
        lambda: warnings.catch_warnings(action="error"),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # there is no CUDA to autocast for
            entered = context()
        with entered:
            within = job.predict()
        assert within == outside, context
    assert _everything(job) == before


def test_gradients_that_a_step_leaves_go_with_the_copy(job: Job) -> None:
    """Of one of them, that of a bias under a sum, the values are known, by way of what follows the run."""

    def step(model: Any, optimizer: Any, batch: Any) -> None:
        model(batch).sum().backward()
        optimizer.step()

    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 1))
    predict(model, torch.optim.AdamW(model.parameters()), torch.zeros(4, 64), step, on="T4")  # the fixture counts


def test_the_same_again_and_from_another_thread(job: Job) -> None:
    first = job.predict()
    answers: list[Footprint] = []
    thread = threading.Thread(target=lambda: answers.append(job.predict()))
    thread.start()
    thread.join()
    assert first == job.predict() == answers[0]


def test_a_real_job_in_another_thread_is_left_alone(job: Job) -> None:
    """Its operators, its gradients and its random numbers are its own."""
    done, results = threading.Event(), []

    def train() -> None:
        other = nn.Linear(8, 8)
        while not done.is_set():
            out = other(torch.ones(2, 8))
            out.sum().backward()
            results.append(type(out) is torch.Tensor and type(other.weight.grad) is torch.Tensor)

    thread = threading.Thread(target=train)
    thread.start()
    try:
        job.predict()
    finally:
        done.set()
        thread.join()
    assert results
    assert all(results)


def test_the_footprint_holds_no_tensor(job: Job) -> None:
    footprint = job.predict()
    seen: set[int] = set()
    stack: list[Any] = [footprint]
    while stack:
        item = stack.pop()
        if id(item) in seen or isinstance(item, type) or callable(item):
            continue
        seen.add(id(item))
        assert not isinstance(item, (torch.Tensor, nn.Module))
        stack.extend(gc.get_referents(item))


def test_cuda_is_never_touched(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the driver nor a generator: on a machine with a GPU its context would be made, its random state moved."""

    def touched(*_: Any, **__: Any) -> None:
        raise AssertionError("CUDA was touched")

    monkeypatch.setattr(torch.cuda, "_lazy_init", touched)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", touched)
    monkeypatch.setattr(torch.cuda, "set_rng_state", touched)
    monkeypatch.setattr(torch.cuda, "get_rng_state", touched)

    def step(model: Any, optimizer: Any, batch: Any) -> None:
        torch.manual_seed(1)
        torch.cuda.manual_seed_all(1)
        torch.cuda.set_rng_state(torch.cuda.get_rng_state())
        checkpoint(model, batch, use_reentrant=True, preserve_rng_state=True)
        checkpoint(model, batch, use_reentrant=False).backward()
        torch.cuda.synchronize()
        optimizer.step()

    job.predict(step)
