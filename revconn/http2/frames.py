"""HTTP/2 (RFC 9113) below the engines: frames, the windows of flow control."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator

from revconn.core.status import ProtocolError

__all__ = [
    "ACK",
    "CONTINUATION",
    "DATA",
    "DATA_START",
    "DEFAULT_WINDOW",
    "ENABLE_PUSH",
    "END_HEADERS",
    "END_STREAM",
    "GOAWAY",
    "HEADER",
    "HEADERS",
    "HEADER_BYTES",
    "INITIAL_WINDOW",
    "LARGEST_FRAME",
    "LARGEST_WINDOW",
    "MAX_FRAME",
    "MAX_HEADER_LIST",
    "MAX_STREAMS",
    "NUMBER",
    "PADDED",
    "PING",
    "PING_ACK",
    "PREFACE",
    "PRIORITY",
    "PRIORITY_BYTES",
    "PRIORITY_FLAG",
    "PUSH_PROMISE",
    "RST_STREAM",
    "SETTING",
    "SETTINGS",
    "SETTINGS_ACK",
    "USUAL_FRAME",
    "WINDOW_UPDATE",
    "WORTHWHILE_BYTES",
    "FrameSplitter",
    "Piece",
    "ReceiveWindow",
    "SendWindow",
    "data_header",
    "frame",
    "header_frames",
    "parse_window_update",
    "ping",
    "settings_frame",
    "unpad",
    "window_update",
]

DATA = 0x0
HEADERS = 0x1
PRIORITY = 0x2
RST_STREAM = 0x3
SETTINGS = 0x4
PUSH_PROMISE = 0x5
PING = 0x6
GOAWAY = 0x7
WINDOW_UPDATE = 0x8
CONTINUATION = 0x9

END_STREAM = 0x1
END_HEADERS = 0x4
ACK = 0x1
PADDED = 0x8
PRIORITY_FLAG = 0x20

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""What a client begins with (section 3.4)."""

ENABLE_PUSH, MAX_STREAMS, INITIAL_WINDOW, MAX_FRAME, MAX_HEADER_LIST = 2, 3, 4, 5, 6
SETTING = struct.Struct(">HI")
NUMBER = struct.Struct(">I")

PRIORITY_BYTES = 5  # of a PRIORITY frame, and of what HEADERS may begin with

HEADER_BYTES = 9
# RFC 9113, section 4.1. The length has 24 bits, which struct cannot say: 16 bits and 8.
HEADER = struct.Struct(">HBBBI")  # length (high 16 bits, low 8), kind, flags, stream id
_unpack_header = HEADER.unpack_from

DATA_START = struct.Struct(HEADER.format + "BI")
"""A frame's header, and the prefix of the message that most DATA begins with, in one step."""

_ID_MASK = 0x7FFFFFFF  # the 32nd bit is reserved, and to be ignored when received (section 4.1)

DEFAULT_WINDOW = 65_535
"""Bytes: every window's, until SETTINGS or a WINDOW_UPDATE say otherwise (section 6.9.2)."""

LARGEST_WINDOW = (1 << 31) - 1
"""Bytes (section 6.9.1)."""

USUAL_FRAME = 16_384
"""Bytes: the longest frame, until SETTINGS say otherwise (section 4.2)."""

LARGEST_FRAME = (1 << 24) - 1
"""Bytes: as much as SETTINGS may say."""

WORTHWHILE_BYTES = 256
"""Of a frame's payload: a smaller one costs more than it brings, unless it brings a message."""

Piece = tuple[int, int, int, bytes, int, int]
"""Kind, flags, stream id, and the buffer in which the payload begins and ends at two offsets.

A bare tuple, because there is one for every small message.
"""


