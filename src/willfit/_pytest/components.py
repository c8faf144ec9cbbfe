"""The parts of a model that a baseline tells apart: paths of modules in which repeated blocks are one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Final

OUTSIDE: Final = "(outside of modules)"
_DEPTH: Final = 3  # parts of a path without repeated blocks that are kept


def component(path: str) -> str:
    """The component that a module belongs to: numbers are ``*``, and what is below a block's own parts is theirs.

    >>> component("model.layers.31.mlp.down_proj"), component("model.layers.31"), component("lm_head"), component("")
    ('model.layers.*.mlp', 'model.layers.*', 'lm_head', '(outside of modules)')
    >>> component("down.0.resnets.1.conv.inner"), component("vit.embeddings.patches.projection")
    ('down.*.resnets.*.conv', 'vit.embeddings.patches')
    >>> component("blocks.0.mlp.2"), component("0.attn"), component("2")
    ('blocks.*.mlp', '*.attn', '2')
    """
    parts = path.split(".")
    if path.isdigit() or len(parts) == 1:
        return path or OUTSIDE
    parts = ["*" if part.isdigit() else part for part in parts]
    if parts.count("*") > 1 and parts[-1] == "*":
        parts.pop()  # one of a few in a row, within a block
    end = max((position + 2 for position, part in enumerate(parts) if part == "*"), default=_DEPTH)
    return ".".join(parts[:end])


def by_component(modules: Mapping[str, int]) -> dict[str, int]:
    """Bytes by module, summed by component.

    >>> by_component({"blocks.0.mlp.up": 4, "blocks.1.mlp": 2, "": 1})
    {'blocks.*.mlp': 6, '(outside of modules)': 1}
    """
    sizes: Counter[str] = Counter()
    for path, size in modules.items():
        sizes[component(path)] += size
    return dict(sizes)
