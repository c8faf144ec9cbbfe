"""How long the guard takes before training begins, for a model of 1.2 billion parameters in bf16 on the CPU.

``python benchmarks/integrations.py trainer`` or ``accelerate``; nothing is trained. Needs Transformers and 3 GB. Prints
the time on the clock, and that of the processor, which says more on a machine that is busy with other things.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
import time
import warnings
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

import willfit
from willfit.integrations.transformers import WillfitCallback

BATCH, LENGTH, ACCUMULATED = 4, 1024, 4


def model() -> Any:
    config = LlamaConfig(  # the sizes of Llama 3.2 1B
        vocab_size=128_256,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        tie_word_embeddings=True,
        dtype=torch.bfloat16,
    )
    with torch.device("meta"):
        made = LlamaForCausalLM(config).to(torch.bfloat16)
    return made.to_empty(device="cpu")


def rows() -> list[dict[str, torch.Tensor]]:
    return [{"input_ids": (ids := torch.zeros(LENGTH, dtype=torch.int64)), "labels": ids} for _ in range(64)]


class ReadyError(Exception):
    """Training would begin."""


class Stop(TrainerCallback):  # type: ignore[misc]
    def on_train_begin(self, *_: Any, **__: Any) -> None:
        raise ReadyError


class Timed(WillfitCallback):
    seconds = 0.0, 0.0

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        start = clocks()
        super().on_train_begin(*args, **kwargs)
        self.seconds = since(start)


def clocks() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def since(start: tuple[float, float]) -> tuple[float, float]:
    now = clocks()
    return now[0] - start[0], now[1] - start[1]


def in_a_trainer() -> tuple[float, float]:
    timed = Timed(on="A100-80GB")
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=BATCH,
            gradient_accumulation_steps=ACCUMULATED,
            gradient_checkpointing=True,
            bf16=True,
            use_cpu=True,
            report_to=[],
        )
        trainer = Trainer(model=model(), args=arguments, train_dataset=rows(), callbacks=[timed, Stop()])
        with contextlib.suppress(ReadyError):
            trainer.train()
    return timed.seconds


def in_a_loop_of_accelerate() -> tuple[float, float]:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=ACCUMULATED, mixed_precision="bf16")
    made = model()
    optimizer = torch.optim.AdamW(made.parameters())
    loader = torch.utils.data.DataLoader(rows(), batch_size=BATCH)
    parts = accelerator.prepare(made, optimizer, loader)

    @willfit.guard(on="A100-80GB", accelerator=accelerator)
    def train(model: Any, optimizer: Any, loader: Any) -> None:
        return None

    start = clocks()
    train(*parts)
    return since(start)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    which = {"trainer": in_a_trainer, "accelerate": in_a_loop_of_accelerate}
    elapsed, busy = which[sys.argv[1]]()
    print(f"{sys.argv[1]}: {elapsed:.1f} s before training begins, {busy:.1f} s of the processor")
