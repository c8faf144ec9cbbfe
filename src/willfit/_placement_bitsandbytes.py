"""What bitsandbytes keeps beside plain parameters, placed and copied: quantized weights, and settings of optimizers.

Source: Params4bit, Int8Params and Linear8bitLt in bitsandbytes/nn/modules.py; QuantState in bitsandbytes/functional.py;
GlobalOptimManager in bitsandbytes/optim/optimizer.py.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from willfit._errors import JobError
from willfit._trace.bitsandbytes import OLDEST, too_old

if TYPE_CHECKING:
    from willfit._copying import Copier
    from willfit._placement import Placement


def is_quantized_weight(parameter: torch.Tensor) -> bool:
    """Whether this is a weight of bitsandbytes' own kind, quantized already or when it gets to the GPU."""
    modules: Any = sys.modules.get("bitsandbytes.nn.modules")
    return modules is not None and isinstance(parameter, (modules.Params4bit, modules.Int8Params))


def parameter_class(parameter: torch.Tensor) -> type[nn.Parameter]:
    """``nn.Parameter``, or bitsandbytes' own class."""
    modules: Any = sys.modules.get("bitsandbytes.nn.modules")
    kinds = () if modules is None else (modules.Params4bit, modules.Int8Params)
    return next((kind for kind in kinds if isinstance(parameter, kind)), nn.Parameter)


def _is_4bit(weight: Any) -> bool:
    return hasattr(weight, "quant_type")


def elements(weight: Any) -> tuple[str, int]:
    """What a weight is stored as, and how many numbers it stands for: ``("nf4", 16_777_216)``."""
    if _is_4bit(weight):
        return weight.quant_type, weight.numel() * (2 * weight.itemsize if weight.bnb_quantized else 1)
    dtype = weight.dtype if weight.has_fp16_weights else torch.int8
    return str(dtype).removeprefix("torch."), weight.numel()


def tensors_beside(module: nn.Module) -> Iterator[torch.Tensor]:
    """Tensors that a module needs for its quantized weights and that are neither its parameters nor its buffers."""
    for parameter in module._parameters.values():
        if parameter is not None and is_quantized_weight(parameter):
            found = [getattr(parameter, "CB", None), getattr(parameter, "SCB", None)]
            yield from (each for each in found if each is not None)
            yield from _of_state(getattr(parameter, "quant_state", None))
    for value in vars(module).values():
        yield from _of_state(value)


def _of_state(value: Any) -> Iterator[torch.Tensor]:
    """The tensors of a QuantState, in the order in which its method ``to`` moves them, or of a MatmulLtState."""
    kind = type(value)
    if kind.__module__.partition(".")[0] != "bitsandbytes":
        return
    found: list[Any] = []
    if kind.__name__ == "QuantState":
        found = [value.code, value.absmax]
        if value.nested:
            found += [value.offset, value.state2.absmax, value.state2.code]
    elif kind.__name__ == "MatmulLtState":
        found = list(vars(value).values())
    yield from (each for each in found if isinstance(each, torch.Tensor))


# -- placing -------------------------------------------------------------------------------------------------------


def place_weight(weight: Any, placement: Placement, module: str) -> tuple[torch.Tensor, dict[str, Any]]:
    """Place a weight as ``weight.to("cuda")`` does: quantized on the way there, if it is not yet.

    Returns:
        the fake one, and the attributes that are not as the weight's own.
    """
    _check_version()
    if _is_4bit(weight):
        if not weight.bnb_quantized:
            return _quantized_to_4bit(weight, placement, module)
        for tensor in _of_state(weight.quant_state):
            placement.placed_once(tensor, "parameters", module)
        return placement.placed(weight, "parameters", module), {}
    if weight.dtype != torch.int8 and not weight.has_fp16_weights:
        return _quantized_to_8bit(weight, placement, module)
    fake = placement.placed(weight, "parameters", module)
    if weight.CB is not None:
        placement.remember(weight.CB, fake.detach())
    if weight.SCB is not None:
        placement.placed_once(weight.SCB, "parameters", module)
    return fake, {}


