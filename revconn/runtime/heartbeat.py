"""The timer thread of one session: the handshake's deadline, then heartbeats."""

from __future__ import annotations

import threading
from typing import Callable, Protocol

from revconn import clock as clocks

__all__ = ["Beating", "HeartbeatTimer"]

_SHORTEST_PAUSE = 0.01  # between two looks, however short a peer's silence may be


class Beating(Protocol):
    """What the timer keeps alive. Each is called from the timer's thread and must not block."""

    def handshake_overdue(self) -> None:
        """The handshake did not end in time."""

    def beat(self) -> None:
        """A heartbeat is due."""

    def check_liveness(self) -> float | None:
        """Look whether this machine or its peer was silent for too long.

        By when to look again (on the timer's clock), if that may not wait for the next regular
        look.
        """


class HeartbeatTimer:
    """Beats at ``interval`` on a monotonic schedule; a late beat does not shift the next one.

    The time that the machine sleeps counts: a beat that it missed leaves as soon as it wakes.

    Between beats it looks every ``check_interval`` seconds whether the machine was asleep.
    ``clock`` and ``wait`` (which waits so many seconds and says whether to stop) are replaced by
    tests. Owned by one thread; :meth:`established` and :meth:`stop` may be called from any.
    """

    def __init__(
        self,
        session: Beating,
        *,
        handshake_timeout: float,
        interval: float,
        check_interval: float,
        clock: Callable[[], float] | None = None,
        wait: Callable[[float], bool] | None = None,
    ) -> None:
        self._session = session
        self._handshake_timeout = handshake_timeout
        self._interval = interval
        self._check_interval = check_interval
        self._clock = clock or clocks.with_suspend
        self._settled = threading.Event()
        self._stopped = threading.Event()
        self._wait = wait or self._stopped.wait

    def established(self, interval: float) -> None:
        """The handshake is done: start to beat, every ``interval`` seconds if that is sooner."""
        self._interval = min(self._interval, interval)
        self._check_interval = min(self._check_interval, interval)
        self._settled.set()

    def stop(self) -> None:
        """Wake the thread and let it end. Idempotent."""
        self._stopped.set()
        self._settled.set()

    def run(self) -> None:
        """The thread's body."""
        if not self._settled.wait(self._handshake_timeout):
            self._session.handshake_overdue()
            return
        next_beat = self._clock() + self._interval
        look_by = self._session.check_liveness()
        while not self._wait(self._pause(next_beat, look_by)):
            look_by = self._session.check_liveness()
            now = self._clock()
            if now >= next_beat:
                self._session.beat()
                missed = (now - next_beat) // self._interval
                next_beat += (missed + 1) * self._interval

    def _pause(self, next_beat: float, look_by: float | None) -> float:
        now = self._clock()
        pause = min(self._check_interval, next_beat - now)
        if look_by is not None:
            pause = min(pause, max(_SHORTEST_PAUSE, look_by - now))
        return max(0.0, pause)
