"""The clock that goes on while the machine sleeps."""

from __future__ import annotations

import sys
import time

__all__ = ["with_suspend"]


def with_suspend() -> float:
    """Monotonic seconds that include the time the machine was suspended.

    A gateway goes on counting while this machine sleeps. Linux's and Apple's ``time.monotonic()``
    stand still meanwhile; elsewhere it does count.
    """
    if sys.platform == "linux":
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    if sys.platform == "darwin":
        return time.clock_gettime(time.CLOCK_MONOTONIC)
    return time.monotonic()
