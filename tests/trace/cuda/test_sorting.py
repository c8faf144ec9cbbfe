"""What willfit records for sorting, selecting and counting, against PyTorch's own CUDA code."""

import pytest
from traced import as_the_emulator, of, recorded  # noqa: F401


@recorded("sorting")
@pytest.mark.usefixtures("as_the_emulator")
def test_records_what_cuda_allocates(row):
    assert of("sorting", row) == row[3]
