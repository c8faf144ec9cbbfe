"""The callback, in a Trainer that trains a small model on the CPU as if for a T4."""

from __future__ import annotations

import gc
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import machine
import willfit
from willfit import WillfitWarning, WillNotFit

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
pytestmark = pytest.mark.filterwarnings("default")  # of Transformers and Accelerate

from willfit.integrations.transformers import WillfitCallback  # noqa: E402

VOCABULARY, WIDTH, LAYERS = 500, 64, 2


def model() -> Any:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=4,
    )
    return transformers.LlamaForCausalLM(config)


def collate(rows: list[list[int]]) -> dict[str, torch.Tensor]:
    longest = max(map(len, rows))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    return {"input_ids": ids, "labels": ids}


class Rows(torch.utils.data.Dataset[list[int]]):
    def __init__(self, lengths: Any) -> None:
        self.rows = [[index % VOCABULARY for index in range(length)] for length in lengths]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> list[int]:
        return self.rows[index]


class Losses(transformers.TrainerCallback):  # type: ignore[misc,name-defined]
    """What the loss was at each step."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        self.seen += [logs["loss"]] if "loss" in logs else []


def trainer(tmp_path: Path, *callbacks: Any, lengths: Any = (16,) * 32, kind: Any = None, **arguments: Any) -> Any:
    options = {
        "output_dir": str(tmp_path),
        "use_cpu": True,
        "per_device_train_batch_size": 2,
        "max_steps": 2,
        "logging_steps": 1,
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
        "optim": "adamw_torch",
        **arguments,
    }
    return (kind or transformers.Trainer)(
        model=model(),
        args=transformers.TrainingArguments(**options),
        train_dataset=Rows(lengths),
        data_collator=collate,
        callbacks=list(callbacks),
    )


def footprint(tmp_path: Path, **arguments: Any) -> willfit.Footprint:
    """What the callback predicts, by the refusal of a card on which nothing fits."""
    callback = WillfitCallback(on="T4", capacity="1 MiB", advise=False)
    with pytest.raises(WillNotFit) as refused:
        trainer(tmp_path, callback, **arguments).train()
    return refused.value.footprint


# torch.cuda.max_memory_allocated() and max_memory_reserved() after three steps of `trainer` on an emulated T4,
# with PyTorch's CUDA build 2.13.0, transformers 5.23, accelerate 1.15 and bitsandbytes 0.50.
MEASURED: dict[str, tuple[dict[str, Any], int, int]] = {
    "fp16, clipped": ({"lengths": [256] * 32, "fp16": True, "max_grad_norm": 0.5}, 28_037_120, 33_554_432),
    "bf16, 8-bit": (
        {
            "lengths": [256] * 32,
            "bf16": True,
            "gradient_accumulation_steps": 4,
            "gradient_checkpointing": True,
            "optim": "adamw_8bit",
        },
        28_942_848,
        50_331_648,
    ),
    "not clipped": ({"lengths": [256] * 32, "max_grad_norm": 0.0, "optim": "adafactor"}, 29_259_776, 35_651_584),
}


@pytest.mark.parametrize("name", MEASURED)
def test_a_trainer_needs_what_it_needed_on_an_emulated_gpu(name: str, tmp_path: Path) -> None:
    if not torch.__version__.startswith("2.13.") or not transformers.__version__.startswith("5.23."):
        pytest.skip("measured with torch 2.13 and transformers 5.23")
    options, allocated, reserved = MEASURED[name]
    if options.get("optim") == "adamw_8bit":
        pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    found = footprint(tmp_path, **options)
    assert (found.peak_allocated, found.peak_reserved) == (allocated, reserved)


WATCHED = """
import sys, warnings
warnings.simplefilter("ignore")
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/.."]
import test_transformers
from test_transformers import WillfitCallback
from willfit._verify.watch import Watch
finish = Watch._finish
def finished(watch):
    finish(watch)
    if watch.verification is not None:
        print(watch.verification.verifier, watch.verification.agrees, len(watch.verification.phases))
Watch._finish = finished
test_transformers.trainer(
    sys.argv[2], WillfitCallback(verify="watch"), lengths=[256] * 64, use_cpu=False, bf16=True,
    gradient_accumulation_steps=2, max_steps=5,
).train()
import torch
print("hooks left:", len(torch.nn.modules.module._global_forward_pre_hooks))
"""


def test_it_watches_the_first_steps_on_a_gpu(tmp_path: Path) -> None:
    """An emulated one. Placement, then three steps of three phases; then training goes on unwatched."""
    said = machine.run_on_emulated_gpu("-c", WATCHED, str(Path(__file__).parent), str(tmp_path))
    assert "watch True 10" in said
    assert "hooks left: 0" in said


def test_a_loader_without_tensors_is_refused(tmp_path: Path) -> None:
    """As that of TRL's GRPOTrainer, which generates its batches from prompts."""
    job = trainer(tmp_path, WillfitCallback(on="T4"))
    job.data_collator = lambda rows: [{"prompt": "..."} for _ in rows]
    with pytest.raises(willfit.JobError, match="its loader gives no tensors"):
        job.train()


