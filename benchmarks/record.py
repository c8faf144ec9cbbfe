"""Measure cases with PyTorch's own allocator, on a GPU or under an emulator of one. Started by fidelity.py --record.

    python record.py NAME [NAME ...]

prints a JSON line for each case, measured in a new process: what is allocated once the job is placed, and after each of
three steps what is allocated, the peak of that and the peak of reserved memory, all in bytes.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from typing import Any

os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # asking whether there is a GPU then leaves CUDA uninitialised
import torch
import transformers
from cases import CASES
from torch import nn

transformers.logging.set_verbosity_error()

STEPS = 3


def answer_that_masks_are_full() -> None:
    """Let ``mask.all()`` be true, as it is of these batches; without values, as under an emulator, it reads as false.

    Transformers leaves a full mask out. From version 5 on it makes one wherever tensors are fake, and so do both sides.
    """

    class Yes(torch.Tensor):
        def __bool__(self) -> bool:
            return True

    def always(all_of: Any) -> Any:
        return lambda *args, **kwargs: all_of(*args, **kwargs).as_subclass(Yes)

    torch.all, torch.Tensor.all = always(torch.all), always(torch.Tensor.all)


if transformers.__version__.startswith("4."):
    answer_that_masks_are_full()


class Placer:
    """Places a model on the GPU as ``model.to("cuda")`` does: children first, what is shared once; without values."""

    def __init__(self) -> None:
        self._modules: set[nn.Module] = set()
        self._parameters: dict[nn.Parameter, nn.Parameter] = {}

    def place(self, module: nn.Module) -> None:
        if module in self._modules:
            return
        self._modules.add(module)
        for child in module.children():
            self.place(child)
        for name, parameter in module._parameters.items():
            if parameter is not None:
                if parameter not in self._parameters:
                    self._parameters[parameter] = _on_gpu(parameter)
                module._parameters[name] = self._parameters[parameter]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty_like(buffer, device="cuda")


def _on_gpu(parameter: Any) -> Any:
    """A parameter; bitsandbytes' own kinds, Params4bit and Int8Params, as their method ``to`` moves them."""
    kind, attributes = type(parameter), {"requires_grad": parameter.requires_grad}
    if kind.__name__ == "Params4bit":
        attributes |= vars(parameter)
        if parameter.bnb_quantized:
            _move_state(parameter.quant_state)
            return kind(torch.empty_like(parameter.data, device="cuda"), **attributes)
        return kind(torch.empty_like(parameter.data, device="cuda"), **attributes).to("cuda")
    if kind.__name__ == "Int8Params":
        attributes |= {"has_fp16_weights": parameter.has_fp16_weights}
        if parameter.has_fp16_weights:
            return kind(torch.empty_like(parameter.data, device="cuda"), **attributes)
        if parameter.dtype != torch.int8:
            half = torch.empty_like(parameter.data, device="cuda", dtype=torch.float16)
            return kind(half, **attributes)._quantize("cuda")
        placed = kind(torch.empty_like(parameter.data, device="cuda"), **attributes)
        placed.CB, placed.SCB = placed.data, torch.empty_like(parameter.SCB, device="cuda")
        return placed
    return nn.Parameter(torch.empty_like(parameter, device="cuda"), **attributes)


def _move_state(state: Any) -> None:
    """QuantState.to, from meta."""
    state.code = torch.empty_like(state.code, device="cuda")
    state.absmax = torch.empty_like(state.absmax, device="cuda")
    if state.nested:
        state.offset = torch.empty_like(state.offset, device="cuda")
        state.state2.absmax = torch.empty_like(state.state2.absmax, device="cuda")
        state.state2.code = torch.empty_like(state.state2.code, device="cuda")


def measure(name: str) -> dict[str, Any]:
    case = CASES[name]
    with torch.device("meta"):
        model = case.model()
    Placer().place(model)
    batch = {key: value.to("cuda") for key, value in case.batch().items()}
    optimizer = case.optimizer(model)
    torch.cuda.reset_peak_memory_stats()
    placed = torch.cuda.memory_allocated()
    steps = []
    for _ in range(STEPS):
        case.step(model, optimizer, batch)
        peaks = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
        steps.append([torch.cuda.memory_allocated(), *peaks])
    return {
        "static": placed,
        "steps": steps,
        "peak_allocated": steps[-1][1],
        "peak_reserved": steps[-1][2],
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
    }


def main(names: list[str]) -> None:
    for name in names:
        sys.stdout.flush()
        if (child := os.fork()) == 0:
            try:
                found = measure(name)
            except torch.OutOfMemoryError as error:
                found = {"out_of_memory": str(error).split(". GPU")[0]}
            except Exception as error:
                traceback.print_exc()
                found = {"error": f"{type(error).__name__}: {error}"}
            print(json.dumps({"case": name, "gpu": CASES[name].gpu, **found}), flush=True)
            os._exit(0)
        os.waitpid(child, 0)


if __name__ == "__main__":
    main(sys.argv[1:])
