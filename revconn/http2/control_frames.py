"""The rare frames of a connector's connection (RFC 9113): settings, headers, resets.

They are what is left of HTTP/2 where a client opens one stream and never another; DATA and what
may come with each of it are :class:`~revconn.http2.connection.Engine`'s own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, Union

from revconn.core.status import ProtocolError
from revconn.http2.frames import (
    ACK,
    CONTINUATION,
    DEFAULT_WINDOW,
    ENABLE_PUSH,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    INITIAL_WINDOW,
    LARGEST_FRAME,
    LARGEST_WINDOW,
    MAX_FRAME,
    MAX_HEADER_LIST,
    NUMBER,
    PADDED,
    PING,
    PREFACE,
    PRIORITY,
    PRIORITY_BYTES,
    PRIORITY_FLAG,
    PUSH_PROMISE,
    RST_STREAM,
    SETTING,
    SETTINGS,
    USUAL_FRAME,
    WINDOW_UPDATE,
    header_frames,
    settings_frame,
    unpad,
)
from revconn.http2.grpc import decode_metadata
from revconn.http2.headers import Decoder, Field, FieldKind, encode_fields

__all__ = [
    "STREAM_ID",
    "ControlFrames",
    "Event",
    "Informational",
    "Reset",
    "Response",
    "SettingsChanged",
    "Trailers",
]

STREAM_ID = 1
"""The one stream's: a client's first."""

_HEADER_LIST = 64 << 10  # bytes of a header list, as HTTP/2 counts them
# As a rule the block of such a list is shorter than the list.
_LONGEST_BLOCK = 4 * _HEADER_LIST
_MOST_CONTINUATIONS = 64  # frames in which a block may go on
_ID_MASK = 0x7FFFFFFF

_unpack_number = NUMBER.unpack_from


class Response(NamedTuple):
    """The headers that answer the request; ``ended``: nothing follows them."""

    metadata: Mapping[str, str | bytes]
    ended: bool


class Trailers(NamedTuple):
    """The headers that end the stream."""

    metadata: Mapping[str, str | bytes]


class Informational(NamedTuple):
    """A response of status 1xx, ahead of the real one."""


class Reset(NamedTuple):
    """The peer gave up the stream."""

    error_code: int


class SettingsChanged(NamedTuple):
    """The peer's settings, to be acknowledged; the stream's window changes by so many bytes."""

    window_change: int


Event = Union[Response, Trailers, Informational, Reset, SettingsChanged]


class ControlFrames:
    """What the rare frames say, and what is said in them. Not thread-safe.

    :param stream_window: bytes of DATA that the peer may send before it is given more.
    :param frame_bytes: the longest frame that it may send.
    :ivar longest_outbound: the longest frame that the peer takes, in bytes.
    :ivar block: headers that go on in the next frame, which nothing else may come between.
    """

    def __init__(self, stream_window: int, frame_bytes: int) -> None:
        self._stream_window = stream_window
        self._frame_bytes = frame_bytes
        self.longest_outbound = USUAL_FRAME
        self._initial_window = DEFAULT_WINDOW
        self._decoder = Decoder(_HEADER_LIST)
        self.block: bytearray | None = None
        self._is_block_last = False  # whether the stream ends with it
        self._continuations = 0  # frames of it beyond the first
        self._is_answered = False

    def begin(self) -> bytes:
        """The preface, and our settings."""
        settings = [
            (ENABLE_PUSH, 0),
            (INITIAL_WINDOW, self._stream_window),
            (MAX_FRAME, self._frame_bytes),
            (MAX_HEADER_LIST, _HEADER_LIST),
        ]
        return PREFACE + settings_frame(settings)

    def open_stream(self, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
        """The frames that open the one stream."""
        return b"".join(header_frames(STREAM_ID, encode_fields(headers), 0, self.longest_outbound))

    def receive(self, kind: int, flags: int, stream_id: int, payload: bytes) -> Event | None:
        """What a whole frame means. Raises :class:`ProtocolError`."""
        try:
            return self._receive(kind, flags, stream_id, payload)
        except ProtocolError as error:
            raise ProtocolError(f"HTTP/2: {error}") from None

    def _receive(self, kind: int, flags: int, stream_id: int, payload: bytes) -> Event | None:
        if self.block is not None and (kind != CONTINUATION or stream_id != STREAM_ID):
            raise ProtocolError("a frame in the middle of headers")
        if kind == SETTINGS:
            return self._receive_settings(flags, stream_id, payload)
        if kind == HEADERS:
            return self._receive_headers(flags, stream_id, payload)
        if kind == CONTINUATION:
            return self._receive_continuation(flags, payload)
        if kind == RST_STREAM:
            return _receive_reset(stream_id, payload)
        if kind == PRIORITY:
            _check_priority(stream_id, payload)
        elif kind == PUSH_PROMISE:  # whether or not the peer has seen our settings (section 6.6)
            raise ProtocolError("a PUSH_PROMISE, which was not allowed")
        elif kind == PING:
            _require_size("PING", 8, payload)
            raise ProtocolError("a PING on a stream", f"stream {stream_id}")
        elif kind == WINDOW_UPDATE:
            raise ProtocolError("a WINDOW_UPDATE where no stream is open", f"stream {stream_id}")
        return None  # frames of kinds that nobody knows are ignored (section 4.1)

    # Settings

    def _receive_settings(self, flags: int, stream_id: int, payload: bytes) -> Event | None:
        if stream_id:
            raise ProtocolError("SETTINGS on a stream", f"stream {stream_id}")
        if flags & ACK:
            if payload:
                raise ProtocolError("SETTINGS in an acknowledgement", f"{len(payload)} bytes")
            return None
        if len(payload) % SETTING.size:
            raise ProtocolError("a SETTINGS frame of a wrong size", f"{len(payload)} bytes")
        before = self._initial_window
        for number, value in SETTING.iter_unpack(payload):
            if number == INITIAL_WINDOW:
                if value > LARGEST_WINDOW:
                    raise ProtocolError("an initial window that is too large", f"{value:,} bytes")
                self._initial_window = value
            elif number == MAX_FRAME:
                if not USUAL_FRAME <= value <= LARGEST_FRAME:
                    raise ProtocolError("a frame size that may not be", f"{value:,} bytes")
                self.longest_outbound = value
            elif number == ENABLE_PUSH and value:  # a client's to say (section 6.5.2)
                raise ProtocolError("an ENABLE_PUSH other than 0", str(value))
        return SettingsChanged(self._initial_window - before)

    # Headers

    def _receive_headers(self, flags: int, stream_id: int, payload: bytes) -> Event | None:
        if stream_id != STREAM_ID:
            raise ProtocolError("HEADERS where no stream is open", f"stream {stream_id}")
        start, end = 0, len(payload)
        if flags & PADDED:
            start, end = unpad(payload, start, end, "HEADERS")
        if flags & PRIORITY_FLAG:
            if end - start < PRIORITY_BYTES:
                raise ProtocolError("a HEADERS frame cut short", f"{len(payload)} bytes")
            _check_dependency(stream_id, payload, start)
            start += PRIORITY_BYTES
        ended = flags & END_STREAM != 0
        if flags & END_HEADERS:
            return self._take_block(payload[start:end], ended)
        self.block = bytearray(payload[start:end])
        self._is_block_last = ended
        self._continuations = 0
        return None

    def _receive_continuation(self, flags: int, payload: bytes) -> Event | None:
        if self.block is None:
            raise ProtocolError("a CONTINUATION of nothing")
        self._continuations += 1
        if self._continuations > _MOST_CONTINUATIONS:
            raise ProtocolError(f"headers with more than {_MOST_CONTINUATIONS} CONTINUATION frames")
        self.block += payload
        if len(self.block) > _LONGEST_BLOCK:
            raise ProtocolError(f"headers of more than {_LONGEST_BLOCK:,} bytes")
        if not flags & END_HEADERS:
            return None
        block, self.block = bytes(self.block), None
        return self._take_block(block, self._is_block_last)

    def _take_block(self, block: bytes, ended: bool) -> Event:
        fields = self._decoder.decode(block)
        if self._decoder.list_size > _HEADER_LIST:
            raise ProtocolError(f"headers of more than {_HEADER_LIST:,} bytes")
        for each in fields:
            if each.kind == FieldKind.MALFORMED:
                raise ProtocolError("a header that may not be", repr(each.name[:60]))
        metadata = decode_metadata((each.name, each.value) for each in fields)
        if self._is_answered:
            if not ended:
                raise ProtocolError("headers in the middle of the stream")
            if any(each.kind == FieldKind.PSEUDO for each in fields):
                raise ProtocolError("trailers with a pseudo-header")
            return Trailers(metadata)
        _check_pseudo_headers(fields)
        if fields[0].value.startswith(b"1"):
            if ended:
                raise ProtocolError("a response of status 1xx that ends the stream")
            return Informational()
        self._is_answered = True
        return Response(metadata, ended)


def _check_pseudo_headers(fields: Sequence[Field]) -> None:
    """A response has one, ``:status``, ahead of all else (section 8.3.2)."""
    pseudo = [each.name for each in fields if each.kind == FieldKind.PSEUDO]
    if pseudo != [b":status"]:
        said = b", ".join(pseudo)[:60]
        raise ProtocolError("a response without one :status alone", repr(said) if said else "none")
    if fields[0].kind != FieldKind.PSEUDO:
        raise ProtocolError("a :status behind other headers")


# Resets, priorities


def _receive_reset(stream_id: int, payload: bytes) -> Event | None:
    _require_size("RST_STREAM", NUMBER.size, payload)
    if stream_id != STREAM_ID:
        raise ProtocolError("a RST_STREAM where no stream is open", f"stream {stream_id}")
    return Reset(*_unpack_number(payload))


def _check_priority(stream_id: int, payload: bytes) -> None:
    _require_size("PRIORITY", PRIORITY_BYTES, payload)
    if not stream_id:
        raise ProtocolError("a PRIORITY of no stream")
    _check_dependency(stream_id, payload, 0)


def _check_dependency(stream_id: int, payload: bytes, offset: int) -> None:
    if _unpack_number(payload, offset)[0] & _ID_MASK == stream_id:
        raise ProtocolError("a stream that depends on itself", f"stream {stream_id}")


def _require_size(name: str, size: int, payload: bytes) -> None:
    if len(payload) != size:
        raise ProtocolError(f"a {name} frame of a wrong size", f"{len(payload)} bytes")
