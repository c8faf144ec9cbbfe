"""Llama-3-8B on a T4, from a job that does not fit to one that does, as the advice says it.

    willfit check examples/llama_on_a_t4.py:full --on T4         # does not fit: 76.79 GiB, and advice
    willfit check examples/llama_on_a_t4.py:lora --on T4         # does not fit: the weights alone are 15 GiB
    willfit check examples/llama_on_a_t4.py:qlora --on T4        # fits: the weights are in 4 bits
    willfit check examples/llama_on_a_t4.py:longer --on T4       # fits, with four times the tokens

Nothing is downloaded: models are built on the meta device, and ``willfit.quantize`` stands for ``from_pretrained`` with
a quantization_config. Needs transformers, accelerate, peft and bitsandbytes.
"""

from __future__ import annotations

from typing import Any

import bitsandbytes as bnb
import torch
from finetune_llama import build as full
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from torch import nn

import willfit

Job = tuple[nn.Module, torch.optim.Optimizer, dict[str, torch.Tensor]]

__all__ = ["full", "longer", "lora", "qlora"]


def trainable(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def with_adapters(model: Any) -> Any:
    with torch.device("meta"):  # their values do not matter here
        return get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules=["q_proj", "v_proj"]))


def lora() -> Job:
    """The advice's first idea, with weights of 16 bits: gradients and Adam's states shrink to those of the adapters."""
    model, _, batch = full()
    model = with_adapters(model)
    return model, torch.optim.AdamW(trainable(model), lr=1e-4), batch


def qlora() -> Job:
    """Its second: the weights are in 4 bits as well."""
    model, _, batch = full()
    # in a script: AutoModelForCausalLM.from_pretrained(..., quantization_config=BitsAndBytesConfig(load_in_4bit=True,
    # bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.float16))
    willfit.quantize(model, bits=4, quant_type="nf4", double=True, compute_dtype=torch.float16)
    model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    model = with_adapters(model)
    return model, torch.optim.AdamW(trainable(model), lr=1e-4), batch


def longer() -> Job:
    """What is left over goes into 2048 tokens: activations are computed again, states are of 8 bits and paged."""
    model, _, _ = qlora()
    network: Any = model
    network.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    tokens = torch.zeros(1, 2048, dtype=torch.int64)
    return model, bnb.optim.PagedAdamW8bit(trainable(model), lr=1e-4), {"input_ids": tokens, "labels": tokens.clone()}
