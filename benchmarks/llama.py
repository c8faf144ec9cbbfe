"""How long Llama-3-8B takes: ``python benchmarks/llama.py``. Prints seconds of CPU, and the process's peak RSS.

Also what a step costs for each operator, how the time grows with the number of operators, and by the clock, as several
processes share the work, how long full advice and the largest batch take.
"""

from __future__ import annotations

import os
import resource
import time
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import willfit
from willfit._replay import replay


def llama(layers: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=layers,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=128256,
        use_cache=False,
    )
    with torch.device("meta"):
        return LlamaForCausalLM(config).to(torch.bfloat16)


def job(layers: int) -> tuple[Any, Any, Any]:
    model, ids = llama(layers), torch.zeros(1, 512, dtype=torch.long)
    return model, torch.optim.AdamW(model.parameters()), {"input_ids": ids, "labels": ids}


def seconds(layers: int, steps: int = 3) -> tuple[float, willfit.Footprint]:
    parts = job(layers)
    start = time.process_time()
    footprint = willfit.predict(*parts, on="T4", steps=steps)
    return time.process_time() - start, footprint


def main() -> None:
    os.environ["WILLFIT_REUSE"] = "off"
    first, footprint = seconds(32)
    again, _ = seconds(32)
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    trace = footprint._trace
    print(f"Llama-3-8B, 3 steps: {first:.2f} s the first time, {again:.2f} s again; peak RSS {rss:.2f} GiB")
    print(f"{len(trace.events)} events, {again / len(trace.events) * 1e6:.0f} us for each")
    start = time.process_time()
    rounds = 20
    for _ in range(rounds):
        replay(trace)
    took = time.process_time() - start
    print(f"replay: {rounds * len(trace.events) / took:,.0f} events a second")
    small, small_trace = min(seconds(3), seconds(3), key=lambda pair: pair[0])
    large, large_trace = min(seconds(30), seconds(30), key=lambda pair: pair[0])
    operators = len(large_trace._trace.events) / len(small_trace._trace.events)
    print(f"{operators:.1f} times the events take {large / small:.1f} times as long")
    for question, on in ((willfit.advise, "T4"), (willfit.largest_batch, "A100-80GB")):
        parts = job(32)
        elapsed = time.perf_counter()
        question(*parts, on=on)
        print(f"{question.__name__} on {on}: {time.perf_counter() - elapsed:.1f} s")


if __name__ == "__main__":
    main()
