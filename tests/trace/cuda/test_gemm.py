"""What willfit records for matrix products, against PyTorch's own CUDA code."""

import pytest
import record_products  # noqa: F401 - registers the calls
import torch
from packaging.version import Version
from traced import of, recorded, traced

import willfit
from willfit._trace.cuda import gemm


@recorded("products")
def test_records_what_cuda_allocates(row):
    assert of("products", row) == row[3]


@pytest.mark.skipif(not gemm._HAS_OUTER_PRODUCTS, reason="before torch 2.13 cuBLAS makes outer products")
def test_an_outer_product_takes_its_result_and_nothing_else():
    """A kernel in Triton reads operands of any strides, which cuBLAS would have copied, and has no workspace."""

    def prepare():
        columns = torch.empty(2, 1, 64, device="cuda").transpose(1, 2)
        rows = torch.empty(2, 300, 7, device="cuda")[:, :, 3:4].transpose(1, 2)
        return lambda: torch.bmm(columns, rows)

    assert traced(prepare, [7, 5, 40])[0] == [2 * 64 * 300 * 4]


@pytest.mark.parametrize(
    ("capability", "size"),
    [((7, 5), 8_519_680), ((8, 0), 8_519_680), ((8, 9), 8_519_680), ((9, 0), 33_554_432)],  # measured, torch 2.15
)
def test_the_size_of_a_workspace(capability, size, monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    assert gemm.workspace_size(capability) == size


def test_the_environment_chooses_the_workspace(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    assert gemm.workspace_size((9, 0)) == 16 * 1024 * 8
    monkeypatch.setenv("CUBLASLT_WORKSPACE_SIZE", "64")
    assert gemm.lt_workspace_size() == 64 * 1024


@pytest.mark.parametrize(
    ("bias", "inner", "columns", "dtype", "beta", "old", "new"),  # measured with torch 2.9 and 2.15
    [
        ((96,), 128, 96, torch.float32, 1, True, True),
        ((96,), 128, 96, torch.float32, 0.5, False, False),
        ((1,), 128, 1, torch.float32, 1, False, False),
        ((96,), 1, 96, torch.float32, 1, False, False),
        ((64, 96), 128, 96, torch.float32, 1, False, False),
        ((64, 96), 128, 96, torch.bfloat16, 1, False, True),
        ((64, 96), 128, 96, torch.bfloat16, 0.5, False, True),
        ((1, 96), 128, 96, torch.float32, 1, False, True),
        ((1, 96), 128, 96, torch.bfloat16, 0.5, False, False),
    ],
)
def test_what_goes_to_cublaslt(bias, inner, columns, dtype, beta, old, new, monkeypatch):
    a, b = torch.empty(64, inner, dtype=dtype), torch.empty(inner, columns, dtype=dtype)
    for version, expected in (("2.9", old), ("2.15", new)):
        monkeypatch.setattr(gemm, "_TORCH", Version(version))
        assert gemm._is_for_lt(torch.empty(bias, dtype=dtype), a, b, beta) is expected


@pytest.mark.parametrize("name", ["mm", "bmm", "mv", "addmm", "dot"])
def test_a_product_into_a_given_tensor_takes_a_workspace_too(name):
    """8,519,680 B on a T4, as above: kept, or given back where each call takes one."""
    shapes = {
        "mm": [(64, 64), (64, 64), (64, 64)],
        "bmm": [(2, 64, 64), (2, 64, 64), (2, 64, 64)],
        "mv": [(64,), (64, 64), (64,)],
        "addmm": [(64, 64), (64, 64), (64, 64)],
        "dot": [(), (64,), (64,)],
    }

    def step(model, optimizer, batch):
        out, *factors = batch
        getattr(torch, name)(*([out] if name == "addmm" else []), *factors, out=out)

    batch = [torch.zeros(shape) for shape in shapes[name]]
    found = willfit.predict(torch.nn.Identity(), None, batch, step, on="T4", steps=1)
    assert found.bill["workspaces"] == 8_519_680
