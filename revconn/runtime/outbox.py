"""The outbound queues between the threads that answer and the ones that send."""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Container, Iterable
from contextlib import suppress
from typing import Callable

from revconn import clock
from revconn.core.large import LargeAnswer
from revconn.core.outbound import Answer, Outbound, Sent
from revconn.logger import get_logger
from revconn.runtime.threads import Condition

__all__ = ["Line", "Outbox"]

logger = get_logger(__name__)

_BATCH_BYTES = 1 << 20


class Outbox:
    """What one link has to send. It lasts as long as the link; a :class:`Line` as long as a stream.

    Answers outlive streams. Without a line that carries answers they are held back for the next
    one, ``replay_bytes`` of them at most; with two, during a hand-over, they go out on both, on the
    second as soon as it may carry them: a gateway that gets one twice ignores it, and there is no
    telling whether the two streams lead to the same gateway.

    ``_lock`` guards everything here and in the lines; ``_changed`` is its condition.
    Thread-safe.

    ``congested`` says that more answers wait than there should be; it may be read without the lock.

    :param saturated: whether so much is in flight that the peer should send no more; when that
        ends, :meth:`nudge` has to be called.
    :param on_relief: called, without the lock, when it is congested no longer.
    :param replay_bytes: of answers that are kept for another stream.
    :param doubt: seconds that may pass until a break is noticed.
    """

    def __init__(
        self,
        saturated: Callable[[], bool] = lambda: False,
        *,
        on_relief: Callable[[], object] = lambda: None,
        replay_bytes: int = 16 << 20,
        doubt: float = 50.0,
    ) -> None:
        self._saturated = saturated
        self._on_relief = on_relief
        self.congested = False
        self._is_relieved = False  # and on_relief is to be called by whoever has released the lock
        self._replay_bytes = replay_bytes
        self._doubt = doubt
        self._lock = threading.Lock()
        self._changed = Condition(self._lock)
        self._refused: deque[str] = deque()  # to be logged by whoever has released the lock
        self._held = self._new_queue()
        self._lines: list[Line] = []  # those that carry answers, the newest last
        self._opening: list[Line] = []  # those that will, with a copy of what leaves until then
        self._flushing = 0  # threads in wait_flushed()
        self._undelivered = 0
        self._replayed = 0
        self._closed = False

    def put(self, answers: Iterable[Answer | LargeAnswer], *, alone: bool = False) -> None:
        """Queue answers.

        ``alone`` says that no others will follow soon: if the transport can, it sends them in this
        very thread.
        """
        if alone:
            answers = list(answers)
            line = self._only_line()
            if line is not None and line.send_now(answers):
                return
        with self._lock:
            if self._opening or len(self._lines) != 1:
                self._put_on_all(answers)
            else:
                outbound = self._lines[0].outbound
                for answer in answers:
                    outbound.put(answer)
                if not outbound.has_room:
                    self.congested = True
            self._changed.notify_all()
        if self._refused:
            self._log_refused()

    def withdraw(self, request_ids: Container[str]) -> None:
        """Nobody waits for the answers to these any more: large ones are dropped."""
        with self._lock:
            for queue in (self._held, *(line.outbound for line in self._lines + self._opening)):
                queue.withdraw(request_ids)
            self._measure()
            self._changed.notify_all()
        self._tell_relief()

    def _only_line(self) -> Line | None:
        lines = self._lines[:2]  # a copy: others may change it meanwhile
        return lines[0] if len(lines) == 1 and not self._opening else None

    def _new_queue(self) -> Outbound:
        return Outbound(self._refused.append)

    def _log_refused(self) -> None:
        while self._refused:
            with suppress(IndexError):  # another thread was faster
                logger.error("%s", self._refused.popleft())

    def open_line(self) -> Line:
        """A line for a new stream."""
        line = Line(self, self._new_queue(), Sent(self._doubt, self._replay_bytes))
        with self._lock:
            self._opening.append(line)
        return line

    def nudge(self) -> None:
        """Wake the senders: there is room again, or the transport has its own to say."""
        with self._lock:
            for line in self._lines:
                line.nudged = True
            self._changed.notify_all()

    def wait_flushed(self, timeout: float) -> bool:
        """Wait, at most ``timeout`` seconds, until every answer was handed to the network.

        Control messages do not count: a handshake that hangs is nothing to wait for. True at
        once when no stream will follow: nothing can be flushed any more.
        """
        with self._lock:
            self._flushing += 1
            try:
                return self._changed.wait_for(self._flushed, timeout)
            finally:
                self._flushing -= 1

    def unsent(self) -> dict[object, int]:
        """The lines with something to send, each with how many batches its sender has taken."""
        with self._lock:
            return {line: line.batches for line in self._lines if line.has_unsent}

    def close(self) -> None:
        """There will be no other stream: nobody need wait for what is still queued."""
        with self._lock:
            self._closed = True
            self._measure()
            self._changed.notify_all()
        self._tell_relief()

    def _tell_relief(self) -> None:
        if self._is_relieved:
            self._is_relieved = False
            self._on_relief()

    @property
    def undelivered(self) -> int:
        """How many answers were given up: their deadline passed first, or they were too many."""
        with self._lock:
            return self._undelivered

    @property
    def replayed(self) -> int:
        """How many answers were sent again because their connection broke soon after."""
        with self._lock:
            return self._replayed

    # Each of these requires holding ``_lock``

    def _flushed(self) -> bool:
        assert self._lock.locked()
        on_their_way = any(line.leaving or line.outbound for line in self._lines)
        return self._closed or not (on_their_way or self._held)

    def _measure(self) -> None:
        """See whether answers have piled up; a sender that had no room for more has to notice."""
        assert self._lock.locked()
        congested = not all(line.outbound.has_room for line in self._lines)
        if self.congested and not congested:
            self._is_relieved = True
            for line in self._lines:
                line.nudged = True
        self.congested = congested

    def _put_on_all(self, answers: Iterable[Answer | LargeAnswer]) -> None:
        """Queue answers for every line there is, or for the one to come."""
        assert self._lock.locked()
        lines = self._lines + self._opening if self._lines else []
        queue, *others = [line.outbound for line in lines] or [self._held]
        for answer in answers:
            queue.put(answer)
            for other in others:  # each stream keeps count of its chunks
                other.put(answer.copy() if isinstance(answer, LargeAnswer) else answer)
        self._bound()
        self._measure()

    def _hold(self, answers: list[Answer | LargeAnswer]) -> None:
        """Keep answers that a line could not deliver, ahead of younger ones."""
        assert self._lock.locked()
        (self._lines[-1].outbound if self._lines else self._held).put_back(answers)
        self._bound()
        self._measure()

    def _bound(self) -> None:
        """Keep no more than ``replay_bytes`` of what cannot leave yet."""
        assert self._lock.locked()
        self._undelivered += self._held.drop_oldest(self._replay_bytes)
        for line in self._opening:
            line.outbound.drop_oldest(self._replay_bytes)

    def _release_held(self, line: Line) -> None:
        """What was held back goes out on ``line``, but for what nobody waits for any more."""
        assert self._lock.locked()
        self._undelivered += self._held.drop_expired(clock.with_suspend())
        line.outbound.put_back(self._held.take_all())
        self._opening.remove(line)
        self._lines.append(line)
        self._measure()


