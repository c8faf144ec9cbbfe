"""Measure cases with PyTorch's own allocator, on a GPU or under an emulator of one. Started by fidelity.py --record.

    python record.py MEASURE.py CASES.py NAME [NAME ...]

prints a JSON line for each case. The functions of MEASURE.py do the measuring, in a new process for each case.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import traceback
from pathlib import Path

os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # asking whether there is a GPU then leaves CUDA uninitialised
import torch
import transformers

transformers.logging.set_verbosity_error()


def main(measure_path: str, cases_path: str, names: list[str]) -> None:
    specification = importlib.util.spec_from_file_location("measure", measure_path)
    assert specification is not None
    assert specification.loader is not None
    measure = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(measure)
    cases = measure.cases(Path(cases_path))
    for name in names:
        sys.stdout.flush()
        if (child := os.fork()) == 0:
            try:
                found = measure.measure(cases[name])
            except torch.OutOfMemoryError as error:
                found = {"out_of_memory": str(error).split(". GPU")[0]}
            except Exception as error:
                traceback.print_exc()
                found = {"error": f"{type(error).__name__}: {error}"}
            print(json.dumps({"case": name, "gpu": cases[name].gpu, **found}), flush=True)
            os._exit(0)
        os.waitpid(child, 0)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
