"""Waiting for what another thread brings about."""

from __future__ import annotations

import time
from typing import Callable, TypeVar

__all__ = ["eventually"]

T = TypeVar("T")


def eventually(look: Callable[[], T], timeout: float = 60.0) -> T:
    """What ``look`` returns as soon as that is true; ``AssertionError`` after ``timeout``."""
    began = time.monotonic()
    while True:
        seen = look()
        if seen:
            return seen
        waited = time.monotonic() - began
        assert waited < timeout, f"still {seen!r} after {timeout:g} seconds"
        # A look costs CPU time, which whoever is waited for may need.
        time.sleep(min(0.002 + waited / 20, 0.05))
