"""What willfit records for recurrent networks without cuDNN, against PyTorch's own CUDA code."""

import pytest
import torch
from record_kernels import empty
from traced import as_the_emulator, of, recorded, traced  # noqa: F401


@recorded("recurrent")
@pytest.mark.usefixtures("as_the_emulator")
def test_records_what_cuda_allocates(row):
    assert of("recurrent", row) == row[3]


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("packed", [False, True])
def test_cudnn_keeps_a_reserve_and_says_that_its_size_is_a_guess(kind, packed):
    def prepare():
        network = getattr(torch.nn, kind)(16, 32, 2, bidirectional=True).to("cuda")
        network.flatten_parameters()
        inputs = empty(5, 3, 16, grad=True)
        if packed:
            inputs = torch.nn.utils.rnn.pack_padded_sequence(inputs, torch.tensor([5, 4, 2]))

        def run():
            out = network(inputs)[0]
            out = out.data if packed else out
            assert out.shape == (11 if packed else 5, *([] if packed else [3]), 64)
            return torch.autograd.grad(out.sum(), list(network.parameters()))

        return run

    sizes, recorder = traced(prepare, [8, 0, 108])
    assert sizes
    assert any("cuDNN's recurrent" in sentence for sentence in recorder.assumptions)
