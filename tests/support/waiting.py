"""Waiting for what another thread brings about."""

from __future__ import annotations

import time
from typing import Callable, TypeVar

__all__ = ["eventually", "stands_still"]

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


def stands_still(count: Callable[[], int]) -> None:
    """Wait until it has begun and does not grow any more."""
    eventually(count)
    unchanged, before = 0, -1
    while unchanged < 10:
        time.sleep(0.05)
        now = count()
        unchanged = unchanged + 1 if now == before else 0
        before = now
