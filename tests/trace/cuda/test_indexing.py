"""What willfit records for indexing by tensors and embeddings, against PyTorch's own CUDA code."""

import pytest
import torch
from record_kernels import empty
from traced import as_the_emulator, of, recorded, traced  # noqa: F401


@recorded("indexing")
@pytest.mark.usefixtures("as_the_emulator")
def test_records_what_cuda_allocates(row):
    assert of("indexing", row) == row[3]


def test_a_mask_selects_everything_and_that_is_said():
    def prepare():
        source, mask = empty(6, 5), empty(6, 5, dtype="bool")
        return lambda: source[mask]

    sizes, recorder = traced(prepare, [8, 0, 108])
    assert 30 * 2 * 8 in sizes  # int64 indices of both dimensions
    assert sizes[-1] == 30 * 4
    assert any("nonzero" in sentence for sentence in recorder.assumptions)


def test_indexing_from_the_host_copies_the_indices():
    def prepare():
        source, where = empty(6, 5), torch.tensor([1, 2, 3])
        return lambda: source[where]

    assert traced(prepare, [8, 0, 108])[0] == [24, 60]
