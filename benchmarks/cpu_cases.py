"""Real models at their real widths, in batches that a small machine's memory holds; verify_cpu.py measures them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

Job = tuple[nn.Module, Any, Any, Any]
JOBS: dict[str, Callable[[], Job]] = {}


def job(build: Callable[[], Job]) -> Callable[[], Job]:
    JOBS[build.__name__.replace("_", "-")] = build
    return build


def hugging_face(name: str, config: str, batch: dict[str, torch.Tensor], step: Any = None, **options: Any) -> Job:
    import transformers

    transformers.logging.set_verbosity_error()
    model = getattr(transformers, name)(getattr(transformers, config)(**options)).train()
    return model, torch.optim.AdamW(model.parameters()), batch, step


def ids(*shape: int, **more: torch.Tensor) -> dict[str, torch.Tensor]:
    tokens = torch.randint(0, 1000, shape)
    return {"input_ids": tokens, "labels": tokens.clone(), **more}


def autocast(model: Any, optimizer: Any, batch: Any) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(**batch).loss
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


def classify(model: Any, optimizer: Any, batch: Any) -> None:
    loss = cross_entropy(model(batch["x"]), batch["y"])
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def pictures(count: int, size: int, channels: int = 3) -> dict[str, torch.Tensor]:
    return {"x": torch.randn(count, channels, size, size), "y": torch.randint(0, 10, (count,))}


@job
def perceptron() -> Job:
    model = nn.Sequential(
        nn.Linear(784, 2048), nn.ReLU(), nn.Dropout(0.1), nn.Linear(2048, 2048), nn.GELU(), nn.Linear(2048, 10)
    )
    return (
        model,
        torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        {"x": torch.randn(512, 784), "y": torch.randint(0, 10, (512,))},
        classify,
    )


@job
def vgg_like() -> Job:
    layers: list[nn.Module] = []
    for before, after in ((3, 64), (64, 128), (128, 256), (256, 512)):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(512 * 16, 10))
    return model, torch.optim.Adam(model.parameters()), pictures(16, 64), classify


@job
def resnet_18() -> Job:
    batch = {"pixel_values": torch.randn(8, 3, 128, 128), "labels": torch.randint(0, 2, (8,))}
    return hugging_face(
        "ResNetForImageClassification",
        "ResNetConfig",
        batch,
        depths=[2, 2, 2, 2],
        layer_type="basic",
        hidden_sizes=[64, 128, 256, 512],
    )


@job
def resnet_50_channels_last() -> Job:
    import transformers

    model = (
        transformers.ResNetForImageClassification(transformers.ResNetConfig())
        .train()
        .to(memory_format=torch.channels_last)
    )
    images = torch.randn(8, 3, 128, 128).to(memory_format=torch.channels_last)
    batch = {"pixel_values": images, "labels": torch.randint(0, 2, (8,))}
    return model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), batch, None


@job
def transformer_encoder() -> Job:
    layer = nn.TransformerEncoderLayer(512, 8, 2048, dropout=0.1, batch_first=True)
    model = nn.Sequential(
        nn.Embedding(10000, 512), nn.TransformerEncoder(layer, 4), nn.Flatten(), nn.Linear(512 * 64, 10)
    )
    return (
        model,
        torch.optim.AdamW(model.parameters()),
        {"x": torch.randint(0, 10000, (8, 64)), "y": torch.randint(0, 10, (8,))},
        classify,
    )


@job
def gpt2() -> Job:
    return hugging_face("GPT2LMHeadModel", "GPT2Config", ids(2, 256), use_cache=False)


@job
def gpt2_bf16_autocast_clip() -> Job:
    return hugging_face("GPT2LMHeadModel", "GPT2Config", ids(2, 128), autocast, use_cache=False, n_layer=6)


@job
def bert_base() -> Job:
    return hugging_face(
        "BertForMaskedLM", "BertConfig", ids(4, 128, attention_mask=torch.ones(4, 128, dtype=torch.long))
    )


@job
def distilbert_classifier() -> Job:
    batch = {"input_ids": torch.randint(0, 1000, (8, 128)), "labels": torch.randint(0, 2, (8,))}
    return hugging_face("DistilBertForSequenceClassification", "DistilBertConfig", batch)


@job
def llama_300m_bf16() -> Job:
    model, _, batch, _ = hugging_face(
        "LlamaForCausalLM",
        "LlamaConfig",
        ids(1, 256),
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=12,
        num_attention_heads=16,
        num_key_value_heads=4,
        vocab_size=32000,
        use_cache=False,
    )
    model = model.to(torch.bfloat16)
    return model, torch.optim.AdamW(model.parameters()), batch, None


@job
def llama_checkpointing() -> Job:
    model, optimizer, batch, _ = hugging_face(
        "LlamaForCausalLM",
        "LlamaConfig",
        ids(2, 256),
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=8,
        num_attention_heads=12,
        vocab_size=32000,
        use_cache=False,
    )
    model.gradient_checkpointing_enable()
    return model, optimizer, batch, None


@job
def t5_small_adafactor() -> Job:
    model, _, batch, _ = hugging_face("T5ForConditionalGeneration", "T5Config", ids(4, 64), decoder_start_token_id=0)
    return model, torch.optim.Adafactor(model.parameters()), batch, None


@job
def vit_base() -> Job:
    batch = {"pixel_values": torch.randn(4, 3, 224, 224), "labels": torch.randint(0, 2, (4,))}
    return hugging_face("ViTForImageClassification", "ViTConfig", batch)


@job
def whisper_tiny() -> Job:
    batch = {"input_features": torch.randn(1, 80, 3000), "labels": torch.randint(0, 1000, (1, 64))}
    return hugging_face(
        "WhisperForConditionalGeneration",
        "WhisperConfig",
        batch,
        d_model=384,
        encoder_layers=4,
        decoder_layers=4,
        encoder_attention_heads=6,
        decoder_attention_heads=6,
        encoder_ffn_dim=1536,
        decoder_ffn_dim=1536,
    )


@job
def qwen2_lora() -> Job:
    from peft import LoraConfig, get_peft_model

    model, _, batch, _ = hugging_face(
        "Qwen2ForCausalLM",
        "Qwen2Config",
        ids(2, 128),
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=6,
        num_attention_heads=14,
        num_key_value_heads=2,
        vocab_size=32000,
        use_cache=False,
    )
    model = get_peft_model(model, LoraConfig(r=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    return model, torch.optim.AdamW([p for p in model.parameters() if p.requires_grad]), batch, None
