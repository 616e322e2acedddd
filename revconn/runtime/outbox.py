"""The outbound queue between the threads that answer and the one that sends."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Container, Iterable
from typing import Callable

from revconn.core.large import LargeAnswer
from revconn.core.outbound import Answer, Outbound
from revconn.runtime import clock

__all__ = ["Line", "Outbox"]

_BATCH_BYTES = 1 << 20
_ROOM_BYTES = 16 << 20
_LARGE_ROOM_BYTES = 128 << 20


class Outbox:
    """What one link has to send. It lasts as long as the link; a :class:`Line` as long as a stream.

    ``_lock`` guards everything here and in the lines; ``_changed`` is its condition.
    Thread-safe.

    ``saturated`` says whether so much is in flight that the peer should send no more; when that
    ends, :meth:`nudge` has to be called.
    """

    def __init__(self, saturated: Callable[[], bool] = lambda: False) -> None:
        self._saturated = saturated
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._outbound = Outbound()
        self._line: Line | None = None
        self._closed = False

    def put(self, answers: Iterable[Answer | LargeAnswer]) -> None:
        """Queue answers. They wait for the next stream when there is none now."""
        with self._lock:
            for answer in answers:
                self._outbound.put(answer)
            self._changed.notify_all()

    def withdraw(self, request_ids: Container[str]) -> None:
        """Nobody waits for the answers to these any more: large ones are dropped."""
        with self._lock:
            self._outbound.withdraw(request_ids)
            self._changed.notify_all()

    def open_line(self) -> Line:
        """Attach a new stream. The previous one, if any, gets nothing more."""
        line = Line(self)
        with self._lock:
            self._line = line
            self._outbound.start_over(time.monotonic())
            self._changed.notify_all()
        return line

    def nudge(self) -> None:
        """Wake the sender: there is room again, or the transport has its own to say."""
        with self._lock:
            if self._line is not None:
                self._line.nudged = True
                self._changed.notify_all()

    def wait_flushed(self, timeout: float) -> bool:
        """Wait, at most ``timeout`` seconds, until every answer was handed to the network.

        Control messages do not count: a handshake that hangs is nothing to wait for. True at
        once when no stream will follow: nothing can be flushed any more.
        """
        with self._lock:
            return self._changed.wait_for(self._flushed, timeout)

    def close(self) -> None:
        """There will be no other stream: nobody need wait for what is still queued."""
        with self._lock:
            self._closed = True
            self._changed.notify_all()

    @property
    def undelivered(self) -> int:
        """How many answers were dropped because their deadline passed before they could leave."""
        with self._lock:
            return self._outbound.undelivered

    def _flushed(self) -> bool:
        """Requires holding ``_lock``."""
        assert self._lock.locked()
        taken = self._line is not None and self._line.answers_taken
        waiting = self._outbound.answer_bytes or self._outbound.large_bytes
        return self._closed or not (taken or waiting)


class Line:
    """One stream's view of the outbox: a :class:`~revconn.transport.base.Source`.

    Only control messages leave until :meth:`let_answers_through`; nothing does after
    :meth:`close`. Answers that were taken and may not have left by then wait for the next line:
    a gateway that gets one twice ignores it. Guarded by the outbox's lock; ``control_left_at``
    (:func:`~revconn.runtime.clock.with_suspend`) may be read without.
    """

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._answering = False
        self._closed = False
        self._control_taken = False
        self.answers_taken: list[Answer | LargeAnswer] = []
        self.nudged = False
        self.control_left_at: float | None = None

    def put_control(self, message: bytes) -> None:
        """Send ``message`` before every answer that waits."""
        with self._outbox._lock:
            if self._outbox._line is self and not self._closed:
                self._outbox._outbound.put_control(message)
                self._outbox._changed.notify_all()

    def let_answers_through(self, limit: int = sys.maxsize, *, chunks: bool = False) -> None:
        """The handshake is done: the peer takes messages of ``limit`` bytes, and chunks or not."""
        with self._outbox._lock:
            self._answering = True
            if self._outbox._line is self:
                self._outbox._outbound.agree(limit, chunks=chunks)
            self._outbox._changed.notify_all()

    def take(self) -> list[bytes] | None:
        """The next batch for the sender thread, empty when nudged; ``None`` once closed."""
        with self._outbox._lock:
            self._rest()
            while not self._closed:
                batch = self._next_batch()
                if batch or self.nudged:
                    self.nudged = False
                    self._outbox._changed.notify_all()
                    return batch
                self._outbox._changed.wait()
            return None

    def wait(self) -> bool:
        """Block until nudged; false once closed. Takes nothing: what was taken is still here."""
        with self._outbox._lock:
            self._outbox._changed.wait_for(lambda: self._closed or self.nudged)
            self.nudged = False
            return not self._closed

    def nudge(self) -> None:
        """Make :meth:`take` or :meth:`wait` return."""
        self._outbox.nudge()

    def has_room(self) -> bool:
        """Whether the peer may send more: not while requests or answers have piled up."""
        if not self._answering:  # what piled up earlier must not keep the handshake out
            return True
        outbound = self._outbox._outbound
        if outbound.answer_bytes > _ROOM_BYTES or outbound.large_bytes > _LARGE_ROOM_BYTES:
            return False
        return not self._outbox._saturated()

    def wait_for_room(self) -> None:
        """Hold back whoever reads from the peer until there is room, or the line is closed."""
        with self._outbox._lock:
            self._outbox._changed.wait_for(lambda: self._closed or self.has_room())

    def close(self) -> None:
        """Nothing more goes out on this stream; its sender ends. Idempotent."""
        with self._outbox._lock:
            self._closed = True
            self._outbox._outbound.put_back(self.answers_taken)
            self.answers_taken = []
            if self._outbox._line is self:
                self._outbox._line = None
                self._outbox._outbound.hang_up()
            self._outbox._changed.notify_all()

    def _rest(self) -> None:
        """The previous batch has left. Requires holding the outbox's lock."""
        assert self._outbox._lock.locked()
        self.answers_taken = []
        if self._control_taken:
            self.control_left_at = clock.with_suspend()
            self._control_taken = False
        self._outbox._changed.notify_all()

    def _next_batch(self) -> list[bytes]:
        """Requires holding the outbox's lock."""
        assert self._outbox._lock.locked()
        outbound = self._outbox._outbound
        if self._outbox._line is not self:
            return []
        control = outbound.take_control()
        self._control_taken = bool(control)
        if not self._answering:
            return control
        answers = outbound.take_answers(_BATCH_BYTES)
        batch = control + [answer.message for answer in answers]
        self.answers_taken = [*answers]
        if outbound.has_large:  # one chunk: what is small comes in between
            chunk, finished = outbound.take_chunk()
            batch.append(chunk)
            if finished is not None:
                self.answers_taken.append(finished)
        return batch
