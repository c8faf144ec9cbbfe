"""Memory of the host: what backward needs, and optimizer states, lie there while they are not used."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from willfit._remedies.code import TRAINABLE, call, only_optimizer
from willfit._remedies.optimizer import ADAMS, OPTIMIZER
from willfit._remedies.remedy import Change, NotApplicable, Situation
from willfit._units import format_size


def activations_on_cpu(situation: Situation) -> Iterator[Change]:
    """What forward saves for backward is copied to the host, and back when it is needed (PyTorch's save_on_cpu)."""
    yield Change(
        name="offload-activations",
        title="saved activations on the CPU",
        disruption="slower",
        cost="the same results; what forward saves crosses the link to the host twice in each step",
        code=_SAVE_ON_CPU,
        order=55,
    )


def paged_optimizer(situation: Situation) -> Iterator[Change]:
    """AdamW with states in memory that the driver moves: of 32 bits, which computes the same, then of 8 bits."""
    own = only_optimizer(situation.job.optimizer)
    if type(own).__name__.startswith("Paged"):
        raise NotApplicable(f"{type(own).__name__} is paged already")
    if type(own).__name__ not in ADAMS:
        raise NotApplicable(f"there is no paged {type(own).__name__}")
    group = own.param_groups[0]
    settings = call(TRAINABLE, lr=group["lr"], weight_decay=group.get("weight_decay", 0))
    for name, title, cls, disruption, cost in (
        ("paged-adamw", "paged AdamW", "PagedAdamW32bit", "slower", "the same results, up to rounding"),
        (
            "paged-adamw8bit",
            "paged 8-bit AdamW",
            "PagedAdamW8bit",
            "trains otherwise",
            "averages of 8 bits by blocks",
        ),
    ):
        yield Change(
            name=name,
            title=title,
            disruption=disruption,  # type: ignore[arg-type]
            cost=f"{cost}; where states find no room beside the rest, the driver moves them in each step",
            code=f"import bitsandbytes as bnb\n\noptimizer = bnb.optim.{cls}({settings})",
            order=70,
            kind=OPTIMIZER,
            packages=("bitsandbytes",),
        )


def weights_on_cpu(situation: Situation) -> Iterable[Change]:
    """Accelerate's device_map: why it is no remedy, and how much it would put on the host."""
    from accelerate import infer_auto_device_map
    from accelerate.utils import compute_module_sizes

    model, device = situation.job.model, situation.device
    whole = getattr(model, "_no_split_modules", None)
    places = infer_auto_device_map(model, {0: device.capacity, "cpu": 2**62}, list(whole) if whole else None)
    sizes = compute_module_sizes(model)
    size = sum(sizes[name] for name, place in places.items() if place == "cpu")
    if not size:
        raise NotApplicable("the weights alone fit")
    raise NotApplicable(
        f"accelerate's device_map would leave {format_size(size)} of weights on the CPU and bring them to the GPU for "
        "each forward pass, but it gives them no gradients (AlignDevicesHook puts them on meta in between)"
    )


_SAVE_ON_CPU = """\
from functools import wraps
from torch.autograd.graph import save_on_cpu

own_forward = model.forward

@wraps(own_forward)
def forward(*args, **kwargs):
    with save_on_cpu(pin_memory=True):
        return own_forward(*args, **kwargs)

model.forward = forward
"""
