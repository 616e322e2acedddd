"""One stream of a connection that has many: gRPC messages in and out, and its windows.

A stream is opened, read and written with credit of its own from the start, whoever speaks on it: a
unary call is a stream of one message each way.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Union

from revconn.core.framing import PREFIX_BYTES, GzipInflater
from revconn.core.rope import Data, Piece, Rope
from revconn.core.status import ProtocolError
from revconn.http2.frames import DATA, DATA_START, END_HEADERS, END_STREAM, HEADER, HEADERS
from revconn.http2.grpc import MessageReader, end_of_messages
from revconn.http2.headers import Field

if TYPE_CHECKING:
    from revconn.http2.writing import Writer

__all__ = ["GONE", "ErrorCode", "Receiver", "Sendable", "Stream"]

_COPIED_BYTES = 8 << 10  # a longer piece is a buffer of its own, and not copied to go with others
_MOST_AT_ONCE = 64 << 10  # bytes that a stream sends before it is another one's turn
_PREFIX = struct.Struct(">BI")
_pack_header = HEADER.pack
_pack_prefix = _PREFIX.pack
_pack_data_start = DATA_START.pack
_unpack_prefix = _PREFIX.unpack_from

Sendable = Union[Data, memoryview]


class ErrorCode:
    """Why a stream or a connection ends (RFC 9113, section 7)."""

    NO_ERROR = 0x0
    PROTOCOL_ERROR = 0x1
    INTERNAL_ERROR = 0x2
    FLOW_CONTROL_ERROR = 0x3
    STREAM_CLOSED = 0x5
    FRAME_SIZE_ERROR = 0x6
    REFUSED_STREAM = 0x7
    CANCEL = 0x8
    COMPRESSION_ERROR = 0x9
    ENHANCE_YOUR_CALM = 0xB


class Receiver:
    """Who is told what comes on a stream. None of this may raise."""

    __slots__ = ()

    @property
    def carries_calls(self) -> bool:
        """Whether calls of others would be lost with the stream."""
        return False

    def take(self, messages: list[Data], *, ended: bool) -> None:
        """These messages are complete; ``ended``: nothing follows them."""
        raise NotImplementedError

    def refuse(self, error: ProtocolError) -> None:
        """A message has begun that cannot be taken. Nothing more is read on this stream."""
        raise NotImplementedError

    def break_off(self, reason: str) -> None:
        """The stream is over before its end, or the connection is gone: nothing can be sent."""
        raise NotImplementedError

    def reset(self, code: int) -> None:
        """The peer has reset the stream, or said that it never took it (REFUSED_STREAM)."""
        self.break_off(f"it was reset by its peer (code {code:#x})")

    def take_head(self, fields: Sequence[Field], *, ended: bool) -> None:
        """The headers of a response, or the trailers of whatever is read, have come."""

    def close(self) -> None:
        """The stream is over, and some of what was sent had to wait before it left."""

    def resume(self) -> None:
        """What was sent has left for the most part: there is room for more."""


class _Gone(Receiver):
    """Hears what comes on a stream that is over: nothing."""

    __slots__ = ()

    def take(self, messages: list[Data], *, ended: bool) -> None:
        """Nobody is there to take it."""

    def refuse(self, error: ProtocolError) -> None:
        """Nobody is there to be told."""

    def break_off(self, reason: str) -> None:
        """It has ended."""


GONE: Receiver = _Gone()
"""The receiver of every stream that is over."""


class Stream:
    """One stream. It belongs to whoever owns its endpoint.

    :ivar receiver: who is told what comes.
    :ivar granted: bytes that the peer may send beyond the usual window, for a message that is on
        its way; see :attr:`Writer.grant`.
    :ivar wanted: bytes that the message on its way needs beyond that.
    :ivar unsent_bytes: of messages, for which a window or the network had no room yet.
    """

    # "deaf": nothing that comes is given to the receiver any more.
    __slots__ = (
        "_endpoint",
        "_reader",
        "_trailers",
        "_unsent",
        "content_left",
        "granted",
        "id",
        "inflate",
        "is_deaf",
        "is_held",
        "is_local_closed",
        "is_open",
        "is_remote_closed",
        "limit",
        "receive_window",
        "receiver",
        "send_window",
        "unsent_bytes",
        "wanted",
        "was_queued",
        "window",
    )

    receiver: Receiver

    def __init__(self, endpoint: Writer, stream_id: int) -> None:
        self._endpoint = endpoint
        self.id = stream_id
        self.window = self.receive_window = endpoint.settings.stream_window
        self.send_window = endpoint.initial_send_window
        self.limit = endpoint.settings.message_limit
        self.inflate: GzipInflater | None = None
        self.content_left = -1
        self.granted = self.wanted = 0
        self.unsent_bytes = 0
        self.is_deaf = self.is_held = False
        self.was_queued = False  # whether anything ever waited to be sent
        self.is_open = False  # whether headers were sent
        self.is_local_closed = False
        self.is_remote_closed = False
        self._reader: MessageReader | None = None  # while a message is on its way in part
        self._unsent: deque[memoryview] | None = None
        self._trailers: bytes | None = None

    @property
    def owner(self) -> Any:
        """Whose connection it is on: the endpoint's acceptor."""
        return self._endpoint.acceptor

    # What comes

    def receive(self, data: bytes, start: int, end: int, ended: bool) -> int:
        """Take the payload of a DATA frame; how many messages that completed."""
        messages: list[Data] = []
        if self._reader is None and end - start >= PREFIX_BYTES:
            flag, length = _unpack_prefix(data, start)
            # By far the most: one whole message in a frame of its own.
            if not flag and start + PREFIX_BYTES + length == end and length <= self.limit:
                messages.append(data[start + PREFIX_BYTES : end])
                self.receiver.take(messages, ended=ended)
                return 1
        if end > start:
            if self._reader is None:
                self._reader = MessageReader(self.limit)
                if self.inflate is not None:
                    self._reader.inflate_with(self.inflate)
            try:
                if end - start < len(data) // 2:  # what is kept must not keep all that was read
                    data, start, end = data[start:end], 0, end - start
                self._reader.feed(data, start, end, messages)
            except ProtocolError as error:
                self._refuse(messages, error)
                return len(messages)
        reader = self._reader
        if ended and reader is not None and reader.mid_message:
            self._refuse(messages, ProtocolError("the stream ended in the middle of a message"))
            return len(messages)
        missing = 0 if reader is None else reader.missing
        self.wanted = max(0, missing - self.receive_window) if missing else 0
        if reader is not None and not reader.mid_message:
            self._reader = None
        self._deliver(messages, ended)
        return len(messages)

    def end_of(self, data: bytes, start: int, end: int, most: int) -> int:
        """Where at most so many messages end in the payload of a DATA frame, which may go on."""
        if self._reader is not None:
            return self._reader.end_of(data, start, end, most)
        return end_of_messages(data, start, end, most)

    def receive_pieces(self, pieces: list[memoryview]) -> int:
        """Take payloads that are all of the message on its way; how many messages that completed.

        ``missing`` says how much of it there may be.
        """
        messages: list[Data] = []
        reader = self._reader
        assert reader is not None
        try:
            reader.add(pieces, messages)
        except ProtocolError as error:
            self._refuse(messages, error)
            return 0
        if not reader.missing:
            self._reader = None
            self._deliver(messages, ended=False)
        return len(messages)

    def _deliver(self, messages: list[Data], ended: bool) -> None:
        if messages or ended:
            if self.granted:
                self._endpoint.acceptor.return_credit(self)
            self.receiver.take(messages, ended=ended)

    def give_up(self, error: ProtocolError) -> None:
        """The message on its way is not taken; the receiver is told why."""
        self._refuse([], error)

    def _refuse(self, messages: list[Data], error: ProtocolError) -> None:
        if messages:
            self.receiver.take(messages, ended=False)
        if not self.is_deaf:
            self.ignore()
            self.receiver.refuse(error)

    @property
    def is_between_messages(self) -> bool:
        """Whether whole messages may be given to the receiver as they are."""
        return (
            self._reader is None
            and self.content_left < 0
            and not (self.is_deaf or self.is_held or self.is_remote_closed)
        )

    @property
    def is_mid_message(self) -> bool:
        """Whether a message has come in part."""
        return self._reader is not None

    @property
    def missing(self) -> int:
        """Bytes of the message on its way, if it is known how long it is."""
        return 0 if self._reader is None else self._reader.missing

    def ignore(self) -> None:
        """Keep nothing of what came in part, and nothing that still comes."""
        self.is_deaf = True
        self._reader = None
        if self.granted or self.wanted:  # whoever waits for credit may have it now
            self.wanted = 0
            self._endpoint.acceptor.return_credit(self)

    def hold(self) -> None:
        """Let the peer send no more than its window still allows, until :meth:`release`."""
        self.is_held = True

    def release(self) -> None:
        """What came was dealt with: the window opens again."""
        self.is_held = False
        if not (self.is_remote_closed or self.is_deaf) and self.receive_window < self.window:
            self._endpoint.open_window(self, self.window - self.receive_window)

    def widen(self, window: int) -> None:
        """Let the peer send more at once from now on."""
        if window > self.window and not self.is_remote_closed:
            self._endpoint.open_window(self, window - self.window)
            self.window = window

    # What is sent

    @property
    def room(self) -> int:
        """How many bytes of DATA would leave at once."""
        if self._unsent or self.is_local_closed:
            return 0
        return min(self.send_window, self._endpoint.room)

    def await_room(self) -> None:
        """Have the receiver told when there is room again."""
        self._endpoint.await_room(self)

    def open(self, block: bytes) -> None:
        """Send the headers that everything begins with."""
        self.is_open = True
        self._send_headers(block, 0)

    def _send_headers(self, block: bytes, flags: int) -> None:
        self._endpoint.put_headers(self.id, block, flags)

    def send(self, messages: Sequence[Sendable]) -> None:
        """Send messages, as far as the windows allow; the rest follows when they do.

        Nothing once the stream is closed: whoever reset it wants no more.
        """
        if self.is_local_closed:
            return
        if len(messages) == 1:
            message = messages[0]
            size = PREFIX_BYTES + len(message)
            if size <= self._endpoint.longest_frame and size <= self.room:
                head = _pack_data_start(
                    size >> 8, size & 0xFF, DATA, 0, self.id, 0, size - PREFIX_BYTES
                )
                if isinstance(message, Rope):
                    self._endpoint.put_data(self, size, head, *message.parts)
                elif size < _COPIED_BYTES:
                    self._endpoint.put_data(self, size, b"".join((head, message)))
                else:
                    self._endpoint.put_data(self, size, head, message)
                return
        pieces: list[Piece] = []
        run: list[Piece] = []
        for message in messages:
            run.append(_pack_prefix(0, len(message)))
            if isinstance(message, Rope):
                pieces += (b"".join(run), *message.parts)
                run = []
            elif len(message) < _COPIED_BYTES:
                run.append(message)
            else:
                pieces += (b"".join(run), message)
                run = []
        if run:
            pieces.append(b"".join(run))
        self._queue(pieces)

    def finish(self, trailers: bytes) -> None:
        """Send the trailers behind all that was sent; nothing can follow them."""
        if self.is_local_closed or self._trailers is not None:
            return
        if self._unsent:
            self._trailers = trailers
        else:
            self._close(trailers)

    def _close(self, trailers: bytes) -> None:
        self.is_local_closed = True
        self._send_headers(trailers, END_STREAM)
        self._endpoint.half_closed(self)

    def end_data(self, data: bytes) -> None:
        """Send bytes as they are, and with them the end of the stream.

        A client's only message, for example, with its prefix.
        """
        self._trailers = b""
        self._queue([data])

    def respond(self, opening: bytes, message: Sendable, trailers: bytes) -> None:
        """Send the whole answer of a unary call."""
        size = PREFIX_BYTES + len(message)
        endpoint = self._endpoint
        if self.is_local_closed:
            return
        fits = size <= min(_COPIED_BYTES, endpoint.longest_frame, self.room)
        if fits and not (self.is_open or isinstance(message, Rope)):
            stream_id = self.id
            self.is_open = self.is_local_closed = True
            endpoint.worth_sent += 2  # for both blocks, as if they were sent by themselves
            endpoint.put_data(
                self,
                size,
                b"".join(
                    (
                        _headers_frame(stream_id, opening, 0),
                        _pack_data_start(
                            size >> 8, size & 0xFF, DATA, 0, stream_id, 0, size - PREFIX_BYTES
                        ),
                        message,
                        _headers_frame(stream_id, trailers, END_STREAM),
                    )
                ),
            )
            endpoint.half_closed(self)
            return
        if not self.is_open:
            self.open(opening)
        self.send((message,))
        self.finish(trailers)

    def reset(self, code: int) -> None:
        """End the stream at once, in both directions."""
        self._endpoint.reset(self, code)

    def drop_unsent(self) -> None:
        """Send nothing of what waits; whoever calls this ends the stream."""
        if self._unsent:
            self._unsent.clear()
            self._endpoint.unsent_bytes -= self.unsent_bytes
            self.unsent_bytes = 0
        self._trailers = None

    def _queue(self, pieces: Sequence[Piece]) -> None:
        if self._unsent is None:
            self._unsent = deque()
            self.was_queued = True
        self._unsent.extend(map(memoryview, pieces))
        size = sum(map(len, pieces))
        self.unsent_bytes += size
        self._endpoint.unsent_bytes += size
        self._endpoint.push(self)

    def send_some(self, *, alone: bool) -> bool:
        """Send some of what waits; whether more could be sent, were it this stream's turn.

        :param alone: whether no other stream waits for its turn.
        """
        endpoint = self._endpoint
        most = self.unsent_bytes if alone else _MOST_AT_ONCE
        total = min(self.send_window, endpoint.room, self.unsent_bytes, most)
        if total <= 0 and self.unsent_bytes:
            return False
        total = max(0, total)  # for the end alone there is room in any window
        is_last = total == self.unsent_bytes
        flags = END_STREAM if is_last and self._trailers == b"" else 0
        endpoint.put_frames(self, total, self._cut(total, endpoint.longest_frame, flags))
        self.unsent_bytes -= total
        endpoint.unsent_bytes -= total
        if not is_last:
            return True
        trailers, self._trailers = self._trailers, None
        if flags:
            self.is_local_closed = True
            endpoint.half_closed(self)
        elif trailers is not None:
            self._close(trailers)
        return False

    def _cut(self, total: int, longest: int, flags: int) -> list[Piece]:
        """The first ``total`` bytes of what waits, in frames; the last has these flags."""
        unsent = self._unsent
        assert unsent is not None
        parts: list[Piece] = []
        while total:
            # Pieces that are as long as frames, as those of large messages are, stay whole: a
            # frame ends with a piece rather than in the middle of one.
            place, size = len(parts), 0
            most = min(total, longest)
            if unsent and len(unsent[0]) > longest < total:
                total -= _cut_frames(self.id, unsent, total - 1, longest, parts)
                continue
            while unsent and size + len(unsent[0]) <= most:
                piece = unsent.popleft()
                size += len(piece)
                parts.append(piece)
            if unsent and (not size or size < most >> 1):
                left = most - size
                piece = unsent[0]
                parts.append(piece[:left])
                unsent[0] = piece[left:]
                size = most
            total -= size
            kind = 0 if total else flags
            parts.insert(place, _pack_header(size >> 8, size & 0xFF, DATA, kind, self.id))
        return parts or [_pack_header(0, 0, DATA, flags, self.id)]


def _cut_frames(
    stream_id: int, unsent: deque[memoryview], most: int, longest: int, parts: list[Piece]
) -> int:
    """All frames of full length that the first piece has in it; how many bytes they carry."""
    piece = unsent[0]
    end = min(len(piece), most) // longest * longest
    head = _pack_header(longest >> 8, longest & 0xFF, DATA, 0, stream_id)
    payloads = [piece[start : start + longest] for start in range(0, end, longest)]
    frames: list[Piece] = [head] * (2 * len(payloads))
    frames[1::2] = payloads
    parts += frames
    unsent[0] = piece[end:]
    if not unsent[0]:
        unsent.popleft()
    return end


def _headers_frame(stream_id: int, block: bytes, flags: int) -> bytes:
    size = len(block)
    return _pack_header(size >> 8, size & 0xFF, HEADERS, flags | END_HEADERS, stream_id) + block
