"""``predict(engine="emulated")``: PyTorch's own CUDA code, in a process of its own, and the same footprint of it."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, one_hot
from torch.utils.checkpoint import checkpoint

import machine
import willfit
from willfit import Device, Footprint, JobError, UnavailableError, UsageError, WillNotFit, predict

OWN = torch.Generator()

pytestmark = pytest.mark.filterwarnings("ignore:torch.cuda.amp.GradScaler is enabled:UserWarning")


@pytest.fixture(autouse=True)
def there() -> None:
    machine.interpreter()


@pytest.fixture(autouse=True)
def nothing_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever happens: no file, no variable, no process of the emulator's is left."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    before = set(os.environ)
    yield
    assert not list(scratch.glob("willfit-*"))  # PyTorch makes directories of its own there
    added = set(os.environ) - before
    assert not [name for name in added if name.startswith(("LD_", "WILLFIT_GPU", "KINETO", "TORCH_CUDNN"))]
    children = Path(f"/proc/{os.getpid()}/task/{threading.get_native_id()}/children").read_text().split()
    running = [Path(f"/proc/{child}/cmdline").read_bytes() for child in children]
    assert not [each for each in running if b"bootstrap.py" in each]


def both(*job: Any, on: Any = "T4", **options: Any) -> tuple[Footprint, Footprint]:
    """The footprint by each engine, with the choices that the emulator makes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_CUDNN_V8_API_DISABLED", "1")
        patch.setenv("TORCH_CUDNN_SDPA_DEPRIORITIZED", "1")
        symbolic = predict(*job, on=on, **options)
    return symbolic, predict(*job, on=on, engine="emulated", **options)


def perceptron(width: int = 512) -> nn.Module:
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Dropout(0.1), nn.Linear(width, 10))


def classify(model: Any, batch: Any) -> Any:
    return cross_entropy(model(batch["x"]), batch["y"])


def pairs(rows: int = 64, width: int = 512) -> dict[str, torch.Tensor]:
    return {"x": torch.zeros(rows, width), "y": torch.zeros(rows, dtype=torch.long)}


# -- the same footprint ------------------------------------------------------------------------------------------------


def plain_job() -> tuple[Any, ...]:
    model = perceptron()
    return model, torch.optim.AdamW(model.parameters()), pairs(), None, classify


def meta_job() -> tuple[Any, ...]:
    with torch.device("meta"):
        model = perceptron(4096)
    return model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), pairs(64, 4096), None, classify


def convolutions() -> tuple[Any, ...]:
    layers = [nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
    model = nn.Sequential(*layers, nn.Linear(32 * 16 * 16, 10))
    batch = {"x": torch.zeros(8, 3, 32, 32), "y": torch.zeros(8, dtype=torch.long)}
    return model, torch.optim.Adam(model.parameters()), batch, None, classify


def mixed_precision() -> tuple[Any, ...]:
    model = perceptron()
    scaler = torch.amp.GradScaler("cuda")

    def step(model: Any, optimizer: Any, batch: Any) -> Any:
        with torch.autocast("cuda", dtype=torch.float16):
            loss = classify(model, batch)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        return loss

    return model, torch.optim.AdamW(model.parameters()), pairs(), step, None


def accumulation_across_calls() -> tuple[Any, ...]:
    model, calls = perceptron(), [0]

    def step(model: Any, optimizer: Any, batch: Any) -> None:
        classify(model, batch).backward()
        calls[0] += 1
        if calls[0] % 3 == 0:
            optimizer.step()
            optimizer.zero_grad()

    return model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), pairs(), step, None


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(1000, 128)
        layer = nn.TransformerEncoderLayer(128, 4, 256, batch_first=True)
        self.layers = nn.ModuleList(nn.TransformerEncoder(layer, 1, enable_nested_tensor=False) for _ in range(3))
        self.head = nn.Linear(128, 1000, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("scale", torch.ones(128))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids) * self.scale
        for layer in self.layers:
            x = checkpoint(layer, x, use_reentrant=False)
        return self.head(x)  # type: ignore[no-any-return]


