from __future__ import annotations

import importlib.metadata
from typing import Any

import pytest
import torch
from packaging.version import Version
from toy import TOY, footprint

import willfit
from willfit import Footprint, predict
from willfit._pytest.fingerprint import fingerprint


def public(package: str) -> str:
    return Version(importlib.metadata.version(package)).public


@pytest.fixture
def model() -> torch.nn.Module:
    return torch.nn.Linear(2, 2)


def test_what_it_has(model: torch.nn.Module) -> None:
    assert fingerprint(model, None, TOY) == {
        "allocator": "default",
        "device": "toy",
        "dtype": "float32",
        "steps": "3",
        "torch": public("torch"),
        "willfit": willfit.__version__,
    }
    assert "+" not in fingerprint(model, None, TOY)["torch"], "how torch was built has no part in the answer"


def test_settings_that_change_the_answer(model: torch.nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(
        "PYTORCH_ALLOC_CONF", "expandable_segments:True,max_split_size_mb:128,pinned_use_cuda_host_register:True"
    )
    facts = fingerprint(model, None, footprint(steps=1, on="24 GiB"))
    assert facts["allocator"] == f"expandable_segments=True, max_split_size={128 * 2**20}"
    assert (facts["steps"], facts["device"]) == ("1", "24 GiB")


def test_the_libraries_of_model_and_optimizer() -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = transformers.GPT2Config(n_layer=1, n_embd=32, n_head=2, vocab_size=64)
    model = transformers.GPT2LMHeadModel(config).to(torch.bfloat16)
    model.extra = torch.nn.Linear(2, 2)
    tokens = torch.zeros(1, 8, dtype=torch.int64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    found: Footprint = predict(model, optimizer, {"input_ids": tokens, "labels": tokens}, on="T4", steps=1)
    facts: dict[str, Any] = fingerprint(model, optimizer, found)
    assert facts["transformers"] == public("transformers")
    assert facts["dtype"] == "bfloat16, float32"
    assert set(facts) == {"allocator", "device", "dtype", "steps", "torch", "willfit", "transformers"}
