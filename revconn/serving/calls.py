"""Requests in flight: who runs them, when they expire, and that each is answered once."""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor
from typing import Any, Callable

from revconn.core.chunks import LargeAnswer
from revconn.core.connector_side import Arrival
from revconn.core.responses import encode_failure
from revconn.core.sending import Answer, answer
from revconn.core.status import StatusCode
from revconn.logger import get_logger
from revconn.messages import Request, received
from revconn.runtime.threads import Condition
from revconn.serving.deadlines import Deadlines
from revconn.serving.handlers import Answering, Handlers, Runs, failed, handler_stack
from revconn.serving.inline import Inline
from revconn.serving.replies import Replies
from revconn.serving.stream_calls import StreamCalls
from revconn.serving.streaming_handlers import open_behavior
from revconn.serving.workers import Served, Workers

__all__ = ["Calls"]

logger = get_logger(__name__)

_monotonic = time.monotonic


class Calls:
    """The table of calls on the connector's side: each is settled exactly once.

    A call is its :class:`~revconn.messages.Request`, from its arrival until it is settled::

        arrived --> in flight already: ignored, the one answer serves both
           |------> more than max_in_flight: refused with 429
           v
        waiting --> held: answers pile up at its gateway --> waiting, when they no longer do
           v
        running: in a worker, or (inline) in the thread that received it
           v
        served: its answer is made; several are settled at a time
           v
        settled: answered | expired (504) | cancelled (not answered) | given up (503)
                 | failed in here (500) | abandoned (not answered)

    From waiting, running and served each but the first may come sooner: whoever finds the call in
    the table settles it, in one step with queueing its answer, and a result that comes after that
    is late. Abandoned are those that are left when the end waits no longer. So a call is in the
    table exactly until its answer is with the replies of its link, and whoever asks whether all is
    answered looks there, and at what is ``arriving`` by the link. Whether a call is settled is
    nowhere else: there is no flag that could say otherwise.

    ``_lock`` guards all state, the replies', the workers' and the deadlines' too. Thread-safe.
    ``on_failure`` is told what this cannot go on from: an executor that is broken, say.
    """

    def __init__(
        self,
        handlers: Handlers,
        executor: Executor,
        runs: Runs,
        *,
        max_workers: int,
        max_streams: int,
        max_in_flight: int,
        max_in_flight_bytes: int,
        max_message_bytes: int,
        callbacks: Executor,
        recruiter: Executor | None,
        on_failure: Callable[[BaseException], object],
    ) -> None:
        self.streaming = handlers.streaming
        self._inline_routes = handlers.inline
        self._inline_methods = handlers.inline.methods
        self.inline = Inline(
            handlers,
            runs,
            max_message_bytes,
            expire=self._expire,
            settle=self._settle_inline,
            hand_over=self._hand_over,
        )
        self._runs = runs
        self._max_in_flight = max_in_flight
        self._max_in_flight_bytes = max_in_flight_bytes
        self._lock = threading.Lock()
        self._settled = Condition(self._lock)
        self.workers = Workers(
            self._lock,
            executor,
            max_workers,
            runs,
            answer=Answering(handlers.all, max_message_bytes).answer,
            run_stream=lambda request: self.streams.run(request),
            strand_stream=lambda request: self.streams.strand(request),
            settle=self._settle_served,
            expire=self._expire,
            fail=self._fail,
            on_broken=lambda error: self._closed or on_failure(error),
            callbacks=callbacks,
            recruiter=recruiter,
        )
        self.streams = StreamCalls(
            self,
            lambda request: open_behavior(handlers.all, request),
            most=max_streams,
            most_held=max_in_flight_bytes,
        )
        self._links: list[Replies] = []  # each with its part of the table
        self._total = 0
        # Of those: beyond max_in_flight, as being refused or served inline, which is over before
        # their thread reads more. For the same reason what those bring takes no part in _bytes.
        self._exempt = 0
        self._bytes = 0
        self.saturated = False  # too many bytes are in flight: the gateways are held back
        self._closed = False
        names = "accepted", "answered", "cancelled", "expired", "late", "repeated", "overloaded"
        self._counts = dict.fromkeys(names, 0)  # since the start
        self._sooner = threading.Condition(self._lock)  # to look for deadlines, or for the end
        self._deadlines = Deadlines(
            self._sooner,
            lambda: None if self._closed else self._all(),
            self._expire,
            self.workers.forget_settled,
            on_failure,
        )

    def start(self) -> None:
        """Start the thread that watches deadlines."""
        self._deadlines.start()

    def replies(self, *, replay_bytes: int, doubt: float) -> Replies:
        """Where the answers of one link's calls go, from now on."""
        replies = Replies(
            self._lock,
            fail=self._fail,
            follow_up=self.streams.follow_up,
            on_relief=lambda: self.workers.resume(replies),
            replay_bytes=replay_bytes,
            doubt=doubt,
        )
        with self._lock:
            self._links.append(replies)
        return replies

    def forget(self, replies: Replies) -> None:
        """A link is over, and no other call comes by it: what is in flight there is given up."""
        self.give_up(replies)
        with self._lock:
            self._links.remove(replies)

    # Requests come in: the receiving threads

    def arrived(
        self, replies: Replies, arrivals: Iterable[Arrival], arrived: float, now: float
    ) -> None:
        """A batch of requests arrived; those with an inline handler are served before it returns.

        They came when ``arrived`` says (monotonic), and ``now`` (with suspend).
        """
        inline_methods, table = self._inline_methods, replies.in_flight
        pooled: list[Request] = []
        inline: list[Request] = []
        for proto, request_id, method, payload, size in arrivals:
            try:
                # What begins with a slash is found as it is written, or not at all.
                waits = method not in inline_methods and (
                    method[:1] == "/" or self._inline_routes.find(method) is None
                )
                request = received(
                    proto, request_id, method, payload, size, arrived, now, replies, table, waits
                )
            except BaseException:  # no memory, say: the connection, and the batch, need not suffer
                logger.exception("request %r: serving it failed", request_id)
                failure = encode_failure(request_id, StatusCode.INTERNAL, "internal error")
                replies.answer([answer(failure, None)])
                continue
            (pooled if waits else inline).append(request)
        served = self._admit(replies, pooled, inline)
        if served:
            self.inline.serve(replies, served, arrived, now - arrived)

    def _admit(
        self, replies: Replies, pooled: list[Request], inline: list[Request]
    ) -> list[Request]:
        """Put a batch in flight, in one step: for workers, and those to be served at once.

        The latter are returned. Of the others those over the limit are refused with 429.
        """
        in_flight = replies.in_flight
        served: list[Request] = []
        refused: list[Request] = []
        hire = False
        with self._lock:
            if pooled:
                admitted, refused = self._admit_pooled(in_flight, pooled)
                # In the same step: a request that is in the table, and waits nowhere, never runs.
                hire = bool(admitted) and self.workers.put(admitted)
            count = 0
            for request in inline:
                if request.request_id in in_flight or self._closed:
                    self._counts["repeated"] += not self._closed
                else:
                    in_flight[request.request_id] = request
                    served.append(request)
                    count += 1
            self._total += count
            self._exempt += count
            self._counts["accepted"] += count
        if hire:  # without the lock: it is the application's executor, maybe, and may block
            self.workers.hire()
        if refused:
            self._refuse(replies, refused)
        return served

    def _admit_pooled(
        self, in_flight: dict[str, Request], requests: list[Request]
    ) -> tuple[list[Request], list[Request]]:
        """Those for workers, and those over the limit: to be refused. Requires the lock."""
        room = 0 if self._closed else self._max_in_flight - self._total + self._exempt
        admitted: list[Request] = []
        refused: list[Request] = []
        for request in requests:
            # Ignored: to run a handler twice would be worse, and the one answer serves both.
            if request.request_id in in_flight:
                self._counts["repeated"] += 1
                continue
            in_flight[request.request_id] = request
            # Those to be refused too, until that is said: whoever asks whether all is answered must
            # not miss them, and whoever settles a call takes off what it costs.
            self._bytes += request._cost
            if room <= 0:
                refused.append(request)
            else:
                room -= 1
                admitted.append(request)
                # Only one that comes before all others wakes a thread: with the same timeout for
                # each request that is one in as many as come within it.
                if request._due is not None and request._due < self._deadlines.next_due:
                    self._deadlines.expect(request._due)
        count, over = len(admitted), len(refused)
        self._total += count + over
        self._exempt += over
        self._counts["accepted"] += count
        self._counts["overloaded"] += over
        if self._bytes > self._max_in_flight_bytes:
            self._saturate()
        return admitted, refused

    def _refuse(self, replies: Replies, refused: list[Request]) -> None:
        reason = f"too many requests: {self._max_in_flight:,} are in flight"
        code = StatusCode.RESOURCE_EXHAUSTED
        failures = [answer(encode_failure(each.request_id, code, reason), None) for each in refused]
        answers = []
        with self._lock:
            for each, failure in zip(refused, failures):
                if replies.in_flight.get(each.request_id) is each:  # else cancelled meanwhile
                    del replies.in_flight[each.request_id]
                    self._bytes -= each._cost
                    answers.append(failure)
            self._total -= len(answers)
            self._exempt -= len(refused)
            self._saturate()
            line = replies.put(answers, alone=True) if answers else None
            self._tell_settled(replies)
        replies.send_out(line)
        logger.debug("refused %d requests: %s", len(refused), reason)

    def _saturate(self) -> None:
        """See whether too much is in flight: what comes is not read then. Requires the lock."""
        assert self._lock.locked()
        saturated = self._bytes > self._max_in_flight_bytes
        if saturated is not self.saturated:
            self.saturated = saturated
            for replies in self._links:
                replies.set_saturated(saturated)

    def _settle_inline(
        self, replies: Replies, served: list[Served], taken: int, alone: bool
    ) -> None:
        """Answer what was served: of so many that were ``taken`` some may have expired."""
        # So like _settle_served(), and not one with it: that takes each from a deque, and what is
        # served inline costs so little that a call more would be seen.
        in_flight = replies.in_flight
        answers: list[Answer | LargeAnswer] = []
        called_back: list[Request] = []
        with self._lock:
            count = 0
            for request, answer in served:
                request_id = request.request_id
                if in_flight.get(request_id) is request:
                    del in_flight[request_id]
                    answers.append(answer)
                    count += 1
                    if request._callbacks:
                        called_back.append(request)
                else:  # cancelled, say
                    self._counts["late"] += 1
            self._total -= count
            self._counts["answered"] += count
            self._exempt -= taken
            line = replies.put(answers, alone=alone) if answers else None
            if replies.awaited or self._settled.sleepers:
                self._tell_settled(replies)
        if line is not None:
            line.send_reserved()
        if replies.refused:
            replies.log_refused()
        for request in called_back:
            request._call_back()

    def _hand_over(self, replies: Replies, requests: list[Request]) -> None:
        """While a gateway does not read, workers take what inline handlers would have.

        They wait now: so they count, have their deadlines watched, and may be too many.
        """
        with self._lock:
            waiting = [each for each in requests if replies.in_flight.get(each.request_id) is each]
            for request in waiting:
                request._count()
                del replies.in_flight[request.request_id]
            self._total -= len(waiting)
            self._exempt -= len(requests)
            self._counts["accepted"] -= len(waiting)
            admitted, refused = self._admit_pooled(replies.in_flight, waiting)
            hire = bool(admitted) and self.workers.put(admitted)
        if hire:
            self.workers.hire()
        if refused:
            self._refuse(replies, refused)

    # Any thread

    def _settle_served(self, served: deque[Served]) -> list[Request]:
        """Answer what was served, and send it in this thread: many answers as one.

        So many as came by the same link, one after the other. Workers append meanwhile. Returns
        those whose callbacks are to be called.
        """
        answers: list[Answer | LargeAnswer] = []
        called_back: list[Request] = []
        replies: Replies | None = None
        with self._lock:
            freed = 0
            for _ in range(len(served)):  # nobody else takes any away: that needs the lock
                request, answer = served.popleft()
                if request._replies is not replies:
                    if replies is not None:  # the next one's: nobody holds two reserved lines
                        served.appendleft((request, answer))
                        break
                    replies = request._replies
                    in_flight = replies.in_flight
                request_id = request.request_id
                if in_flight.get(request_id) is request:
                    del in_flight[request_id]
                    freed += request._cost
                    answers.append(answer)
                    if request._callbacks:
                        called_back.append(request)
                else:  # it expired, say
                    self._counts["late"] += 1
            if replies is None or not answers:
                return called_back
            count = len(answers)
            self._total -= count
            self._counts["answered"] += count
            self._bytes -= freed
            if self.saturated:
                self._saturate()
            # Alone, however many they are: the workers have nothing more to send now.
            line = replies.put(answers, alone=True)
            if replies.awaited or self._settled.sleepers:
                self._tell_settled(replies)
        if line is not None:
            line.send_reserved()
        if replies.refused:  # aside: a log handler may take long, and a worker has requests in hand
            self.workers.call_aside([replies.log_refused])
        return called_back

    def _fail(self, request: Request, code: StatusCode, reason: str) -> bool:
        """Answer a request with an error, unless it was settled already. True if it was not."""
        replies = request._replies
        failure = None if request._is_streaming else failed(request, code, reason)
        expired = code is StatusCode.DEADLINE_EXCEEDED
        with self._lock:
            # The deadlines' thread and the request's own may both come here, and a result too.
            if replies.in_flight.get(request.request_id) is not request:
                self._counts["late"] += not expired
                return False
            del replies.in_flight[request.request_id]
            self._total -= 1
            self._counts["expired" if expired else "answered"] += 1
            self._bytes -= request._cost
            self._saturate()
            line = None
            if failure is None:
                self.streams.cut_short(request, code, reason)
            else:
                line = replies.put((failure,), alone=not self._total)
            if replies.awaited or self._settled.sleepers:
                self._tell_settled(replies)
        replies.send_out(line)
        self.streams.follow_up()
        self.workers.call_back([request])
        return True

    def _tell_settled(self, replies: Replies) -> None:
        """Have those look again who wait until all is answered. Requires the lock.

        Not for each call: to notify two conditions costs as much as all else that settles it.
        """
        replies.notify()
        self._settled.notify_all()

    def _expire(self, request: Request) -> None:
        self._fail(request, StatusCode.DEADLINE_EXCEEDED, "deadline exceeded")

    def cancel(self, replies: Replies, request_ids: Iterable[str]) -> None:
        """Nobody waits for these any more: they are not answered, and not run if they still wait.

        Unknown ids (of requests answered meanwhile, most often) are ignored.
        """
        cancelled = []
        with self._lock:
            for request_id in request_ids:
                request = replies.in_flight.get(request_id)
                if request is not None and not request._is_streaming:
                    del replies.in_flight[request_id]
                    self._bytes -= request._cost
                    cancelled.append(request)
            self._counts["cancelled"] += len(cancelled)
            self._total -= len(cancelled)
            self._saturate()
            if cancelled:
                self._tell_settled(replies)
        if cancelled:  # or what nobody will take while all workers are busy would keep its payload
            self.workers.forget_settled()
        self.workers.call_back(cancelled)
        for request in cancelled:
            logger.debug("%r was cancelled", request)

    # What is unanswered

    def is_answered(self, replies: Replies, came_by: float = math.inf) -> bool:
        """Whether all is answered that came by a link until then (monotonic). Requires the lock."""
        assert self._lock.locked()
        arrived = [request._arrived for request in replies.in_flight.values()]
        arrived += replies.arriving.values()  # what is being decoded is in no table yet
        return not any(at <= came_by for at in arrived)

    def wait_idle(self, timeout: float) -> bool:
        """Wait, at most ``timeout`` seconds, until nothing is unanswered."""
        with self._lock:
            return self._settled.wait_for(lambda: not self._total, timeout)

    # The end

    def give_up(self, came_by: Replies | None = None) -> int:
        """Answer 503 to what is still in flight (by one link), name it in the log, and count it."""
        # Not for what has an answer: its worker comes to that in a moment, or waits for this lock.
        while self.workers.served:
            self.workers.call_back(self._settle_served(self.workers.served))
        with self._lock:
            left = list(self._all() if came_by is None else came_by.in_flight.values())
        # Stacks first: a handler that sees that it is given up may be gone a moment later.
        runs = self._runs.now().items() if left else ()
        stacks = {run.request: handler_stack(thread) for thread, run in runs}
        reason = "the service stopped before it could answer"
        given_up = [each for each in left if self._fail(each, StatusCode.UNAVAILABLE, reason)]
        for request in given_up:
            logger.warning_with_stack(
                stacks.get(request),
                "gave up %r, which came %.1f s ago: %s when the time to stop ran out",
                request,
                _monotonic() - request._arrived,
                _stood(request, is_running=request in stacks),
            )
        return len(given_up)

    def close(self) -> None:
        """Abandon what is in flight and end the deadline thread. Idempotent."""
        with self._lock:
            self._closed = True  # what arrives from now on is ignored: nobody is told
            abandoned = list(self._all())
            waiting = self._abandon()
            self._sooner.notify_all()
            for replies in self._links:
                self._tell_settled(replies)
        if abandoned:
            self.workers.call_back(abandoned)
        self.streams.abandon(waiting)

    def forsake(self) -> None:
        """In a forked child: run nothing more. Takes no lock: its owner may be gone."""
        self._closed = True
        self._abandon()

    def _all(self) -> Iterator[Request]:
        """All that is in flight. Requires the lock as long as one is asked for."""
        # Not a list: most looks of the deadlines' thread end before the first one.
        return itertools.chain.from_iterable(each.in_flight.values() for each in self._links)

    def _abandon(self) -> list[Request]:
        """Run nothing more; what waited for a worker."""
        waiting = self.workers.abandon()  # of those that were given up, too
        for replies in self._links:
            replies.in_flight.clear()
        self._total = 0
        return waiting

    def stats(self) -> dict[str, int]:
        """Counters since the start, and how much is in flight and waiting now."""
        with self._lock:
            waiting = len(self.workers.waiting) + self.streams.waiting
            return {**self._counts, "in_flight": self._total, "waiting": waiting}


def _stood(request: Any, *, is_running: bool) -> str:
    """How far a call was that is given up."""
    if is_running:
        return "its handler was not done"
    if request._is_streaming and request._responses is not None:
        return "its handler was between two answers"
    return "no worker had taken it"
