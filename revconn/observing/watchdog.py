"""What is stuck while the connection is fine, told apart: a handler, the pool, the gateway, Python.

Each kind is one warning, and while it lasts others at growing intervals. All of it belongs to one
thread, which looks again and again; times are ``time.monotonic()``'s.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Callable

from revconn.logger import Reminder, Reminders, get_logger
from revconn.runtime.threads import guarded_thread
from revconn.serving.handlers import Run, Runs, handler_stack
from revconn.serving.workers import Backlog

__all__ = ["FullPool", "SlowHandlers", "SlowReader", "Watchdog"]

logger = get_logger(__name__)

# Seconds, from which on each is worth a line.
_LATENESS = 1.0  # of the watchdog itself: the interpreter was held
_WAIT_FOR_WORKER = 1.0
_WAIT_FOR_READER = 5.0
_METHODS = 100  # whose reminders are kept: a gateway can make up names of methods


class Watchdog:
    """Looks every ``interval`` seconds, in a thread of its own, whatever the links are doing.

    When it wakes late, everything else in the process did not run either: who kept it from
    running can only be told afterwards.

    All state belongs to the thread.

    :param looks: each called with the instant; they log what they find.
    :param is_idle: whether none of them can find anything. Then they are called once more, and
        again when it is false; until that ``rests`` are called in their place.
    :param wait: waits so many seconds, or until whoever made the watchdog ends: true is the end.
    :param clock: replaced by tests.
    """

    def __init__(
        self,
        runs: Runs,
        looks: Iterable[Callable[[float], None]],
        *,
        interval: float,
        wait: Callable[[float], bool],
        is_idle: Callable[[], bool] = lambda: False,
        rests: Iterable[Callable[[float], None]] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._runs = runs
        self._looks = tuple((look, Reminder()) for look in looks)
        self._interval = interval
        self._clock = clock
        self._wait = wait
        self._is_idle = is_idle
        # A flag beside the wait: in a forked child the lock of an event may be held for ever, so
        # nothing is set there. A green thread, which the child has too, sees it when it wakes.
        self._forsaken = False
        self._reminder = Reminder()
        self._rests = (self._reminder.rest, *rests)
        self._thread = guarded_thread("revconn-watchdog", self.run)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def forsake(self) -> None:
        """In a forked child: look no more. Takes no lock: its owner may be gone."""
        self._forsaken = True

    def run(self) -> None:
        """The thread's body."""
        was_idle = idle = False
        while True:
            due = self._clock() + self._interval
            if self._wait(self._interval) or self._forsaken:
                return
            now = self._clock()
            was_idle = idle
            try:
                idle = self._is_idle()
            except BaseException:  # noqa: BLE001 - no memory, say: then they look
                idle = False
            # A connector that has nothing to do should cost next to nothing.
            if was_idle and idle and now - due < _LATENESS:
                for rest in self._rests:
                    rest(now)
                continue
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
            # Afterwards only: while the interpreter was held, nothing here could look.
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


class SlowHandlers:
    """Names handlers that have run for more than ``after`` seconds: each run once, with its stack.

    Many slow runs of one method are not worth a line each.
    """

    def __init__(self, runs: Runs, after: float) -> None:
        self._runs = runs
        self._after = after
        self._named: dict[int, Run] = {}
        self._reminders = Reminders(_METHODS)

    def look(self, now: float) -> None:
        """Name those that became slow since the last look."""
        # A copy: handlers' threads begin and end their runs meanwhile, without a lock.
        running = self._runs.now()
        self._named = {
            thread: run for thread, run in self._named.items() if running.get(thread) == run
        }
        slow: dict[str, dict[int, Run]] = {}
        for thread, run in running.items():
            if run.request._is_streaming:  # it may wait for its caller as long as that likes
                continue
            if now - run.since > self._after and thread not in self._named:
                self._named[thread] = run
                slow.setdefault(run.request.method, {})[thread] = run
        # A line for each method, about the run that has lasted longest: a database that hangs holds
        # up every worker there is, and one stack tells as much as sixteen.
        for method, runs in slow.items():
            if self._reminders.count(method, now):
                self._name(runs, now)

    def _name(self, runs: dict[int, Run], now: float) -> None:
        thread = min(runs, key=lambda thread: runs[thread].since)
        run = runs[thread]
        stack = handler_stack(thread)
        # Looked at again after the stack was taken: the run may have ended just before, and what
        # the thread is doing then be another request's.
        if self._runs.now().get(thread) != run:
            stack = None
        logger.warning_with_stack(
            stack,
            "slow handler: %r has been in its handler for %.1f s%s",
            run.request,
            now - run.since,
            f" (and {len(runs) - 1} others of this method)" if len(runs) > 1 else "",
        )


class FullPool:
    """Tells that requests wait because every worker is busy.

    ``backlog`` says what waits for a worker at an instant; ``None``: nothing does.
    """

    def __init__(self, backlog: Callable[[float], Backlog | None]) -> None:
        self._backlog = backlog
        self._reminder = Reminder()
        self.rest = self._reminder.rest

    def look(self, now: float) -> None:
        """See how long requests have waited."""
        backlog = self._backlog(now)
        # By how long the first of them has waited and not by their number: a burst is no trouble.
        if backlog is None or backlog.longest < _WAIT_FOR_WORKER:
            self._reminder.rest(now)
        elif self._reminder.is_due(now):
            missing = f", and the executor has no thread for {backlog.wanted} more"
            logger.warning(
                "pool full: %d requests wait for a worker, the first for %.1f s; all %d workers"
                " are busy%s",
                backlog.waiting,
                backlog.longest,
                backlog.workers,
                missing if backlog.wanted else "",
            )


class SlowReader:
    """Tells that a gateway does not read: what was begun to be sent to it does not get away.

    ``unsent`` gives the streams with something to send, each by the name of its gateway and itself,
    with how many batches were begun.
    """

    def __init__(self, unsent: Callable[[], dict[tuple[str, object], int]]) -> None:
        self._unsent = unsent
        self._begun: dict[tuple[str, object], tuple[int, float]] = {}
        self._reminder = Reminder()
        self.rest = self._reminder.rest

    def look(self, now: float) -> None:
        """See whether there was any progress since the last look."""
        # By batches that were begun, not by bytes: however little a gateway takes at a time, once a
        # batch has left the next one begins. A stream with nothing to send is not listed at all.
        begun = {}
        stuck_since, name = now, ""
        for stream, batches in self._unsent().items():
            before = self._begun.get(stream)
            begun[stream] = before if before and before[0] == batches else (batches, now)
            if begun[stream][1] < stuck_since:
                stuck_since, name = begun[stream][1], stream[0]
        self._begun = begun
        if now - stuck_since < _WAIT_FOR_READER:
            self._reminder.rest(now)
        elif self._reminder.is_due(now):
            logger.warning(
                "gateway not reading: %s has taken nothing of what is sent for %.0f s",
                name,
                now - stuck_since,
            )
