"""Training steps as users of one NVIDIA GPU write them: a file for each kind, each adding its cases to ``CASES``."""

from training_steps import zoo  # isort: split

from training_steps.case import CASES

ZOO = frozenset(CASES)

from training_steps import (  # noqa: E402
    attention,
    decoders,
    encoders,
    images,
    mechanisms,
    perception,
    perceptrons,
    several_networks,
    tables,
)

SEEN = frozenset(CASES)

from training_steps import unseen, unseen_torch  # noqa: E402

PLAIN = frozenset(CASES)

from training_steps import quantized  # noqa: E402

__all__ = [
    "CASES",
    "PLAIN",
    "SEEN",
    "ZOO",
    "attention",
    "decoders",
    "encoders",
    "images",
    "mechanisms",
    "perception",
    "perceptrons",
    "quantized",
    "several_networks",
    "tables",
    "unseen",
    "unseen_torch",
    "zoo",
]
