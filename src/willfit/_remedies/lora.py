"""LoRA: the weights are frozen, and small matrices beside them are trained (peft)."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from willfit._remedies.code import optimizer_code
from willfit._remedies.remedy import Change, NotApplicable, Situation

ADAPTERS = "adapters"
"""The kind of changes that put them in."""


def lora(situation: Situation) -> Iterator[Change]:
    """Several ranks, then variants of the middle one: rank-stabilised, and with magnitudes of their own (DoRA)."""
    model = situation.job.model
    targets = lora_targets(model)
    kinds = [
        (name, f"LoRA of rank {rank}", f"r={rank}, lora_alpha={2 * rank}", lighter)
        for name, rank, lighter in (("lora-64", 64, "lora"), ("lora", 16, "lora-8"), ("lora-8", 8, ""))
    ]
    kinds += [
        ("rslora", "rsLoRA of rank 64", "r=64, lora_alpha=16, use_rslora=True", "lora"),
        ("dora", "DoRA of rank 16", "r=16, lora_alpha=32, use_dora=True", ""),
    ]
    for name, title, options, lighter in kinds:
        yield Change(
            name=name,
            title=title,
            disruption="trains otherwise",
            cost="the weights stay as they are; what is learned has the form of small matrices beside them",
            code=(
                "from peft import LoraConfig, get_peft_model\n\n"
                f"model = get_peft_model(model, LoraConfig({options}, target_modules={targets!r}))\n"
                f"{optimizer_code(situation.job.optimizer)}"
            ),
            order=20,
            kind=ADAPTERS,
            makes_weights=True,
            lighter=lighter,
            packages=("peft",),
        )


def lora_targets(model: nn.Module) -> list[str] | str:
    """The modules that get adapters: peft's own choice for a model that it knows, else every linear layer but the last.

    Raises `NotApplicable` where there are none, or adapters already.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as KNOWN

    if any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        raise NotApplicable("the model has adapters already")
    kind = getattr(getattr(model, "config", None), "model_type", None)
    if kind in KNOWN:
        return list(KNOWN[kind])
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if len(names) < 2:
        raise NotApplicable("the model has no linear layers to put adapters beside")
    return names[:-1]
