from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def tests_of_tests_in_their_order(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "pytester" in request.fixturenames:
        request.getfixturevalue("pytester")  # drops the variable
        monkeypatch.setenv("PYTEST_ADDOPTS", "-p no:randomly")
