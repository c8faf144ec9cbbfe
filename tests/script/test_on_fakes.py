"""What a whole script meets on fake tensors. Each snippet asserts by itself what holds on a machine with one T4."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import willfit._trace.cuda
from willfit._devices import find_device
from willfit._replay import replay
from willfit._script.on_fakes import ScriptRecorder, on_fake_gpu
from willfit._script.refusals import refused
from willfit._trace.fake import FakeCudaTensor
from willfit._trace.trace import JobSummary

T4 = find_device("T4")


@pytest.fixture
def recorder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptRecorder]:
    monkeypatch.chdir(tmp_path)
    recorder = ScriptRecorder(T4.compute_capability, T4.multiprocessors)
    recorder.made_with_gpu = True
    with on_fake_gpu(recorder, T4):
        yield recorder


def run(code: str) -> None:
    names = {"torch": torch, "nn": torch.nn}
    try:
        exec(compile(code, "train.py", "exec"), names)
    finally:
        names.clear()  # a hook and the names that it sees hold each other


WORKS = {
    "the GPU": """
assert torch.cuda.is_available() and torch.cuda.device_count() == 1
assert torch.cuda.get_device_name() == torch.cuda.get_device_properties(0).name == "Tesla T4"
assert torch.cuda.get_device_capability() == (7, 5)
""",
    "devices by name and number": """
assert torch.device(0) == torch.device("cuda", 0)
for x in (torch.ones(2).to(0), torch.ones(2).cuda(0), torch.ones(2, device=0), torch.ones(2).to(device="cuda:0"),
          nn.Linear(2, 2).to(0).weight, nn.Linear(2, 2).cuda().bias):
    assert x.is_cuda and x.device == torch.device("cuda:0")
""",
    "a GPU that there is not": """
for move in (lambda: torch.ones(2, device="cuda:1"), lambda: torch.ones(2).to(1), lambda: nn.Linear(2, 2).to("cuda:1")):
    try:
        move()
    except RuntimeError as error:
        assert "invalid device ordinal" in str(error)
    else:
        raise AssertionError
""",
    "parameters stay the objects that they are": """
model, tied = nn.Linear(3, 3), nn.Linear(3, 3)
tied.weight = weight = model.weight
optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
calls = []
weight.register_hook(lambda gradient: calls.append("hook"))
weight.register_post_accumulate_grad_hook(lambda parameter: calls.append("after"))
weight.mark = 5
model(torch.ones(1, 3)).sum().backward()
calls.clear()
nn.ModuleList([model, tied]).to("cuda")
assert weight is model.weight is tied.weight is optimizer.param_groups[0]["params"][0]
assert weight.is_cuda and weight.grad.is_cuda and weight.is_leaf and weight.requires_grad and weight.mark == 5
assert isinstance(weight, nn.Parameter)
model(torch.ones(1, 3, device="cuda")).sum().backward()
assert sorted(calls) == ["after", "hook"]
model.cpu()
assert type(weight) is nn.Parameter and weight is model.weight and not weight.is_cuda
""",
    "data of a tensor": """
x = torch.zeros(3)
x.data = torch.ones(3, device="cuda")
assert x.is_cuda and not isinstance(x, nn.Parameter)
x.data = torch.zeros(3)
assert type(x) is torch.Tensor and x.tolist() == [0, 0, 0]
""",
    "data on the host are real and may be changed": """
table = torch.arange(6).reshape(2, 3)
table[0, 0] = 7
table += 1
assert table.tolist() == [[8, 2, 3], [4, 5, 6]]
assert table.to("cuda").tolist() == table.tolist(), "values of what is small are known on the GPU"
""",
    "tensors on two devices": """
try:
    torch.ones(3, device="cuda") + torch.ones(3)
except RuntimeError as error:
    assert "Expected all tensors to be on the same device" in str(error)
else:
    raise AssertionError
assert (torch.ones(3, device="cuda") + torch.tensor(1.0)).is_cuda
assert torch.ones(3, 2, device="cuda")[torch.tensor([0, 2])].shape == (2, 2)
""",
    "memory of the GPU is none of NumPy's": """
try:
    torch.ones(3, device="cuda").numpy()
except TypeError as error:
    assert "Use Tensor.cpu()" in str(error)
else:
    raise AssertionError
assert torch.ones(3, device="cuda").cpu().numpy().shape == (3,)
""",
    "what is on meta stays there": """
with torch.device("meta"):
    model = nn.Linear(4, 4)
assert model.weight.is_meta and not model.weight.is_cuda
assert torch.cuda.memory_allocated() == 0
assert model.to_empty(device="cuda").weight.is_cuda
assert torch.cuda.memory_allocated() == 2 * 512
""",
    "checkpoints": """
model = nn.Linear(3, 3).cuda()
torch.save({"model": model.state_dict(), "host": torch.arange(3), "epoch": 4}, "last.pt")
there, here = torch.load("last.pt"), torch.load("last.pt", map_location="cpu")
assert there["model"]["weight"].is_cuda and not here["model"]["weight"].is_cuda
assert not there["host"].is_cuda and here["host"].tolist() == [0, 1, 2] and here["epoch"] == 4
moved = torch.load("last.pt", map_location=torch.device("cuda"))
assert moved["host"].is_cuda
model.load_state_dict(there["model"])
torch.save(model, "model.pt")
again = torch.load("model.pt", weights_only=False)
assert isinstance(again.weight, nn.Parameter) and again.weight.is_cuda and again.weight.requires_grad
""",
    "a storage is loaded to the GPU once": """
