"""Handlers that promised not to block: run in the receiving thread, and watched."""

from __future__ import annotations

import threading
import time
from typing import Callable

from revconn.core.chunks import LargeAnswer
from revconn.core.sending import Answer
from revconn.core.status import StatusCode
from revconn.logger import get_logger
from revconn.messages import Request
from revconn.serving.handlers import LONG, Answering, Handlers, Runs, failed, handler_stack
from revconn.serving.replies import Replies

__all__ = ["Inline"]

logger = get_logger(__name__)

_PATIENCE = 0.1  # seconds that an inline handler may take
_PORTION = 1 << 20  # bytes of answers that are collected before they are sent

_monotonic = time.monotonic

Served = list[tuple[Request, "Answer | LargeAnswer"]]


class Inline:
    """Serves the requests of a batch on the spot, and answers them as one.

    While an inline handler runs, its gateway's connection hears nothing. One that takes longer
    than 0.1 s is named in the log: once, afterwards or by :meth:`watch` while it is stuck.

    Of the table of calls it knows three things: ``expire`` answers a request whose deadline has
    passed, ``settle`` all that were served, of so many that were taken since the last time, and
    ``hand_over`` leaves the rest of a batch to workers.
    """

    def __init__(
        self,
        handlers: Handlers,
        runs: Runs,
        max_message_bytes: int,
        *,
        expire: Callable[[Request], object],
        settle: Callable[[Replies, Served, int, bool], object],
        hand_over: Callable[[Replies, list[Request]], object],
    ) -> None:
        self._routes = handlers.inline
        self._answer = Answering(handlers.inline_ever, max_message_bytes).answer
        self._runs = runs
        self._running = runs.running
        self._expire = expire
        self._settle = settle
        self._hand_over = hand_over
        self._named: set[str] = set()  # methods whose handler blocked

    # The receiving threads

    def serve(self, replies: Replies, requests: list[Request], start: float, offset: float) -> None:
        """Serve the requests of a batch on the spot, and answer them as one.

        Not all of them if the answers do not leave: the others wait for workers. It was ``start``
        a moment ago (monotonic); with ``offset`` added that is on the clock of deadlines.
        """
        if replies.congested:  # what is in the peer's window still comes, and may come one by one
            self._hand_over(replies, requests)
            return
        running = self._running
        answer_to = self._answer
        thread = threading.get_ident()
        served: Served = []
        unsent = taken = 0
        now = start + offset
        for number, request in enumerate(requests, 1):
            taken += 1
            due = request._due
            if due is not None and due <= now:
                self._expire(request)
                continue
            if request._in_flight.get(request.request_id) is not request:  # cancelled, elsewhere
                continue
            running[thread] = (request, start)
            try:
                answer = answer_to(request)
            except BaseException:  # the connection, and the batch, need not suffer
                logger.exception("%r: serving it failed", request)
                answer = failed(request, StatusCode.INTERNAL, "internal error")
            # One look at the clock per request: the end of one is the start of the next.
            end = _monotonic()
            if end - start > _PATIENCE:
                self._took_long(request, start, end)
            start = end
            now = end + offset
            if due is not None and due <= now:
                self._expire(request)
                continue
            served.append((request, answer))
            unsent += len(answer[0]) if type(answer) is tuple else _PORTION + 1
            # At once: what is large, lest a batch of such pile up, and what has a callback, which
            # is due now and not when the batch is done.
            if unsent > _PORTION or request._callbacks:
                del running[thread]
                self._settle(replies, served, taken, False)
                served, unsent, taken = [], 0, 0
                start = _monotonic()
                now = start + offset
                if replies.congested:
                    self._hand_over(replies, requests[number:])
                    return
        if thread in running:
            del running[thread]
        self._settle(replies, served, taken, True)

    def _took_long(self, request: Request, start: float, end: float) -> None:
        if end - start > LONG:
            self._runs.remember(request, start, end)
        self._name(request.method, end - start)

    def watch(self, now: float) -> None:
        """Name inline handlers that are stuck now. The watchdog's thread."""
        for thread, run in self._runs.now().items():
            method = run.request.method
            if now - run.since > _PATIENCE and self._routes.find(method) is not None:
                self._name(method, now - run.since, handler_stack(thread))

    def _name(self, method: str, seconds: float, stack: str | None = None) -> None:
        if method in self._named:  # two threads that get past it at once say so twice
            return
        self._named.add(method)
        logger.warning_with_stack(
            stack,
            "the inline handler of %s blocked for %.1f s, and the whole connection with it:"
            " register it without inline=True",
            method,
            seconds,
        )
