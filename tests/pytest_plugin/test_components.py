from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from willfit._pytest.components import OUTSIDE, by_component, component

names = st.one_of(st.sampled_from(["blocks", "mlp", "attn", "head", "layer1"]), st.integers(0, 40).map(str))
paths = st.lists(names, max_size=6).map(".".join)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("", OUTSIDE),
        ("lm_head", "lm_head"),
        ("model.embed_tokens", "model.embed_tokens"),
        ("model.layers.7.self_attn.q_proj", "model.layers.*.self_attn"),
        ("base_model.model.model.layers.7.mlp.up_proj.lora_A.default", "base_model.model.model.layers.*.mlp"),
        ("layer1.0.conv1", "layer1.*.conv1"),  # a number within a name is part of it
        ("swin.encoder.layers.0.blocks.1.attention.self", "swin.encoder.layers.*.blocks.*.attention"),
        ("0", "0"),  # of a model that is one nn.Sequential
        ("12.attn", "*.attn"),
        ("a.b.c.d.e", "a.b.c"),
    ],
)
def test_paths_as_models_have_them(path: str, expected: str) -> None:
    assert component(path) == expected


@given(st.dictionaries(paths, st.integers(0, 2**40)))
def test_no_byte_is_lost(modules: dict[str, int]) -> None:
    assert sum(by_component(modules).values()) == sum(modules.values())


@given(paths, st.integers(0, 40))
def test_repeated_blocks_are_one_component(path: str, number: int) -> None:
    assert component(f"blocks.{number}.{path or 'mlp'}") == component(f"blocks.0.{path or 'mlp'}")