class FrameSplitter:
    """Follows frame boundaries through whatever pieces the socket delivers. Not thread-safe.

    Frames come out whole, but for plain DATA, whose payload comes out as it arrives: large
    messages are then put together once, and not once more for each frame.
    """

    def __init__(self, longest_frame: int) -> None:
        self._longest_frame = longest_frame
        self._accepted = -1  # until the first frame has shown that this is HTTP/2
        self._data_left = 0
        self._data_head = (0, 0)
        self._held = bytearray()  # the beginning of a frame that comes out whole
        self._needed = 0  # bytes, before it is worth looking at what is held
        self._weight = 0

    def feed(self, data: bytes) -> Iterator[Piece]:
        """The pieces of frames that are here now; to be drawn to the end.

        Raises :class:`ProtocolError`, after what came before, for a peer that does not begin as
        HTTP/2 does, and for a frame larger than announced.
        """
        offset = 0
        if self._data_left:
            offset = min(self._data_left, len(data))
            self._data_left -= offset
            flags, stream_id = self._data_head
            yield DATA, 0 if self._data_left else flags, stream_id, data, 0, offset
        elif self._held:
            # Frames that come in tiny segments are looked at once, when all is there: to cut
            # the header out anew at each segment would make a slow peer an expensive one.
            self._held += data
            if len(self._held) < self._needed:
                return
            data = bytes(self._held)
            self._held.clear()
        size = len(data)
        weight = 0
        self._needed = HEADER_BYTES
        while size - offset >= HEADER_BYTES:
            high, low, kind, flags, stream_id = _unpack_header(data, offset)
            stream_id &= _ID_MASK
            length = high << 8 | low
            if length > self._accepted:
                self._check(kind, flags, length, data)
            start = offset + HEADER_BYTES
            end = start + length
            if end <= size:
                offset = end
                yield kind, flags, stream_id, data, start, end
            elif kind == DATA and not flags & PADDED:
                # What is padding is known only from a padded frame's first byte and its end, so
                # such a frame is held. The flags belong to the end: END_STREAM with an earlier
                # piece would end the stream before its data.
                self._data_left = end - size
                self._data_head = (flags, stream_id)
                offset = size
                yield DATA, 0, stream_id, data, start, size
            else:
                self._needed = end - offset
                break
            # Weighed by frame and not by read, so that how the network cuts a stream does not
            # change whether it counts as a flood. A large frame that is not DATA weighs more: a
            # thousand settings, or headers, take as long as many small frames.
            if length < WORTHWHILE_BYTES:
                weight += 1
            elif kind != DATA:
                weight += 1 + length // WORTHWHILE_BYTES
        self._weight += weight
        if offset < size:
            self._held += data[offset:] if offset else data

    def take_data(
        self, data: bytes, offset: int, stream_id: int, most: int
    ) -> tuple[int, list[memoryview]]:
        """Plain DATA of one stream from ``offset`` on, as long as nothing else comes between.

        It is what :meth:`feed` would give out, ``most`` bytes of it; and where the rest begins,
        which is for :meth:`feed`.
        """
        # A message of 1 MiB is 64 frames of most peers. One by one through feed() and a
        # MessageReader they took four times as long as copying the message did.
        pieces: list[memoryview] = []
        left = self._data_left
        if self._held or (left and self._data_head != (0, stream_id)):
            return offset, pieces
        view = memoryview(data)
        size = len(data)
        while most and offset < size:
            if not left:
                if size - offset < HEADER_BYTES:
                    break
                high, low, kind, flags, frame_stream_id = _unpack_header(data, offset)
                left = high << 8 | low
                if kind or flags or frame_stream_id != stream_id or left > self._longest_frame:
                    left = 0
                    break
                if left < WORTHWHILE_BYTES:
                    self._weight += 1
                offset += HEADER_BYTES
            count = left if left < most else most
            if count > size - offset:
                count = size - offset
            pieces.append(view[offset : offset + count])
            offset += count
            most -= count
            left -= count
        self._data_left = left
        self._data_head = (0, stream_id)
        return offset, pieces

    def _check(self, kind: int, flags: int, length: int, data: bytes) -> None:
        # A server begins with SETTINGS that acknowledge nothing (section 3.4): whatever else comes
        # first is a TLS alert, an HTTP/1 page, or no HTTP at all, and is named to the operator.
        if self._accepted < 0 and (kind != SETTINGS or flags & ACK):
            raise ProtocolError(_not_http2(data))
        self._accepted = self._longest_frame
        if length > self._longest_frame:
            raise ProtocolError("an HTTP/2 frame longer than announced", f"{length:,} bytes")

    @property
    def is_between_frames(self) -> bool:
        """Whether all that came so far were whole frames, the first of them HTTP/2's."""
        return self._accepted >= 0 and not (self._data_left or self._held)

    def take_weight(self) -> int:
        """What the frames since the last time cost beyond the data that they brought."""
        weight, self._weight = self._weight, 0
        return weight

    def describe_end(self) -> str:
        """What to add to words for a connection that broke here; often nothing."""
        if self._accepted < 0:
            if self._held:
                return "; " + _not_http2(bytes(self._held))
            wish = "TLS, or none, or a client certificate"
            return f" before anything was said (does the port expect {wish}?)"
        return " in the middle of a frame" if self._held or self._data_left else ""


def _not_http2(start: bytes) -> str:
    if start.startswith((b"\x15\x03", b"\x16\x03")):
        return "what listens there speaks TLS: give tls=True, or TLS(...)"
    if start.startswith(b"HTTP/1"):
        return "what listens there speaks HTTP/1, not HTTP/2: is it a gateway, or a web server?"
    return f"what listens there does not speak HTTP/2: it said {start[:24]!r}"


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    """A whole frame."""
    size = len(payload)
    return HEADER.pack(size >> 8, size & 0xFF, kind, flags, stream_id) + payload


def settings_frame(settings: Iterable[tuple[int, int]]) -> bytes:
    """A SETTINGS frame of these values, by their numbers."""
    return frame(SETTINGS, 0, 0, b"".join(SETTING.pack(*each) for each in settings))


def header_frames(stream_id: int, block: bytes, flags: int, longest: int) -> list[bytes]:
    """A header block in as many frames as it takes; ``flags`` are the first one's."""
    if len(block) <= longest:
        return [frame(HEADERS, flags | END_HEADERS, stream_id, block)]
    pieces = [block[start : start + longest] for start in range(0, len(block), longest)]
    return [
        frame(HEADERS, flags, stream_id, pieces[0]),
        *(frame(CONTINUATION, 0, stream_id, piece) for piece in pieces[1:-1]),
        frame(CONTINUATION, END_HEADERS, stream_id, pieces[-1]),
    ]


