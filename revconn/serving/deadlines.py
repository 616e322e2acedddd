"""The thread that answers calls whose deadline passes while they wait or run."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable
from typing import Callable

from revconn.messages import Request
from revconn.runtime import clock
from revconn.runtime.threads import guarded_thread

__all__ = ["Deadlines"]

_LONGEST_WAIT = 5.0  # for the next deadline; by so much at most it is late after a suspend

_with_suspend = clock.with_suspend


class Deadlines:
    """Watches the deadlines of all that is ``in_flight``, and has ``expire`` called at each.

    The lock of ``sooner``, the table's, guards all state. It is held when ``in_flight`` is called,
    which gives ``None`` when the table was closed: the thread ends then, once ``sooner`` is
    notified. ``expire`` is called without it, and ``forget_settled`` after some have expired.
    ``next_due`` is when to look (:func:`~revconn.runtime.clock.with_suspend`).
    """

    def __init__(
        self,
        sooner: threading.Condition,
        in_flight: Callable[[], Iterable[Request] | None],
        expire: Callable[[Request], object],
        forget_settled: Callable[[], object],
        on_failure: Callable[[BaseException], object],
    ) -> None:
        self._sooner = sooner
        self._in_flight = in_flight
        self._expire = expire
        self._forget_settled = forget_settled
        self.next_due = math.inf
        self._thread = guarded_thread("revconn-deadlines", self._watch, on_failure)

    def start(self) -> None:
        """Start the thread. Raises :class:`RuntimeError` when there is none to be had."""
        self._thread.start()

    def expect(self, due: float) -> None:
        """A deadline comes before ``next_due``. Requires holding the lock."""
        self.next_due = due
        self._sooner.notify_all()  # raises without the lock

    def _watch(self) -> None:
        while True:
            with self._sooner:
                in_flight = self._in_flight()
                if in_flight is None:
                    return
                expired = self._take_stock(in_flight, _with_suspend())
                if not expired:
                    self._sooner.wait(self._until_due())
                    continue
            for request in expired:
                self._expire(request)
            self._forget_settled()

    def _take_stock(self, in_flight: Iterable[Request], now: float) -> list[Request]:
        """Who has expired; also finds the next instant to look. Requires holding the lock."""
        if self.next_due > now:
            return []
        # Looking through all that is in flight is cheap because it is rare: most requests are
        # settled long before their deadline, so the thread sleeps for about a deadline's length
        # between two looks, where a heap would cost each request a push and a pop.
        expired = []
        self.next_due = math.inf
        for request in in_flight:
            if request._due is None:
                continue
            if request._due <= now:
                expired.append(request)
            elif request._due < self.next_due:
                self.next_due = request._due
        return expired

    def _until_due(self) -> float | None:
        """Seconds to wait. Requires holding the lock."""
        if self.next_due == math.inf:
            return None
        # The clock of deadlines goes on while the machine sleeps, and a wait stands still: so it is
        # never a long one, or what expired meanwhile would be answered by as much too late.
        return min(max(0.0, self.next_due - _with_suspend()), _LONGEST_WAIT)
