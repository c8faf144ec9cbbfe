"""Decoders of Hugging Face, at sizes at which they are quick to trace."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from training_steps.case import (
    adamw,
    bf16,
    case,
    checkpointing,
    fp16,
    hugging_face,
    lora,
    optim,
    plain,
    step,
    tokens,
)


def decoder(architecture: str, dtype: torch.dtype = torch.float32, **options: Any) -> Callable[[], nn.Module]:
    return hugging_face(f"{architecture}ForCausalLM", f"{architecture}Config", dtype, **{"use_cache": False, **options})


SMALL = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 4, "num_attention_heads": 16}
GROUPED = SMALL | {"num_key_value_heads": 4}

# -- decoders ----------------------------------------------------------------------------------------------------------

case(
    "mistral-bf16-adamw",
    gpu="A100-40GB",
    optimizer=adamw,
    batch=tokens(4, 1024),
    step=plain,
    model=decoder("Mistral", torch.bfloat16, **GROUPED, vocab_size=32000, sliding_window=512),
)
case(
    "mistral-bf16-window-longer",
    gpu="RTX4090",
    optimizer=adamw,
    batch=tokens(2, 2048, mask=True),
    step=plain,
    model=decoder("Mistral", torch.bfloat16, **GROUPED, vocab_size=32000, sliding_window=4096),
)
case(
    "qwen2-amp-bf16-clip",
    gpu="A100-80GB",
    optimizer=adamw,
    batch=tokens(2, 1000),
    step=step(dtype=torch.bfloat16, clip=1.0),
    model=decoder("Qwen2", **GROUPED, vocab_size=151936),
)
case(
    "qwen3-fp32-rtx3090",
    gpu="RTX3090",
    optimizer=adamw,
    batch=tokens(2, 512),
    step=plain,
    model=decoder("Qwen3", **GROUPED, head_dim=128, vocab_size=50021),
)
case(
    "gemma-bf16-fused",
    gpu="H200",
    optimizer=optim("AdamW", fused=True),
    batch=tokens(2, 1024),
    step=plain,
    model=decoder("Gemma", torch.bfloat16, **GROUPED, head_dim=64, vocab_size=256000),
)
case(
    "gemma2-amp-bf16-keep-output",
    gpu="A100-40GB",
    optimizer=adamw,
    batch=tokens(2, 512),
    step=step(dtype=torch.bfloat16, keep=True),
    model=decoder("Gemma2", **GROUPED, head_dim=64, vocab_size=64000),
)
case(
    "gpt-neox-amp-fp16",
    gpu="V100-16GB",
    optimizer=adamw,
    batch=tokens(4, 512, mask=True),
    step=fp16,
    model=decoder("GPTNeoX", **SMALL, vocab_size=50432),
)
case(
    "opt-fp32-sgd",
    gpu="T4",
    optimizer=optim("SGD", momentum=0.9),
    batch=tokens(4, 257),
    step=plain,
    model=decoder("OPT", hidden_size=768, ffn_dim=3072, num_hidden_layers=4, num_attention_heads=12, vocab_size=50272),
)
case(
    "falcon-bf16",
    gpu="A100-40GB",
    optimizer=adamw,
    batch=tokens(2, 768),
    step=plain,
    model=decoder(
        "Falcon", torch.bfloat16, hidden_size=1024, num_hidden_layers=4, num_attention_heads=16, vocab_size=65024
    ),
)
case(
    "falcon-alibi-amp-bf16",
    gpu="RTX4090",
    optimizer=adamw,
    batch=tokens(2, 256, mask=True),
    step=bf16,
    model=decoder("Falcon", hidden_size=768, num_hidden_layers=3, num_attention_heads=12, vocab_size=20011, alibi=True),
)
case(
    "phi-amp-bf16-checkpointing",
    gpu="RTX4090",
    optimizer=adamw,
    batch=tokens(4, 1024),
    step=bf16,
    model=checkpointing(decoder("Phi", **SMALL, vocab_size=51200)),
)
case(
    "phi3-bf16-checkpointing-reentrant",
    gpu="A100-40GB",
    optimizer=adamw,
    batch=tokens(4, 1024),
    step=plain,
    model=checkpointing(decoder("Phi3", torch.bfloat16, **GROUPED, vocab_size=32064, pad_token_id=0), reentrant=True),
)
case(
    "bloom-amp-fp16",
    gpu="T4",
    optimizer=adamw,
    batch=tokens(4, 256, mask=True),
    step=fp16,
    model=decoder("Bloom", hidden_size=768, n_layer=4, n_head=12, vocab_size=50304),
)
case(
    "llama-bf16-keep-output",
    gpu="A100-40GB",
    optimizer=adamw,
    batch=tokens(3, 701),
    step=step(keep=True),
    model=decoder("Llama", torch.bfloat16, **GROUPED, vocab_size=32000),
)
case(
    "llama-bf16-kv-cache",
    gpu="H200",
    optimizer=adamw,
    batch=tokens(2, 1024),
    step=step(keep=True),
    model=decoder("Llama", torch.bfloat16, **GROUPED, vocab_size=32000, use_cache=True),
)
case(
    "llama-eager-amp-bf16",
    gpu="RTX3090",
    optimizer=adamw,
    batch=tokens(2, 512, mask=True),
    step=bf16,
    model=decoder("Llama", **GROUPED, vocab_size=32000, attn_implementation="eager"),
)
case(
    "llama-lora-all-linear",
    gpu="T4",
    optimizer=adamw,
    batch=tokens(2, 512),
    step=fp16,
    model=lora(decoder("Llama", torch.float16, **GROUPED, vocab_size=32000), 8, "all-linear", task_type="CAUSAL_LM"),
)
case(
    "qwen2-lora-dropout-amp-bf16",
    gpu="A100-40GB",
    optimizer=adamw,
    batch=tokens(2, 640, mask=True),
    step=step(dtype=torch.bfloat16, accumulate=2, clip=0.3),
    model=lora(
        decoder("Qwen2", torch.bfloat16, **GROUPED, vocab_size=32000),
        16,
        ["q_proj", "v_proj"],
        lora_dropout=0.05,
        task_type="CAUSAL_LM",
    ),
)
case(
    "gpt2-checkpointing-amp-bf16",
    gpu="A100-80GB",
    optimizer=adamw,
    batch=tokens(4, 512),
    step=bf16,
    model=checkpointing(hugging_face("GPT2LMHeadModel", "GPT2Config", n_layer=6, use_cache=False)),
)
case(
    "gpt2-set-to-none-false",
    gpu="V100-16GB",
    optimizer=adamw,
    batch=tokens(4, 256),
    step=step(zero={"set_to_none": False}),
    model=hugging_face("GPT2LMHeadModel", "GPT2Config", n_layer=4, use_cache=False),
)
case(
    "gptj-amp-bf16",
    gpu="RTX3090",
    optimizer=adamw,
    batch=tokens(2, 512),
    step=bf16,
    model=hugging_face(
        "GPTJForCausalLM",
        "GPTJConfig",
        n_embd=1024,
        n_layer=3,
        n_head=16,
        rotary_dim=64,
        vocab_size=50400,
        use_cache=False,
    ),
)
case(
    "mixtral-bf16",
    gpu="A100-80GB",
    optimizer=adamw,
    batch=tokens(2, 512),
    step=plain,
    model=decoder(
        "Mixtral", torch.bfloat16, **(GROUPED | {"num_hidden_layers": 2}), vocab_size=32000, num_local_experts=4
    ),
    note="which expert gets which token is not known",
)
case(
    "olmo2-bf16-accumulate",
    gpu="H200",
    optimizer=adamw,
    batch=tokens(2, 1024),
    step=step(accumulate=3),
    model=decoder("Olmo2", torch.bfloat16, **SMALL, vocab_size=50304),
)
