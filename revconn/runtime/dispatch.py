"""Requests in flight: who runs them, when they expire, and that each is answered once."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Callable, Protocol

from revconn._proto.registry_pb2 import ForwardRequest
from revconn.core.answers import encode_failure
from revconn.core.deadline import request_deadline
from revconn.core.large import LargeAnswer
from revconn.core.outbound import Answer
from revconn.core.status import StatusCode
from revconn.messages import Request
from revconn.runtime.callbacks import run_callbacks
from revconn.runtime.runs import Runs, handler_stack, warn
from revconn.runtime.threads import Condition, own_thread
from revconn.runtime.troubles import Backlog

__all__ = ["Dispatcher", "Origin"]

logger = logging.getLogger(__name__)

_LINGER = 0.1
_SHIFT = 0.5


class Origin(Protocol):
    """Where requests come from and their answers go."""

    def answer(self, answers: Iterable[Answer | LargeAnswer], *, alone: bool = False) -> None:
        """Queue answers; ``alone`` says that no others will follow soon. Does not block."""


_Entry = tuple[Origin, Request]  # a request in flight, with its way back


class Dispatcher:
    """Feeds requests to a pool of workers and sees to it that each is answered exactly once.

    ``saturated`` is true while more than ``max_in_flight_bytes`` of payload are in flight;
    ``on_relief`` is called when that ends, from whichever thread ended it.

    ``answerer`` turns a request into its answer; it runs user code and never raises. ``runs`` knows
    who does that now.

    A request is in flight from :meth:`accept` until it is settled: whoever settles it (its
    handler, its deadline, the end) answers it, and nobody else does; nobody answers one that was
    cancelled. Its callbacks are called by the thread of its handler or, when the handler may still
    be busy, by one for callbacks alone, which starts when there is a first.

    A worker is a task in the executor that takes requests until none came for a while: one task per
    request would cost a future, a queue and a wake-up each. While requests never end it makes way
    for a successor now and then: others may want the executor's threads, or their end.

    ``_lock`` guards all state; ``_idle``, ``_due`` and ``_work_arrived`` are its conditions.
    Thread-safe.
    """

    def __init__(
        self,
        answerer: Callable[[Request], Answer | LargeAnswer],
        executor: Executor,
        runs: Runs,
        *,
        max_workers: int,
        max_in_flight: int,
        max_in_flight_bytes: int,
        on_relief: Callable[[], None],
    ) -> None:
        self._answerer = answerer
        self._executor = executor
        self._runs = runs
        self._max_workers = max_workers
        self._max_in_flight = max_in_flight
        self._max_in_flight_bytes = max_in_flight_bytes
        self._on_relief = on_relief
        self._lock = threading.Lock()
        self._idle = Condition(self._lock)
        self._due = threading.Condition(self._lock)
        self._work_arrived = threading.Condition(self._lock)
        self._in_flight: dict[tuple[Origin, str], Request] = {}
        self._waiting: deque[_Entry] = deque()
        self._workers = 0
        self._hired: set[object] = set()
        self._parked = 0
        self._called = False  # a parked worker was, and has not woken yet
        self._bytes = 0
        self.saturated = False
        self._next_due: float | None = None
        self._closed = False
        self._watched = 0  # by so many threads: each request that is settled may be theirs
        self._counts = dict.fromkeys(
            ("accepted", "answered", "cancelled", "expired", "late", "repeated", "overloaded"), 0
        )
        self._timer = threading.Thread(
            target=self._watch_deadlines, name="revconn-deadlines", daemon=True
        )
        self._caller = ThreadPoolExecutor(1, thread_name_prefix="revconn-callbacks")

    def start(self) -> None:
        """Start the thread that watches deadlines."""
        self._timer.start()

    # Requests come in

    def accept(self, origin: Origin, messages: Iterable[ForwardRequest]) -> None:
        """Put a batch of requests in flight; those over the limit are refused with 429 at once.

        A repeated id is ignored while the first request with it is in flight: running a handler
        twice would be worse, and the one answer serves both.
        """
        now = time.monotonic()
        requests = [self._request(message, now) for message in messages]
        refused = []
        with self._lock:
            for request in requests:
                if (origin, request.request_id) in self._in_flight:
                    self._counts["repeated"] += 1
                elif len(self._in_flight) >= self._max_in_flight or self._closed:
                    refused.append(request.request_id)
                else:
                    self._admit(origin, request)
            self._counts["overloaded"] += len(refused)
            hire = self._call_worker()
        if hire:
            self._hire()
        if refused:
            self._refuse(origin, refused)

    def _request(self, message: ForwardRequest, now: float) -> Request:
        deadline = request_deadline(message.timeout_seconds, message.headers, now)
        return Request(message, deadline, self._lock, now)

    def _admit(self, origin: Origin, request: Request) -> None:
        """Requires holding ``_lock``."""
        deadline = request.deadline
        self._counts["accepted"] += 1
        self._in_flight[origin, request.request_id] = request
        self._waiting.append((origin, request))
        self._bytes += request.payload_bytes
        self.saturated = self._bytes > self._max_in_flight_bytes
        if deadline is not None and (self._next_due is None or deadline < self._next_due):
            self._next_due = deadline
            self._due.notify()

    def _refuse(self, origin: Origin, request_ids: list[str]) -> None:
        reason = f"too many requests: {self._max_in_flight:,} are in flight"
        origin.answer(
            Answer(encode_failure(request_id, StatusCode.RESOURCE_EXHAUSTED, reason), None)
            for request_id in request_ids
        )
        logger.debug("refused %d requests: %s", len(request_ids), reason)

    # Workers

    def _call_worker(self) -> bool:
        """Wake a parked worker for what waits; true when one is to be hired instead.

        Called for each batch, and by each worker that leaves more behind: only as many threads
        wake as find something to do, one after the other. Requires holding ``_lock``.
        """
        if self._called or not self._waiting:
            return False
        if self._parked:
            self._called = True
            self._work_arrived.notify()
            return False
        hire = self._workers < self._max_workers
        self._workers += hire
        return hire

    def _hire(self) -> None:
        contract = object()
        with self._lock:
            self._hired.add(contract)

        def ended(worker: Future[None]) -> None:
            if worker.cancelled():  # shut down before it could begin
                self._dismiss(contract, "the executor was shut down")

        try:
            worker = self._executor.submit(self._work, contract)
        except RuntimeError as error:  # shut down, or no thread to be had
            self._dismiss(contract, str(error))
        else:
            worker.add_done_callback(ended)

    def _dismiss(self, contract: object, reason: str) -> None:
        """The executor took no more workers; without any, what waits cannot run.

        An executor that cannot start a thread has queued the task all the same: should some other
        thread come to it, before or after, the contract says which of the two counts.
        """
        stranded: list[_Entry] = []
        with self._lock:
            if contract not in self._hired:
                return
            self._hired.remove(contract)
            self._workers -= 1
            if not self._workers:
                stranded += self._waiting
                self._waiting.clear()
        for entry in stranded:
            self._fail(entry, StatusCode.UNAVAILABLE, "the service is shutting down")
        if stranded:
            logger.warning("refused %d requests: no worker to run them: %s", len(stranded), reason)

    def _work(self, contract: object) -> None:
        with self._lock:
            if contract not in self._hired:
                return
            self._hired.remove(contract)
        thread = threading.get_ident()
        now = time.monotonic()
        shift_ends = now + _SHIFT
        with own_thread():
            while now < shift_ends:
                entry = self._next_entry()
                if entry is None:
                    return
                now = time.monotonic()
                self._serve(entry, thread, now)
        self._hire()

    def _next_entry(self) -> _Entry | None:
        """The next request; ``None`` when none came for a while: the thread is given back."""
        with self._lock:
            while not self._waiting:
                self._parked += 1
                called = self._work_arrived.wait(_LINGER)
                self._parked -= 1
                self._called = False
                if self._closed or not (called or self._waiting):
                    self._workers -= 1
                    return None
            entry = self._waiting.popleft()
            hire = self._call_worker()
        if hire:
            self._hire()
        return entry

    def _serve(self, entry: _Entry, thread: int, now: float) -> None:
        _, request = entry
        if request.deadline is not None and request.deadline <= now:
            self._expire(entry)
        elif request._active:
            self._runs.begin(thread, request, now)
            answer = self._answerer(request)
            self._runs.end(thread, time.monotonic())
            self._settle(entry, answer, "answered")
            if request._callbacks:
                run_callbacks([request])

    # Answers go out

    def _settle(self, entry: _Entry, answer: Answer | LargeAnswer, outcome: str) -> bool:
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
        origin.answer((answer,), alone=alone)
        if relieved:
            self._on_relief()
        return True

    def _release(self, request: Request) -> bool:
        """A request is in flight no longer; whether that ends a backlog. Requires ``_lock``."""
        request._active = False
        self._bytes -= request.payload_bytes
        if not self._in_flight or self._watched:
            self._idle.notify_all()
        relieved = self.saturated and self._bytes <= self._max_in_flight_bytes
        if relieved:
            self.saturated = False
        return relieved

    def _fail(
        self, entry: _Entry, code: StatusCode, reason: str, outcome: str = "answered"
    ) -> None:
        _, request = entry
        failure = encode_failure(request.request_id, code, reason, framed=request.framed)
        if self._settle(entry, Answer(failure, request.deadline), outcome):
            self._call_back([request])

    def _expire(self, entry: _Entry) -> None:
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
                expired = self._take_stock(time.monotonic())
                if not expired:
                    self._due.wait(self._until_due())
                    continue
            for entry in expired:
                self._expire(entry)
            self._forget_settled()

    def _take_stock(self, now: float) -> list[_Entry]:
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
            if request.deadline is None:
                continue
            if request.deadline <= now:
                expired.append((origin, request))
            elif self._next_due is None or request.deadline < self._next_due:
                self._next_due = request.deadline
        return expired

    def _forget_settled(self) -> None:
        """While every worker is busy nobody else would drop them, and the payloads they hold."""
        with self._lock:
            self._waiting = deque(entry for entry in self._waiting if entry[1]._active)

    def _until_due(self) -> float | None:
        """Requires holding ``_lock``."""
        if self._next_due is None:
            return None
        return min(max(0.0, self._next_due - time.monotonic()), threading.TIMEOUT_MAX)

    def backlog(self, now: float) -> Backlog | None:
        """What waits for a worker; ``None`` when nothing does."""
        with self._lock:
            first = next((request for _, request in self._waiting if request._active), None)
            if first is None:
                return None
            wanted = len(self._hired)
            workers = self._workers - wanted
            return Backlog(len(self._waiting), now - first._arrived, workers, wanted)

    # The end

    def wait_idle(self, timeout: float, origin: Origin | None = None) -> bool:
        """Wait, at most ``timeout`` seconds, until nothing (of ``origin``'s) is in flight."""
        if origin is None:
            return self._watch(lambda: not self._in_flight, timeout)
        return self._watch(
            lambda: all(other is not origin for other, _ in self._in_flight), timeout
        )

    def in_flight(self, origin: Origin) -> list[Request]:
        """The requests of ``origin`` that are not settled yet."""
        with self._lock:
            return [each for (other, _), each in self._in_flight.items() if other is origin]

    def wait_settled(self, requests: list[Request], timeout: float) -> bool:
        """Wait, at most ``timeout`` seconds, until ``requests`` are settled."""
        return self._watch(lambda: not any(request._active for request in requests), timeout)

    def _watch(self, condition: Callable[[], bool], timeout: float) -> bool:
        with self._lock:
            self._watched += 1
            try:
                return self._idle.wait_for(condition, timeout)
            finally:
                self._watched -= 1

    def give_up(self) -> int:
        """Answer 503 to everything that is still in flight, name it in the log, and count it."""
        with self._lock:
            left = [(origin, request) for (origin, _), request in self._in_flight.items()]
        threads = {run.request: thread for thread, run in self._runs.now().items()}
        for origin, request in left:
            thread = threads.get(request)
            warn(
                logger,
                None if thread is None else handler_stack(thread),
                "gave up %r, which came %.1f s ago: %s when the time to stop ran out",
                request,
                time.monotonic() - request._arrived,
                "no worker had taken it" if thread is None else "its handler was not done",
            )
            self._fail(
                (origin, request),
                StatusCode.UNAVAILABLE,
                "the service stopped before it could answer",
            )
        return len(left)

    def close(self) -> None:
        """Abandon what is in flight and end the deadline thread. Idempotent."""
        with self._lock:
            self._closed = True
            abandoned = list(self._in_flight.values())
            for request in abandoned:
                request._settle()
            self._in_flight.clear()
            self._waiting.clear()
            self._due.notify_all()
            self._idle.notify_all()
            self._work_arrived.notify_all()
        self._call_back(abandoned)
        self._caller.shutdown(wait=False)

    def forsake(self) -> None:
        """In a forked child: run nothing more. Takes no lock: its owner may be gone."""
        self._closed = True
        self._waiting.clear()
        for request in self._in_flight.values():
            request._settle()
        self._in_flight.clear()

    def stats(self) -> dict[str, int]:
        """Counters since the start, and how much is in flight and waiting now."""
        with self._lock:
            return {
                **self._counts,
                "in_flight": len(self._in_flight),
                "waiting": len(self._waiting),
            }
