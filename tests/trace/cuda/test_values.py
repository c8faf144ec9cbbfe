"""What code that reads values from the GPU is told, and that it is noted."""

import pytest
import torch
from record_kernels import empty
from traced import traced


def answer(function, *shape, dtype="float32"):
    """What a function of a tensor on the GPU returns, and the sentences noted."""
    found = []

    def prepare():
        tensor = empty(*shape, dtype=dtype)
        return lambda: found.append(function(tensor))

    recorder = traced(prepare, [8, 0, 108])[1]
    return found[0], " ".join(recorder.assumptions)


@pytest.mark.parametrize(
    ("function", "expected", "noted"),
    [
        (lambda x: x.sum().item(), 1.0, ".item()"),
        (lambda x: bool(x.sum() > 3), False, "gt()"),
        (lambda x: bool(x.all()), True, "all()"),
        (lambda x: bool(x.any()), False, "any()"),
        (lambda x: bool(torch.isnan(x).any()), False, "any()"),
        (lambda x: bool(torch.isnan(x.sum())), False, "isnan()"),
        (lambda x: bool(torch.logical_or(x.sum().isnan(), x.sum().isinf())), False, "isnan()"),
        (lambda x: bool(x.any() | x.all()), True, "all()"),
        (lambda x: bool((x.sum() > 3) | x.bool().flatten()[0]), True, ".item()"),
        (lambda x: torch.equal(x, x * 2), True, "equal()"),
        (lambda x: torch.allclose(x, x * 2), True, "all()"),
        (lambda x: torch.is_nonzero(x.sum()), True, ".item()"),
        (lambda x: tuple(x.nonzero().shape), (12, 2), "nonzero"),
        (lambda x: tuple(torch.argwhere(x).shape), (12, 2), "nonzero"),
        (lambda x: [tuple(part.shape) for part in torch.where(x > 0)], [(12,), (12,)], "nonzero"),
        (lambda x: tuple(x[x > 0].shape), (12,), "nonzero"),
        (lambda x: tuple(x.masked_select(x > 0).shape), (12,), "nonzero"),
        (lambda x: [tuple(part.shape) for part in x.unique(return_counts=True)], [(12,), (12,)], "unique"),
        (lambda x: [tuple(part.shape) for part in x.unique(dim=0, return_inverse=True)], [(3, 4), (3,)], "unique"),
        (lambda x: tuple(x.unique_consecutive().shape), (12,), "unique"),
    ],
)
def test_reading_a_value(function, expected, noted):
    found, sentences = answer(function, 3, 4)
    assert found == expected
    assert noted in sentences


@pytest.mark.parametrize(
    ("function", "shape", "noted"),
    [
        (lambda x: torch.bincount(x, minlength=8), (8,), "bincount"),
        (lambda x: torch.bincount(x), (2,), "bincount"),
        (lambda x: torch.repeat_interleave(x), (12,), "repeat_interleave"),
        (lambda x: torch.repeat_interleave(x, output_size=30), (30,), ""),
    ],
)
def test_sizes_that_depend_on_integers(function, shape, noted):
    found, sentences = answer(function, 12, dtype="int64")
    assert found.shape == shape
    assert noted in sentences
