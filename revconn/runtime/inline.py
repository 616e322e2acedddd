"""Handlers that promised not to block: run in the receiving thread, and watched."""

from __future__ import annotations

import math
import threading
import time
from typing import Callable

from revconn import clock
from revconn.core.answers import encode_failure
from revconn.core.deadline import request_deadline
from revconn.core.large import LargeAnswer
from revconn.core.outbound import Answer
from revconn.core.protocol import Arrival
from revconn.core.routing import Routes
from revconn.core.status import StatusCode
from revconn.logger import get_logger
from revconn.messages import Request
from revconn.runtime.callbacks import run_callbacks
from revconn.runtime.handlers import Handler
from revconn.runtime.origin import Origin
from revconn.runtime.runs import Runs, handler_stack

__all__ = ["InlineRunner"]

logger = get_logger(__name__)

_PATIENCE = 0.1
_PORTION = 1 << 20  # bytes of answers that are collected before they are sent


class InlineRunner:
    """Serves the requests of a batch on the spot, and answers them as one.

    While an inline handler runs, its gateway's connection hears nothing. One that takes longer
    than 0.1 s is named in the log: once, afterwards or by :meth:`watch` while it is stuck.

    ``_lock`` guards the counters and ``_named``. ``runs`` knows who runs now.
    """

    def __init__(
        self,
        routes: Routes[Handler],
        answerer: Callable[[Request], Answer | LargeAnswer],
        runs: Runs,
    ) -> None:
        self._routes = routes
        self._answerer = answerer
        self._lock = threading.Lock()
        self._named: set[str] = set()
        self._runs = runs
        self._in_flight: dict[Origin, dict[str, Request]] = {}
        self._accepted = 0
        self._repeated = 0
        self._expired = 0

    def split(self, arrivals: list[Arrival]) -> tuple[list[Arrival], list[Arrival]]:
        """The requests that have an inline handler, and the others."""
        if not self._routes:
            return [], arrivals
        own: list[Arrival] = []
        others: list[Arrival] = []
        for arrival in arrivals:
            path = arrival[0].method_path
            (others if self._routes.find(path) is None else own).append(arrival)
        return own, others

    def serve(self, origin: Origin, arrivals: list[Arrival], arrived: float) -> list[Arrival]:
        """Serve requests that came when ``arrived`` says (monotonic), and answer them at once.

        Not all of them if the answers do not leave: the others are returned. A repeated id is
        ignored until the answers are queued, as by the dispatcher.
        """
        answers: list[Answer | LargeAnswer] = []
        served: list[str] = []
        unsent = taken = 0
        counted_from = clock.at(arrived)
        in_flight = self._in_flight.setdefault(origin, {})
        now = time.monotonic()
        try:
            for message, _ in arrivals:
                taken += 1
                try:
                    due = request_deadline(message.timeout_seconds, message.headers, counted_from)
                    request = Request(message, due, self._lock, arrived)
                    request_id = request.request_id
                    # Atomic, where a lock would cost more: a session that takes over may receive
                    # what another one, in its own thread, is at.
                    if in_flight.setdefault(request_id, request) is not request:
                        continue
                    served.append(request_id)
                    answer, now = self._answer(request, now)
                except BaseException:  # the connection, and the rest of the batch, need not suffer
                    logger.exception("request %r: serving it failed", message.request_id)
                    answer, now = _internal_error(message.request_id), time.monotonic()
                answers.append(answer)
                unsent += len(answer.message) if isinstance(answer, Answer) else answer.size
                if unsent > _PORTION:
                    origin.answer(answers)
                    answers, unsent, now = [], 0, time.monotonic()
                    if origin.congested:
                        break
            with self._lock:
                self._accepted += len(served)
                self._repeated += taken - len(served)
            if answers:
                origin.answer(answers, alone=True)
        finally:
            for request_id in served:
                del in_flight[request_id]
        return arrivals[taken:]

    def watch(self, now: float) -> None:
        """Name handlers that are stuck now. Any thread."""
        for thread, run in self._runs.now().items():
            method = run.request.method
            if now - run.since > _PATIENCE and self._routes.find(method) is not None:
                self._name(method, now - run.since, handler_stack(thread))

    def stats(self) -> dict[str, int]:
        """Counters since the start."""
        with self._lock:
            answered = self._accepted - self._expired
            return {
                "accepted": self._accepted,
                "answered": answered,
                "expired": self._expired,
                "repeated": self._repeated,
            }

    def _answer(self, request: Request, start: float) -> tuple[Answer | LargeAnswer, float]:
        """Its answer, and the time (monotonic); it is ``start`` now, or was a moment ago."""
        due = request._due
        left = math.inf if due is None else due - clock.with_suspend()
        if left <= 0:
            return self._expire(request), start
        thread = threading.get_ident()
        self._runs.begin(thread, request, start)
        try:
            answer = self._answerer(request)
        finally:
            end = time.monotonic()
            self._runs.end(thread, end)
        with self._lock:
            request._active = False
        if end - start > _PATIENCE:
            self._name(request.method, end - start)
        if left <= end - start:
            answer = self._expire(request)
        if request._callbacks:
            run_callbacks([request])
            end = time.monotonic()
        return answer, end

    def _expire(self, request: Request) -> Answer:
        with self._lock:
            self._expired += 1
        failure = encode_failure(
            request.request_id,
            StatusCode.DEADLINE_EXCEEDED,
            "deadline exceeded",
            framed=request.framed,
        )
        return Answer(failure, request._due)

    def _name(self, method: str, seconds: float, stack: str | None = None) -> None:
        with self._lock:
            if method in self._named:
                return
            self._named.add(method)
        logger.warning_with_stack(
            stack,
            "the inline handler of %s blocked for %.1f s, and the whole connection with it:"
            " register it without inline=True",
            method,
            seconds,
        )


def _internal_error(request_id: str) -> Answer:
    return Answer(encode_failure(request_id, StatusCode.INTERNAL, "internal error"), None)
