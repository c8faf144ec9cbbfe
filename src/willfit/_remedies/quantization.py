"""Weights in 4 or 8 bits, frozen, with LoRA's matrices beside them (bitsandbytes and peft): QLoRA."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from willfit._changing import Job
from willfit._remedies.code import optimizer_code
from willfit._remedies.lora import ADAPTERS, lora_targets
from willfit._remedies.remedy import Change, NotApplicable, Situation

_RANK = 16
_LEAST = (6, 0), (7, 5)  # for 4 bits, and for 8: hardware requirements in bitsandbytes' installation guide


def quantization(situation: Situation) -> Iterator[Change]:
    """NormalFloat with quantized scales, as in the paper; then 4-bit floats, then 8 bits."""
    model, device = situation.job.model, situation.device
    if any(hasattr(parameter, "quant_state") or hasattr(parameter, "SCB") for parameter in model.parameters()):
        raise NotApplicable("the weights are quantized already")
    targets = lora_targets(model)
    compute = torch.bfloat16 if device.compute_capability >= (8, 0) else torch.float16
    nf4 = {"bits": 4, "quant_type": "nf4", "double": True, "compute_dtype": compute}
    fp4 = nf4 | {"quant_type": "fp4", "double": False}
    for name, title, options, cost in (
        ("qlora", f"4-bit weights (NF4, double quantization) with LoRA of rank {_RANK}", nf4, "4 bits"),
        ("qlora-fp4", f"4-bit weights (FP4) with LoRA of rank {_RANK}", fp4, "4 bits"),
        ("lora-8bit", f"8-bit weights with LoRA of rank {_RANK}", {"bits": 8}, "8 bits"),
    ):
        major, minor = _LEAST[options["bits"] == 8]
        if device.compute_capability < (major, minor):
            raise NotApplicable(f"bitsandbytes needs compute capability {major}.{minor} for it: {device.name} has less")
        adapters = _adapters(situation, targets)
        yield Change(
            name=name,
            title=title,
            disruption="trains otherwise",
            cost=f"weights are rounded to {cost} and stay as they are; what is learned has the form of small matrices "
            "beside them; unpacking the weights takes time in every step",
            code=f"{_loading(model, options)}\n{adapters}",
            apply=partial(_applied, options, adapters),
            order=20,
            kind=ADAPTERS,
            packages=("bitsandbytes", "peft", *(("transformers",) if _is_transformers(model) else ())),
        )


def _is_transformers(model: Any) -> bool:
    return hasattr(model, "get_output_embeddings") and hasattr(model, "save_pretrained")


# -- its lines ---------------------------------------------------------------------------------------------------------


def _adapters(situation: Situation, targets: list[str] | str) -> str:
    return (
        "from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training\n\n"
        "model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)\n"
        f"model = get_peft_model(model, LoraConfig(r={_RANK}, lora_alpha={2 * _RANK}, target_modules={targets!r}))\n"
        f"{optimizer_code(situation.job.optimizer)}\n"
    )


def _loading(model: Any, options: dict[str, Any]) -> str:
    """How the model is loaded instead: by Transformers from its checkpoint, any other by an exchange of its layers."""
    if not _is_transformers(model):
        return _EXCHANGED.format(layer=_layer(options))
    name, saved = getattr(model.config, "_name_or_path", ""), ""
    if not name:
        name, saved = "unquantized", 'model.save_pretrained("unquantized")\n'
    cls = type(model).__name__
    return (
        f"from transformers import BitsAndBytesConfig, {cls}\n\n"
        f"quantization = BitsAndBytesConfig({_config(options)})\n"
        f'{saved}model = {cls}.from_pretrained("{name}", dtype={model.dtype}, quantization_config=quantization)\n'
    )


def _config(options: dict[str, Any]) -> str:
    if options["bits"] == 8:
        return "load_in_8bit=True"
    return (
        f'\n    load_in_4bit=True,\n    bnb_4bit_quant_type="{options["quant_type"]}",\n'
        f"    bnb_4bit_use_double_quant={options['double']},\n    bnb_4bit_compute_dtype={options['compute_dtype']},\n"
    )


def _layer(options: dict[str, Any]) -> str:
    if options["bits"] == 8:
        return "Linear8bitLt(*sizes, has_fp16_weights=False, threshold=6.0)"
    kinds = f'quant_type="{options["quant_type"]}", compress_statistics={options["double"]}'
    return f"Linear4bit(*sizes, compute_dtype={options['compute_dtype']}, {kinds})"


_EXCHANGED = """\
import bitsandbytes as bnb

layers = [name for name, layer in model.named_modules() if type(layer) is torch.nn.Linear]
for name in layers[:-1]:
    layer = model.get_submodule(name)
    sizes = layer.in_features, layer.out_features, layer.bias is not None
    packed = bnb.nn.{layer}
    packed = packed.to(layer.weight.dtype)
    packed.load_state_dict(layer.state_dict())
    model.set_submodule(name, packed)
model.to("cuda")
"""


# -- the same to a copy that has no values -----------------------------------------------------------------------------


def _applied(options: dict[str, Any], adapters: str, job: Job) -> Job:
    from willfit._quantizing import quantize
    from willfit._remedies.applying import ran

    quantize(job.model, **options)
    return ran(adapters, job, makes_weights=True)
