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
_FEW_CALLS = 1_000  # a pause of some milliseconds is noticed by few
_LONGEST_WAIT = 60.0  # seconds that garbage may stay, however many calls there are
_REST = 50  # times as long as a look took, until the next
_NEVER = 1_000_000_000


class GarbageWatch:
    """Decides when to look. One thread's.

    :param count_calls: how many calls are under way.
    """

    def __init__(self, count_calls: Callable[[], int]) -> None:
        self._count_calls = count_calls
        # So many looks through the younger objects are a reason for Python to look through all.
        self._thresholds = youngest, young, self._enough = gc.get_threshold()
        if self._enough:  # else this Python does it in small steps
            gc.set_threshold(youngest, young, _NEVER)
        self._looked_at, self._took = time.monotonic(), 0.0

    @classmethod
    def start(cls, count_calls: Callable[[], int]) -> None:
        """Have a thread of its own do that until the process ends."""
        watch = cls(count_calls)

        def run() -> None:
            while watch._enough:
                time.sleep(_INTERVAL)
                watch.tick()

        guarded_thread("revconn-gateway-garbage", run, watch.give_up).start()

    def give_up(self, error: BaseException) -> None:
        """Have Python look by itself again."""
        gc.set_threshold(*self._thresholds)

    def tick(self) -> bool:
        """Look, if there is something to look for and this is the moment; whether it was."""
        now = time.monotonic()
        if gc.get_count()[2] < self._enough or now - self._looked_at < _REST * self._took:
            return False
        if self._count_calls() > _FEW_CALLS and now - self._looked_at < _LONGEST_WAIT:
            return False
        gc.collect()
        self._looked_at = time.monotonic()
        self._took = self._looked_at - now
        return True
