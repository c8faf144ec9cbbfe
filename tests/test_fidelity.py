"""Predictions against what PyTorch's own allocator did: some quick cases; benchmarks/fidelity.py does all."""

from __future__ import annotations

import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"

QUICK = [
    "mlp-fp32-sgd",
    "cnn-fp32",
    "cnn-amp-fp16-channels-last",
    "cnn-amp-bf16",
    "unet-nearest-fp32",
    "lstm-cells",
    "graph-fp32",
    "recommender-bags",
    "gan-gradient-penalty",
    "contrastive-amp-fp16-clip",
    "triplets-cdist-fp32",
    "mlp-adam-fused-amp-fp16-clip",
    "matrices-muon",
    "mlp-rprop",
    "mlp-ema",
    "mlp-odd-shapes-amp-fp16",
    "tiny-where-amp-fp16-checkpoint",
    "encoder-padding-mask-amp-fp16",
    "mlp-adagrad-fused",
    "codes-fp32",
    "watcher-fp32",
    "two-streams",
    "two-optimizers-amp-fp16",
    "saved-on-cpu",
    "saved-in-half",
    "checkpoint-reentrant",
    "attention-math-mask-dropout-bf16",
    "unfolded-images-amp-bf16",
    "unfolded-waves-and-volumes-amp-bf16",
    "mlp-asgd-for-loop",
]
HUGGING_FACE = [
    "llama-bf16-keep-output",
    "qwen2-lora-dropout-amp-bf16",
    "falcon-bf16",
    "bloom-amp-fp16",
    "t5-fp32-adafactor",
    "beit-amp-bf16",
    "convnext-amp-fp16",
    "whisper-amp-fp16",
    "wav2vec2-ctc-fp32",
]
QUANTIZED = [
    "qlora-qwen2-fp4-short",
    "qlora-llama-nf4-short",
    "qlora-llama-nf4-packed-dora",
    "linear4bit-odd-shapes",
    "embedding4bit-linear-fp4",
    "int8-lora-opt-fp16",
    "linear8bit-trained",
    "embedding8bit-linear8bit",
    "bert-paged-adamw-amp-fp16-clip",
    "cnn-lion8bit",
    "tagger-stable-embedding-adam8bit",
    "tagger-lamb",
]


@pytest.fixture
def fidelity(monkeypatch: pytest.MonkeyPatch) -> Any:
    pytest.importorskip("torch")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    # set again here, so that they are taken back: the module sets them for whoever runs it
    monkeypatch.setenv("TORCH_CUDNN_SDPA_DEPRIORITIZED", "1")
    monkeypatch.setenv("TORCH_CUDNN_V8_API_DISABLED", "1")
    import fidelity

    if not fidelity.truth_path(fidelity.VERSION).exists():
        pytest.skip(f"nothing was recorded with torch {fidelity.VERSION}")
    return fidelity


def check(fidelity: Any, name: str) -> None:
    if name not in fidelity.read_truth(fidelity.VERSION):
        pytest.skip(f"not recorded with torch {fidelity.VERSION}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        row = fidelity.predict(name)
    assert not row.error
    assert (row.difference("allocated"), row.difference("reserved")) == (0, 0)


@pytest.mark.parametrize("name", QUICK)
def test_prediction_is_exact(fidelity: Any, name: str) -> None:
    check(fidelity, name)


@pytest.mark.parametrize("name", HUGGING_FACE)
def test_prediction_of_hugging_face_models_is_exact(fidelity: Any, name: str) -> None:
    need(fidelity, "transformers", "peft")
    check(fidelity, name)


@pytest.mark.parametrize("name", QUANTIZED)
def test_prediction_with_bitsandbytes_is_exact(fidelity: Any, name: str) -> None:
    need(fidelity, "transformers", "peft", "bitsandbytes")
    check(fidelity, name)


def need(fidelity: Any, *packages: str) -> None:
    page = fidelity.PAGE.read_text()
    for package in packages:
        pytest.importorskip(package)
        if f"{package} {version(package)}" not in page:
            pytest.skip(f"recorded with another version of {package}")


@pytest.fixture
def fidelity_page(monkeypatch: pytest.MonkeyPatch) -> Any:
    pytest.importorskip("torch")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import fidelity_page

    return fidelity_page


def test_page_is_current(fidelity_page: Any) -> None:
    assert fidelity_page.PAGE.read_text() == fidelity_page.page()


def test_page_is_about_every_case_on_its_gpu(fidelity_page: Any) -> None:
    rows = fidelity_page.read_rows(fidelity_page.PAGE_VERSION)
    assert {row.name: row.truth["gpu"] for row in rows} == {n: case.gpu for n, case in fidelity_page.CASES.items()}