whole = torch.zeros(1024)
torch.save([whole, whole[:10]], "shared.pt")
first, second = torch.load("shared.pt", map_location="cuda")
assert torch.cuda.memory_allocated() == 4096
assert first.untyped_storage()._cdata == second.untyped_storage()._cdata
""",
    "copies": """
import copy
model = nn.Linear(3, 3)
on_host = copy.deepcopy(model)
ema = copy.deepcopy(model.cuda())
assert ema.weight.is_cuda and ema.weight is not model.weight and not on_host.weight.is_cuda
""",
    "inference mode": """
x = torch.ones(4, device="cuda")
with torch.inference_mode():
    y = (x.reshape(2, 2) @ x.reshape(2, 2)).sum()
    assert y.item() == 8
assert y.item() == 8
""",
    "DataParallel": """
model = nn.DataParallel(nn.Linear(4, 2).cuda())
assert model(torch.ones(3, 4)).is_cuda
""",
}


@pytest.mark.parametrize("code", WORKS.values(), ids=WORKS)
def test_a_script_meets_what_it_would_meet_on_the_gpu(recorder: ScriptRecorder, code: str) -> None:
    run(code)


REFUSED = {
    "a CUDA graph": ("torch.cuda.CUDAGraph()", "it needs a CUDA build of PyTorch"),
    "a constructor of old": ("torch.cuda.FloatTensor(3)", "it needs a CUDA build of PyTorch"),
    "TorchScript": (
        "m = torch.jit.script(nn.Linear(2, 2)).cuda()\nm(torch.ones(1, 2, device='cuda'))",
        "TorchScript keeps tensors where they cannot be followed",
    ),
}


@pytest.mark.skipif(torch.version.cuda is not None, reason="this is a CUDA build of PyTorch")
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize(("code", "why"), REFUSED.values(), ids=REFUSED)
def test_what_fake_tensors_cannot_do_is_refused_with_the_line_and_what_to_do(
    recorder: ScriptRecorder, code: str, why: str
) -> None:
    with pytest.raises(Exception) as caught:  # noqa: PT011 - whatever PyTorch raises
        run(code)
    error = refused(caught.value, recorder, "train.py")
    assert error is not None, repr(caught.value)
    line = code.count("\n") + 1
    assert f"train.py cannot be followed on fake tensors (train.py:{line}): {why}" in str(error)
    assert "WILLFIT_CUDA_PYTHON" in str(error)


def test_a_mistake_of_the_scripts_own_is_not_refused(recorder: ScriptRecorder) -> None:
    assert refused(FileNotFoundError("train.bin"), recorder, "train.py") is None


def test_torch_cuda_says_what_the_allocator_holds(recorder: ScriptRecorder) -> None:
    mib = 2**20
    a, b = torch.empty(5 * mib, dtype=torch.uint8, device="cuda"), torch.empty(700, device="cuda")
    assert torch.cuda.memory_allocated() == 5 * mib + 3072  # 2800 bytes, in units of 512
    assert torch.cuda.memory_reserved() == 20 * mib + 2 * mib  # one segment of either pool
    assert torch.cuda.mem_get_info() == (T4.capacity - 22 * mib, T4.total)
    del a
    assert torch.cuda.memory_allocated() == 3072
    assert torch.cuda.max_memory_allocated() == torch.cuda.memory_stats()["allocated_bytes.all.peak"] == 5 * mib + 3072
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() == 2 * mib
    torch.cuda.reset_peak_memory_stats()
    assert torch.cuda.max_memory_allocated() == 3072
    del b
    trace = recorder.trace(1, JobSummary("", "", 0, 0, (), ""))
    assert replay(trace).peak_allocated == 5 * mib + 3072


def test_a_recurrent_network_that_is_moved_has_its_weights_in_one_buffer(recorder: ScriptRecorder) -> None:
    lstm = torch.nn.LSTM(20, 30, 2)
    elements = sum(parameter.numel() for parameter in lstm.parameters())
    lstm.cuda()
    assert len({parameter.untyped_storage()._cdata for parameter in lstm.parameters()}) == 1
    assert torch.cuda.memory_allocated() == -(-4 * elements // 512) * 512
    assert all(type(parameter) is FakeCudaTensor and parameter.is_contiguous() for parameter in lstm.parameters())


def test_nothing_is_left_behind() -> None:
    owners = (torch, torch.cuda, torch.Tensor, torch._C._nn, torch._utils, torch.backends.cudnn.m)  # type: ignore[attr-defined]
    before = [dict(vars(owner)) for owner in owners]
    recorder = ScriptRecorder(T4.compute_capability, T4.multiprocessors)
    with on_fake_gpu(recorder, T4):
        torch.nn.Linear(2, 2).cuda()
    for owner, names in zip(owners, before, strict=True):
        assert {name for name, value in vars(owner).items() if names.get(name) is not value} == set()
    assert type(torch.ones(2).data) is torch.Tensor


assert willfit._trace.cuda is not None  # its import registers the rules
