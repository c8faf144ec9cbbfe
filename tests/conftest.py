from __future__ import annotations

import pytest

pytest_plugins = "pytester"

# For doctests pytest would import these, and with them torch.testing's operator database, which freezes the flags of
# torch.backends for the whole process. The conformance test runs them in a process of their own.
collect_ignore = ["conformance/samples.py", "conformance/compare.py", "conformance/record.py"]
# Training scripts, which train when they are imported.
collect_ignore_glob = ["scripts/*"]


@pytest.fixture(autouse=True)
def predicted_anew_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that predicts twice means to see two predictions."""
    monkeypatch.setenv("WILLFIT_REUSE", "off")
