"""Recurrent networks: moving one to the GPU lays its weights into one buffer, as cuDNN wants them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from willfit._trace.cuda.recurrent import MODES
from willfit._trace.following import Follower


def flatten_when_run(network: nn.RNNBase, follower: Follower) -> None:
    """Let a network that was placed do what ``nn.RNNBase.flatten_parameters`` did when it was moved.

    It does so before it runs by cuDNN for the first time: whether it will is not known before. Without cuDNN nothing
    depends on it but where the weights lie.
    """
    if follower.is_gpu:
        hooks: list[Any] = []
        hooks.append(network.register_forward_pre_hook(lambda module, _: _flatten(module, follower, hooks)))


def _flatten(module: Any, follower: Follower, hooks: list[Any]) -> None:
    if not torch._C._get_cudnn_enabled():
        return
    hooks.pop().remove()
    weights = module._flat_weights
    is_plain = all(isinstance(weight, torch.Tensor) for weight in weights)
    if not is_plain or not {weight.dtype for weight in weights} <= torch.backends.cudnn.CUDNN_TENSOR_DTYPES:
        return
    if len(weights) != len(module._flat_weights_names) or len({id(weight) for weight in weights}) < len(weights):
        return
    with torch.no_grad():
        torch._cudnn_rnn_flatten_weight(
            weights,
            (4 if module.bias else 2) + (module.proj_size > 0),
            module.input_size,
            MODES[module.mode.lower()],
            module.hidden_size,
            module.proj_size,
            module.num_layers,
            module.batch_first,
            bool(module.bidirectional),
        )
    follower.mark_role(weights, "parameters", follower.name_of(module))
