"""Full fine-tuning of Llama-3-8B on a T4: refused before it starts, with the bill.

    python examples/finetune_llama.py
    willfit check examples/finetune_llama.py:build --on T4
    willfit check examples/finetune_llama.py:build          # which GPUs would do?

The model is built on the meta device: it has shapes and dtypes and takes no memory, so this runs on any laptop, with
no GPU, no download and no account. Needs transformers and accelerate.
"""

from __future__ import annotations

from typing import Any

import torch
from accelerate import init_empty_weights
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig

import willfit

LLAMA_3_8B = LlamaConfig(
    vocab_size=128_256,
    hidden_size=4096,
    intermediate_size=14_336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    max_position_embeddings=8192,
    rope_theta=500_000.0,
    use_cache=False,
)


def build() -> tuple[nn.Module, torch.optim.Optimizer, dict[str, torch.Tensor]]:
    with init_empty_weights(include_buffers=True):
        model = AutoModelForCausalLM.from_config(LLAMA_3_8B, dtype=torch.bfloat16)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    tokens = torch.zeros(1, 512, dtype=torch.int64)
    return model, optimizer, {"input_ids": tokens, "labels": tokens.clone()}


@willfit.guard(on="T4")
def train(model: nn.Module, optimizer: torch.optim.Optimizer, batch: dict[str, Any]) -> None:
    raise AssertionError("never reached: the guard refuses the job first")


if __name__ == "__main__":
    try:
        train(*build())
    except willfit.WillNotFit as refusal:
        print(refusal)
