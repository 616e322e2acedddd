"""What came and is not answered yet, for those who wait until it is."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from revconn.runtime.origin import Origin
from revconn.runtime.threads import Condition

__all__ = ["Unanswered"]


class Unanswered:
    """What origins brought, from its arrival until its answers are with them.

    A request that is settled stays for another moment: whoever parts from its origin when nothing
    is in flight would be there before its answer.

    ``_lock`` guards all state; ``_fewer`` is its condition. Thread-safe; nothing else is called
    under it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._fewer = Condition(self._lock)
        self._loads: dict[object, tuple[Origin, float]] = {}

    @contextmanager
    def taking_in(self, origin: Origin) -> Iterator[float]:
        """While inside, ``origin`` has brought something that is unanswered; when that was."""
        arrived = time.monotonic()
        delivery = object()
        self.add(origin, arrived, (delivery,))
        try:
            yield arrived
        finally:
            self.discard(delivery)

    def add(self, origin: Origin, arrived: float, loads: Iterable[object]) -> None:
        """``origin`` brought them then (monotonic)."""
        with self._lock:
            self._loads.update(dict.fromkeys(loads, (origin, arrived)))

    def discard(self, load: object) -> None:
        """It is answered, or need not be; maybe it was discarded before."""
        with self._lock:
            self._loads.pop(load, None)
            self._fewer.notify_all()

    def clear(self) -> None:
        """Nothing will be answered any more."""
        with self._lock:
            self._loads.clear()
            self._fewer.notify_all()

    def forsake(self) -> None:
        """In a forked child: forget all. Takes no lock: its owner may be gone."""
        self._loads.clear()

    def wait_idle(self, timeout: float) -> bool:
        """Wait, at most ``timeout`` seconds, until nothing is unanswered."""
        with self._lock:
            return self._fewer.wait_for(lambda: not self._loads, timeout)

    def wait_answered(self, origin: Origin, timeout: float, came_by: float = math.inf) -> bool:
        """Wait, at most ``timeout`` seconds, until all is answered that ``origin`` brought by then.

        ``came_by`` is monotonic. What came later may be unanswered.
        """

        def is_awaited(load: tuple[Origin, float]) -> bool:
            return load[0] is origin and load[1] <= came_by

        with self._lock:
            return self._fewer.wait_for(
                lambda: not any(map(is_awaited, self._loads.values())), timeout
            )
