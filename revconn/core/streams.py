"""Streaming calls on a tunnel connection, either end: credit, turns, pieces, and how each ends.

The gateway opens a stream, the connector answers it. What either end says goes in frames
(``StreamFrame``), several messages in one. A stream, at the end that asks and at the other::

    asks:     OPEN --half_close--> OPEN, and says no more
              OPEN --status came, or cancel was said--> over
    answers:  OPEN --half_close came--> OPEN, and hears no more
              OPEN --status was said, or cancel came--> over

Over means forgotten: what still comes of it is ignored, and its id is never used again. Messages
cost credit, their bytes and 32 more each. A message may begin as long as any credit is left, so
that one larger than the window passes; the window grows by that. Credit is given back once half a
window was consumed. Streams that have something to say take turns.

No time, no thread, no I/O: whoever owns a connection guards its streams. One thread may put
messages into a stream's ``queue`` without that guard, as long as nobody else does.
"""

from __future__ import annotations

from collections import deque
from typing import Callable

from revconn._proto.registry_pb2 import StreamFrame, StreamOpening, StreamStatus
from revconn.core.metadata import Metadata, bounded, entries_of, truncate_message
from revconn.core.requests import LargeAlone
from revconn.core.rope import Data
from revconn.core.status import StatusCode
from revconn.core.stream import LARGE_BYTES, WINDOW, Large, Listener, Received, Stream
from revconn.logger import encodable

__all__ = ["Streams"]

TURN = 64 << 10  # bytes that a stream sends before it is another one's turn
# Where there is no other: what control has to wait for. With all that is around it that is two
# frames of HTTP/2, each in one write.
_ALONE = (512 << 10) - 128
_LEAST = 1 << 10  # bytes of a turn, however little the other end takes at once
_MOST_UNSAID = 1_000  # streams that are over, and whose other end is still to be told
LAST_ID = 2**32 - 1

_NEVER_OPENED = "a frame of a stream that was never opened"

Answered = Callable[[Stream, StreamOpening], object]


