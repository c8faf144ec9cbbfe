"""What willfit records for sums and products along a dimension, against PyTorch's own CUDA code."""

import pytest
from traced import as_the_emulator, of, recorded  # noqa: F401


@recorded("scan")
@pytest.mark.usefixtures("as_the_emulator")
def test_records_what_cuda_allocates(row):
    assert of("scan", row) == row[3]
