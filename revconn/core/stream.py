"""One streaming call at one end of a tunnel connection: what it says and hears, and its credit.

:mod:`revconn.core.streams` says how a stream lives, and guards it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Union

from google.protobuf.message import Message

from revconn._proto.registry_pb2 import (
    StreamCancel,
    StreamFrame,
    StreamMetadata,
    StreamOpening,
    StreamStatus,
)
from revconn.core.metadata import Metadata, bounded, entries_of, pairs_of
from revconn.core.requests import STREAM_TAG, encode_varint
from revconn.core.rope import ROPE_BYTES, Data, Piece, Rope
from revconn.core.status import StatusCode
from revconn.logger import encodable

if TYPE_CHECKING:
    from revconn.core.streams import Streams

__all__ = ["LARGE_BYTES", "OVERHEAD", "WINDOW", "Large", "Listener", "Received", "Stream"]

WINDOW = 64 << 10
"""Bytes that either end may send on a stream before it is given more."""

OVERHEAD = 32
"""Bytes that a message costs beside its own."""

LARGE_BYTES = 4 << 10
"""Of a message, beyond which few go into a window."""

_LARGEST_WINDOW = 4 << 20
_MOST_WINDOWS = 32 << 20  # bytes by which all windows of a connection may have grown
_MOST_ALLOWED = 2 * _LARGEST_WINDOW  # bytes at once: what is allowed may wait here to be sent
_SMALL_PIECE = 1 << 10  # bytes: an object of Python's is not worth less

_OVERDRAWN = "sent more than it was allowed"
_TRUNCATED = "ended in the middle of a message"

# Tags of registry.proto: of StreamFrame, what is encoded by hand.
_ID, _OPENING, _INITIAL, _MESSAGE, _PIECE = b"\x08", b"\x12", b"\x1a", b"\x22", b"\x2a"
_HALF_CLOSE, _STATUS, _CANCEL, _CREDIT = b"\x30\x01", b"\x3a", b"\x42", b"\x48"
_SHORT = [_MESSAGE + encode_varint(size) for size in range(1024)]


Large = Union[memoryview, Rope]
Received = Union[bytes, memoryview, Rope]
"""A message that came; a large one in the pieces that it came in."""


class Listener:
    """Who is told of what comes on a stream. None of this may raise."""

    __slots__ = ()

    def take_initial(self, metadata: Metadata) -> None:
        """The answer's initial metadata has come."""

    def take(self, messages: list[Received], *, ended: bool) -> None:
        """Messages have come; ``ended``: the caller sends no more."""
        raise NotImplementedError

    def take_status(self, code: StatusCode, message: str, trailing: Metadata) -> None:
        """The answer's end has come: the stream is over."""

    def break_off(self, code: StatusCode, reason: str) -> None:
        """The stream is over before its end: cancelled, or a rule or a limit was broken."""
        raise NotImplementedError

    def resume(self) -> None:
        """There is room again: more may be put into the queue."""


