"""One stream's view of what its link has to send."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Callable

from revconn.core.chunks import LargeAnswer
from revconn.core.rope import Data
from revconn.core.sending import Answer, Outbound, Sent, as_left
from revconn.core.streams import Streams
from revconn.runtime import clock
from revconn.serving.sender_queue import SenderQueue

if TYPE_CHECKING:
    from revconn.serving.replies import Replies

__all__ = ["Line"]

_BATCH_BYTES = 1 << 20
_FRAMES_BYTES = 256 << 10  # of streams, at a time: what an answer may have to wait for


class Line(SenderQueue):
    """One stream's view of the replies: a :class:`~revconn.transport.base.Source`.

    Only control messages (the registration, heartbeats, the goodbye) leave until
    :meth:`let_answers_through` and after :meth:`withhold_answers`; nothing does after
    :meth:`close`. Answers that may not have arrived by then go out again on another line.
    ``has_only_its_own``: whether all that it has carried answers what came on its own stream.
    Guarded by the lock of the replies; ``blocked`` and ``control_left_at``
    (:func:`~revconn.runtime.clock.with_suspend`) may be read without.
    """

    def __init__(self, replies: Replies, outbound: Outbound, sent: Sent) -> None:
        super().__init__(replies._lock)
        self.replies = self._replies = replies
        self.streams: Streams | None = None  # where its gateway knows them
        self._has_frames = False  # taken by the sender, which is sending them
        self.outbound = outbound
        self.has_only_its_own = False
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

    def close(self, *, settled: bool = False, dismissed: bool = False) -> None:
        """Nothing more goes out on this stream; its sender ends. Idempotent.

        ``settled`` says that the peer had all it waited for when it ended the stream;
        ``dismissed``, that it had all it waited for of what it had sent on this stream.
        """
        with self._lock:
            if self._closed:
                return
            self._closed = True
            if self.streams is not None:
                self.streams.lose("the connection ended")
                self.streams = None  # nor is another one heard of here
            self._control.clear()  # heartbeats and a goodbye say nothing on another stream
            if dismissed and self.has_only_its_own:
                # Those that left arrived, or their callers were told of a failure. No copy of them
                # went elsewhere, and nobody waits for them.
                settled = True
                self._taken, self._sending, self._begun = [], (), []
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
        return bool(self._control or self._sign_taken or self.has_answers or self.has_stream_output)

    @property
    def has_stream_output(self) -> bool:
        """Whether something of a stream is to leave, or is leaving."""
        return self._has_frames or (self.streams is not None and self.streams.has_output)

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

    def take_streams(self, streams: Streams) -> None:
        """Its gateway knows streams."""
        assert self._lock.locked()
        if not self._closed:
            self.streams = streams

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
        self._has_frames = False
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
        if self.streams is not None and self.streams.has_output:
            batch += self.streams.take(_FRAMES_BYTES)
            self._has_frames = True
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
