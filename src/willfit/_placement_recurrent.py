"""Recurrent networks: moving one to the GPU lays its weights into one buffer, as cuDNN wants them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from willfit._trace.cuda.recurrent import MODES

if TYPE_CHECKING:
    from willfit._placement import Placement


def flatten_weights(module: nn.Module, placement: Placement, path: str) -> None:
    """What ``nn.RNNBase.flatten_parameters`` does once the parameters are on the GPU; nothing for other modules."""
    if not isinstance(module, nn.RNNBase) or not placement.recorder.is_gpu or not torch._C._get_cudnn_enabled():
        return
    own = [weight for weight in module._flat_weights if isinstance(weight, torch.Tensor)]
    placed = [placement.copier.memo[id(weight)] for weight in own if id(weight) in placement.copier.memo]
    is_plain = len(placed) == len(module._flat_weights_names) == len({id(weight) for weight in placed})
    dtypes = {weight.dtype for weight in own}
    if not is_plain or len(dtypes) > 1 or not dtypes <= torch.backends.cudnn.CUDNN_TENSOR_DTYPES:
        return
    if any(weight.device.type == "cuda" and not isinstance(weight, FakeTensor) for weight in own):
        return  # laid out when the user moved it
    with torch.no_grad():
        torch._cudnn_rnn_flatten_weight(
            placed,
            (4 if module.bias else 2) + (module.proj_size > 0),
            module.input_size,
            MODES[module.mode.lower()],
            module.hidden_size,
            module.proj_size,
            module.num_layers,
            module.batch_first,
            bool(module.bidirectional),
        )
    placement.recorder.mark_role(placed, "parameters", path)
