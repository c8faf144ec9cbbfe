"""What willfit records for normalization, losses, convolutions and composites, against PyTorch's own CUDA code."""

import json
from pathlib import Path

import pytest
import torch
from expressions import numbered, run

from willfit._devices import Device
from willfit._trace.cuda import convolution
from willfit._trace.recorder import Recorder
from willfit._trace.runtime import cuda_runtime, nothing_left_behind

DATA = Path(__file__).parents[2] / "data"
FAMILIES = ("normalization", "losses", "convolution", "composites")
RECORDED = {family: json.loads((DATA / f"{family}_emulator.json").read_text()) for family in FAMILIES}
VERSION = torch.__version__.split("+")[0]


def traced(expression, gpu=(8, 0, 108)):
    """The allocations and frees as willfit records them, and the recorder."""
    *capability, multiprocessors = gpu
    device = Device(
        name="any", total=10**14, context=0, compute_capability=tuple(capability), multiprocessors=multiprocessors
    )
    with nothing_left_behind():
        recorder = Recorder(device.compute_capability, device.multiprocessors)
        keep = []
        with cuda_runtime(recorder, device):
            for backward in (False, True):  # the workspaces of cuBLAS are not the matter here
                recorder.state["cublas", backward, 0] = -1
            run(expression, keep)
            seen = [event for event in recorder._events if event]
            sizes = [(abs(event), recorder._sizes[abs(event) - 1] if event > 0 else -1) for event in seen]
            del keep
            recorder.release_all()
    return numbered(sizes), recorder


@pytest.mark.parametrize(
    ("gpu", "expression", "expected"),
    [
        pytest.param(
            recorded["gpu"],
            *case,
            id=f"{family}-{case[0]}",
            marks=pytest.mark.skipif(recorded["torch"] != VERSION, reason=f"recorded with torch {recorded['torch']}"),
        )
        for family, recorded in RECORDED.items()
        for case in recorded["cases"]
    ],
)
def test_records_what_cuda_allocates(gpu, expression, expected):
    assert traced(expression, gpu)[0] == expected


def test_bounds_the_workspace_of_cudnn_by_the_unfolded_input():
    recorder = traced("F.conv2d(t(2, 3, 10, 10), t(4, 3, 3, 3))")[1]
    assert recorder.convolution_workspace == 2 * (3 * 3 * 3) * (8 * 8) * 4
    assert any("cuDNN's workspace" in sentence for sentence in recorder.assumptions)


def test_bounds_the_workspace_of_pointwise_convolutions_by_copies():
    recorder = traced("F.conv2d(t(2, 3, 10, 10), t(4, 3, 1, 1))")[1]
    assert recorder.convolution_workspace == (2 * 3 * 100 + 4 * 3 + 2 * 4 * 100) * 4


@pytest.mark.parametrize(
    ("capability", "disabled", "unfolds"), [((8, 0), "0", False), ((8, 0), "1", True), ((7, 5), "0", True)]
)
def test_gives_bf16_to_cudnn_where_pytorch_does(monkeypatch, capability, disabled, unfolds):
    monkeypatch.setenv("TORCH_CUDNN_V8_API_DISABLED", disabled)
    leaves = 't(2, 3, 10, 10, of="bfloat16"), t(4, 3, 3, 3, of="bfloat16")'
    recorder = traced(f"F.conv2d({leaves})", (*capability, 40))[1]
    assert (3 * 3 * 3 * 8 * 8 * 2 in recorder._sizes) == unfolds  # one sample's columns
    assert bool(recorder.convolution_workspace) != unfolds


@pytest.mark.parametrize(
    ("shape", "size", "stride", "fast"),
    [
        ((4, 64, 1, 50), 3, 1, True),
        ((4, 64, 20, 20), 3, 1, True),
        ((4, 64, 20, 20), 3, 2, False),
        ((4, 512, 20, 20), 3, 2, True),
        ((1, 64, 20, 20), 3, 2, True),
        ((4, 64, 6, 6), 3, 1, False),
        ((4, 64, 20, 20), 2, 1, False),
    ],
)
def test_knows_which_depthwise_convolutions_in_fp16_cudnn_is_given(shape, size, stride, fast):
    x, weight = torch.empty(shape, device="meta"), torch.empty(shape[1], 1, size, size, device="meta")
    one = convolution._Convolution(x, weight, (stride, stride), (1, 1), False, shape[1])
    assert convolution._is_fast_in_cudnn(one) == fast
