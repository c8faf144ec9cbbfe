"""What willfit records for random numbers, against PyTorch's own CUDA code."""

import pytest
from traced import as_the_emulator, of, recorded  # noqa: F401


@recorded("random")
@pytest.mark.usefixtures("as_the_emulator")
def test_records_what_cuda_allocates(row):
    assert of("random", row) == row[3]
