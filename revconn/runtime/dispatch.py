"""Requests in flight: who runs them, when they expire, and that each is answered once."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Executor
from typing import Callable

from revconn import clock
from revconn._proto.registry_pb2 import ForwardRequest
from revconn.core.answers import encode_failure
from revconn.core.deadline import request_deadline
from revconn.core.large import LargeAnswer
from revconn.core.outbound import Answer
from revconn.core.protocol import Arrival
from revconn.core.reminders import Reminder
from revconn.core.status import StatusCode
from revconn.guard import guarded_thread
from revconn.logger import get_logger
from revconn.messages import Request
from revconn.runtime.callbacks import run_callbacks
from revconn.runtime.executor import DaemonExecutor
from revconn.runtime.origin import Entry, Origin
from revconn.runtime.runs import Runs, handler_stack
from revconn.runtime.troubles import Backlog
from revconn.runtime.unanswered import Unanswered
from revconn.runtime.workers import Workers

__all__ = ["Dispatcher"]

logger = get_logger(__name__)

_LONGEST_WAIT = 5.0  # for the next deadline; by so much at most it is late after a suspend
_HEADER = 256  # bytes of memory, about, that a header takes beside its own, decoded and in a dict


class Dispatcher:
    """Has requests run by workers, and sees to it that each is answered exactly once.

    ``saturated`` is true while requests of more than ``max_in_flight_bytes`` are in flight;
    ``on_relief`` is called when that ends, from whichever thread ended it.

    ``answerer`` turns a request into its answer; it runs user code and never raises. ``runs`` knows
    who does that now. ``on_failure`` is told what this cannot go on from: an executor that is
    broken, say.

    A request is in flight from :meth:`accept` until it is settled: whoever settles it (its
    handler, its deadline, the end) answers it, and nobody else does; nobody answers one that was
    cancelled. It is ``unanswered`` until its answer is with its origin. Its callbacks are called by
    the thread of its handler or, when the handler may still be busy, by one for callbacks alone.

    ``_lock`` guards all state; ``_due`` is its condition. Thread-safe.
    """

    def __init__(
        self,
        answerer: Callable[[Request], Answer | LargeAnswer],
        executor: Executor,
        runs: Runs,
        unanswered: Unanswered,
        *,
        max_workers: int,
        max_in_flight: int,
        max_in_flight_bytes: int,
        executor_may_block: bool,
        on_relief: Callable[[], None],
        on_failure: Callable[[BaseException], None],
    ) -> None:
        self._answerer = answerer
        self._runs = runs
        self._unanswered = unanswered
        self._workers = Workers(
            executor,
            max_workers,
            self._serve,
            self._strand,
            on_failure,
            may_block=executor_may_block,
        )
        self._stranding = Reminder()  # guarded by _lock
        self._max_in_flight = max_in_flight
        self._max_in_flight_bytes = max_in_flight_bytes
        self._on_relief = on_relief
        self._lock = threading.Lock()
        self._due = threading.Condition(self._lock)
        self._in_flight: dict[tuple[Origin, str], Request] = {}
        self._held: deque[Entry] = deque()  # of congested origins
        self._bytes = 0
        self.saturated = False
        self._next_due: float | None = None
        self._closed = False
        self._counts = dict.fromkeys(
            ("accepted", "answered", "cancelled", "expired", "late", "repeated", "overloaded"), 0
        )
        self._timer = guarded_thread("revconn-deadlines", self._watch_deadlines, on_failure)
        self._caller = DaemonExecutor(1, "revconn-callbacks")

    def start(self) -> None:
        """Start the thread that watches deadlines, and the one for callbacks."""
        self._timer.start()
        self._caller.start()
        self._workers.start()

    # Requests come in

    def accept(self, origin: Origin, arrivals: Iterable[Arrival], arrived: float) -> None:
        """Put a batch of requests in flight; those over the limit are refused with 429 at once.

        They came when ``arrived`` says (monotonic).
        A repeated id is ignored while the first request with it is in flight: running a handler
        twice would be worse, and the one answer serves both.
        """
        counted_from = clock.at(arrived)
        requests = [self._request(*arrival, arrived, counted_from) for arrival in arrivals]
        admitted = []
        refused = []
        with self._lock:
            for request in requests:
                if (origin, request.request_id) in self._in_flight:
                    self._counts["repeated"] += 1
                elif len(self._in_flight) >= self._max_in_flight or self._closed:
                    refused.append(request.request_id)
                else:
                    self._admit(origin, request)
                    admitted.append((origin, request))
            self._counts["overloaded"] += len(refused)
            self._unanswered.add(origin, arrived, [request for _, request in admitted])
        if admitted:
            self._workers.put(admitted)
        if refused:
            self._refuse(origin, refused)

    def _request(
        self, message: ForwardRequest, size: int, arrived: float, counted_from: float
    ) -> Request:
        headers = message.headers
        due = request_deadline(message.timeout_seconds, headers, counted_from)
        return Request(message, due, self._lock, arrived, size + _HEADER * len(headers))

    def _admit(self, origin: Origin, request: Request) -> None:
        """Requires holding ``_lock``."""
        due = request._due
        self._counts["accepted"] += 1
        self._in_flight[origin, request.request_id] = request
        self._bytes += request._cost
        self.saturated = self._bytes > self._max_in_flight_bytes
        if due is not None and (self._next_due is None or due < self._next_due):
            self._next_due = due
            self._due.notify()

    def _refuse(self, origin: Origin, request_ids: list[str]) -> None:
        reason = f"too many requests: {self._max_in_flight:,} are in flight"
        origin.answer(
            Answer(encode_failure(request_id, StatusCode.RESOURCE_EXHAUSTED, reason), None)
            for request_id in request_ids
        )
        logger.debug("refused %d requests: %s", len(request_ids), reason)

    # Workers run them

    def _serve(self, entry: Entry, thread: int, now: float) -> None:
        origin, request = entry
        try:
            if request._due is not None and request._due <= clock.with_suspend():
                self._expire(entry)
            elif request._active and not (origin.congested and self._hold(entry)):
                self._runs.begin(thread, request, now)
                try:
                    answer = self._answerer(request)
                finally:
                    self._runs.end(thread, time.monotonic())
                self._settle(entry, answer, "answered")
                if request._callbacks:
                    run_callbacks([request])
        except BaseException:  # the worker, and whoever waits for the answer, need not suffer
            logger.exception("%r: serving it failed", request)
            self._fail(entry, StatusCode.INTERNAL, "internal error")

    def _hold(self, entry: Entry) -> bool:
        """Leave a request until its origin takes answers again; whether that is necessary."""
        with self._lock:
            is_congested = entry[0].congested  # resume() comes after it was relieved
            if is_congested:
                self._held.append(entry)
        return is_congested

    def resume(self, origin: Origin) -> None:
        """It is congested no longer: have its requests run that were held."""
        with self._lock:
            resumed = [entry for entry in self._held if entry[0] is origin]
            self._held = deque(entry for entry in self._held if entry[0] is not origin)
        if resumed:
            self._workers.put(resumed)

    def _forget_settled(self) -> None:
        """Where requests wait, nobody else would drop them, and the payloads that they hold."""
        with self._lock:
            self._held = deque(entry for entry in self._held if entry[1]._active)
        self._workers.forget_settled()

    def _strand(self, entries: list[Entry], reason: str) -> None:
        for entry in entries:
            self._fail(entry, StatusCode.UNAVAILABLE, "the service has no thread to run it in")
        with self._lock:
            worth_a_line = self._stranding.is_due(time.monotonic())
        logger.log(
            logging.WARNING if worth_a_line else logging.DEBUG,
            "refused %d requests: no worker to run them: %s",
            len(entries),
            reason,
        )

    def backlog(self, now: float) -> Backlog | None:
        """What waits for a worker; ``None`` when nothing does."""
        return self._workers.backlog(now)

    # Answers go out

    def _settle(self, entry: Entry, answer: Answer | LargeAnswer, outcome: str) -> bool:
        """Answer a request unless somebody else already did."""
        origin, request = entry
        key = (origin, request.request_id)
        with self._lock:
            if self._in_flight.get(key) is not request:
                self._counts["late"] += outcome == "answered"
                return False
            del self._in_flight[key]
            self._counts[outcome] += 1
            relieved = self._release(request)
            alone = not self._in_flight
        try:
            origin.answer((answer,), alone=alone)
        finally:
            self._unanswered.discard(request)
        if relieved:
            self._on_relief()
        return True

    def _release(self, request: Request) -> bool:
        """A request is in flight no longer; whether that ends a backlog. Requires ``_lock``."""
        request._active = False
        self._bytes -= request._cost
        relieved = self.saturated and self._bytes <= self._max_in_flight_bytes
        if relieved:
            self.saturated = False
        return relieved

    def _fail(self, entry: Entry, code: StatusCode, reason: str, outcome: str = "answered") -> bool:
        """Answer a request with an error unless somebody else already did answer it."""
        _, request = entry
        failure = encode_failure(request.request_id, code, reason, framed=request.framed)
        settled = self._settle(entry, Answer(failure, request._due), outcome)
        if settled:
            self._call_back([request])
        return settled

    def _expire(self, entry: Entry) -> None:
        self._fail(entry, StatusCode.DEADLINE_EXCEEDED, "deadline exceeded", "expired")

    def _call_back(self, ended: list[Request]) -> None:
        """Requests ended that a handler may still be busy with."""
        told = [request for request in ended if request._callbacks]
        if not told:
            return
        try:
            self._caller.submit(run_callbacks, told)
        except RuntimeError:  # shut down, or no thread to be had
            run_callbacks(told)

    # Callers give up

    def cancel(self, origin: Origin, request_ids: Iterable[str]) -> None:
        """Nobody waits for these any more: they are not answered, and not run if they still wait.

        Unknown ids (of requests answered meanwhile, most often) are ignored.
        """
        cancelled = []
        relieved = False
        with self._lock:
            for request_id in request_ids:
                request = self._in_flight.pop((origin, request_id), None)
                if request is not None:
                    self._counts["cancelled"] += 1
                    relieved |= self._release(request)
                    self._unanswered.discard(request)
                    cancelled.append(request)
        if cancelled:
            self._forget_settled()
        if relieved:
            self._on_relief()
        self._call_back(cancelled)
        for request in cancelled:
            logger.debug("%r was cancelled", request)

    # Deadlines

    def _watch_deadlines(self) -> None:
        while True:
            with self._lock:
                if self._closed:
                    return
                expired = self._take_stock(clock.with_suspend())
                if not expired:
                    self._due.wait(self._until_due())
                    continue
            for entry in expired:
                self._expire(entry)
            self._forget_settled()

    def _take_stock(self, now: float) -> list[Entry]:
        """Who has expired; also finds the next instant to look. Requires holding ``_lock``.

        Looking through all that is in flight is cheap because it is rare: most requests are
        settled long before their deadline, so the thread sleeps for about a deadline's length
        between two looks, where a heap would cost each request a push and a pop.
        """
        if self._next_due is None or self._next_due > now:
            return []
        expired = []
        self._next_due = None
        for (origin, _), request in self._in_flight.items():
            if request._due is None:
                continue
            if request._due <= now:
                expired.append((origin, request))
            elif self._next_due is None or request._due < self._next_due:
                self._next_due = request._due
        return expired

    def _until_due(self) -> float | None:
        """Seconds to wait, which do not pass while the machine sleeps. Requires ``_lock``."""
        if self._next_due is None:
            return None
        return min(max(0.0, self._next_due - clock.with_suspend()), _LONGEST_WAIT)

    # The end

    def give_up(self) -> int:
        """Answer 503 to everything that is still in flight, name it in the log, and count it."""
        reason = "the service stopped before it could answer"
        with self._lock:
            left = [(origin, request) for (origin, _), request in self._in_flight.items()]
        runs = self._runs.now().items() if left else ()
        stacks = {run.request: handler_stack(thread) for thread, run in runs}
        given_up = [entry for entry in left if self._fail(entry, StatusCode.UNAVAILABLE, reason)]
        for _, request in given_up:
            logger.warning_with_stack(
                stacks.get(request),
                "gave up %r, which came %.1f s ago: %s when the time to stop ran out",
                request,
                time.monotonic() - request._arrived,
                "its handler was not done" if request in stacks else "no worker had taken it",
            )
        return len(given_up)

    def close(self) -> None:
        """Abandon what is in flight and end the deadline thread. Idempotent."""
        with self._lock:
            self._closed = True
            abandoned = list(self._in_flight.values())
            for request in abandoned:
                request._settle()
            self._in_flight.clear()
            self._held.clear()
            self._due.notify_all()
        self._unanswered.clear()
        self._workers.close()
        self._call_back(abandoned)
        self._caller.shutdown(wait=False)

    def forsake(self) -> None:
        """In a forked child: run nothing more. Takes no lock: its owner may be gone."""
        self._closed = True
        self._workers.forsake()
        for request in self._in_flight.values():
            request._settle()
        self._in_flight.clear()
        self._unanswered.forsake()

    def stats(self) -> dict[str, int]:
        """Counters since the start, and how much is in flight and waiting now."""
        with self._lock:
            return {
                **self._counts,
                "in_flight": len(self._in_flight),
                "waiting": self._workers.waiting,
            }
