"""What willfit records for bitsandbytes, against its own code on CUDA."""

from __future__ import annotations

import pytest
import record_bitsandbytes  # noqa: F401 - registers the calls
from traced import of, recorded


@recorded("bitsandbytes")
def test_records_what_cuda_allocates(row):
    pytest.importorskip("bitsandbytes")
    assert of("bitsandbytes", row) == row[3]
