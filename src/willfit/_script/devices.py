"""Devices as a script names them, on fake tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_TAKE_A_DEVICE: dict[Any, int] = {torch.device: 0, torch.Tensor.to: 1, torch.Tensor.cuda: 1}
"""Functions that are not told it by name alone, and which argument it is."""


class Devices(TorchFunctionMode):
    """Devices that the script names: a number is a GPU, of which there is one; on meta a tensor is on none."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if (position := _TAKE_A_DEVICE.get(func)) is not None and len(args) > position:
            args = (*args[:position], _named(args[position]), *args[position + 1 :])
        if "device" in kwargs:
            kwargs = {**kwargs, "device": _named(kwargs["device"])}
            if str(kwargs["device"]) == "meta":
                with torch._C._DisableTorchDispatch():
                    return func(*args, **kwargs)
        return func(*args, **kwargs)


def _named(device: Any) -> Any:
    """A device as the script gives it: a number is one of CUDA's. Raises as CUDA does where there is none of it."""
    if type(device) is int:
        device = f"cuda:{device}"
    if isinstance(device, (str, torch.device)) and str(device).startswith("cuda:") and str(device) != "cuda:0":
        raise RuntimeError(f"CUDA error: invalid device ordinal: {device}, where there is one GPU")
    return device


def parsed(own: Callable[..., Any]) -> Callable[..., Any]:
    """What ``nn.Module.to`` makes of its arguments."""

    def parse(*args: Any, **kwargs: Any) -> Any:
        return own(*map(_named, args), **{name: _named(value) for name, value in kwargs.items()})

    return parse
