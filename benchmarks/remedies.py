"""Every change that advice tries, predicted and run: ``python benchmarks/remedies.py [JOB ...]``.

Each changed job is predicted, and run by PyTorch's own CUDA code on an emulated GPU, with peft and bitsandbytes as they
are: the same changed copy goes to both. Results are appended to remedies-VERSION.jsonl; docs/advice.md quotes them.
``--summary`` prints the table of what is there. ``WILLFIT_CUDA_PYTHON`` names a Python with a CUDA build of PyTorch.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

# The emulated GPU has neither cuDNN's attention nor its newer interface: the prediction does without them too.
os.environ |= {"TORCH_CUDNN_SDPA_DEPRIORITIZED": "1", "TORCH_CUDNN_V8_API_DISABLED": "1"}

import torch

from willfit._changing import Job
from willfit._devices import find_device
from willfit._footprint import Footprint
from willfit._trials import Trials, proposals

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "examples")]

from training_steps import CASES  # noqa: E402

STEPS = 2


def llama() -> Job:
    from finetune_llama import build

    return Job(*build())


def of_case(name: str) -> Callable[[], Job]:
    def build() -> Job:
        case = CASES[name]
        with torch.device("meta"):
            model = case.model()
        return Job(model, case.optimizer(model), case.batch(), case.step)

    return build


def small(attention: str = "eager") -> Job:
    """A causal language model without a step of its own, so that steps can be written anew."""
    import transformers

    config = transformers.LlamaConfig(
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=4,
        num_attention_heads=12,
        num_key_value_heads=4,
        vocab_size=32000,
        use_cache=False,
        attn_implementation=attention,
    )
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    ids = torch.zeros(4, 512, dtype=torch.long)
    return Job(model, torch.optim.AdamW(model.parameters(), lr=1e-4), {"input_ids": ids, "labels": ids.clone()})


def gpt2() -> Job:
    """Under autocast, and without a step of its own."""
    import transformers

    with torch.device("meta"):
        model: Any = transformers.GPT2LMHeadModel(transformers.GPT2Config(use_cache=False))
    model.forward = torch.autocast("cuda", dtype=torch.bfloat16)(model.forward)
    ids = torch.zeros(8, 512, dtype=torch.long)
    return Job(model, torch.optim.AdamW(model.parameters()), {"input_ids": ids, "labels": ids.clone()})


JOBS: dict[str, tuple[str, Callable[[], Job]]] = {
    "llama-3-8b on a T4": ("T4", llama),
    "llama-3-8b on 24 GB": ("RTX4090", llama),
    "gpt2, autocast to bf16": ("RTX3090", gpt2),
    "ViT-base, autocast to bf16": ("L4", of_case("vit-base-amp-bf16")),
    "small llama, eager, fp32": ("L4", small),
    "BERT-base, fp16 with a scaler": ("T4", of_case("bert-base-amp-fp16")),
    "ResNet-50, fp32": ("T4", of_case("resnet50-fp32-momentum")),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="JOB")
    parser.add_argument("--change", action="append", default=[], help="this one alone, such as lora; may be repeated")
    parser.add_argument("--summary", action="store_true")
    options = parser.parse_args()
    file = HERE / f"remedies-{torch.__version__.partition('+')[0]}.jsonl"
    if not options.summary:
        for name in options.names or JOBS:
            for row in compared(name, options.change):
                with file.open("a") as out:
                    print(json.dumps(row), file=out)
                print(*row.values(), flush=True)
    summary([json.loads(line) for line in file.read_text().splitlines()])


def compared(name: str, only: list[str]) -> Any:
    gpu, build = JOBS[name]
    job, device = build(), find_device(gpu)
    trials = {engine: Trials(job, device, STEPS, engine) for engine in ("symbolic", "emulated")}
    before = trials["symbolic"].footprint((), STEPS)
    proposed, reasons = proposals(job, device, lambda: before)
    for remedy, reason in reasons:
        print(f"{name}: {remedy}: {reason}", flush=True)
    for changes in proposed.values():
        for change in changes:
            if only and change.name not in only:
                continue
            found = {engine: each.attempt([change], STEPS) for engine, each in trials.items()}
            row: dict[str, Any] = {"job": name, "gpu": gpu, "change": change.name}
            for engine, result in found.items():
                row[engine] = result if isinstance(result, str) else figures(result)
            yield row


def figures(footprint: Footprint) -> list[int]:
    return [footprint.peak_allocated, footprint.peak_reserved]


def summary(rows: list[dict[str, Any]]) -> None:
    print("| job | GPU | changes | equal to the byte | worst, allocated | worst, reserved |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name in dict.fromkeys(row["job"] for row in rows):
        of_job = {row["change"]: row for row in rows if row["job"] == name}
        both = [row for row in of_job.values() if not {type(row["symbolic"]), type(row["emulated"])} & {str}]
        errors = [[p / m - 1 for p, m in zip(row["symbolic"], row["emulated"], strict=True)] for row in both]
        worst = [max((error[i] for error in errors), key=abs) for i in (0, 1)]
        equal = sum(row["symbolic"] == row["emulated"] for row in both)
        for row in of_job.values():
            if row not in both:
                print(f"not compared: {row}", file=sys.stderr)
        gpu = next(iter(of_job.values()))["gpu"]
        print(f"| {name} | {gpu} | {len(both)} | {equal} | {worst[0]:+.3%} | {worst[1]:+.3%} |")


if __name__ == "__main__":
    main()
