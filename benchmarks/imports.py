"""What importing willfit and its pytest plugin adds to a run of pytest, in milliseconds.

Run by hand: python benchmarks/imports.py [RUNS]
"""

from __future__ import annotations

import statistics
import subprocess
import sys

CHILD = """
import time
start = time.perf_counter()
import pytest
middle = time.perf_counter()
import willfit, willfit.pytest_plugin
end = time.perf_counter()
print(middle - start, end - middle)
"""


def measure(runs: int) -> tuple[list[float], list[float]]:
    """Milliseconds for importing pytest, and for willfit after it, each run in a process of its own."""
    own, added = [], []
    for _ in range(runs + 1):
        out = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, check=True).stdout
        pytest_took, willfit_took = map(float, out.split())
        own.append(1000 * pytest_took)
        added.append(1000 * willfit_took)
    return own[1:], added[1:]  # the first may have had to compile


if __name__ == "__main__":
    own, added = measure(int(sys.argv[1]) if len(sys.argv) > 1 else 20)
    print(f"import pytest                           {statistics.median(own):6.1f} ms")
    print(
        f"import willfit, willfit.pytest_plugin   {statistics.median(added):6.1f} ms more   (at best {min(added):.1f})"
    )
