"""Answers on their way to one gateway: queued, sent, held back, in doubt, sent again."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Callable

from revconn.core.chunks import LargeAnswer
from revconn.core.sending import ROOM_BYTES, Answer, Held, Outbound, Sent
from revconn.core.status import StatusCode
from revconn.logger import get_logger
from revconn.messages import Request
from revconn.runtime import clock
from revconn.serving.line import Line

__all__ = ["Replies"]

logger = get_logger(__name__)


class Replies:
    """What one link has to send. It lasts as long as the link; a :class:`Line` as long as a stream.

    Answers outlive streams. Without a line that carries answers they are held back for the next
    one, ``replay_bytes`` of them at most; with two, during a hand-over, they go out on both, on the
    second as soon as it may carry them: a gateway that gets one twice ignores it, and there is no
    telling whether the two streams lead to the same gateway.

    ``lock`` guards everything here and in the lines. It is the lock of the table of calls too
    (:class:`~revconn.serving.calls.Calls`), so that a call leaves the table and its answer enters
    the queue in one step: nobody who asks whether all is quiet sees the moment in between.
    ``changed`` is its condition. The link's thread sleeps on it for other things too: of each
    answer it is notified only while ``awaited`` says that somebody waits for that.

    May be read without the lock: ``congested``, whether more answers wait than there should be;
    ``undelivered``, how many were given up: nobody waited any more, they were too many, or no
    stream followed; ``replayed``, how many were sent again because their connection broke soon.

    :param fail: answers a request of the link's with an error, unless it is settled.
    :param follow_up: called, without the lock, when streams may have ended under it.
    :param on_relief: called, without the lock, when it is congested no longer.
    :param replay_bytes: of answers that are kept for another stream.
    :param doubt: seconds that may pass until a break is noticed.
    """

    def __init__(
        self,
        lock: threading.Lock | None = None,
        *,
        fail: Callable[[Request, StatusCode, str], object] = lambda *_: None,
        on_relief: Callable[[], object] = lambda: None,
        follow_up: Callable[[], object] = lambda: None,
        replay_bytes: int = 16 << 20,
        doubt: float = 50.0,
    ) -> None:
        self.lock = self._lock = lock or threading.Lock()
        self.changed = threading.Condition(self._lock)
        self.arriving: dict[Line, float] = {}  # since when streams take in a batch (monotonic)
        self.in_flight: dict[str, Request] = {}  # the calls that came by the link, by their ids
        self.awaited = 0  # those who wait for it until all is answered, or has left
        self.congested = self._saturated = False
        self._is_relieved = False  # and on_relief is to be called by whoever has released the lock
        self.fail, self._follow_up = fail, follow_up
        self._on_relief, self._replay_bytes, self._doubt = on_relief, replay_bytes, doubt
        self.refused: deque[str] = deque()  # to be logged by whoever has released the lock
        self._held = Held(self.refused.append)
        self._lines: list[Line] = []  # those that carry answers, the newest last
        self._only: Line | None = None  # of those, when it is the only one
        self.opening: list[Line] = []  # those that will, with a copy of what leaves until then
        self._closed, self.undelivered, self.replayed = False, 0, 0

    def answer(self, answers: Sequence[Answer | LargeAnswer]) -> None:
        """Send answers that belong to no call of the table: in this thread if that can be."""
        with self._lock:
            line = self.put(answers, alone=True)
        self.send_out(line)

    def send_out(self, line: Line | None) -> None:
        """See to what :meth:`put` left to be done without the lock."""
        if line is not None:
            line.send_reserved()
        if self.refused:
            self.log_refused()

    def withdraw(self, request_ids: Container[str]) -> None:
        """Nobody waits for the answers to these any more: large ones are dropped."""
        with self._lock:
            for queued in (self._held, *(line.outbound for line in self._lines + self.opening)):
                queued.withdraw(request_ids)
            self.measure()
            self.notify()
        self.tell_relief()

    def log_refused(self) -> None:  # without the lock
        """Tell of answers that became errors."""
        while self.refused:
            with suppress(IndexError):  # another thread was faster
                logger.error("%s", self.refused.popleft())

    def open_line(self) -> Line:
        """A line for a new stream."""
        line = Line(self, Outbound(self.refused.append), Sent(self._doubt, self._replay_bytes))
        with self._lock:
            others = self._lines or self.opening
            unanswered = self.arriving or self.in_flight
            line.has_only_its_own = not (others or self._holds or unanswered)
            self.opening.append(line)
        return line

    def wait_flushed(self, timeout: float) -> bool:
        """Wait, at most ``timeout`` seconds, until all answers have left that somebody waits for.

        They were handed to the network then. Control messages do not count. True at once when no
        stream will follow. That nobody waits any more is noticed when something else happens.
        """
        with self._lock, self.awaiting():
            return self.changed.wait_for(self.is_flushed, timeout)

    def unsent(self) -> dict[object, int]:
        """The lines with something to send, each with how many batches were begun there."""
        with self._lock:
            return {line: line.batches for line in self._lines if line.has_unsent}

    def close(self) -> None:
        """There will be no other stream: nobody need wait for what is still queued."""
        with self._lock:
            self._closed = True
            if self._holds:
                self._bound()
            self.notify()

    def tell_relief(self) -> None:
        """Answers pile up no longer: have it known, if nobody did yet. Without the lock."""
        if self._is_relieved:
            self._is_relieved = False
            self._on_relief()
        self._follow_up()

    # Each of these requires holding the lock

    def put(self, answers: Sequence[Answer | LargeAnswer], *, alone: bool = False) -> Line | None:
        """Queue answers.

        ``alone`` says that no others will follow soon: then it may be that they are not queued, but
        reserved for whoever calls, who has to pass what this returns to :meth:`send_out` when it
        has released the lock. A lone answer saves a change of threads this way.
        """
        line = self._only
        # One that opens gets a copy: the stream that it replaces may break with what just left.
        if line is None or self.opening:
            self._put_on_all(answers)
            return None
        if alone and line.reserve(answers):
            return line
        outbound = line.outbound
        outbound.put_all(answers)
        if outbound.answer_bytes > ROOM_BYTES or outbound.large_bytes:
            self.measure()
        if line.parked:
            line.unpark()
        return None

    def is_flushed(self) -> bool:
        """Whether every answer was handed to the network, that somebody waits for."""
        assert self._lock.locked()
        waits = self._holds and self._held.awaited_for(clock.with_suspend())
        return self._closed or not (
            waits or any(line.has_answers or line.has_stream_output for line in self._lines)
        )

    def set_saturated(self, saturated: bool) -> None:
        """So much is in flight, or no longer, that the peers should send no more."""
        assert self._lock.locked()
        self._saturated = saturated
        for line in self._lines:
            line.block(saturated or not line.outbound.has_room)

    @contextmanager
    def awaiting(self) -> Iterator[None]:
        """While inside, the caller is told of traffic. To be entered before it looks at that."""
        assert self._lock.locked()
        # A receiving thread that has taken in a batch asks without the lock whether anybody waits.
        # One that is about to, and has looked already, it would not notify.
        self.awaited += 1
        try:
            yield
        finally:
            self.awaited -= 1

    def sleep(self, timeout: float, *, for_traffic: bool) -> None:
        """Sleep, inside of :meth:`awaiting`, until something happens to the link.

        Traffic counts as that with ``for_traffic`` alone: each answer would wake the link's thread.
        """
        assert self._lock.locked()
        if for_traffic and self._holds:
            now = clock.with_suspend()
            left = self._held.awaited_for(now)
            if not left:  # a moment ago there was: it is as if they had left
                self.undelivered += self._held.drop_expired(now)
                return
            timeout = min(timeout, left)
        self.awaited -= not for_traffic
        self.changed.wait(timeout)
        self.awaited += not for_traffic

    def notify(self) -> None:
        """Have the link's thread look again, and all who wait for traffic or for room."""
        assert self._lock.locked()
        self.changed.notify_all()

    def measure(self) -> None:
        """See whether answers have piled up; a sender that had no room for more has to notice."""
        assert self._lock.locked()
        # What is held back is bounded by itself: with no stream there is nobody to hold back.
        congested = not all(line.outbound.has_room for line in self._lines)
        if self.congested and not congested:
            self._is_relieved = True
        self.congested = congested
        for line in self._lines:
            line.block(self._saturated or not line.outbound.has_room)

    def _put_on_all(self, answers: Iterable[Answer | LargeAnswer]) -> None:
        """Queue answers for every line there is, or for the one to come."""
        assert self._lock.locked()
        # One that opens needs no copy of what is held: it will get all of that.
        lines = self._lines + self.opening if self._lines else []
        first, *others = [line.outbound for line in lines] or [self._held]
        for answer in answers:
            first.put(answer)
            for other in others:  # each stream keeps count of its chunks
                other.put(answer.copy() if isinstance(answer, LargeAnswer) else answer)
        self._bound()
        self.measure()
        for line in self._lines:
            line.unpark()

    def drop_line(
        self, line: Line, returned: list[Answer | LargeAnswer], *, replayed: int = 0
    ) -> None:
        """A line carries answers no more: another one does, ``replayed`` of them once more."""
        assert self._lock.locked()
        if line in self.opening:
            self.opening.remove(line)
            return  # its answers are copies: they leave elsewhere, or are held already
        if line in self._lines:
            self._lines.remove(line)
            self._count_lines()
            line.block(False)  # what piled up elsewhere must not keep the rest out
        self.replayed += replayed
        if returned:
            # Ahead of younger ones: handlers' answers keep their order, whatever breaks.
            (self._lines[-1].outbound if self._lines else self._held).put_back(returned)
            for newest in self._lines[-1:]:
                newest.unpark()
            self._bound()
        self.measure()

    def _bound(self) -> None:
        """Keep no more than ``replay_bytes`` of what cannot leave yet."""
        assert self._lock.locked()
        if self._closed:
            self.undelivered += self._held.abandon()
        self.undelivered += self._held.drop_oldest(self._replay_bytes)
        for line in self.opening:
            line.outbound.drop_oldest(self._replay_bytes)

    def use_line(self, line: Line) -> None:
        """A line carries answers from now on, first what was held back and is still waited for."""
        assert self._lock.locked()
        if self._holds:
            self.undelivered += self._held.drop_expired(clock.with_suspend())
            line.outbound.put_back(self._held.take_all())
        self.opening.remove(line)
        for other in self._lines + self.opening:  # what comes here may be answered there
            other.has_only_its_own = False
        self._lines.append(line)
        self._count_lines()
        self.measure()

    @property
    def _holds(self) -> bool:
        return bool(self._held.answer_bytes or self._held.large_bytes)

    def _count_lines(self) -> None:
        self._only = self._lines[0] if len(self._lines) == 1 else None
