"""Record what PyTorch's own CUDA code allocates for the samples: ``PYTHONHASHSEED=0 python record.py FILE``.

On a GPU, or with a stand-in for the CUDA driver. An operator that brings the process down is left out when the same
command is given again: the file knows where it stopped.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from samples import moved, operators, run, samples, text


def recorded(entry, sample) -> str:
    arguments = moved(sample, lambda t: t.detach().to("cuda").requires_grad_(t.requires_grad))
    torch.cuda.memory._record_memory_history(enabled=None)
    torch.cuda.memory._record_memory_history(context=None, max_entries=10**6)
    kept = run(entry, arguments)
    sizes, events = {}, []
    for step in torch.cuda.memory._snapshot()["device_traces"][0]:
        if step["action"] == "alloc":
            sizes[step["addr"]] = step["size"]
            events.append((True, step["size"]))
        elif step["action"] == "free_requested" and step["addr"] in sizes:
            events.append((False, sizes.pop(step["addr"])))
    del kept
    return text(events)


def main(path: Path) -> None:
    state = json.loads(path.read_text()) if path.exists() else {"torch": "", "running": "", "crashed": [], "calls": {}}
    state["torch"] = torch.__version__.partition("+")[0]
    if state["running"]:
        state["crashed"].append(state["running"])
    x = torch.empty(8, 8, device="cuda", requires_grad=True)  # the cuBLAS workspaces of both threads
    (x @ x).sum().backward()
    for name, entry in operators():
        if name in state["calls"] or name in state["crashed"]:
            continue
        state["running"] = name
        path.write_text(json.dumps(state))
        found = {}
        for key, sample in samples(entry):
            try:
                found[key] = recorded(entry, sample)
            except Exception:  # CUDA, or the stand-in, cannot run it
                continue
        if found:
            state["calls"][name] = found
    state["running"] = ""
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(calls)}" for name, calls in state["calls"].items())
    path.write_text(f'{{"torch": "{state["torch"]}", "running": "", "crashed": [], "calls": {{\n{lines}\n}}}}\n')


if __name__ == "__main__":
    main(Path(sys.argv[1]))
