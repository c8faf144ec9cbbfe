"""What libraries wrap models in, taken off, with the memory that it takes counted in its place."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from willfit._errors import JobError

# torch.nn.parallel.distributed: the first bucket is dist._DEFAULT_FIRST_BUCKET_BYTES, the others bucket_bytes_cap
_FIRST_BUCKET = 2**20


class Buckets(nn.Module):
    """The flat tensors in which DistributedDataParallel reduces gradients.

    Source: _ddp_init_helper in torch/nn/parallel/distributed.py, Reducer::rebuild_buckets in c10d/reducer.cpp.
    """

    def __init__(self, model: DistributedDataParallel) -> None:
        super().__init__()
        if model.gradient_as_bucket_view:  # then gradients lie in the buckets, and there is nothing besides
            return
        parameters = [p for p in model.module.parameters() if p.requires_grad]
        if model.static_graph or not model.find_unused_parameters:
            # in the first backward pass all are in one bucket, then in several, in the order in which gradients came
            parameters.reverse()
        limits = [_FIRST_BUCKET, model.bucket_bytes_cap]
        indices, _ = torch._C._distributed_c10d._compute_bucket_assignment_by_size(parameters, limits)
        for number, bucket in enumerate(indices):
            numel = sum(parameters[index].numel() for index in bucket)
            flat = torch.empty(numel, dtype=parameters[bucket[0]].dtype, device="meta")
            self.register_buffer(f"bucket_{number}", flat)


def unwrapped(model: Any) -> tuple[Any, Buckets | None]:
    """A model without DistributedDataParallel around it, and the latter's buckets.

    Raises `JobError` for a model that is sharded over several GPUs.
    """
    if isinstance(model, DistributedDataParallel):
        return model.module, Buckets(model)
    if type(model).__name__ in ("FullyShardedDataParallel", "DeepSpeedEngine") or any(
        type(parameter).__name__ == "DTensor" for parameter in model.parameters()
    ):
        raise JobError(f"the model is sharded over several GPUs ({type(model).__name__}), which is not predicted yet")
    return model, None
