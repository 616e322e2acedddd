"""When a process that serves a gateway, and does nothing else, has Python look for garbage.

Python looks through all objects now and then, for those that hold each other and are free. Once
tens of thousands of calls are under way that takes 0.1 s, in which no call moves. A process of the
gateway's own looks while few calls are; an application with a gateway in it is left as it is.
"""

from __future__ import annotations

import gc
import time
from typing import Callable

from revconn.runtime.threads import guarded_thread

__all__ = ["GarbageWatch"]

_INTERVAL = 2.0  # seconds
_FEW_CALLS = 1_000  # take Python a few milliseconds to look through
_LONGEST_WAIT = 60.0  # seconds that garbage may stay, however many calls there are
_NEVER = 1_000_000_000


class GarbageWatch:
    """Decides when to look. One thread's.

    :param count_calls: how many calls are under way.
    """

    def __init__(self, count_calls: Callable[[], int], now: float) -> None:
        self._count_calls = count_calls
        # Python would look once it has looked through the younger objects so many times.
        youngest, young, self._enough = gc.get_threshold()
        gc.set_threshold(youngest, young, _NEVER)
        self._looked_at = now

    @classmethod
    def start(cls, count_calls: Callable[[], int]) -> None:
        """Have a thread of its own do that until the process ends."""
        watch = cls(count_calls, time.monotonic())

        def run() -> None:
            while True:
                time.sleep(_INTERVAL)
                watch.tick(time.monotonic())

        guarded_thread("revconn-gateway-garbage", run).start()

    def tick(self, now: float) -> bool:
        """Look, if there is something to look for and this is the moment; whether it was."""
        if gc.get_count()[2] < self._enough:
            return False
        if self._count_calls() > _FEW_CALLS and now - self._looked_at < _LONGEST_WAIT:
            return False
        gc.collect()
        self._looked_at = now
        return True
