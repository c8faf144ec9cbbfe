"""What willfit records for reductions, against PyTorch's own CUDA code."""

import record_products  # noqa: F401 - registers the calls
from traced import of, recorded


@recorded("reductions")
def test_records_what_cuda_allocates(row):
    assert of("reductions", row) == row[3]