class Stream:
    """One streaming call at one end.

    :ivar listener: who is told what comes.
    :ivar queue: messages that wait to be sent.
    :ivar granted: bytes that the other end has allowed in all.
    :ivar put: what all messages cost that were put into the queue. Whoever puts them counts.
    :ivar is_listed: whether it waits for its turn to send.
    :ivar is_over: whether nothing is sent or heard any more.
    """

    __slots__ = (
        "_credit", "_half_close", "_initial", "_is_closed", "_last_word", "_opening", "_parts",
        "_rest", "_rest_at", "_sent", "_status", "_streams", "allowed", "granted", "has_ended",
        "held", "id", "is_listed", "is_over", "listener", "missing", "put", "queue", "received",
        "returned", "window",
    )  # fmt: skip

    def __init__(self, streams: Streams, stream_id: int, listener: Listener) -> None:
        self._streams = streams
        self.id = stream_id
        self.listener = listener
        self.queue: deque[Data] = deque()
        self.granted = WINDOW
        self.put = self._sent = 0
        self.is_listed = self.is_over = False
        self._is_closed = False  # its end was put: nothing comes behind that
        self._opening: StreamOpening | None = None
        self._initial: Metadata | None = None
        self._half_close = False
        self._status: StreamStatus | None = None
        self._last_word: list[Data] | None = None  # said although it is over
        self._rest: Data | None = None  # of a large message that has begun
        self._rest_at = 0
        # What comes
        self.window = self.allowed = WINDOW
        self.received = 0  # what all messages cost that came
        self.held = 0  # of that: what was not consumed
        self.returned = 0  # consumed, and not given back yet
        self._credit = 0  # to be given back
        self.has_ended = False  # the other end says no more
        self._parts: list[bytes | Large] = []
        self.missing = 0

    @property
    def room(self) -> int:
        """How much more may be put into the queue before it has to wait; negative if too much."""
        return self.granted - self.put

    # What is said. What is put behind the end is never sent.

    def send(self, message: Data) -> None:
        """Send a message, as soon as there is credit."""
        if not self._is_closed:
            self.queue.append(message)
            self.put += len(message) + OVERHEAD
            self._streams.enlist(self)

    def begin(self, metadata: Metadata) -> None:
        """Send the answer's initial metadata, before its first message."""
        if not self.is_over:
            self._initial = bounded(metadata, self._streams.header_list)
            self._streams.enlist(self)

    def half_close(self) -> None:
        """Say, behind all messages, that no more follow."""
        if not self._is_closed:
            self._is_closed = self._half_close = True
            self._streams.enlist(self)

    def finish(self, code: StatusCode, message: str = "", trailing: Metadata = ()) -> None:
        """End the answer, behind all messages. It is over once that was sent."""
        if not self._is_closed:
            self._is_closed = True
            self._status = self._streams.status(code, message, trailing)
            self._streams.enlist(self)

    def cut_short(self, code: StatusCode, message: str = "", trailing: Metadata = ()) -> None:
        """End the answer at once: what waits is not sent, and nothing else is heard."""
        if not self.is_over:
            self._end_with(_STATUS, self._streams.status(code, message, trailing))

    def cancel(self, reason: str) -> None:
        """Give the call up: nothing else is said of it, or heard."""
        if self._opening is not None:  # nothing was said of it yet: there is nobody to hear it
            self._streams.discard(self)
        elif not self.is_over:
            self._end_with(_CANCEL, StreamCancel(reason=encodable(reason)))

    def _end_with(self, tag: bytes, word: Message) -> None:
        self._streams.discard(self)
        self._last_word = [tag, *_sized(word)]
        self._streams.enlist(self)

    def forget(self) -> None:
        """It is over. Whoever still has it keeps nothing else of what it had."""
        self.is_over = self._is_closed = True
        self.queue.clear()
        self._opening = self._initial = self._status = self._rest = None
        self._credit = self.held = self.missing = 0
        self._parts = []
        self.window = WINDOW

    def consume(self, cost: int) -> None:
        """So much of what came was dealt with: it may be given back."""
        if self.is_over:  # nothing of it counts any more
            return
        self.held -= cost
        self._streams.held -= cost
        if self.has_ended:
            return
        self.returned += cost
        if self.returned >= self.window // 2:
            self._give(self.returned)
            self.returned = 0

    def _give(self, credit: int) -> None:
        self._credit += credit
        self.allowed += credit
        self._streams.enlist(self)

    @property
    def has_output(self) -> bool:
        """Whether there is anything to say that may be said now."""
        if self.is_over:
            return self._last_word is not None
        if self._opening or self._credit or self._initial is not None or self._rest is not None:
            return True
        if self.queue:
            return self._sent < self.granted
        return self._half_close or self._status is not None

    # One frame

    def encode(self, most: int) -> Data:
        """The next frame; its messages are about ``most`` bytes at most. Empty if there is none."""
        if self.is_over:
            word, self._last_word = self._last_word, None
            return self._framed(word) if word else b""
        parts: list[Data | memoryview] = []
        if self._opening is not None:
            parts += (_OPENING, *_sized(self._opening))
            self._opening = None
        if self._initial is not None:
            entries = StreamMetadata(entries=entries_of(self._initial))
            parts += (_INITIAL, *_sized(entries))
            self._initial = None
        if self._rest is None:
            most = self._put_messages(parts, most)
        if self._rest is not None and most > 0:
            self._put_piece(parts, self._rest, most)
        if not (self.queue or self._rest is not None):
            self._put_end(parts)
        if self._credit:
            parts += (_CREDIT, encode_varint(self._credit))
            self._credit = 0
        return self._framed(parts) if parts else b""

    def _put_messages(self, parts: list[Data | memoryview], most: int) -> int:
        """Whole messages, the last of which may be too large; how many bytes are left."""
        queue, sent, granted, turn = self.queue, self._sent, self.granted, self._streams.turn
        while queue and sent < granted and most > 0:
            message = queue.popleft()
            size = len(message)
            sent += size + OVERHEAD
            if size < 1024:
                parts += (_SHORT[size], message)
            elif size <= most or size <= turn:
                parts += (_MESSAGE + encode_varint(size), message)
            else:
                self._rest, self._rest_at = message, 0
                break
            most -= size + OVERHEAD
        self._sent = sent
        return most

    def _put_piece(self, parts: list[Data | memoryview], message: Data, most: int) -> None:
        start, size = self._rest_at, len(message)
        end = min(start + most, size)
        whole = message if isinstance(message, Rope) else Rope((message,))
        piece = whole.cut(start, end)
        missing = size - end
        # The bytes last: what is large ends a frame of HTTP/2.
        head = b"\x10" + encode_varint(missing) if missing else b""
        head += b"\x0a" + encode_varint(end - start)
        parts += (_PIECE + encode_varint(len(head) + end - start) + head, piece)
        self._rest_at = end
        if not missing:
            self._rest = None

    def _put_end(self, parts: list[Data | memoryview]) -> None:
        if self._half_close:
            self._half_close = False
            parts.append(_HALF_CLOSE)
        if self._status is not None:
            parts += (_STATUS, *_sized(self._status))
            self._streams.discard(self)

    def _framed(self, parts: Sequence[Data | memoryview]) -> Data:
        head = _ID + encode_varint(self.id)
        size = len(head) + sum(map(len, parts))
        flat: list[Piece] = [STREAM_TAG, encode_varint(size), head]
        for part in parts:
            if isinstance(part, Rope):
                flat += part.parts
            else:
                flat.append(part)
        return b"".join(flat) if size < ROPE_BYTES else _rope(flat)

    # What comes

    def receive(self, frame: StreamFrame, large: Large | None, *, asks: bool) -> None:
        """Take a frame in; ``asks``: this end opened the stream.

        :param large: the frame's one message, or its piece, where that is not in it.
        """
        listener = self.listener
        if frame.HasField("cancel"):
            self._streams.discard(self)
            listener.break_off(StatusCode.CANCELLED, frame.cancel.reason)
            return
        problem = self._receive_credit(frame.credit) if frame.credit else ""
        if asks and frame.HasField("initial_metadata") and not self.is_over:
            listener.take_initial(pairs_of(frame.initial_metadata.entries))
        if self.is_over:  # whoever was told of something may have given the call up
            return
        messages: list[Received] = list(frame.messages)
        is_piece = frame.HasField("piece")
        if large is not None and not is_piece:
            messages.append(large)
        piece: tuple[bytes | Large, int] | None = None
        if is_piece:
            piece = frame.piece.data if large is None else large, frame.piece.missing
        problem = problem or self._count(messages, piece)
        ended = frame.half_close and not (asks or self.has_ended)
        has_status = asks and frame.HasField("status")
        # An answer that failed may have been cut short; else nobody may take a part for all.
        if self.missing and (ended or (has_status and not frame.status.code)):
            problem = problem or _TRUNCATED
        if problem:
            self._break(problem, asks=asks)
            return
        if ended:
            self.has_ended = True
        if messages or ended:
            listener.take(messages, ended=ended)
        if has_status and not self.is_over:
            status = frame.status
            self._streams.discard(self)
            listener.take_status(
                _code(status.code), status.message, pairs_of(status.trailing_metadata)
            )

    def _receive_credit(self, credit: int) -> str:
        had_room = self.room > 0
        self.granted += credit
        if self.granted - self._sent > _MOST_ALLOWED:
            return f"allowed more than {_MOST_ALLOWED:,} bytes at once"
        if self.queue:
            self._streams.enlist(self)
        if not had_room and self.room > 0:
            self.listener.resume()
        return ""

    def receive_alone(self, missing: int | None, large: Large, *, asks: bool) -> None:
        """Take a frame in that is one large message or a piece: see :class:`LargeAlone`."""
        messages: list[Received] = [large] if missing is None else []
        if problem := self._count(messages, None if missing is None else (large, missing)):
            self._break(problem, asks=asks)
        elif messages:
            self.listener.take(messages, ended=False)

    def _count(self, messages: list[Received], piece: tuple[bytes | Large, int] | None) -> str:
        """Account for what came, and join a piece; why it may not have come, if so."""
        if not (messages or piece):
            return ""
        if self.has_ended or (messages and self.missing):
            return "sent a message where none may be"
        small = self._streams.small
        for message in messages:
            size = len(message)
            if size > small:
                if problem := self._begin_large(size):
                    return problem
            elif self.received < self.allowed:
                self._take_cost(size + OVERHEAD)
            else:
                return _OVERDRAWN
        return self._join(*piece, messages) if piece else ""

    def _take_cost(self, cost: int) -> None:
        self.received += cost
        self.held += cost
        self._streams.held += cost

    def _begin_large(self, size: int) -> str:
        """A large message begins, or one in pieces; why it may not, if so."""
        streams = self._streams
        if self.received >= self.allowed:
            return _OVERDRAWN
        if size > streams.message_limit:
            return f"sent a message of {size:,} bytes; {streams.message_limit:,} may be"
        if not streams.has_room_for(self, size):
            limit = f" ({streams.held_option})" if streams.held_option else ""
            return f"sent more than the {streams.most_held:,} bytes that all may hold{limit}"
        self._take_cost(size + OVERHEAD)
        self._grow(size)
        return ""

    def _join(self, data: bytes | Large, missing: int, messages: list[Received]) -> str:
        parts = self._parts
        size = len(data)
        if not parts:
            if problem := self._begin_large(size + missing):
                return problem
            parts.append(data)
        elif self.missing - size != missing:
            return "sent pieces that do not make a message"
        elif len(parts[-1]) < _SMALL_PIECE:  # many of them would cost far more than they count for
            parts[-1] = bytes(parts[-1]) + bytes(data)
        else:
            parts.append(data)
        self.missing = missing
        if not missing:
            messages.append(_joined(parts))
            self._parts = []
        return ""

    def _grow(self, size: int) -> None:
        """A window as large as a few messages that are as large as this one."""
        window = min(16 * size, _LARGEST_WINDOW)
        increment = window - self.window
        if increment > 0 and self._streams.grown + increment <= _MOST_WINDOWS:
            self._streams.grown += increment
            self.window = window
            self._give(increment)

    def _break(self, problem: str, *, asks: bool) -> None:
        """The other end broke a rule or a limit: the stream ends, and nothing else does."""
        code = StatusCode.RESOURCE_EXHAUSTED
        if asks:
            self.cancel(problem)
        else:
            self.cut_short(code, f"the gateway {problem}")
        self.listener.break_off(code, problem)

    def open_with(self, opening: StreamOpening) -> None:
        """What the other end is told first."""
        self._opening = opening
        self._streams.enlist(self)


def _joined(parts: list[bytes | Large]) -> Received:
    pieces: list[Piece] = []
    for part in parts:
        if isinstance(part, Rope):
            pieces += part.parts
        else:
            pieces.append(part)
    return Rope(pieces) if sum(map(len, pieces)) >= ROPE_BYTES else b"".join(pieces)


def _rope(pieces: list[Piece]) -> Rope:
    """The same bytes; what is large is not copied, what is small goes together."""
    parts: list[Piece] = []
    run: list[Piece] = []
    for piece in pieces:
        if len(piece) < LARGE_BYTES:
            run.append(piece)
            continue
        parts += (b"".join(run), piece)
        run = []
    return Rope((*parts, b"".join(run)))


def _sized(message: Message) -> tuple[bytes, bytes]:
    data = message.SerializeToString()
    return encode_varint(len(data)), data


def _code(number: int) -> StatusCode:
    try:
        return StatusCode(number)
    except ValueError:
        return StatusCode.UNKNOWN
