"""What willfit records for scaled_dot_product_attention, against PyTorch's own CUDA code."""

import json
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from record_attention import Case, events, placed, run, settings
from torch.utils._python_dispatch import TorchDispatchMode

from willfit._devices import Device
from willfit._trace.cuda import attention, attention_choice
from willfit._trace.recorder import Recorder
from willfit._trace.runtime import cuda_runtime, nothing_left_behind

RECORDED = json.loads((Path(__file__).parents[2] / "data" / "attention_emulator.json").read_text())

T4, A100, RTX4090, H100 = (7, 5), (8, 0), (8, 9), (9, 0)


@pytest.fixture(autouse=True)
def without_cudnn(monkeypatch):
    """The emulator's cuDNN is too old to be preferred."""
    monkeypatch.setattr(attention_choice, "cudnn_version", lambda: 91000)


def traced(case, capability=A100, multiprocessors=108):
    """The case's allocations and frees as willfit records them, and the recorder."""
    device = Device(name="any", total=10**14, context=0, compute_capability=capability, multiprocessors=multiprocessors)
    with nothing_left_behind():
        recorder = Recorder(device.compute_capability, device.multiprocessors)
        with cuda_runtime(recorder, device), ExitStack() as stack:
            leaves, mask, gradient = placed(case)
            start = len(recorder._events)
            for backward in (False, True):  # the workspaces of cuBLAS are not the matter here
                recorder.state["cublas", backward, 0] = -1
            settings(case, stack)
            run(case, leaves, mask, gradient)
            seen = [event for event in recorder._events[start:] if event]
            sizes = [(abs(event), recorder._sizes[abs(event) - 1] if event > 0 else -1) for event in seen]
            del leaves, mask, gradient
            recorder.release_all()
    return events(sizes), recorder


@pytest.mark.skipif(
    torch.__version__.split("+")[0] != RECORDED["torch"], reason=f"recorded with torch {RECORDED['torch']}"
)
@pytest.mark.parametrize("row", RECORDED["cases"], ids=lambda row: f"sm_{row['gpu'][0]}{row['gpu'][1]}")
def test_records_what_cuda_allocates(row):
    major, minor, multiprocessors = row["gpu"]
    assert traced(Case(**row["case"]), (major, minor), multiprocessors)[0] == row["events"]


@pytest.fixture
def backend(monkeypatch):
    """What willfit takes for a case."""
    seen = []

    def choose(*args):
        seen.append(attention_choice.choose(*args))
        return seen[-1]

    def backend(case, capability=A100):
        monkeypatch.setattr(attention, "choose", choose)
        traced(case, capability)
        return seen[-1].name.removesuffix("_ATTENTION").lower()

    return backend


@pytest.mark.parametrize(
    ("case", "capability", "expected"),
    [
        (Case(dtype="bfloat16"), A100, "flash"),
        (Case(dtype="float16"), T4, "efficient"),
        (Case(dtype="bfloat16"), T4, "math"),
        (Case(), T4, "efficient"),
        (Case(), A100, "efficient"),
        (Case(autocast="bfloat16"), A100, "flash"),
        (Case(dtype="bfloat16", mask="bool:b11k"), A100, "efficient"),
        (Case(dtype="bfloat16", causal=True, keys=128), A100, "efficient"),
        (Case(dtype="bfloat16", kv_heads=1, gqa=True), A100, "flash"),
        (Case(kv_heads=1, gqa=True), A100, "math"),
        (Case(dtype="bfloat16", head=256, value_head=256), RTX4090, "flash"),
        (Case(dtype="bfloat16", head=200, value_head=200), RTX4090, "efficient"),
        (Case(dtype="bfloat16", head=200, value_head=200, grads=""), RTX4090, "flash"),
        (Case(dtype="bfloat16", backends="MATH"), A100, "math"),
        (Case(dtype="bfloat16", backends="EFFICIENT_ATTENTION,FLASH_ATTENTION!"), A100, "efficient"),
    ],
    ids=lambda value: getattr(value, "dtype", str(value)),
)
def test_chooses_the_backend_that_cuda_would(backend, case, capability, expected):
    assert backend(case, capability) == expected


def test_prefers_cudnn_on_hopper_where_pytorch_does(backend, monkeypatch):
    monkeypatch.setattr(attention_choice, "VERSION", attention_choice.Version("2.13"))
    monkeypatch.setattr(attention_choice, "cudnn_version", lambda: 92000)
    assert backend(Case(dtype="bfloat16"), H100) == "cudnn"
    assert backend(Case(dtype="bfloat16", mask="bool:b11k"), H100) == "cudnn"
    assert backend(Case(dtype="bfloat16", dropout=0.1), H100) == "flash"
    assert backend(Case(dtype="bfloat16"), A100) == "flash"
    monkeypatch.setenv("TORCH_CUDNN_SDPA_DEPRIORITIZED", "1")
    assert backend(Case(dtype="bfloat16"), H100) == "flash"


def test_says_that_the_workspace_of_cudnn_is_not_known(monkeypatch):
    monkeypatch.setattr(attention_choice, "VERSION", attention_choice.Version("2.13"))
    monkeypatch.setattr(attention_choice, "cudnn_version", lambda: 92000)
    recorder = traced(Case(dtype="bfloat16"), H100)[1]
    assert any("cuDNN attention" in sentence for sentence in recorder.assumptions)


def test_raises_as_cuda_does_where_no_backend_is_allowed():
    with pytest.raises(RuntimeError, match="No available kernel"):
        traced(Case(dtype="bfloat16", backends="FLASH_ATTENTION"), T4)


def test_takes_the_same_backend_when_a_mode_of_the_user_is_active(backend):
    class Mode(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            return func(*args, **(kwargs or {}))

    with Mode():
        assert backend(Case(dtype="bfloat16")) == "flash"
