"""What may be stuck while the connection is fine, told apart: a handler, the pool, the gateway.

Each kind is one warning, and while it lasts others at growing intervals. Each class belongs to one
thread, which looks again and again; times are ``time.monotonic()``'s.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from revconn.core.reminders import Reminder, Reminders
from revconn.logger import get_logger
from revconn.runtime.runs import Run, Runs, handler_stack

__all__ = ["Backlog", "FullPool", "Pool", "Sender", "SlowHandlers", "SlowReader"]

logger = get_logger(__name__)

_WAIT_FOR_WORKER = 1.0
_WAIT_FOR_READER = 5.0
_METHODS = 100  # gateways make up names


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
        running = self._runs.now()
        self._named = {
            thread: run for thread, run in self._named.items() if running.get(thread) == run
        }
        slow: dict[str, dict[int, Run]] = {}
        for thread, run in running.items():
            if now - run.since > self._after and thread not in self._named:
                self._named[thread] = run
                slow.setdefault(run.request.method, {})[thread] = run
        for method, runs in slow.items():
            if self._reminders.count(method, now):
                self._name(runs, now)

    def _name(self, runs: dict[int, Run], now: float) -> None:
        thread = min(runs, key=lambda thread: runs[thread].since)
        run = runs[thread]
        stack = handler_stack(thread)
        if self._runs.now().get(thread) != run:
            stack = None  # it has just ended: that may be another's
        logger.warning_with_stack(
            stack,
            "slow handler: %r has been in its handler for %.1f s%s",
            run.request,
            now - run.since,
            f" (and {len(runs) - 1} others of this method)" if len(runs) > 1 else "",
        )


class Backlog(NamedTuple):
    """Requests that wait for a worker: how many, and how long the first has waited, in seconds.

    So many ``workers`` are there; the executor has found no thread yet for ``wanted`` others.
    """

    waiting: int
    longest: float
    workers: int
    wanted: int


class Pool(Protocol):
    """Where requests wait for workers."""

    def backlog(self, now: float) -> Backlog | None:
        """What waits; ``None`` when nothing does."""


class FullPool:
    """Tells that requests wait because every worker is busy."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._reminder = Reminder()

    def look(self, now: float) -> None:
        """See how long requests have waited."""
        backlog = self._pool.backlog(now)
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


class Sender(Protocol):
    """Where answers wait to be sent."""

    def unsent(self) -> dict[object, int]:
        """The streams with something to send, each with how many batches have been begun."""


class SlowReader:
    """Tells that a gateway does not read: what was begun to be sent to it does not get away."""

    def __init__(self, name: str, sender: Sender) -> None:
        self._name = name
        self._sender = sender
        self._begun: dict[object, tuple[int, float]] = {}
        self._reminder = Reminder()

    def look(self, now: float) -> None:
        """See whether there was any progress since the last look."""
        begun = {}
        for stream, batches in self._sender.unsent().items():
            before = self._begun.get(stream)
            begun[stream] = before if before and before[0] == batches else (batches, now)
        self._begun = begun
        stuck_since = min((since for _, since in begun.values()), default=now)
        if now - stuck_since < _WAIT_FOR_READER:
            self._reminder.rest(now)
        elif self._reminder.is_due(now):
            logger.warning(
                "gateway not reading: %s has taken nothing of what is sent for %.0f s",
                self._name,
                now - stuck_since,
            )