def checkpointing_and_tied_weights() -> tuple[Any, ...]:
    model = Tied()
    batch = torch.zeros(8, 64, dtype=torch.long)
    return (
        model,
        torch.optim.AdamW(model.parameters()),
        batch,
        None,
        lambda model, ids: cross_entropy(model(ids).flatten(0, 1), ids.flatten()),
    )


def resumed() -> tuple[Any, ...]:
    """Optimizer state and gradients are there before the first step."""
    model = perceptron()
    optimizer = torch.optim.AdamW(model.parameters())
    for _ in range(2):
        classify(model, pairs()).backward()
        optimizer.step()
    return model, optimizer, pairs(), None, classify


def two_networks() -> tuple[Any, ...]:
    models = nn.ModuleDict({"generator": perceptron(), "critic": perceptron()})
    optimizers = {name: torch.optim.Adam(each.parameters()) for name, each in models.items()}

    def step(models: Any, optimizers: Any, batch: Any) -> None:
        for name in ("generator", "critic"):
            optimizers[name].zero_grad()
            classify(models[name], batch).backward()
            optimizers[name].step()

    return models, optimizers, pairs(), step, None


class Tables(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10_000, 64, sparse=True)
        self.bags = nn.EmbeddingBag(5_000, 64, sparse=True)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.embed(ids).square().sum() + self.bags(ids % 5_000).sum()


def sparse_gradients() -> tuple[Any, ...]:
    """How many rows they keep is counted in the batch's indices, many of which come more than once."""
    model = Tables()
    ids = torch.arange(64 * 40).remainder(500).reshape(64, 40)
    return model, torch.optim.SparseAdam(list(model.parameters())), ids, None, lambda model, ids: model(ids)


def recurrent() -> tuple[Any, ...]:
    network = nn.LSTM(64, 128, 2, bidirectional=True, batch_first=True)
    return network, torch.optim.SGD(network.parameters(), lr=0.1), torch.zeros(4, 20, 64), None, _mean_of_outputs


def _mean_of_outputs(model: Any, batch: Any) -> Any:
    return model(batch)[0].mean()


def expanded_gradient() -> tuple[Any, ...]:
    """The gradient of a sum is one number for all, of which cuBLAS gets a copy."""
    model = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 512))
    return model, torch.optim.AdamW(model.parameters()), torch.ones(64, 512), None, lambda model, x: model(x).sum()


def recurrent_of_odd_width() -> tuple[Any, ...]:
    """Its weights are laid into one buffer when it is moved; backward copies what lies batch first, twice."""
    model = nn.GRU(60, 100, 2, bidirectional=True, batch_first=True)
    return model, torch.optim.AdamW(model.parameters()), torch.zeros(7, 50, 60), None, _mean_of_outputs


def recurrent_under_autocast() -> tuple[Any, ...]:
    """Its weights are copied to one buffer of fp16, whatever autocast's own dtype is."""

    def loss(model: Any, batch: Any) -> Any:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            return model(batch)[0].float().mean()

    model = nn.LSTM(60, 100, 2)
    return model, torch.optim.AdamW(model.parameters()), torch.zeros(7, 50, 60), None, loss


def recurrent_without_biases() -> tuple[Any, ...]:
    """cuDNN has biases all the same, so that gradients are copied out of its buffer."""
    model = nn.LSTM(60, 100, 2, bias=False).half()
    return model, torch.optim.AdamW(model.parameters()), torch.zeros(7, 50, 60).half(), None, _mean_of_outputs


def recurrent_in_bf16() -> tuple[Any, ...]:
    """Not done by cuDNN on a T4."""
    model = nn.RNN(60, 100, 2).bfloat16()
    return model, torch.optim.AdamW(model.parameters()), torch.zeros(7, 50, 60).bfloat16(), None, _mean_of_outputs


