"""What willfit records for recurrent networks without cuDNN, against PyTorch's own CUDA code."""

import pytest
import torch
from record_kernels import empty
from traced import as_the_emulator, of, recorded, traced  # noqa: F401

import willfit


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


@pytest.mark.parametrize("bias", [True, False])
def test_weights_are_laid_into_one_buffer_which_has_biases_also_where_the_network_has_none(bias):
    model = torch.nn.LSTM(60, 100, 2, bias=bias)
    footprint = willfit.predict(model, None, torch.zeros(7, 50, 60), loss=lambda m, x: m(x)[0].sum(), on="T4", steps=1)
    weights = 400 * (60 + 100) + 400 * (100 + 100)  # four gates of 100, two layers
    biases = 2 * 2 * 400
    assert footprint.bill["parameters"] == -(-(weights + biases) * 4 // 512) * 512


def test_under_autocast_weights_are_copied_to_a_buffer_of_fp16():
    def prepare():
        network = torch.nn.LSTM(60, 100, 2).to("cuda")
        inputs = empty(7, 50, 60)

        def run():
            with torch.autocast("cuda", dtype=torch.bfloat16):
                return network(inputs)[0]

        return run

    sizes, _ = traced(prepare, [8, 0, 108])
    assert sizes[2] == (400 * (60 + 100) + 400 * (100 + 100) + 2 * 2 * 400) * 2  # after the two states of zeros
