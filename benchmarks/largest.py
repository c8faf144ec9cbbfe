"""The largest batch, against an emulated GPU: ``python benchmarks/largest.py``.

For each job the largest batch that fits is predicted; then PyTorch's own CUDA code runs that batch and the next one up
on an emulated GPU whose memory is limited to the card's: the first must get through, the second must run out of memory.
``WILLFIT_CUDA_PYTHON`` names a Python with a CUDA build of PyTorch.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

import willfit
from willfit._changing import Job, copied, with_batch_size
from willfit._emulator.engine import run_job

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from training_steps import CASES  # noqa: E402

GIB = 2**30
STEPS = 2
JOBS = {  # a case, and what the card's allocator may hold
    "mlp-fp32-sgd": GIB // 2,
    "encoder-amp-fp16-clip": GIB,
    "gpt2-fp32-adamw": 8 * GIB,
    "vit-base-amp-bf16": 6 * GIB,
    "bert-base-amp-fp16": 5 * GIB,
    "resnet50-fp32-momentum": 5 * GIB,
    "qwen2-lora-dropout-amp-bf16": 3 * GIB,
    "cnn-amp-fp16-channels-last": GIB,
    "unet-nearest-fp32": 2 * GIB,
    "t5-gated-amp-bf16": 3 * GIB,
    "gru-bidirectional-without-cudnn": GIB,
    "swin-amp-bf16": 2 * GIB,
}


def main() -> None:
    right = 0
    names = sys.argv[1:] or [name for name in JOBS if name in CASES]
    for name in names:
        case = CASES[name]
        device = replace(willfit.find_device(case.gpu), available=JOBS[name])
        with torch.device("meta"):
            model = case.model()
        job = Job(model, case.optimizer(model), case.batch(), case.step)
        start = time.perf_counter()
        found = willfit.largest_batch(model, job.optimizer, job.batch, job.step, on=device, steps=STEPS)
        took = time.perf_counter() - start
        fits, beyond = (runs(job, size, device) for size in (found.size, found.size + 1))
        right += fits and not beyond
        answers = f"{found.size} fits: {fits}, {found.size + 1} fits: {beyond}"
        print(f"{name:32} {answers}; {found.traces} traces, {took:.1f} s", flush=True)
    print(f"{right} of {len(names)} as on the emulated GPU")


def runs(job: Job, size: int, device: willfit.Device) -> bool:
    with copied(job) as copy:
        batch = with_batch_size(copy.batch, size)
        found = run_job(copy.model, copy.optimizer, batch, copy.step, None, device, STEPS, device.capacity)
    limited = found.limited if found.limited is not None else found.free
    return limited.out_of_memory is None


if __name__ == "__main__":
    main()