def sparse_gradients_added_up() -> tuple[Any, ...]:
    """Halves of a batch, whose rows in the tables are told apart by where they lie in memory."""
    model = nn.EmbeddingBag(1000, 64, mode="mean", sparse=True)

    def step(model: Any, optimizer: Any, batch: Any) -> None:
        for half in batch.chunk(2):
            model(half).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    return model, torch.optim.Adagrad(model.parameters()), torch.arange(64).reshape(16, 4) % 7, step, None


JOBS = [
    *(plain_job, meta_job, convolutions, mixed_precision, accumulation_across_calls),
    *(checkpointing_and_tied_weights, resumed, two_networks, sparse_gradients, expanded_gradient),
    sparse_gradients_added_up,
    *(recurrent_of_odd_width, recurrent_under_autocast, recurrent_without_biases, recurrent_in_bf16),
]


@pytest.mark.parametrize("make", JOBS, ids=lambda make: make.__name__)
def test_both_engines_give_the_same_bill_phases_and_modules(make: Any) -> None:
    if not machine.same_version():
        pytest.skip(f"torch {machine.interpreter().torch} runs there, and another version predicts here")
    model, optimizer, batch, step, loss = make()
    symbolic, emulated = both(model, optimizer, batch, step, loss=loss)
    assert emulated.bill == symbolic.bill
    assert emulated.phases == symbolic.phases
    assert (emulated.verdict, emulated.required) == (symbolic.verdict, symbolic.required)
    assert emulated.convolution_workspace == symbolic.convolution_workspace
    assert dict(emulated.modules) == dict(symbolic.modules)
    assert dict(emulated.sources) == dict(symbolic.sources)
    assert set(symbolic.assumptions) == set(emulated.assumptions)
    assert (symbolic.engine, emulated.engine) == ("symbolic", "emulated")
    assert emulated.job == symbolic.job


def test_asking_which_convolution_runs_takes_no_memory() -> None:
    """As in speech models: features last, and a convolution over time, which copies them in order."""
    if not machine.same_version():
        pytest.skip(f"torch {machine.interpreter().torch} runs there, and another version predicts here")
    model = nn.Conv1d(64, 64, 3, padding=1)
    job = model, torch.optim.SGD(model.parameters(), lr=0.1), torch.zeros(8, 4096, 64)
    symbolic, emulated = both(*job, loss=lambda model, x: model(x.transpose(1, 2)).sum())
    taken = [[each.size for each in footprint._trace.allocations] for footprint in (symbolic, emulated)]
    assert taken[0].count(8 * 4096 * 64 * 4) == taken[1].count(8 * 4096 * 64 * 4)


def test_values_are_answered_by_one_policy() -> None:
    if not machine.same_version():
        pytest.skip(f"torch {machine.interpreter().torch} runs there, and another version predicts here")
    seen: list[Any] = []

    def step(model: Any, optimizer: Any, batch: Any) -> None:
        y = model(batch)
        mask = y > 0
        number = int(y.sum().item())
        seen[:] = [  # what Python sees of it decides what is allocated below
            *(
                y[mask].numel(),
                torch.nonzero(mask).shape[0],
                torch.unique(batch.long()).numel(),
                torch.unique(mask).numel(),
            ),
            *(torch.repeat_interleave(batch.long()[0]).numel(), torch.bincount(batch.long()[0]).numel(), number),
            *(
                bool(torch.isnan(y).any()),
                bool(y.sum().isnan() | y.sum().isinf()),
                bool(mask.all()),
                torch.equal(y, y.clone()),
                torch.allclose(y, y.clone()),
            ),
            *(
                y[:number].cpu().sum().item(),
                y[0, :2].tolist(),
                one_hot(batch.long()[0]).shape[1],
                float(y.max()) > 100,
            ),
        ]
        torch.zeros(
            1000 * sum(int(value if not isinstance(value, list) else sum(value)) for value in seen), device="cuda"
        )
        y.sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    model = nn.Linear(64, 64)
    symbolic, emulated = both(model, torch.optim.SGD(model.parameters(), lr=0.1), torch.zeros(16, 64), step)
    assert emulated.phases == symbolic.phases
    assert set(emulated.assumptions) == set(symbolic.assumptions)


