"""The truth for scripts: the same script, alone on the emulated GPU with nothing but a count of its optimizers' steps.

python tests/alone.py writes tests/data/scripts_emulator.json for the PyTorch that WILLFIT_CUDA_PYTHON names.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

from machine import interpreter, run_on_emulated_gpu

SCRIPTS = Path(__file__).parent / "scripts"
RECORDED = Path(__file__).parent / "data" / "scripts_emulator.json"
# Those whose way depends on no value that is read from the GPU, which all are 0 there.
COMMANDS = ("nanogpt.py input.txt --n_layer=2", "gan.py --ngf=16 --ndf=16", "sentiment.py")

COUNT = """
import os, runpy, sys
from collections import Counter
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

steps, made, make = Counter(), [], torch.optim.Optimizer.__init__
iterate = torch.utils.data.DataLoader.__iter__


def init(self, *args, **kwargs):
    make(self, *args, **kwargs)
    made.append(self)


def stepped(optimizer, *_):
    steps[id(optimizer)] += 1
    if all(steps[id(each)] >= 2 for each in made):
        print("peaks", torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved(), flush=True)
        os._exit(0)


def without_workers(self):
    self.num_workers = 0
    return iterate(self)


torch.optim.Optimizer.__init__ = init
torch.utils.data.DataLoader.__iter__ = without_workers
register_optimizer_step_post_hook(stepped)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def lay_out(folder: Path) -> None:
    """The scripts, and the text that one of them reads."""
    for script in SCRIPTS.glob("*.py"):
        shutil.copy(script, folder)
    (folder / "input.txt").write_text((SCRIPTS / "nanogpt.py").read_text() * 2)


def measured(where: Path, *arguments: str) -> tuple[int, int]:
    """Peaks of what was allocated and reserved, in bytes. The working directory is ``where``."""
    (where / "count.py").write_text(COUNT)
    said = run_on_emulated_gpu("count.py", *arguments)
    allocated, reserved = next(line for line in said.splitlines() if line.startswith("peaks")).split()[1:]
    return int(allocated), int(reserved)


if __name__ == "__main__":
    recorded = json.loads(RECORDED.read_text()) if RECORDED.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        lay_out(Path(folder))
        os.chdir(folder)
        version = interpreter().torch.partition("+")[0]
        recorded[version] = {command: measured(Path(folder), *command.split()) for command in COMMANDS}
    RECORDED.write_text(json.dumps(recorded, indent=1, sort_keys=True) + "\n")
