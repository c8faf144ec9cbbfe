"""What willfit records for sparse gradients, against PyTorch's own CUDA code."""

from __future__ import annotations

import pytest
import record_sparse  # noqa: F401 - registers the calls
import torch
from torch import nn
from traced import as_the_emulator, of, recorded  # noqa: F401

import willfit


@recorded("sparse")
@pytest.mark.usefixtures("as_the_emulator")
def test_records_what_cuda_allocates(row):
    assert of("sparse", row) == row[3]


@pytest.mark.parametrize("distinct", [1, 100, 2048])
def test_as_many_rows_are_kept_as_the_batch_has_distinct_indices(distinct):
    model = nn.Embedding(100_000, 64, sparse=True)
    batch = torch.arange(2048) % distinct
    optimizer = torch.optim.SparseAdam(model.parameters())
    footprint = willfit.predict(model, optimizer, batch, loss=lambda model, batch: model(batch).sum(), on="T4")
    rows = distinct * 64 * 4
    # At its peak, at the end of SparseAdam's update, it holds six tensors of the rows that are kept: the values of the
    # gradient, old averages and new ones, and the product that is added; beside the rows of all indices, which are
    # the gradient, and numbers of 8 bytes. (torch/optim/_functional.py)
    table, gradient = 100_000 * 64 * 4, 2048 * 64 * 4
    held = footprint.peak_allocated - 3 * table - gradient
    assert 5 * rows <= held <= 7 * rows + 2048 * 8 * 8