def data_header(length: int, stream_id: int) -> bytes:
    """What comes before the ``length`` bytes of a DATA frame."""
    return HEADER.pack(length >> 8, length & 0xFF, DATA, 0, stream_id)


def window_update(stream_id: int, increment: int) -> bytes:
    """A WINDOW_UPDATE frame, for the connection (0) or a stream."""
    head = HEADER.pack(0, NUMBER.size, WINDOW_UPDATE, 0, stream_id)
    return head + NUMBER.pack(increment)


SETTINGS_ACK = HEADER.pack(0, 0, SETTINGS, ACK, 0)
"""The answer to SETTINGS."""

PING_ACK = HEADER.pack(0, 8, PING, ACK, 0)
"""What comes before the eight bytes of the answer to a PING."""


def ping(payload: bytes) -> bytes:
    """A PING frame of eight bytes."""
    return HEADER.pack(0, len(payload), PING, 0, 0) + payload


def parse_window_update(payload: bytes) -> int:
    """The increment of a WINDOW_UPDATE frame."""
    if len(payload) != NUMBER.size:  # FRAME_SIZE_ERROR of the connection (section 6.9)
        raise ProtocolError("a WINDOW_UPDATE frame of a wrong size", f"{len(payload)} bytes")
    (increment,) = NUMBER.unpack(payload)
    return int(increment & _ID_MASK)


def unpad(buffer: bytes, start: int, end: int, kind: str = "DATA") -> tuple[int, int]:
    """Where the payload of a padded frame begins and ends without the padding."""
    # The first byte says how much of the end is padding; as much as the payload is a
    # PROTOCOL_ERROR (section 6.1), or a frame could reach back into its own header.
    if start == end or buffer[start] >= end - start:
        raise ProtocolError(f"a {kind} frame with more padding than payload")
    return start + 1, end - buffer[start]


class SendWindow:
    """How many bytes of DATA the peer takes, since the beginning: on the connection, on the stream.

    It is the receiving thread's. What was sent is counted by whoever's turn it is to write, so each
    number has one writer and there is no lock. The peer opens a window again only for what it has
    read, so what was ``sent`` is never too small for the check of a window that is opened.
    """

    def __init__(self) -> None:
        # All numbers only grow with traffic (Python's integers have no end). Windows that shrank
        # and grew in place would have two writers, and need a lock for every write.
        self._connection = DEFAULT_WINDOW
        self._stream = DEFAULT_WINDOW
        self.opened = DEFAULT_WINDOW  # the smaller one: there is one stream, and all DATA is its

    def open(self, stream_id: int, increment: int, sent: int) -> None:
        """The peer's WINDOW_UPDATE, for the connection (0) or the stream."""
        if increment == 0:  # an error (section 6.9); without end it would be a flood of nothing
            raise ProtocolError("a WINDOW_UPDATE of 0 bytes")
        if stream_id:
            self._stream += increment
        else:
            self._connection += increment
        self._check(self._stream if stream_id else self._connection, sent)

    def resize(self, change: int, sent: int) -> None:
        """The peer's SETTINGS changed the stream's initial window by so many bytes."""
        # That changes open streams by the difference, which may leave a window negative, and never
        # the connection's (section 6.9.2).
        self._stream += change
        self._check(self._stream, sent)

    def _check(self, window: int, sent: int) -> None:
        # Not min(): a gateway that estimates its bandwidth opens its window for a lone request.
        self.opened = self._stream if self._stream < self._connection else self._connection
        if window - sent > LARGEST_WINDOW:
            raise ProtocolError("the gateway opens its window too far", f"{window - sent:,} bytes")


class ReceiveWindow:
    """How many bytes of DATA we take at once. What is used up is given back in large portions.

    What was ``received`` is counted by the receiving thread, which has it looked at from
    ``half_used_at`` on; whoever's turn it is to write gives back. No lock: each number has one
    writer. ``is_half_used`` says that it is time to give back; either thread sets it, so it may
    come true once in vain, and then nothing is given back.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._given_back = 0  # in all, like what was received
        self.half_used_at = (size + 1) // 2
        self.is_half_used = False

    def look(self, received: int) -> None:
        """So much has come: whole payloads of frames, padding included (section 6.1)."""
        used = received - self._given_back
        if used + used >= self._size:
            self.is_half_used = True
            if used > self._size:
                raise ProtocolError("the gateway sends more than the window allows")

    def give_back(self, received: int) -> int:
        """By how much to open the peer's window again: by 0 until half of it is used."""
        # `received` was read before this: what the receiving thread sets in between is lost until
        # more DATA comes, for which nearly half of the window is left.
        self.is_half_used = False
        used = received - self._given_back
        if used + used < self._size:
            return 0
        self._given_back = received
        self.half_used_at = received + (self._size + 1) // 2
        return used