class Streams:
    """The streams of one connection at one end, and whose turn it is to send.

    :param on_ready: called when there is something to take, where there was nothing.
    :param accept: at the end that answers: sets the listener of a stream that was opened.
    :param message_limit: bytes of the largest message that is taken.
    :param most_streams: that may be open at once.
    :param most_held: bytes that large messages of all streams may hold together.
    :param held_option: which option of this end's says so, for words.
    :param frame_limit: bytes of the largest message of the connection that the other end takes.
    :ivar held: what came and was not consumed.
    :ivar small: bytes of a message up to which only its stream's credit limits it.
    :ivar turn: bytes that a stream sends before it is another one's turn.
    :ivar header_list: bytes of an answer's metadata, and of its status, for both of which a frame
        that is full of messages has room.
    """

    def __init__(
        self,
        on_ready: Callable[[], object],
        *,
        accept: Answered | None = None,
        message_limit: int,
        most_streams: int,
        most_held: int,
        held_option: str = "",
        frame_limit: int = 1 << 30,
    ) -> None:
        self._on_ready = on_ready
        self._accept = accept
        self.message_limit = message_limit
        self.most_streams = most_streams
        self.most_held = most_held
        self.held_option = held_option
        self.small = min(LARGE_BYTES, message_limit)
        # A frame holds at most so much, one message of a turn, and what is neither.
        self._alone = max(_LEAST, min(_ALONE, frame_limit // 2))
        self.turn = max(_LEAST, min(TURN, frame_limit // 4))
        self.header_list = frame_limit // 8
        self.held = self.grown = 0
        self.open: dict[int, Stream] = {}
        self._last_id = 0
        self._ready: deque[Stream] = deque()

    @property
    def has_output(self) -> bool:
        """Whether there is something to take."""
        return bool(self._ready)

    @property
    def is_full(self) -> bool:
        """Whether as many are open as may be, or there is no id left, or nobody listens."""
        return (
            len(self.open) >= self.most_streams
            # Those that were given up are not open, and each has a word to be said.
            or len(self._ready) >= self.most_streams + _MOST_UNSAID
            or self._last_id >= LAST_ID
        )

    def ask(self, opening: StreamOpening, listener: Listener) -> Stream:
        """Open a stream; its listener is told what comes of it."""
        self._last_id += 1
        stream = self.open[self._last_id] = Stream(self, self._last_id, listener)
        stream.open_with(opening)
        return stream

    def receive(self, frame: StreamFrame | LargeAlone, large: Large | None = None) -> str:
        """Take in what the other end says; what was wrong with it, for a log, if anything was.

        :param large: see :func:`revconn.core.requests.split_frame`.
        """
        stream = self.open.get(frame.stream_id)
        if isinstance(frame, LargeAlone):
            if stream is not None and large is not None:
                stream.receive_alone(frame.missing, large, asks=self._accept is None)
            return "" if frame.stream_id <= self._last_id else _NEVER_OPENED
        if stream is not None:
            if frame.HasField("opening"):
                return "a second opening of a stream"
            stream.receive(frame, large, asks=self._accept is None)
            return ""
        if frame.stream_id <= self._last_id:  # it is over; this met its end on the way
            return ""
        if self._accept is None or not frame.HasField("opening"):
            return _NEVER_OPENED
        self._last_id = frame.stream_id
        stream = Stream(self, frame.stream_id, _NOBODY)
        if len(self.open) >= self.most_streams:
            problem = f"{self.most_streams:,} streams are open on this connection"
            stream.cut_short(StatusCode.RESOURCE_EXHAUSTED, problem)
            return ""
        self.open[frame.stream_id] = stream
        self._accept(stream, frame.opening)
        frame.ClearField("opening")
        stream.receive(frame, large, asks=False)
        return ""

    def status(self, code: StatusCode, message: str, trailing: Metadata) -> StreamStatus:
        """An answer's end, as far as it goes into a frame: a longer one would end the tunnel."""
        if len(message) > self.header_list // 8:  # each character may be four bytes
            message = truncate_message(encodable(message), self.header_list // 8)
        return StreamStatus(
            code=int(code),
            message=encodable(message),
            trailing_metadata=entries_of(bounded(trailing, self.header_list)),
        )

    def has_room_for(self, stream: Stream, size: int) -> bool:
        """Whether a large message may be held; what goes into its window always may.

        So may what the other end cannot send in pieces: a window may be overdrawn by that.
        """
        if size <= TURN or stream.held + size <= stream.window:
            return True
        return self.held + size <= self.most_held

    def enlist(self, stream: Stream) -> None:
        """A stream has something to say, maybe: it waits for its turn."""
        if not stream.is_listed and stream.has_output:
            stream.is_listed = True
            self._ready.append(stream)
            if len(self._ready) == 1:
                self._on_ready()

    def take(self, most: int) -> list[Data]:
        """Frames to send: one, and as many more as there are until they are ``most`` bytes."""
        ready = self._ready
        taken: list[Data] = []
        while ready and most > 0:
            stream = ready.popleft()
            data = stream.encode(self.turn if ready else self._alone)
            if data:
                taken.append(data)
                most -= len(data)
            if stream.has_output:
                ready.append(stream)
            else:
                stream.is_listed = False
                # Whoever puts messages without the guard looks at that after it has put one.
                if stream.has_output:
                    stream.is_listed = True
                    ready.append(stream)
        return taken

    def discard(self, stream: Stream) -> None:
        """A stream is over."""
        self.open.pop(stream.id, None)
        self.held -= stream.held
        self.grown -= stream.window - WINDOW
        stream.forget()

    def lose(self, reason: str) -> None:
        """The connection is gone: so are its streams. Each listener is told."""
        self._last_id = LAST_ID  # what still comes of it opens nothing
        for stream in tuple(self.open.values()):
            if not stream.is_over:  # another one's listener may have given it up
                self.discard(stream)
                stream.listener.break_off(StatusCode.UNAVAILABLE, reason)
        self._ready.clear()


class _Nobody(Listener):
    """Hears what comes on a stream that was refused."""

    __slots__ = ()

    def take(self, messages: list[Received], *, ended: bool) -> None:
        """Nobody is there to take it."""

    def break_off(self, code: StatusCode, reason: str) -> None:
        """Nobody is there to be told."""


_NOBODY = _Nobody()
