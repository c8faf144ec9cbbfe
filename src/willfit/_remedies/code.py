"""Lines of code that several remedies propose."""

from __future__ import annotations

import inspect
from typing import Any

import torch

from willfit._placement import optimizers_of
from willfit._remedies.remedy import NotApplicable

TRAINABLE = "[p for p in model.parameters() if p.requires_grad]"


def only_optimizer(optimizer: Any) -> torch.optim.Optimizer:
    """The one optimizer of a job. Raises `NotApplicable` where there is none, or several."""
    found = list(optimizers_of(optimizer))
    if len(found) != 1:
        raise NotApplicable("there is no optimizer" if not found else f"there are {len(found)} optimizers")
    return found[0]


def optimizer_code(optimizer: Any, **changes: Any) -> str:
    """A line that makes the job's optimizer anew, over what of the model is trainable: ``"optimizer = ..."``.

    It names the settings in which the first group of parameters differs from the defaults, and those given.
    """
    own = only_optimizer(optimizer)
    cls = type(own)
    if getattr(torch.optim, cls.__name__, None) is not cls:
        raise NotApplicable(f"how a {cls.__name__} is made is not known")
    settings = {}
    for name, parameter in inspect.signature(cls).parameters.items():
        value = changes.get(name, own.param_groups[0].get(name, parameter.default))
        if parameter.default is not parameter.empty and value != parameter.default:
            settings[name] = value
    return f"optimizer = torch.optim.{cls.__name__}({call(TRAINABLE, **settings)})"


def call(*values: str, **settings: Any) -> str:
    """Arguments, as they are written in a call."""
    return ", ".join([*values, *(f"{name}={value!r}" for name, value in settings.items())])
