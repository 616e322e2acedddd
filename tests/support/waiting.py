"""Waiting for what another thread brings about."""

from __future__ import annotations

import time
from typing import Callable, TypeVar

__all__ = ["eventually"]

T = TypeVar("T")


def eventually(look: Callable[[], T], timeout: float = 60.0) -> T:
    """What ``look`` returns as soon as that is true; ``AssertionError`` after ``timeout``."""
    deadline = time.monotonic() + timeout
    while True:
        seen = look()
        if seen:
            return seen
        assert time.monotonic() < deadline, f"still {seen!r} after {timeout:g} seconds"
        time.sleep(0.005)
