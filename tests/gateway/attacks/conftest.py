"""The gateways that are attacked; each serves the attacks of one file, one after another."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.gateway.attacks.scene import Scene


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    """A gateway with the limits of names.py."""
    with Scene() as scene:
        yield scene
