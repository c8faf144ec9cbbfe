"""Which source lines are shown."""

from __future__ import annotations

import os

import pytest
import torch

from willfit._trace import following
from willfit._trace.following import shows_where


def test_lines_of_the_user_and_of_libraries_but_not_of_pytorch_and_python() -> None:
    assert shows_where("/home/me/train.py")
    assert shows_where("/venv/lib/python3.12/site-packages/transformers/trainer.py")
    assert not shows_where(os.path.join(os.path.dirname(torch.__file__), "nn", "modules", "linear.py"))
    assert not shows_where(os.__file__)


def test_nor_of_willfit_where_it_is_installed_among_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = "/venv/lib/python3.12/site-packages/willfit/"
    monkeypatch.setattr(following, "_NEVER_SHOWN", (installed,))
    assert not shows_where(f"{installed}_emulator/operators.py")
    assert shows_where("/venv/lib/python3.12/site-packages/willfit_models/net.py")
