"""What every test of the benchmarks gets."""

from __future__ import annotations

import pytest

from tests.interop.building import environment_of_go


@pytest.fixture(autouse=True)
def quickly_built(monkeypatch: pytest.MonkeyPatch) -> None:
    """The Go programs as the interop tests have them: here they only have to run."""
    for name, value in environment_of_go().items():
        monkeypatch.setenv(name, value)