def test_it_refuses_before_the_first_step(tmp_path: Path) -> None:
    losses = Losses()
    job = trainer(tmp_path, WillfitCallback(on="T4", capacity="1 MiB", advise=False), losses)
    before = {name: parameter.clone() for name, parameter in job.model.named_parameters()}
    with pytest.raises(WillNotFit, match=r"Trainer.train\(\) was not run: it will not fit on T4\.") as refused:
        job.train()
    assert "Taken from the Trainer: LlamaForCausalLM, AdamW, the first batch" in str(refused.value)
    assert not losses.seen
    assert all(torch.equal(before[name], parameter) for name, parameter in job.model.named_parameters())


def test_training_goes_on_as_if_nobody_had_looked(tmp_path: Path) -> None:
    lengths = [3, 30, 5, 8, 13, 21, 2, 9] * 4
    alone, watched = Losses(), Losses()
    trainer(tmp_path, alone, lengths=lengths, gradient_accumulation_steps=2, bf16=True).train()
    callback = WillfitCallback(on="T4")
    trainer(tmp_path, callback, watched, lengths=lengths, gradient_accumulation_steps=2, bf16=True).train()
    assert alone.seen == watched.seen
    assert len(alone.seen) == 2


def test_the_longest_batch_decides(tmp_path: Path) -> None:
    """Of 2 x 64 logits of 500 in fp32, the loss keeps several; nothing else of the job depends on the length."""
    short = footprint(tmp_path, lengths=[16] * 32)
    mixed = footprint(tmp_path, lengths=[16] * 31 + [64])
    long = footprint(tmp_path, lengths=[64] * 32)
    assert short.peak_allocated < mixed.peak_allocated
    # the longest sample meets one of 16 tokens, which the collator pads
    assert mixed.peak_allocated == long.peak_allocated


def test_optimizer_states_are_those_of_the_argument(tmp_path: Path) -> None:
    parameters = sum(parameter.numel() for parameter in model().parameters())
    adam = footprint(tmp_path, optim="adamw_torch").bill["optimizer states"]
    sgd = footprint(tmp_path, optim="sgd").bill["optimizer states"]
    blocks = len(list(model().parameters())) * 2 * 512  # each state is rounded up
    assert 8 * parameters <= adam <= 8 * parameters + blocks
    assert sgd == 0


def test_micro_batches_beyond_the_first_take_their_inputs_alone(tmp_path: Path) -> None:
    """2 x 16 tokens of 8 B, input_ids and labels: 512 B for each tensor of each micro-batch."""
    one = footprint(tmp_path, gradient_accumulation_steps=1).bill["inputs"]
    four = footprint(tmp_path, gradient_accumulation_steps=4).bill["inputs"]
    assert (one, four) == (2 * 512, 4 * 2 * 512)


def test_checkpointing_and_mixed_precision_count(tmp_path: Path) -> None:
    long = {"lengths": [512] * 32, "optim": "sgd"}
    plain = footprint(tmp_path, **long)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        checkpointed = footprint(tmp_path, gradient_checkpointing=True, **long)
    assert checkpointed.peak_allocated < plain.peak_allocated
    assert footprint(tmp_path, bf16=True, **long).peak_allocated != plain.peak_allocated


def test_a_loss_of_a_trainer_of_your_own_is_run(tmp_path: Path) -> None:
    class Twice(transformers.Trainer):  # type: ignore[misc,name-defined]
        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            first = super().compute_loss(model, dict(inputs), *args, **kwargs)
            return first + super().compute_loss(model, inputs, *args, **kwargs)

    long: dict[str, Any] = {"lengths": [512] * 32, "optim": "sgd"}
    once, twice = footprint(tmp_path, **long), footprint(tmp_path, kind=Twice, **long)
    assert twice.peak_allocated > once.peak_allocated


def test_action_warn_trains_on(tmp_path: Path) -> None:
    losses = Losses()
    callback = WillfitCallback(on="T4", capacity="1 MiB", action="warn")
    with pytest.warns(WillfitWarning, match="will not fit on T4"):
        trainer(tmp_path, callback, losses).train()
    assert len(losses.seen) == 2


def test_the_environment_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WILLFIT", "off")
    trainer(tmp_path, WillfitCallback(on="T4", capacity="1 MiB")).train()


def test_without_a_gpu_one_must_be_named(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(willfit.UsageError, match="name one"):
        trainer(tmp_path, WillfitCallback()).train()


@pytest.mark.parametrize("options", [{"shapes": "short"}, {"action": "shout"}, {"on": "T5"}])
def test_wrong_options_are_refused_at_once(options: dict[str, Any]) -> None:
    with pytest.raises(willfit.UsageError):
        WillfitCallback(**options)


def test_it_is_for_a_trainer() -> None:
    with pytest.raises(willfit.UsageError, match=r"for a transformers\.Trainer"):
        WillfitCallback(on="T4").on_train_begin(None, None, None)


def test_nothing_of_it_stays(tmp_path: Path) -> None:
    from accelerate.state import AcceleratorState

    job = trainer(tmp_path, WillfitCallback(on="T4"), bf16=True)
    job.train()
    assert AcceleratorState().device == torch.device("cpu")
    assert job.accelerator.device == torch.device("cpu")
    del job
    gc.collect()