def _quantized_to_4bit(weight: Any, placement: Placement, module: str) -> tuple[torch.Tensor, dict[str, Any]]:
    """Params4bit._quantize."""
    functional: Any = importlib.import_module("bitsandbytes.functional")
    with placement.recorder.in_module(module):
        packed, state = functional.quantize_4bit(
            placement.on_the_way(weight, weight.dtype, module),
            blocksize=weight.blocksize,
            compress_statistics=weight.compress_statistics,
            quant_type=weight.quant_type,
            quant_storage=weight.quant_storage,
        )
    placement.recorder.mark_role((packed, *_of_state(state)), "parameters")
    return packed, {"quant_state": state, "bnb_quantized": True}


def _quantized_to_8bit(weight: Any, placement: Placement, module: str) -> tuple[torch.Tensor, dict[str, Any]]:
    """Int8Params._quantize."""
    functional: Any = importlib.import_module("bitsandbytes.functional")
    with placement.recorder.in_module(module):
        rows, stats, _ = functional.int8_vectorwise_quant(placement.on_the_way(weight, torch.float16, module))
    placement.recorder.mark_role((rows, stats), "parameters")
    return rows.detach(), {"CB": rows, "SCB": stats}


def place_state(module: nn.Module, placement: Placement, path: str) -> None:
    """Place what a module keeps for its quantized weights outside of them."""
    state = getattr(module, "state", None)
    if state is not None and type(state).__name__ == "MatmulLtState":
        _check_8bit(state, placement.recorder)
        weight: Any = module._parameters["weight"]
        if state.CB is not None and state.CB.untyped_storage()._cdata == weight.untyped_storage()._cdata:
            placement.remember(state.CB, placement.copier.memo[id(weight)].detach())
    for value in vars(module).values():
        for tensor in _of_state(value):
            placement.placed_once(tensor, "parameters", path)


def _check_version() -> None:
    if found := too_old():
        raise JobError(
            f"the job uses bitsandbytes {found}: willfit follows {OLDEST} and newer; pip install -U bitsandbytes"
        )


def _check_8bit(state: Any, recorder: Any) -> None:
    major, minor = recorder.compute_capability
    if (major, minor) < (7, 5):  # hardware requirements in bitsandbytes' installation guide
        raise JobError(
            f"8-bit weights (LLM.int8) need a GPU of compute capability 7.5 (Turing) or newer: found {major}.{minor}; "
            "4-bit weights (bitsandbytes.nn.Linear4bit) work there"
        )
    if state.threshold > 0.0:
        recorder.assume(
            f"no input of an 8-bit layer is taken to exceed the threshold of {state.threshold:g} (LLM.int8): a column "
            "that does is multiplied in 16 bits besides, and kept until backward"
        )


# -- copying -------------------------------------------------------------------------------------------------------


def copy_managers(optimizer: Any, copier: Copier) -> None:
    """Let the copy of an optimizer find the settings of single parameters, which its manager knows by their ids.

    The manager, one for the whole process, knows modules of other models too.
    """
    copied: Any
    pages, manager = getattr(optimizer, "page_mng", None), getattr(optimizer, "mng", None)
    if type(pages).__name__ == "GlobalPageManager" and id(pages) not in copier.memo:
        _check_version()
        copied = object.__new__(type(pages))
        copied.initialize()
        copier.memo[id(pages)] = copied
    if manager is not None and type(manager).__name__ == "GlobalOptimManager" and id(manager) not in copier.memo:
        memo = copier.memo
        copied = object.__new__(type(manager))
        vars(copied).update(vars(manager))
        copied.pid2config = {id(memo[key]): config for key, config in manager.pid2config.items() if key in memo}
        copied.index2config = dict(manager.index2config)
        copied.module_weight_config_triple = [
            (copier.copy(module), name, config)
            for module, name, config in manager.module_weight_config_triple
            if id(getattr(module, name, None)) in memo
        ]
        memo[id(manager)] = copied
