"""The thread that looks for what is stuck."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from typing import Callable

from revconn.core.reminders import Reminder
from revconn.guard import guarded_thread
from revconn.logger import get_logger
from revconn.runtime.runs import Runs

__all__ = ["Watchdog"]

logger = get_logger(__name__)

_LATENESS = 1.0


class Watchdog:
    """Looks every ``interval`` seconds, in a thread of its own, whatever the links are doing.

    When it wakes late, everything else in the process did not run either: who kept it from
    running can only be told afterwards.

    ``clock`` and ``wait`` (which waits so many seconds and says whether to stop) are replaced by
    tests. All state belongs to the thread.

    :param looks: each called with the instant, every time; they log what they find.
    """

    def __init__(
        self,
        runs: Runs,
        looks: Iterable[Callable[[float], None]],
        *,
        interval: float,
        clock: Callable[[], float] = time.monotonic,
        wait: Callable[[float], bool] | None = None,
    ) -> None:
        self._runs = runs
        self._looks = tuple((look, Reminder()) for look in looks)
        self._interval = interval
        self._clock = clock
        self._stopped = threading.Event()
        self._wait = wait or self._stopped.wait
        self._forsaken = False
        self._reminder = Reminder()
        self._thread = guarded_thread("revconn-watchdog", self.run)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Wake the thread and let it end. Idempotent; any thread."""
        self._stopped.set()

    def forsake(self) -> None:
        """In a forked child: look no more. Takes no lock: its owner may be gone."""
        self._forsaken = True

    def run(self) -> None:
        """The thread's body."""
        while True:
            due = self._clock() + self._interval
            if self._wait(self._interval) or self._forsaken:
                return
            now = self._clock()
            self._look_back(due, now)
            for look, reminder in self._looks:
                self._try(look, reminder, now)

    def _try(self, look: Callable[[float], None], reminder: Reminder, now: float) -> None:
        """One that fails leaves the others their turn, and says so now and then."""
        try:
            look(now)
        except BaseException:
            if reminder.is_due(now):
                logger.exception("looking for what is stuck failed")

    def _look_back(self, due: float, now: float) -> None:
        late = now - due
        if late < _LATENESS:
            self._reminder.rest(now)
        elif self._reminder.is_due(now):
            methods = sorted({request.method[:200] for request in self._runs.during(due, now)})
            if methods:
                suspects = f"while handlers ran of {', '.join(map(repr, methods))}"
            else:
                suspects = "and it was no handler"
            logger.warning(
                "interpreter held: nothing else ran for %.1f s, heartbeats neither, %s; C code"
                " that keeps the interpreter's lock does that (a regular expression, say), or a"
                " machine that gives the process no time",
                late,
                suspects,
            )
