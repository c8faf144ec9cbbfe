"""What makes a job fit: a file for each remedy, each with one function that proposes changes."""

from __future__ import annotations

from willfit._plugins import plugins
from willfit._remedies.allocator import allocator
from willfit._remedies.attention import attention
from willfit._remedies.checkpointing import checkpointing
from willfit._remedies.leftovers import gradients_set_to_none, outputs_dropped
from willfit._remedies.lora import lora
from willfit._remedies.loss import chunked_loss
from willfit._remedies.microbatch import microbatch
from willfit._remedies.offload import activations_on_cpu, paged_optimizer, weights_on_cpu
from willfit._remedies.optimizer import optimizer
from willfit._remedies.precision import precision
from willfit._remedies.quantization import quantization
from willfit._remedies.remedy import Remedy
from willfit._remedies.sequence import shorter_sequences

# The gentlest first.
_OWN: dict[str, Remedy] = {
    "allocator": allocator,
    "attention": attention,
    "chunked loss": chunked_loss,
    "gradients set to None": gradients_set_to_none,
    "outputs dropped": outputs_dropped,
    "optimizer": optimizer,
    "micro-batches": microbatch,
    "activation checkpointing": checkpointing,
    "activations on the CPU": activations_on_cpu,
    "paged optimizer": paged_optimizer,
    "weights on the CPU": weights_on_cpu,
    "precision": precision,
    "LoRA": lora,
    "quantization": quantization,
    "shorter sequences": shorter_sequences,
}


def remedies() -> dict[str, Remedy]:
    """Every remedy by its name, willfit's own and those of plugins."""
    found = dict(_OWN)
    for named in plugins().hook.willfit_remedies():
        found |= named
    return found
