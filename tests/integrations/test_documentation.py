"""Every example of docs/integrations.md, run as it stands."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "integrations.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_it_runs(number: int, tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    for name in ("transformers", "lightning", "trl", "peft"):
        if f"import {name}" in EXAMPLES[number] or f"from {name}" in EXAMPLES[number]:
            pytest.importorskip(name, reason=f"{name} is not installed")
    command = [sys.executable, "-c", EXAMPLES[number]]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr
