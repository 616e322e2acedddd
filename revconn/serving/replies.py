"""Answers on their way to one gateway: queued, sent, held back, in doubt, sent again."""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Callable

from revconn.core.chunks import LargeAnswer
from revconn.core.rope import Data
from revconn.core.sending import ROOM_BYTES, Answer, Held, Outbound, Sent, as_left
from revconn.logger import get_logger
from revconn.messages import Request
from revconn.runtime import clock
from revconn.serving.sender_queue import SenderQueue

__all__ = ["Line", "Replies"]

logger = get_logger(__name__)

_BATCH_BYTES = 1 << 20


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

    :param on_relief: called, without the lock, when it is congested no longer.
    :param replay_bytes: of answers that are kept for another stream.
    :param doubt: seconds that may pass until a break is noticed.
    """

    def __init__(
        self,
        lock: threading.Lock | None = None,
        *,
        on_relief: Callable[[], object] = lambda: None,
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
        return self._closed or not (waits or any(line.has_answers for line in self._lines))

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
        self._lines.append(line)
        self._count_lines()
        self.measure()

    @property
    def _holds(self) -> bool:
        return bool(self._held.answer_bytes or self._held.large_bytes)

    def _count_lines(self) -> None:
        self._only = self._lines[0] if len(self._lines) == 1 else None


class Line(SenderQueue):
    """One stream's view of the replies: a :class:`~revconn.transport.base.Source`.

    Only control messages (the registration, heartbeats, the goodbye) leave until
    :meth:`let_answers_through` and after :meth:`withhold_answers`; nothing does after
    :meth:`close`. Answers that may not have arrived by then go out again on another line.
    Guarded by the lock of the replies; ``blocked`` and ``control_left_at``
    (:func:`~revconn.runtime.clock.with_suspend`) may be read without.
    """

    def __init__(self, replies: Replies, outbound: Outbound, sent: Sent) -> None:
        super().__init__(replies._lock)
        self._replies = replies
        self.outbound = outbound
        self._sent = sent
        self._carries_answers = False
        self._limit = 0
        self._send_now: Callable[[list[Data]], bool] | None = None
        self._taken: list[Answer | LargeAnswer] = []  # by the sender, which is sending them
        self._sending: Sequence[Answer | LargeAnswer] = ()  # reserved by a thread that sends now
        self._messages, self._messages_bytes = list[Data](), 0  # of those
        self._begun: list[Answer | LargeAnswer] = []  # which began, for the sender to finish
        self.blocked = False

    def let_answers_through(
        self,
        limit: int = sys.maxsize,
        *,
        chunks: bool = False,
        send_now: Callable[[list[Data]], bool] | None = None,
    ) -> None:
        """The handshake is done: the peer takes messages of ``limit`` bytes, and chunks or not.

        ``send_now`` is the stream's way around its sender, if it has one. Requires holding the
        lock; see to :meth:`Replies.log_refused` afterwards.
        """
        assert self._lock.locked()
        if self in self._replies.opening:
            self._limit, self._send_now = limit, send_now
            self.outbound.agree(limit, chunks=chunks)
            self._carries_answers = True
            self._replies.use_line(self)
        self.unpark()

    def withhold_answers(self) -> None:
        """The peer reads no more answers here: those that wait go out elsewhere."""
        with self._lock:
            self._give_up_answers([])
            self._replies.notify()
        self._replies.log_refused()
        self._replies.tell_relief()

    def _after_taking(self) -> None:
        self._replies.tell_relief()

    def send_reserved(self) -> None:
        """Send in this thread what :meth:`reserve` has set aside; the sender the rest."""
        answers, messages = self._sending, self._messages
        assert self._send_now is not None
        # Whatever it runs into: what stayed reserved would let nothing leave here ever again.
        sent = False
        try:
            sent = self._send_now(messages)
        finally:
            with self._lock:
                # Else the sender has them, or the line was given up; or the sender had them, and
                # what is reserved by now is another thread's.
                if self._sending is answers:
                    self._sending, self._messages = (), []
                    if sent:
                        self._sent.add(answers, clock.with_suspend(), self._messages_bytes)
                    else:
                        self.outbound.put_back([*answers])
                        self.unpark()
                if self._replies.awaited:
                    self._replies.changed.notify_all()

    def leave_to_sender(self) -> None:
        """What :meth:`send_reserved` sends has left when the sender comes back for more."""
        with self._lock:
            self._begun, self._sending = [*self._begun, *self._sending], ()
            self._messages = []  # whoever sends has them in hand
            self.wake()

    def wait_for_room(self) -> None:
        """Hold back whoever reads from the peer until there is room, or the line is closed."""
        if self.blocked:  # without the lock first: this is asked for every batch that arrives
            with self._lock:
                self._replies.changed.wait_for(lambda: self._closed or not self.blocked)

    def close(self, *, settled: bool = False) -> None:
        """Nothing more goes out on this stream; its sender ends. Idempotent.

        ``settled`` says that the peer had all it waited for when it ended the stream.
        """
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._control.clear()  # heartbeats and a goodbye say nothing on another stream
            doubtful = [] if settled else self._sent.take(clock.with_suspend())
            self._give_up_answers(doubtful, settled)
            self.unpark()
            self._replies.notify()
        self._replies.log_refused()
        self._replies.tell_relief()

    @property
    def is_flushed(self) -> bool:
        """Whether no answer waits to leave here, and nobody has to take a message any more."""
        with self._lock:
            return not (self._control or self.has_answers)

    # Each of these requires holding the lock

    @property
    def has_answers(self) -> bool:
        """Whether an answer waits to leave, or is leaving."""
        waiting = self.outbound.answer_bytes or self.outbound.large_bytes
        return bool(waiting or self._taken or self._sending or self._begun)

    @property
    def has_unsent(self) -> bool:
        """Whether anything waits to leave, or is leaving."""
        assert self._lock.locked()
        return bool(self._control or self._sign_taken or self.has_answers)

    def reserve(self, answers: Sequence[Answer | LargeAnswer]) -> bool:
        """Set answers aside for the thread that has them, if it may send them past the sender.

        Not past others that wait or are leaving: answers of one thread keep their order, and a
        stream that is busy would only make it wait.
        """
        if (
            self._taken
            or self._sending
            or self._begun
            or self.outbound.answer_bytes
            or self.outbound.large_bytes
            or self._send_now is None
            or self._closed
        ):
            return False
        messages: list[Data] = []
        size = 0
        for answer in answers:
            if type(answer) is not tuple:
                return False
            message = answer[0]
            length = len(message)
            if length > self._limit:
                return False
            messages.append(message)
            size += length
        self._sending, self._messages, self._messages_bytes = answers, messages, size
        self.batches += 1  # or answers that leave one by one would look like one that is stuck
        return True

    def block(self, blocked: bool) -> None:
        """Whether the peer should send no more; the sender has to notice when it may again."""
        assert self._lock.locked()
        if blocked != self.blocked:
            self.blocked = blocked
            if not blocked:
                self.wake()
                self._replies.notify()

    def _give_up_answers(self, doubtful: list[Answer | LargeAnswer], settled: bool = False) -> None:
        """Carry no more answers; ``doubtful`` ones left and may not have arrived."""
        returned = doubtful
        if self.has_answers:
            leaving = [*self._taken, *self._sending, *self._begun]
            if settled:  # the peer has read all it waits for: the sender did not come back yet
                leaving = [as_left(each) for each in leaving]
            returned = [*doubtful, *leaving, *self.outbound.take_all()]
            self._taken, self._sending, self._begun = [], (), []
        self._carries_answers = False
        self._replies.drop_line(self, returned, replayed=len(doubtful))

    def _rest(self) -> None:
        """The sender came back: its answers have left, and may not have arrived for a while."""
        assert self._lock.locked()
        if self._taken:
            self._sent.add(self._taken, clock.with_suspend())
            self._taken = []
        elif (kept := self._sent.batches) and kept[0][0] + self._sent.doubt <= clock.with_suspend():
            self._sent.add((), clock.with_suspend())  # on a quiet line nobody else forgets
        super()._rest()
        if self._replies.awaited:
            self._replies.changed.notify_all()

    def _next_batch(self) -> list[Data]:
        """What waits, oldest first; nothing if the sender has to wait for more."""
        assert self._lock.locked()
        batch = super()._next_batch()
        # Taken, and not gone: until the sender comes back the stream may break under them.
        if self._carries_answers:
            if self.has_answers:
                answers = self.outbound.take_answers(_BATCH_BYTES)
                batch += [answer[0] for answer in answers]
                self._taken = [*answers]
                if self.outbound.has_large:  # one chunk: what is small comes in between
                    chunk, finished = self.outbound.take_chunk()
                    batch.append(chunk)
                    if finished is not None:
                        self._taken.append(finished)
            if self._replies.congested:
                self._replies.measure()
        return batch

    def _go(self) -> None:
        """The sender leaves, with what it took, and with what another thread began to send."""
        assert self._lock.locked()
        if self._begun:
            self._taken += self._begun
            self._begun = []
        super()._go()
        if self._replies.awaited:
            self._replies.changed.notify_all()
