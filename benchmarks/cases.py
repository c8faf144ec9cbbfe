"""The cases of the fidelity page, by name, where a script that measures them looks for them."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from training_steps import CASES

__all__ = ["CASES"]
