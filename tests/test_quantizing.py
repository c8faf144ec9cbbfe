"""A model quantized as by bitsandbytes and Transformers: which layers, and how many bytes each tensor has."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
pytest.importorskip("bitsandbytes")

from torch import nn  # noqa: E402

import willfit  # noqa: E402
from willfit._placement_bitsandbytes import tensors_beside  # noqa: E402
from willfit._quantizing import quantize  # noqa: E402

sizes = st.integers(1, 600)
dtypes = st.sampled_from([torch.float32, torch.float16, torch.bfloat16])


def two_layers(inputs: int, outputs: int, dtype: torch.dtype = torch.float32, bias: bool = True) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, outputs, bias=bias), nn.Linear(outputs, 1)).to("meta", dtype)


def bytes_of(layer: nn.Module) -> list[int]:
    """Of a 4-bit weight and its statistics."""
    beside = {id(tensor): tensor.nbytes for tensor in tensors_beside(layer)}
    return sorted([layer.weight.nbytes, *beside.values()])


@settings(deadline=None, max_examples=60)
@given(sizes, sizes, dtypes, st.sampled_from(["nf4", "fp4"]), st.booleans())
def test_a_4_bit_weight_takes_half_a_byte_and_its_scales(inputs, outputs, dtype, quant_type, double):
    """One scale for 64 weights; double quantization: a byte for each scale, one of 4 bytes for 256 of those (QLoRA)."""
    model = two_layers(inputs, outputs, dtype)
    quantize(model, quant_type=quant_type, double=double)
    number = inputs * outputs
    blocks = math.ceil(number / 64)
    values_of_4_bits = 16 * 4
    if double:
        values_of_8_bits, mean = 256 * 4, 4
        expected = [
            math.ceil(number / 2), values_of_4_bits, blocks, mean, 4 * math.ceil(blocks / 256), values_of_8_bits,
        ]  # fmt: skip
    else:
        expected = [math.ceil(number / 2), values_of_4_bits, 4 * blocks]
    assert bytes_of(model[0]) == sorted(expected)


@settings(deadline=None, max_examples=60)
@given(sizes, sizes, dtypes)
def test_an_8_bit_weight_takes_a_byte_and_a_scale_for_each_row(inputs, outputs, dtype):
    model = two_layers(inputs, outputs, dtype)
    quantize(model, bits=8)
    weight = model[0].weight
    assert (weight.dtype, weight.shape) == (torch.int8, (outputs, inputs))
    assert (weight.SCB.dtype, weight.SCB.shape) == (torch.float32, (outputs,))


@settings(deadline=None, max_examples=30)
@given(sizes, sizes, dtypes, st.sampled_from([4, 8]), st.booleans())
def test_placing_takes_what_the_tensors_have_in_blocks_of_512_bytes(inputs, outputs, dtype, bits, double):
    """The weights alone are placed: nothing that would be unpacked on the way."""
    model = two_layers(inputs, outputs, dtype)
    quantize(model, bits=bits, double=double)
    batch = torch.zeros(1)
    footprint = willfit.predict(model, None, batch, lambda *_: None, on="T4")
    tensors = [batch, *model.parameters(), *tensors_beside(model[0])]
    storages = {tensor.untyped_storage()._cdata: tensor.nbytes for tensor in tensors}
    assert footprint.peak_allocated == sum(512 * math.ceil(nbytes / 512) for nbytes in storages.values())


def test_what_is_not_quantized_is_as_it_was():
    model = nn.Sequential(nn.Embedding(50, 8), nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 50)).eval()
    before = {name: parameter for name, parameter in model.named_parameters() if name != "1.weight"}
    generator = torch.get_rng_state()
    quantize(model)
    assert type(model[1]).__name__ == "Linear4bit"
    after = dict(model.named_parameters())
    assert all(after[name] is parameter for name, parameter in before.items())
    assert not model[1].training
    assert not after["1.weight"].requires_grad
    assert torch.equal(generator, torch.get_rng_state())


def test_the_process_keeps_no_table_on_meta():
    import bitsandbytes.functional as functional

    before = dict(functional.name2qmap)
    quantize(two_layers(64, 64))
    assert functional.name2qmap == before


def test_layers_that_share_a_weight_and_the_last_one_are_left():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.third, self.last = (nn.Linear(8, 8) for _ in range(4))
            self.third.weight = self.first.weight

    model = Tied()
    quantize(model)
    assert [type(layer).__name__ for layer in model.children()] == ["Linear", "Linear4bit", "Linear", "Linear"]


def test_skip_takes_the_place_of_what_is_left_by_default():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    quantize(model, skip=["0"])
    assert [type(layer).__name__ for layer in model] == ["Linear", "Linear4bit"]


@pytest.mark.parametrize("bits", [4, 8])
def test_a_model_of_transformers_keeps_its_output_layer_and_turns_conv1d(bits):
    transformers = pytest.importorskip("transformers")
    with torch.device("meta"):
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_layer=1, n_embd=48, n_head=2, vocab_size=99))
    quantize(model, bits=bits)
    kinds = {name: type(module).__name__ for name, module in model.named_modules()}
    block = "transformer.h.0"
    quantized = {name for name, kind in kinds.items() if kind in ("Linear4bit", "Linear8bitLt")}
    assert quantized == {f"{block}.{name}" for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")}
    weight = model.get_submodule(f"{block}.attn.c_attn").weight
    assert (weight.quant_state.shape if bits == 4 else weight.shape) == (3 * 48, 48)
    assert model.is_quantized
    assert model.config.quantization_config.load_in_4bit == (bits == 4)


# -- the user's own ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [False, True])
def test_a_prediction_leaves_a_quantized_model_and_bitsandbytes_as_they_were(packed):
    import bitsandbytes
    import bitsandbytes.functional as functional

    layer = bitsandbytes.nn.Linear4bit(64, 128, compute_dtype=torch.bfloat16)
    model = nn.Sequential(nn.Linear(64, 64), layer, nn.Linear(128, 8))
    if packed:
        model.to("cpu")
    weight, data, state = layer.weight, layer.weight.detach().clone(), layer.weight.quant_state
    optimizer = bitsandbytes.optim.PagedAdamW8bit([p for p in model.parameters() if p.requires_grad])
    library, maps = functional.lib, dict(functional.name2qmap)
    managers = functional.GlobalPageManager._instance, functional.CUBLAS_Context._instance
    footprint = willfit.predict(model, optimizer, torch.zeros(4, 64), loss=lambda m, x: m(x).sum(), on="T4")
    assert footprint.peak_allocated > 0
    assert layer.weight is weight
    assert type(weight) is bitsandbytes.nn.Params4bit
    assert weight.quant_state is state
    assert weight.bnb_quantized == packed
    assert torch.equal(weight.detach(), data)
    assert weight.device.type == "cpu"
    assert not optimizer.state
    assert functional.lib is library
    assert functional.name2qmap == maps
    assert managers == (functional.GlobalPageManager._instance, functional.CUBLAS_Context._instance)
    if packed:
        assert model(torch.zeros(4, 64)).shape == (4, 8)


def test_paged_states_are_named_and_in_no_peak():
    import bitsandbytes

    batch = torch.zeros(4, 512)
    for name in ("AdamW8bit", "PagedAdamW8bit"):
        model = nn.Sequential(nn.Linear(512, 512, bias=False), nn.Linear(512, 512, bias=False))
        optimizer = getattr(bitsandbytes.optim, name)(model.parameters())
        footprint = willfit.predict(model, optimizer, batch, loss=lambda m, x: m(x).sum(), on="T4")
        assert any("1.00 MiB, lie in managed memory" in each for each in footprint.assumptions) == (name[0] == "P")
        states = footprint.bill["optimizer states"]
        assert states >= 2 * 2 * 512 * 512 if name[0] == "A" else states < 2 * 512 * 512


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"), [({"bits": 2}, "bits must be 4 or 8: found 2"), ({"quant_type": "int4"}, "found 'int4'")]
)
def test_unknown_options_are_named(options, message):
    with pytest.raises(willfit.UsageError, match=message):
        quantize(two_layers(8, 8), **options)


def test_a_model_without_linear_layers_cannot_be_quantized():
    with pytest.raises(willfit.JobError, match="Conv2d has no linear layer"):
        quantize(nn.Conv2d(1, 1, 1))


def test_a_quantized_model_is_not_quantized_again():
    model = two_layers(8, 8)
    quantize(model)
    with pytest.raises(willfit.JobError, match="quantized already"):
        quantize(model, bits=8)


def test_weights_that_bitsandbytes_does_not_take_are_refused_before_anything_is_changed():
    model = two_layers(8, 8, torch.float64)
    with pytest.raises(willfit.JobError, match="float64"):
        quantize(model)
    assert type(model[0]) is nn.Linear


@pytest.mark.parametrize("part", ["model", "optimizer"])
def test_a_bitsandbytes_that_is_too_old_is_refused_where_the_job_uses_it(part, monkeypatch):
    import bitsandbytes

    model = two_layers(64, 64)
    if part == "model":
        quantize(model)
    optimizers = bitsandbytes.optim if part == "optimizer" else torch.optim
    optimizer = optimizers.AdamW([p for p in model.parameters() if p.requires_grad])
    monkeypatch.setattr(bitsandbytes, "__version__", "0.47.0")
    with pytest.raises(willfit.JobError, match=r"bitsandbytes 0\.47\.0: willfit follows 0\.48 and newer"):
        willfit.predict(model, optimizer, torch.zeros(2, 64), loss=lambda m, x: m(x).sum(), on="T4")


def test_adapters_come_after_quantizing():
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(two_layers(8, 8), peft.LoraConfig(target_modules=["0"]))
    with pytest.raises(willfit.JobError, match="has adapters already"):
        quantize(model)


def test_8_bit_weights_need_turing():
    model = two_layers(64, 64)
    quantize(model, bits=8)
    batch = torch.zeros(2, 64)
    with pytest.raises(willfit.JobError, match=r"7\.5 \(Turing\) or newer: found 7\.0"):
        willfit.predict(model, None, batch, lambda model, _, batch: model(batch), on="V100-16GB")
