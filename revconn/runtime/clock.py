"""The clock that goes on while the machine sleeps: deadlines and liveness are read from it.

A gateway goes on counting meanwhile. Linux's and Apple's ``time.monotonic()`` stand still, and so
does every wait with a timeout: whoever wakes has to look here.

A room of its own, small as it is, because it is a seam: the one place where a platform's clock is
chosen, and where tests put another one in.
"""

from __future__ import annotations

import functools
import sys
import time
from typing import Callable

__all__ = ["with_suspend"]


def _clock() -> Callable[[], float]:
    """The platform's, without a call in between: it is read several times for each request."""
    # On Linux CLOCK_BOOTTIME counts a suspend, where CLOCK_MONOTONIC does not. On Apple's systems
    # CLOCK_MONOTONIC does: Python's time.monotonic() reads another one there, which stands still.
    # On Windows time.monotonic() itself goes on.
    if sys.platform == "linux":
        return functools.partial(time.clock_gettime, time.CLOCK_BOOTTIME)
    if sys.platform == "darwin":
        return functools.partial(time.clock_gettime, time.CLOCK_MONOTONIC)
    return time.monotonic


with_suspend = _clock()
"""Monotonic seconds that include the time the machine was suspended."""
