"""What the training step of train.py may take, as tests that need no GPU.

pytest examples/pytest
"""

from __future__ import annotations

import pytest
from train import build, step

from willfit.pytest_plugin import WillfitFixture


@pytest.mark.willfit(on="T4")
def test_training_fits(willfit: WillfitFixture) -> None:
    willfit.check(*build(), step)


@pytest.mark.willfit(on="A100-40GB", baseline=True)
def test_memory_is_what_it_was(willfit: WillfitFixture) -> None:
    willfit.check(*build(), step)