@pytest.mark.parametrize(
    "draw", [None, lambda: random.random(), lambda: torch.rand(3), lambda: torch.rand(3, generator=OWN)]
)
def test_a_step_that_draws_on_the_host_is_run_again_and_not_remembered(draw: Any) -> None:
    def step(model: Any, optimizer: Any, batch: Any) -> None:
        if draw is not None:
            draw()
        nn.functional.dropout(model(batch)).sum().backward()  # on the GPU, where values change no size

    model = nn.Linear(8, 8)
    footprint = predict(model, None, torch.zeros(4, 8), step, on="T4", engine="emulated", steps=1)
    assert footprint._trace.is_repeatable == (draw is None)


def test_recurrent_networks_of_cudnn_run() -> None:
    model, optimizer, batch, step, loss = recurrent()
    footprint = predict(model, optimizer, batch, step, loss=loss, on="T4", engine="emulated")
    # flatten_parameters lays the weights into one buffer: as many bytes as they have
    parameters = sum(p.numel() for p in model.parameters()) * 4
    assert parameters <= footprint.bill["parameters"] <= 2 * parameters
    assert any("cuDNN's recurrent networks" in sentence for sentence in footprint.assumptions)


@pytest.mark.parametrize("variable", ["PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"])
def test_expandable_segments_are_those_of_the_real_allocator(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if variable == "PYTORCH_ALLOC_CONF" and not machine.interpreter().torch.startswith(("2.13", "2.15", "2.14")):
        pytest.skip("this PyTorch does not know the variable")
    monkeypatch.setenv(variable, "expandable_segments:True")
    model, optimizer, batch, step, loss = meta_job()
    verification = willfit.verify(model, optimizer, batch, step, loss=loss, on="T4", using="emulated")
    assert abs(verification.error) < 0.02
    # each pool of an expandable segment grows by pages of 20 MiB
    peak = max(each.measured.peak_reserved for each in verification.phases)
    assert peak is not None
    assert peak % (2 * 2**20) == 0


# -- the card ----------------------------------------------------------------------------------------------------------


def test_memory_runs_out_where_the_real_allocator_says_so() -> None:
    model, optimizer, batch, step, loss = meta_job()  # 64 MiB of weights, twice with gradients, thrice with momentum
    small = Device(name="small", total=200 * 2**20, context=0, compute_capability=(7, 5), multiprocessors=40)
    found = willfit.verify(model, optimizer, batch, step, loss=loss, on=small, using="emulated")
    predicted, measured = found.predicted.out_of_memory, found.measurement.out_of_memory
    assert predicted is not None
    assert measured is not None
    assert found.same_outcome
    assert (measured.step, measured.phase) == (predicted.step, predicted.phase) == (1, "optimizer step")
    assert measured.requested == predicted.requested == 4096 * 4096 * 4
    assert measured.allocated == predicted.allocated
    assert measured.reserved == predicted.reserved


def test_code_that_asks_sees_the_gpu_that_is_named() -> None:
    found: dict[str, Any] = {}

    def step(model: Any, optimizer: Any, batch: Any) -> None:
        properties = torch.cuda.get_device_properties(0)
        if (properties.name, properties.total_memory) != ("NVIDIA A100-SXM4-80GB", 84987740160):
            raise ValueError(f"another card: {properties}")
        if torch.cuda.get_device_capability() != (8, 0) or not batch.is_cuda:
            raise ValueError("not an A100")
        model(batch).sum().backward()
        found["ran"] = True

    model = nn.Linear(8, 8)
    predict(model, None, torch.zeros(4, 8), step, on="A100-80GB", engine="emulated", steps=1)
    assert not found  # it ran in another process


def test_a_card_that_is_not_nvidia_s_is_refused() -> None:
    with pytest.raises(UnavailableError, match="not a GPU of NVIDIA's"):
        predict(nn.Linear(2, 2), None, torch.zeros(1, 2), loss=lambda m, x: m(x).sum(), on="MI300X", engine="emulated")


def test_the_guard_refuses_by_either_engine() -> None:
    @willfit.guard(on="T4", loss=lambda model, batch: model(batch).sum(), engine="emulated")
    def train(model: Any, optimizer: Any, batch: Any) -> None:
        raise AssertionError("it was run")

    model = nn.Linear(65536, 65536, device="meta")
    with pytest.raises(WillNotFit):
        train(model, torch.optim.AdamW(model.parameters()), torch.zeros(8, 65536))


# -- what goes wrong ---------------------------------------------------------------------------------------------------


def failing(message: str) -> Any:
    def step(model: Any, optimizer: Any, batch: Any) -> None:
        model(batch)
        raise ValueError(message)

    return step


def test_an_exception_of_the_step_is_told_with_its_lines() -> None:
    model = nn.Linear(8, 8)
    with pytest.raises(
        JobError, match=r"raised ValueError \(test_engine.py:\d+, forward of step 1\): no such"
    ) as caught:
        predict(model, None, torch.zeros(4, 8), failing("no such label"), on="T4", engine="emulated")
    assert "raise ValueError(message)" in str(caught.value.__cause__)


def test_what_the_emulator_cannot_do_is_told() -> None:
    def step(model: Any, optimizer: Any, batch: Any) -> None:
        torch.linalg.cholesky(model(batch))

    with pytest.raises(JobError, match="cusolver"):
        predict(nn.Linear(8, 8), None, torch.zeros(8, 8), step, on="T4", engine="emulated")


@pytest.mark.parametrize(
    ("number", "says"), [(signal.SIGKILL, "was killed .SIGKILL."), (signal.SIGSEGV, "crashed .SIGSEGV.")]
)
def test_a_process_that_dies_is_told(number: signal.Signals, says: str) -> None:
    def step(model: Any, optimizer: Any, batch: Any) -> None:
        os.kill(os.getpid(), number)

    with pytest.raises(willfit.EmulatorError, match=says):
        predict(nn.Linear(8, 8), None, torch.zeros(4, 8), step, on="T4", engine="emulated")


def test_a_step_that_exits_is_told() -> None:
    def step(model: Any, optimizer: Any, batch: Any) -> None:
        sys.exit(3)

    with pytest.raises(JobError, match=r"called sys.exit\(3\)"):
        predict(nn.Linear(8, 8), None, torch.zeros(4, 8), step, on="T4", engine="emulated")


def test_what_the_step_prints_is_seen(capfd: pytest.CaptureFixture[str]) -> None:
    def step(model: Any, optimizer: Any, batch: Any) -> None:
        print("printed by the step")
        print("and to stderr", file=sys.stderr)
        model(batch).sum().backward()

    predict(nn.Linear(8, 8), None, torch.zeros(4, 8), step, on="T4", engine="emulated", steps=1)
    out, err = capfd.readouterr()
    assert out == "printed by the step\n"
    assert err == "and to stderr\n"


SLOW = """
import sys, time, torch, willfit
def step(model, optimizer, batch):
    print("running", flush=True)
    time.sleep(600)
try:
    willfit.predict(torch.nn.Linear(2, 2), None, torch.zeros(1, 2), step, on="T4", engine="emulated")
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_the_process_never_outlives_the_one_that_asked(number: signal.Signals) -> None:
    environment = {**os.environ, "PYTHONPATH": str(machine.SOURCE)}
    asking = subprocess.Popen([sys.executable, "-c", SLOW], stdout=subprocess.PIPE, text=True, env=environment)
    assert asking.stdout is not None
    assert asking.stdout.readline() == "running\n"
    descendants = _descendants(asking.pid)
    assert len(descendants) >= 2  # that which imported torch, and its fork
    asking.send_signal(number)
    if number == signal.SIGINT:
        assert asking.stdout.readline() == "interrupted\n"
    asking.wait(30)
    asking.stdout.close()
    deadline = time.monotonic() + 20
    while any(_is_running(pid) for pid in descendants):
        assert time.monotonic() < deadline, "still running"
        time.sleep(0.1)


def _descendants(pid: int) -> list[int]:
    children = [
        int(each) for task in Path(f"/proc/{pid}/task").iterdir() for each in (task / "children").read_text().split()
    ]
    return children + [each for child in children for each in _descendants(child)]


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# -- what is left alone ------------------------------------------------------------------------------------------------


def test_the_user_s_objects_are_as_before() -> None:
    model = nn.Sequential(nn.Linear(32, 32), nn.BatchNorm1d(32), nn.Dropout(0.5))
    optimizer = torch.optim.AdamW(model.parameters())
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    history: list[float] = []

    def step(model: Any, optimizer: Any, batch: Any) -> None:
        loss = model(batch).sum()
        loss.backward()
        optimizer.step()
        scheduler.step()
        history.append(loss.item())

    values = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    predict(model, optimizer, torch.ones(8, 32), step, on="T4", engine="emulated")
    assert all(torch.equal(value, values[name]) for name, value in model.state_dict().items())
    assert (len(optimizer.state), history, scheduler.last_epoch, model.training) == (0, [], 0, True)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), random)
    assert not torch.cuda.is_initialized()


def test_an_engine_that_there_is_not_is_refused() -> None:
    with pytest.raises(UsageError, match="engine must be one of 'symbolic', 'emulated': found 'real'"):
        predict(nn.Linear(2, 2), None, torch.zeros(1, 2), on="T4", engine="real")  # type: ignore[arg-type]


# -- targets -----------------------------------------------------------------------------------------------------------

TARGET = """
import os
import torch
from helper import width

print("imported in", os.getpid())
device = "cuda" if torch.cuda.is_available() else "cpu"
MODEL = torch.nn.Linear(width, width, bias=False, device=device)


def build():
    return MODEL, torch.optim.SGD(MODEL.parameters(), lr=0.1), torch.zeros(8, width, device=device), step


def step(model, optimizer, batch):
    assert batch.is_cuda
    model(batch).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
"""


def test_a_target_is_imported_there_and_what_it_puts_on_the_gpu_counts_once(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "train.py").write_text(TARGET)
    (tmp_path / "helper.py").write_text("width = 1024\n")
    environment = {**os.environ, "PYTHONPATH": str(machine.SOURCE)}
    command = [sys.executable, "-m", "willfit", "check", "train.py:build", "--on", "T4", "--engine", "emulated"]
    ran = subprocess.run(
        [*command, "--format", "json"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert found["engine"] == "emulated"
    assert found["bill"]["parameters"] == 1024 * 1024 * 4
    assert found["bill"]["inputs"] == 8 * 1024 * 4
    assert ran.stderr.count("imported in") == 1


def test_a_target_that_cannot_be_imported_there_is_wrong_usage(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("import nowhere_to_be_found\n")
    environment = {**os.environ, "PYTHONPATH": str(machine.SOURCE)}
    command = [sys.executable, "-m", "willfit", "check", "train.py:build", "--on", "T4", "--engine", "emulated"]
    ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 2
    assert "No module named 'nowhere_to_be_found'" in ran.stderr
    assert "Traceback" not in ran.stderr