class Line:
    """One stream's view of the outbox: a :class:`~revconn.transport.base.Source`.

    Only control messages (the registration, heartbeats, the goodbye) leave until
    :meth:`let_answers_through` and after :meth:`withhold_answers`; nothing does after
    :meth:`close`. Answers that may not have arrived by then go out again on another line.
    Guarded by the outbox's lock; ``control_left_at`` (:func:`~revconn.clock.with_suspend`)
    may be read without.
    """

    def __init__(self, outbox: Outbox, outbound: Outbound, sent: Sent) -> None:
        self._outbox = outbox
        self.outbound = outbound
        self._sent = sent
        self._control: list[bytes] = []
        self._sign_waits = False
        self._sign_taken = False
        self._closed = False
        self._limit = 0
        self._send_now: Callable[[list[bytes]], bool] = lambda _messages: False
        self._taken: list[Answer | LargeAnswer] = []  # by the sender, which is sending them
        self._sending: list[Answer | LargeAnswer] = []  # by send_now()
        self._begun: list[Answer | LargeAnswer] = []  # by send_now(), for the sender to finish
        self.nudged = False
        self.batches = 0
        self.control_left_at: float | None = None

    def put_control(self, message: bytes, *, is_sign_of_life: bool = True) -> None:
        """Send ``message`` before every answer that waits.

        ``is_sign_of_life`` says that the gateway takes it for one: when that left is remembered.
        """
        with self._outbox._lock:
            if not self._closed:
                self._control.append(message)
                self._sign_waits |= is_sign_of_life
                self._sent.add([], clock.with_suspend())  # on a quiet line nobody else forgets
                self._outbox._changed.notify_all()

    def let_answers_through(
        self,
        limit: int = sys.maxsize,
        *,
        chunks: bool = False,
        send_now: Callable[[list[bytes]], bool] = lambda _messages: False,
    ) -> None:
        """The handshake is done: the peer takes messages of ``limit`` bytes, and chunks or not.

        ``send_now`` is the stream's way around its sender, if it has one.
        """
        with self._outbox._lock:
            if self in self._outbox._opening:
                self._limit, self._send_now = limit, send_now
                self.outbound.agree(limit, chunks=chunks)
                self._outbox._release_held(self)
            self._outbox._changed.notify_all()
        self._outbox._log_refused()

    def withhold_answers(self) -> None:
        """The peer reads no more answers here: those that wait go out elsewhere."""
        with self._outbox._lock:
            self._give_up_answers([])
            self._outbox._changed.notify_all()
        self._outbox._log_refused()
        self._outbox._tell_relief()

    def take(self) -> list[bytes] | None:
        """The next batch for the sender thread, empty when nudged; ``None`` once closed."""
        with self._outbox._lock:
            batch = self._await_batch()
        self._outbox._tell_relief()
        return batch

    def send_now(self, answers: list[Answer | LargeAnswer]) -> bool:
        """Send answers in this thread, if the stream can at once; whether it did."""
        messages = [each.message for each in answers if isinstance(each, Answer)]
        if len(messages) < len(answers) or max(map(len, messages)) > self._limit:
            return False
        with self._outbox._lock:
            if self.leaving or self.outbound or not self._carries_answers:
                return False
            self._sending = answers
        sent = self._send_now(messages)
        with self._outbox._lock:
            taken_over = self._sending is not answers  # by the sender, or the line was given up
            if not taken_over:
                self._sending = []
                if sent:
                    self._sent.add(answers, clock.with_suspend())
            if self._outbox._flushing:  # nobody else is concerned; a sender woken in vain is dear
                self._outbox._changed.notify_all()
        return sent or taken_over

    def leave_to_sender(self) -> None:
        """What :meth:`send_now` sends has left when the sender comes back for more."""
        with self._outbox._lock:
            self._begun, self._sending = self._sending, []
            self.nudged = True
            self._outbox._changed.notify_all()

    def wait(self) -> bool:
        """Block until nudged; false once closed. Takes nothing: what was taken is still here."""
        with self._outbox._lock:
            self._outbox._changed.wait_for(lambda: self._closed or self.nudged)
            self._take_over_begun()
            self.nudged = False
            return not self._closed

    def nudge(self) -> None:
        """Make :meth:`take` or :meth:`wait` return."""
        with self._outbox._lock:
            self.nudged = True
            self._outbox._changed.notify_all()

    def has_room(self) -> bool:
        """Whether the peer may send more: not while requests or answers have piled up."""
        if not self._carries_answers:  # what piled up elsewhere must not keep the handshake out
            return True
        return self.outbound.has_room and not self._outbox._saturated()

    def wait_for_room(self) -> None:
        """Hold back whoever reads from the peer until there is room, or the line is closed."""
        with self._outbox._lock:
            self._outbox._changed.wait_for(lambda: self._closed or self.has_room())

    def close(self, *, settled: bool = False) -> None:
        """Nothing more goes out on this stream; its sender ends. Idempotent.

        ``settled`` says that the peer had all it waited for when it ended the stream.
        """
        with self._outbox._lock:
            if self._closed:
                return
            self._closed = True
            self._control.clear()
            self._give_up_answers([] if settled else self._sent.take(clock.with_suspend()))
            self._outbox._changed.notify_all()
        self._outbox._log_refused()
        self._outbox._tell_relief()

    @property
    def is_flushed(self) -> bool:
        """Whether no answer waits to leave here, and nobody has to take a message any more."""
        with self._outbox._lock:
            return not (self._control or self.outbound or self.leaving)

    @property
    def _carries_answers(self) -> bool:
        return self in self._outbox._lines

    # Each of these requires holding the outbox's lock

    @property
    def leaving(self) -> list[Answer | LargeAnswer]:
        """What is with the stream and may not have left."""
        assert self._outbox._lock.locked()
        return self._taken + self._sending + self._begun

    @property
    def has_unsent(self) -> bool:
        """Whether anything waits to leave, or is leaving."""
        assert self._outbox._lock.locked()
        return bool(self._control or self._sign_taken or self.outbound or self.leaving)

    def _give_up_answers(self, doubtful: list[Answer | LargeAnswer]) -> None:
        """Carry no more answers; ``doubtful`` ones left and may not have arrived."""
        assert self._outbox._lock.locked()
        waiting = self.outbound.take_all()
        if self._carries_answers:
            self._outbox._lines.remove(self)
        elif self in self._outbox._opening:
            self._outbox._opening.remove(self)
            waiting = []  # they leave elsewhere, or are held already
        self._outbox._replayed += len(doubtful)
        self._outbox._hold(doubtful + self.leaving + waiting)
        self._taken, self._sending, self._begun = [], [], []

    def _take_over_begun(self) -> None:
        assert self._outbox._lock.locked()
        self._taken, self._begun = self._taken + self._begun, []

    def _rest(self) -> None:
        """The previous batch has left."""
        assert self._outbox._lock.locked()
        self._sent.add(self._taken, clock.with_suspend())
        self._taken = []
        if self._sign_taken:
            self.control_left_at = clock.with_suspend()
            self._sign_taken = False
        self._outbox._changed.notify_all()

    def _await_batch(self) -> list[bytes] | None:
        """Wait for it; the previous one has left."""
        self._rest()
        while not self._closed:
            batch = self._next_batch()
            if batch or self.nudged:
                self._take_over_begun()
                self.nudged = False
                self.batches += 1
                self._outbox._changed.notify_all()
                return batch
            self._outbox._changed.wait()
        return None

    def _next_batch(self) -> list[bytes]:
        assert self._outbox._lock.locked()
        control, self._control = self._control, []
        self._sign_taken, self._sign_waits = self._sign_waits, False
        if not self._carries_answers:
            return control
        answers = self.outbound.take_answers(_BATCH_BYTES)
        batch = control + [answer.message for answer in answers]
        self._taken = [*answers]
        if self.outbound.has_large:  # one chunk: what is small comes in between
            chunk, finished = self.outbound.take_chunk()
            batch.append(chunk)
            if finished is not None:
                self._taken.append(finished)
        if self._outbox.congested:
            self._outbox._measure()
        return batch
