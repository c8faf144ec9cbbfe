"""A model's linear layers made bitsandbytes' 4-bit or 8-bit ones, with nothing computed."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator
from typing import Any, Literal
from unittest.mock import patch

import torch
from torch import nn

from willfit._errors import JobError, UsageError
from willfit._placement_bitsandbytes import is_quantized_weight
from willfit._trace.bitsandbytes import OLDEST, too_old

_META = torch.device("meta")
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)  # quantize_4bit in bitsandbytes/functional.py


def quantize(
    model: nn.Module,
    *,
    bits: Literal[4, 8] = 4,
    quant_type: Literal["nf4", "fp4"] = "nf4",
    double: bool = True,
    compute_dtype: torch.dtype = torch.bfloat16,
    skip: Iterable[str] | None = None,
    threshold: float = 6.0,
) -> None:
    """Make a model, in place, what ``from_pretrained(..., quantization_config=BitsAndBytesConfig(...))`` returns.

    Its linear layers become bitsandbytes' 4-bit or 8-bit ones. Their weights and statistics are on meta, packed, as no
    number is computed: the model is there to be predicted, not to be trained. Its other layers stay as they are.

    Args:
        model: on any device. One of Transformers, whose own quantizer then says which layers are converted (not the
            output layer, nor what shares its weight with another); of any other, every ``nn.Linear`` is, but for the
            last one and those that share a weight.
        bits: 4 (QLoRA) or 8 (LLM.int8).
        quant_type: of 4 bits: NormalFloat or a float of 4 bits.
        double: of 4 bits: the scales are quantized too.
        compute_dtype: of 4 bits: what weights are unpacked to.
        skip: names of modules to leave as they are, in place of those that are left by default
            (``llm_int8_skip_modules`` of ``BitsAndBytesConfig``).
        threshold: of 8 bits: inputs beyond it are multiplied in 16 bits.

    Raises:
        UsageError: an argument is none of those named, or bitsandbytes or transformers is missing or too old.
        JobError: the model has no layer to convert, is quantized already or has adapters of peft.

    Example:
        >>> model = nn.Sequential(nn.Linear(512, 512), nn.Linear(512, 10))
        >>> quantize(model)
        >>> packed = model[0].weight
        >>> packed.shape, packed.quant_state.absmax.shape  # two numbers in a byte, a scale for every 64 of them
        (torch.Size([131072, 1]), torch.Size([4096]))
    """
    if bits not in (4, 8):
        raise UsageError(f"bits must be 4 or 8: found {bits!r}")
    if quant_type not in ("nf4", "fp4"):
        raise UsageError(f'quant_type must be "nf4" or "fp4": found {quant_type!r}')
    functional, layers = _bitsandbytes()
    _check_model(model)
    before = dict(model.named_modules())
    if hasattr(model, "get_output_embeddings"):
        _convert_as_transformers(
            model,
            load_in_4bit=bits == 4,
            load_in_8bit=bits == 8,
            bnb_4bit_quant_type=quant_type,
            bnb_4bit_use_double_quant=double,
            bnb_4bit_compute_dtype=compute_dtype,
            llm_int8_threshold=threshold,
            llm_int8_skip_modules=None if skip is None else list(skip),
        )
    elif bits == 4:
        options = {"compute_dtype": compute_dtype, "compress_statistics": double, "quant_type": quant_type}
        _convert(model, skip, layers.Linear4bit, options)
    else:
        _convert(model, skip, layers.Linear8bitLt, {"has_fp16_weights": False, "threshold": threshold})
    converted = [(name, layer) for name, layer in model.named_modules() if before.get(name) is not layer]
    if not converted:
        raise JobError(f"{type(model).__name__} has no linear layer that could be quantized")
    with patch.dict(functional.name2qmap), torch.device("cpu"):  # the tables made on the way are not to stay on meta
        for name, layer in converted:
            _pack(layer, before[name])


def _bitsandbytes() -> tuple[Any, Any]:
    try:
        with torch.device("cpu"):  # it makes tensors when it is imported
            functional, layers = (importlib.import_module(f"bitsandbytes.{name}") for name in ("functional", "nn"))
    except ImportError as error:
        raise UsageError(
            f"4-bit and 8-bit weights need bitsandbytes, which cannot be imported ({error}): pip install bitsandbytes"
        ) from None
    if found := too_old():
        raise UsageError(
            f"bitsandbytes {found} is too old: willfit follows {OLDEST} and newer; pip install -U bitsandbytes"
        )
    return functional, layers


def _check_model(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if hasattr(module, "adapter_layer_names"):  # BaseTunerLayer of peft
            raise JobError(
                f"module {name or type(model).__name__!r} has adapters already: quantize the model first, then call "
                "peft.get_peft_model"
            )
        if any(map(is_quantized_weight, module._parameters.values())):
            raise JobError(f"module {name!r} is quantized already: it is predicted as it is")
        if isinstance(module, nn.Linear) and module.weight.dtype not in _DTYPES:
            raise JobError(
                f"module {name!r} has weights of {module.weight.dtype}: bitsandbytes quantizes 16 and 32 bits alone"
            )


# -- which layers --------------------------------------------------------------------------------------------------


def _convert_as_transformers(model: Any, **options: Any) -> None:
    """As in from_pretrained: HfQuantizer in transformers/quantizers/base.py."""
    try:
        transformers: Any = importlib.import_module("transformers")
        quantizers: Any = importlib.import_module("transformers.quantizers.auto")
    except ImportError:
        kind = type(model).__name__
        raise UsageError(f"{kind} needs transformers to be quantized: pip install transformers") from None
    quantizer = quantizers.AutoHfQuantizer.from_config(transformers.BitsAndBytesConfig(**options), pre_quantized=False)
    quantizer.preprocess_model(model, device_map=None, keep_in_fp32_modules=model._keep_in_fp32_modules)
    quantizer.postprocess_model(model)


def _convert(model: nn.Module, skip: Iterable[str] | None, layer: Any, options: dict[str, Any]) -> None:
    """By the same rules, for a model that is none of Transformers'."""
    kept = set(_last_and_tied(model) if skip is None else skip)
    for name, module in dict(model.named_modules()).items():
        if type(module) is nn.Linear and not any(_is_within(name, each) for each in kept):
            shape = module.in_features, module.out_features
            model.set_submodule(name, layer(*shape, bias=module.bias is not None, device=_META, **options))


def _is_within(name: str, kept: str) -> bool:
    return f".{name}.".startswith(f".{kept}.") or name.endswith(f".{kept}")


def _last_and_tied(model: nn.Module) -> Iterator[str]:
    """As in get_keys_to_not_convert: the output layer, and modules that share a weight with others."""
    yield from [name for name, module in model.named_modules() if type(module) is nn.Linear][-1:]
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name.rpartition(".")[0])
    for shared in names.values():
        if len(shared) > 1:
            yield from shared


# -- their weights -------------------------------------------------------------------------------------------------


def _pack(layer: Any, original: Any) -> None:
    """Give a layer what bitsandbytes makes of the original's weight: by its own code, on meta."""
    weight = original.weight if isinstance(original, nn.Linear) else original.weight.T  # Conv1D's is turned
    attributes = {name: value for name, value in vars(layer.weight).items() if name not in ("CB", "SCB")}
    whole = torch.empty(weight.shape, dtype=weight.dtype, device=_META)
    layer.weight = type(layer.weight)(whole, requires_grad=False, **attributes)._quantize(_META)
    layer.bias = original.bias
    layer.train(original.training)
