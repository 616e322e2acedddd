"""HTTP/2 frames: where each one ends on the way in, and the few that we write ourselves."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from revconn.core.errors import ProtocolError
from revconn.http2.messages import Pieces

__all__ = [
    "ACK",
    "DATA",
    "END_HEADERS",
    "END_STREAM",
    "GOAWAY",
    "HEADER",
    "HEADERS",
    "HEADER_BYTES",
    "PADDED",
    "PING",
    "PING_ACK",
    "PUSH_PROMISE",
    "WINDOW_UPDATE",
    "WORTHWHILE_BYTES",
    "FrameSplitter",
    "Goaway",
    "Piece",
    "data_header",
    "error_name",
    "parse_goaway",
    "parse_window_update",
    "ping",
    "unpad",
    "window_update",
]

DATA = 0x0
HEADERS = 0x1
SETTINGS = 0x4
PUSH_PROMISE = 0x5
PING = 0x6
GOAWAY = 0x7
WINDOW_UPDATE = 0x8

END_STREAM = 0x1
END_HEADERS = 0x4
ACK = 0x1
PADDED = 0x8

HEADER_BYTES = 9
HEADER = struct.Struct(">HBBBI")  # length (high 16 bits, low 8), kind, flags, stream id
_GOAWAY_HEAD = struct.Struct(">II")
_INCREMENT = struct.Struct(">I")
_ID_MASK = 0x7FFFFFFF

WORTHWHILE_BYTES = 256
"""Of a frame's payload: a smaller one costs more than it brings, unless it brings a message."""

_ERROR_NAMES = (
    "NO_ERROR",
    "PROTOCOL_ERROR",
    "INTERNAL_ERROR",
    "FLOW_CONTROL_ERROR",
    "SETTINGS_TIMEOUT",
    "STREAM_CLOSED",
    "FRAME_SIZE_ERROR",
    "REFUSED_STREAM",
    "CANCEL",
    "COMPRESSION_ERROR",
    "CONNECT_ERROR",
    "ENHANCE_YOUR_CALM",
    "INADEQUATE_SECURITY",
    "HTTP_1_1_REQUIRED",
)

Piece = tuple[int, int, int, bytes, int, int]
"""Kind, flags, stream id, and the buffer in which the payload begins and ends at two offsets.

A bare tuple, because there is one for every small message.
"""


class Goaway(NamedTuple):
    """A peer's wish to end the connection."""

    error_code: int
    last_stream_id: int
    debug: str

    @property
    def is_too_many_pings(self) -> bool:
        """Whether gRPC servers say so to a client that pings more often than they allow."""
        return error_name(self.error_code) == "ENHANCE_YOUR_CALM" and self.debug == "too_many_pings"

    def __str__(self) -> str:
        debug = f", {self.debug[:200]!r}" if self.debug else ""
        return f"GOAWAY {error_name(self.error_code)}{debug}"


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
        self._held = Pieces()
        self._needed = 0
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
            self._held.add(data, 0, len(data))
            if self._held.size < self._needed:
                return
            data = self._held.take()
        size = len(data)
        weight = 0
        self._needed = HEADER_BYTES
        while size - offset >= HEADER_BYTES:
            high, low, kind, flags, stream_id = HEADER.unpack_from(data, offset)
            length = high << 8 | low
            if length > self._accepted:
                self._check(kind, flags, length, data)
            start = offset + HEADER_BYTES
            end = start + length
            if end <= size:
                offset = end
                yield kind, flags, stream_id, data, start, end
            elif kind == DATA and not flags & PADDED:
                self._data_left = end - size
                self._data_head = (flags, stream_id)
                offset = size
                yield DATA, 0, stream_id, data, start, size
            else:
                self._needed = end - offset
                break
            if length < WORTHWHILE_BYTES:
                weight += 1
            elif kind != DATA:
                weight += 1 + length // WORTHWHILE_BYTES
        self._weight += weight
        if offset < size:
            self._held.add(data, offset, size)

    def _check(self, kind: int, flags: int, length: int, data: bytes) -> None:
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
                return "; " + _not_http2(self._held.peek())
            wish = "TLS, or none, or a client certificate"
            return f" before anything was said (does the port expect {wish}?)"
        return " in the middle of a frame" if self._held or self._data_left else ""


def _not_http2(start: bytes) -> str:
    if start.startswith((b"\x15\x03", b"\x16\x03")):
        return "what listens there speaks TLS: give tls=True, or TLS(...)"
    if start.startswith(b"HTTP/1"):
        return "what listens there speaks HTTP/1, not HTTP/2: is it a gateway, or a web server?"
    return f"what listens there does not speak HTTP/2: it said {start[:24]!r}"


def data_header(length: int, stream_id: int) -> bytes:
    """What comes before the ``length`` bytes of a DATA frame."""
    return HEADER.pack(length >> 8, length & 0xFF, DATA, 0, stream_id)


def window_update(stream_id: int, increment: int) -> bytes:
    """A WINDOW_UPDATE frame."""
    head = HEADER.pack(0, _INCREMENT.size, WINDOW_UPDATE, 0, stream_id)
    return head + _INCREMENT.pack(increment)


PING_ACK = HEADER.pack(0, 8, PING, ACK, 0)
"""What comes before the eight bytes of the answer to a PING."""


def ping(payload: bytes) -> bytes:
    """A PING frame of eight bytes."""
    return HEADER.pack(0, len(payload), PING, 0, 0) + payload


def parse_window_update(payload: bytes) -> int:
    """The increment of a WINDOW_UPDATE frame."""
    if len(payload) != _INCREMENT.size:
        raise ProtocolError("a WINDOW_UPDATE frame of a wrong size", f"{len(payload)} bytes")
    (increment,) = _INCREMENT.unpack(payload)
    return int(increment & _ID_MASK)


def parse_goaway(payload: bytes) -> Goaway:
    """What a GOAWAY frame says."""
    if len(payload) < _GOAWAY_HEAD.size:
        raise ProtocolError("a GOAWAY frame cut short", f"{len(payload)} bytes")
    last_stream_id, error_code = _GOAWAY_HEAD.unpack_from(payload)
    debug = payload[_GOAWAY_HEAD.size :].decode("utf-8", "replace")
    return Goaway(error_code, last_stream_id & _ID_MASK, debug)


def unpad(buffer: bytes, start: int, end: int) -> tuple[int, int]:
    """Where the data of a padded frame begins and ends."""
    if start == end or buffer[start] >= end - start:
        raise ProtocolError("a DATA frame with more padding than payload")
    return start + 1, end - buffer[start]


def error_name(code: int) -> str:
    """An HTTP/2 error code's name."""
    return _ERROR_NAMES[code] if code < len(_ERROR_NAMES) else f"code {code:#x}"
