"""One mechanism each: hooks on saved tensors, streams, attention's backends, convolutions without cuDNN."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from training_steps.case import (
    Batch,
    adamw,
    arrays,
    case,
    perceptron,
    plain,
    step,
    trainable,
    with_loss,
    xy,
)

# -- saved tensors and streams -----------------------------------------------------------------------------------------


def within(context: Callable[[], Any]) -> Any:
    """A step whose forward runs in a context."""

    def run(model: Any, optimizer: Any, batch: Batch) -> None:
        with context():
            loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return run


def in_half() -> Any:
    """What is saved for backward is kept in half precision."""
    return torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: tensor.half() if tensor.dtype == torch.float32 else tensor,
        lambda tensor: tensor.float() if tensor.dtype == torch.float16 else tensor,
    )


class TwoStreams(nn.Module):
    """Two branches, one of them on a stream of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.here, self.there = (perceptron(512, 2048, 256)().network for _ in range(2))
        self.head = nn.Linear(512, 10)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> Any:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            there = self.there(x)
        here = self.here(x)
        torch.cuda.current_stream().wait_stream(side)
        return with_loss(F.cross_entropy(self.head(torch.cat([here, there], dim=1)), y))


class Checkpointed(nn.Module):
    """Blocks that are computed again in backward."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(512, 2048), nn.GELU(), nn.Dropout(0.1), nn.Linear(2048, 512)) for _ in range(4)
        )
        self.head = nn.Linear(512, 10)
        self.reentrant = reentrant

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> Any:
        x = F.layer_norm(self.blocks[0](x), (512,))
        for block in self.blocks[1:]:
            x = x + checkpoint(block, x, use_reentrant=self.reentrant)
        return with_loss(F.cross_entropy(self.head(x), y))


MLP = perceptron(1000, 3000, 3000, 10)

case(
    "saved-on-cpu",
    gpu="T4",
    model=MLP,
    optimizer=adamw,
    batch=xy(256, 1000),
    step=within(torch.autograd.graph.save_on_cpu),
)
case("saved-in-half", gpu="T4", model=MLP, optimizer=adamw, batch=xy(4096, 1000), step=within(in_half))
case("two-streams", gpu="A100-40GB", model=TwoStreams, optimizer=adamw, batch=xy(4096, 512), step=plain)
for reentrant in (False, True):
    case(
        f"checkpoint-{'reentrant' if reentrant else 'not-reentrant'}",
        gpu="T4",
        model=lambda reentrant=reentrant: Checkpointed(reentrant),
        optimizer=adamw,
        batch=xy(2000, 512),
        step=step(dtype=torch.float16, scale=True, clip=1.0),
    )


def scaled_apart(model: Any, optimizers: Any, batch: Batch) -> None:
    """One scaler, two optimizers, one of whose gradients are clipped."""
    scaler = torch.amp.GradScaler("cuda")
    with torch.autocast("cuda", dtype=torch.float16):
        loss = model(**batch).loss
    scaler.scale(loss).backward()
    scaler.unscale_(optimizers["here"])
    nn.utils.clip_grad_norm_(trainable(model.here), 0.5)
    for optimizer in optimizers.values():
        scaler.step(optimizer)
        optimizer.zero_grad()
    scaler.update()


case(
    "two-optimizers-amp-fp16",
    gpu="T4",
    model=TwoStreams,
    optimizer=lambda model: {
        "here": torch.optim.AdamW(model.here.parameters()),
        "rest": torch.optim.SGD([*model.there.parameters(), *model.head.parameters()], lr=0.1, momentum=0.9),
    },
    batch=xy(512, 512),
    step=scaled_apart,
)


# -- attention ---------------------------------------------------------------------------------------------------------


class Heads(nn.Module):
    """Attention by one backend: heads that share keys and values, or a mask and dropout."""

    def __init__(self, backend: SDPBackend, shared: bool, dtype: torch.dtype) -> None:
        super().__init__()
        self.backend, self.shared = backend, shared
        self.queries = nn.Linear(512, 512, dtype=dtype)
        self.others = nn.Linear(512, 2 * (128 if shared else 512), dtype=dtype)
        self.head = nn.Linear(512, 10, dtype=dtype)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> Any:
        x = x.to(self.head.weight.dtype)
        query = self.queries(x).unflatten(-1, (-1, 64)).transpose(1, 2)
        key, value = (part.unflatten(-1, (-1, 64)).transpose(1, 2) for part in self.others(x).chunk(2, dim=-1))
        mask = None if self.shared else torch.ones(x.size(1), x.size(1), dtype=torch.bool, device=x.device).tril()
        with sdpa_kernel(self.backend):
            out = F.scaled_dot_product_attention(
                query,
                key,
                value,
                attn_mask=mask,
                dropout_p=0.0 if self.shared else 0.1,
                is_causal=self.shared,
                enable_gqa=self.shared,
            )
        return with_loss(F.cross_entropy(self.head(out.transpose(1, 2).flatten(2).mean(1)), y))


for name, gpu, backend, shared, dtype in (
    ("flash-shared-heads-bf16", "A100-40GB", SDPBackend.FLASH_ATTENTION, True, torch.bfloat16),
    ("math-shared-heads-fp32", "T4", SDPBackend.MATH, True, torch.float32),
    ("math-mask-dropout-bf16", "A100-40GB", SDPBackend.MATH, False, torch.bfloat16),
    ("efficient-mask-dropout-fp16", "T4", SDPBackend.EFFICIENT_ATTENTION, False, torch.float16),
    ("efficient-mask-dropout-fp32", "H200", SDPBackend.EFFICIENT_ATTENTION, False, torch.float32),
):
    case(
        f"attention-{name}",
        gpu=gpu,
        model=lambda backend=backend, shared=shared, dtype=dtype: Heads(backend, shared, dtype),
        optimizer=adamw,
        batch=xy(8, 300, 512),
        step=plain,
    )


# -- convolutions that cuDNN does not take -----------------------------------------------------------------------------


class Unfolded(nn.Module):
    """Grouped, dilated and transposed convolutions in bf16, which PyTorch itself unfolds before sm_80."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1, groups=4),
            nn.ReLU(),
            nn.Conv2d(64, 64, 3, padding=2, dilation=2),
            nn.ReLU(),
            nn.ConvTranspose2d(64, 16, 2, stride=2),
            nn.Conv2d(16, 10, 1, bias=False),
        )

    def forward(self, x: torch.Tensor, y_ids: torch.Tensor) -> Any:
        return with_loss(F.cross_entropy(self.layers(x), y_ids))


class UnfoldedElsewhere(nn.Module):
    """The same over time and in space."""

    def __init__(self) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Conv1d(8, 32, 5, padding=4, dilation=2), nn.ConvTranspose1d(32, 8, 4, stride=2))
        self.space = nn.Sequential(nn.Conv3d(8, 16, 3, padding=1), nn.ConvTranspose3d(16, 4, 2, stride=2))

    def forward(self, wave: torch.Tensor, volume: torch.Tensor) -> Any:
        return with_loss(self.time(wave).float().pow(2).mean() + self.space(volume).float().pow(2).mean())


case(
    "unfolded-images-amp-bf16",
    gpu="T4",
    model=Unfolded,
    optimizer=adamw,
    batch=arrays(x=(8, 3, 64, 64), y_ids=(8, 64, 64)),
    step=step(dtype=torch.bfloat16),
)
case(
    "unfolded-waves-and-volumes-amp-bf16",
    gpu="V100-16GB",
    model=UnfoldedElsewhere,
    optimizer=adamw,
    batch=arrays(wave=(16, 8, 2000), volume=(4, 8, 12, 16, 16)),
    step=step(dtype=torch.bfloat16),
)
