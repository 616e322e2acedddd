"""gRPC over HTTP/2 (its PROTOCOL-HTTP2): headers, messages, what ended a stream, and who."""

from __future__ import annotations

import base64
import binascii
import re
import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Callable, NamedTuple

from revconn.core.framing import PREFIX_BYTES
from revconn.core.rope import ROPE_BYTES, Data, Piece, Rope
from revconn.core.status import ProtocolError, Speaker, StatusCode, decode_message
from revconn.logger import presentable

__all__ = [
    "LARGE_RUN",
    "Goaway",
    "MessageReader",
    "MessageRefused",
    "MessageTooLong",
    "Pieces",
    "StreamEnd",
    "decode_metadata",
    "decode_pairs",
    "encode_metadata",
    "encode_pairs",
    "end_by_reset",
    "end_by_trailers",
    "end_of_messages",
    "error_name",
    "frame_all",
    "is_grpc_content",
    "parse_goaway",
    "refusal",
    "request_headers",
    "speaker",
    "who_ended",
]


class StreamEnd(NamedTuple):
    """The status that a stream ended with, and words for an operator."""

    code: StatusCode
    details: str


_PREFIX = struct.Struct(">BI")
LARGE_RUN = 16 << 10  # bytes: a message, or a piece, that is not copied into a run with others
_SMALL = 1 << 10  # bytes: where a view of a piece costs more than copying it
_RUN = 64 << 10  # bytes: how far small pieces run together before another run begins

_GOAWAY_HEAD = struct.Struct(">II")  # RFC 9113, section 6.8
_ID_MASK = 0x7FFFFFFF

_GRPC_CONTENT = re.compile(r"application/grpc(?:[+;].*|[ \t]+;.*)?")

# What stands in a gateway's place answers with HTTP alone: gRPC's http-grpc-status-mapping. Any
# other status is UNKNOWN.
_HTTP_CODES = {
    400: StatusCode.INTERNAL,
    401: StatusCode.UNAUTHENTICATED,
    403: StatusCode.PERMISSION_DENIED,
    404: StatusCode.UNIMPLEMENTED,
    429: StatusCode.UNAVAILABLE,
    502: StatusCode.UNAVAILABLE,
    503: StatusCode.UNAVAILABLE,
    504: StatusCode.UNAVAILABLE,
}

_ERROR_NAMES = (  # by their codes (section 7)
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

# PROTOCOL-HTTP2, "Errors". The other codes of HTTP/2 are INTERNAL, codes unknown to it UNKNOWN.
_RESET_CODES = {
    "STREAM_CLOSED": StatusCode.UNKNOWN,
    "REFUSED_STREAM": StatusCode.UNAVAILABLE,
    "CANCEL": StatusCode.CANCELLED,
    "ENHANCE_YOUR_CALM": StatusCode.RESOURCE_EXHAUSTED,
    "INADEQUATE_SECURITY": StatusCode.PERMISSION_DENIED,
    "HTTP_1_1_REQUIRED": StatusCode.UNKNOWN,
}


class Goaway(NamedTuple):
    """A peer's wish to end the connection."""

    error_code: int
    last_stream_id: int
    debug: str

    @property
    def is_too_many_pings(self) -> bool:
        """Whether gRPC servers say so to a client that pings more often than they allow.

        Those built on gRPC's C core and grpc-go allow one in five minutes unless told otherwise.
        """
        return error_name(self.error_code) == "ENHANCE_YOUR_CALM" and self.debug == "too_many_pings"

    def __str__(self) -> str:
        debug = f", {self.debug[:200]!r}" if self.debug else ""
        return f"GOAWAY {error_name(self.error_code)}{debug}"


def request_headers(
    scheme: str, authority: str, path: str, metadata: Mapping[str, str | bytes]
) -> list[tuple[bytes, bytes]]:
    """The headers that open a gRPC stream."""
    # Pseudo-headers first (RFC 9113, section 8.3); gRPC wants "te" right behind them, by which a
    # proxy that would lose trailers is to be found out.
    return [
        (b":method", b"POST"),
        (b":scheme", scheme.encode()),
        (b":path", path.encode()),
        (b":authority", authority.encode()),
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
        (b"grpc-accept-encoding", b"identity,gzip"),
        *encode_metadata(metadata),
    ]


def encode_metadata(metadata: Mapping[str, str | bytes]) -> list[tuple[bytes, bytes]]:
    """Request metadata as headers; values under a ``-bin`` name are bytes, sent in base64."""
    return encode_pairs(metadata.items())


def encode_pairs(metadata: Iterable[tuple[str, str | bytes]]) -> list[tuple[bytes, bytes]]:
    """The same, of metadata in which a name may come more than once."""
    headers = []
    for name, value in metadata:
        data = value.encode("ascii") if isinstance(value, str) else value
        if name.endswith("-bin"):
            data = base64.b64encode(data).rstrip(b"=")  # senders should not pad
        headers.append((name.encode("ascii"), data))
    return headers


def decode_metadata(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str | bytes]:
    """Headers as metadata; binary ones decoded (padding or not), malformed ones left out."""
    return dict(decode_pairs(headers))


def decode_pairs(headers: Iterable[tuple[bytes, bytes]]) -> Iterator[tuple[str, str | bytes]]:
    """The same, name by name: one may come more than once."""
    for raw_name, raw_value in headers:
        name = raw_name.decode("ascii", "replace")
        if not name.endswith("-bin"):
            yield name, raw_value.decode("utf-8", "replace")
            continue
        # Receivers must take both forms, padded or not. A value that is neither is left out: it is
        # no reason to give up a stream.
        for part in raw_value.split(b","):  # as HTTP may have joined what had one name
            with suppress(binascii.Error):
                yield name, base64.b64decode(part + b"=" * (-len(part) % 4), validate=True)


def refusal(metadata: Mapping[str, str | bytes]) -> StreamEnd | None:
    """Why response headers do not open a gRPC stream; ``None`` when they do."""
    if "grpc-status" in metadata:  # headers that are trailers, too: "Trailers-Only"
        return end_by_trailers(metadata, silent="no reason given")  # it may not be the gateway
    if _is_grpc(metadata):
        return None
    # While a gateway is redeployed its proxy answers in its place: an HTML page with 404, 403, 401
    # or 502, of which an operator wants to know that it was no gateway.
    http_status = _number(metadata.get(":status"))
    content_type = str(metadata.get("content-type", ""))
    code = _HTTP_CODES.get(http_status, StatusCode.UNKNOWN)
    kind = f"content-type {content_type[:100]!r}" if content_type else "no content-type"
    return StreamEnd(
        code,
        f"what answered is no gRPC server: HTTP status {http_status}, {kind}"
        " (a proxy's error page, or a login page?)",
    )


def end_by_trailers(
    metadata: Mapping[str, str | bytes], *, silent: str = "the gateway ended the stream"
) -> StreamEnd:
    """The status in a stream's trailers; ``silent`` is what to say of one without words."""
    status = metadata.get("grpc-status")
    words = metadata.get("grpc-message")
    details = (presentable(decode_message(str(words))) if words else "") or silent
    # A status that gRPC does not define is UNKNOWN, as is none at all (PROTOCOL-HTTP2): the words
    # stay the gateway's.
    try:
        return StreamEnd(StatusCode(_number(status)), details)
    except ValueError:
        problem = "without a status" if status is None else f"with grpc-status {status[:20]!r}"
        return StreamEnd(StatusCode.UNKNOWN, f"{details} ({problem})")


_OWN_HEADERS = "revconn-"
_REFERENCE_GATEWAYS_WORDS = (StatusCode.UNAUTHENTICATED, "Invalid token")


def who_ended(
    headers: Mapping[str, str | bytes], trailers: Mapping[str, str | bytes] | None
) -> Speaker:
    """Whose refusal ended a stream, with trailers or, ``None``, with the headers alone."""
    last = headers if trailers is None else trailers
    status = _number(last.get("grpc-status"))
    # Whose word it is matters where it refuses. OK (0) is no refusal, and neither is a number that
    # gRPC does not know.
    if not _is_grpc(headers) or not 0 < status <= max(StatusCode):
        return Speaker.STRANGER
    words = last.get("grpc-message")
    return speaker(
        StatusCode(status),
        decode_message(str(words)) if words else "",
        {**headers, **last},
        opened=trailers is not None,
    )


def speaker(
    code: StatusCode, words: str, metadata: Iterable[str], *, opened: bool = False
) -> Speaker:
    """Who ended a stream with this gRPC status.

    :param words: its ``grpc-message``, as it came.
    :param metadata: the names of all the headers and trailers that came.
    :param opened: whether response headers had opened the stream before.
    """
    # A proxy knows no header of ours. The embedded gateway announces itself with refusals too.
    if any(name.startswith(_OWN_HEADERS) for name in metadata):
        return Speaker.GATEWAY
    if code is StatusCode.UNIMPLEMENTED:  # to the one method that makes it a gateway
        return Speaker.STRANGER
    # Who opened the stream had taken it for its own: a proxy that refuses sends trailers alone.
    if opened or (code, words) == _REFERENCE_GATEWAYS_WORDS:
        return Speaker.GATEWAY
    if code is StatusCode.INVALID_ARGUMENT or (code is StatusCode.UNAUTHENTICATED and words):
        return Speaker.PERHAPS
    return Speaker.STRANGER


def end_by_reset(error_code: int) -> StreamEnd:
    """What a RST_STREAM means."""
    name = error_name(error_code)
    unknown = StatusCode.UNKNOWN if name.startswith("code ") else StatusCode.INTERNAL
    return StreamEnd(_RESET_CODES.get(name, unknown), f"the gateway reset the stream ({name})")


def parse_goaway(payload: bytes) -> Goaway:
    """What a GOAWAY frame says."""
    if len(payload) < _GOAWAY_HEAD.size:
        raise ProtocolError("a GOAWAY frame cut short", f"{len(payload)} bytes")
    # The debug data is whatever the peer likes: it reaches a log line cut short and quoted.
    last_stream_id, error_code = _GOAWAY_HEAD.unpack_from(payload)
    debug = payload[_GOAWAY_HEAD.size :].decode("utf-8", "replace")
    return Goaway(error_code, last_stream_id & _ID_MASK, debug)


def error_name(code: int) -> str:
    """An HTTP/2 error code's name."""
    return _ERROR_NAMES[code] if code < len(_ERROR_NAMES) else f"code {code:#x}"


def is_grpc_content(content_type: str) -> bool:
    """Whether this is gRPC's; that of gRPC-Web begins alike, and is framed in another way."""
    return _GRPC_CONTENT.fullmatch(content_type) is not None


def _is_grpc(headers: Mapping[str, str | bytes]) -> bool:
    content_type = str(headers.get("content-type", ""))
    return _number(headers.get(":status")) == 200 and is_grpc_content(content_type)


def _number(value: str | bytes | None) -> int:
    """A header's number; -1 for anything else."""
    # int() would take "+1", "1_0", any script's digits, and thousands of them.
    text = value if isinstance(value, str) else ""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else -1


def frame_all(messages: Iterable[Data]) -> list[memoryview]:
    """Several messages, each with its prefix, as few runs of bytes; large ones are not copied."""
    # DATA frames need not begin where messages do: a batch of small answers leaves as one.
    runs: list[memoryview] = []
    run: list[Piece] = []
    append = run.append
    pack = _PREFIX.pack
    for message in messages:
        size = len(message)
        append(pack(0, size))
        if isinstance(message, bytes) and size < LARGE_RUN:
            append(message)
            continue
        for part in message.parts if isinstance(message, Rope) else (message,):
            if len(part) < LARGE_RUN:
                append(part)
            else:
                if run:
                    runs.append(memoryview(b"".join(run)))
                    run.clear()
                runs.append(memoryview(part))
    if run:
        runs.append(memoryview(b"".join(run)))
    return runs


class MessageTooLong(ProtocolError):
    """A message is announced of more bytes than are taken; ``size`` says of how many."""

    def __init__(self, limit: int, size: int) -> None:
        super().__init__(f"message longer than {limit:,} bytes", f"{size:,}")
        self.size = size


class MessageRefused(ProtocolError):
    """A message is on its way for which there is no room now."""


def end_of_messages(data: bytes, start: int, end: int, most: int) -> int:
    """Where at most so many messages end in ``data[start:end]``, if not behind ``end``."""
    for _ in range(most):
        if end - start < PREFIX_BYTES:
            return end
        start += PREFIX_BYTES + _PREFIX.unpack_from(data, start)[1]
    return min(start, end)


class MessageReader:
    """Cuts the bytes of a gRPC stream into messages. Not thread-safe.

    A message longer than ``limit`` bytes is refused before it is stored, and a compressed one
    unless :meth:`inflate_with` was called.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._inflate: Callable[[bytes], bytes] | None = None
        self._prefix = b""  # the beginning of one that was cut, less than five bytes
        self._compressed = False
        self._pieces = Pieces()
        self.missing = 0  # bytes, of a message that has begun

    def inflate_with(self, inflate: Callable[[bytes], bytes]) -> None:
        """The response's headers announced compressed messages, which this one undoes."""
        self._inflate = inflate

    def feed(self, data: bytes, start: int, end: int, messages: list[Data]) -> None:
        """Take ``data[start:end]``; append every message that is complete now to ``messages``.

        Raises :class:`ProtocolError`, after what came before, for a message that is too long,
        does not inflate, or is compressed unannounced.
        """
        if self.missing:
            stop = min(end, start + self.missing)
            self.add([memoryview(data)[start:stop]], messages)
            start = stop
        if self._prefix:
            # Rare: the prefix itself was cut. Begin again with it put together.
            data, self._prefix = self._prefix + data[start:end], b""
            start, end = 0, len(data)
        while end - start >= PREFIX_BYTES:
            flag, length = _PREFIX.unpack_from(data, start)
            if flag or length > self._limit:
                self._check(flag, length)
            start += PREFIX_BYTES
            if length > end - start:
                self._compressed = bool(flag)
                self.missing = length - (end - start)
                self._pieces.extend([memoryview(data)[start:end]])
                return
            message = data[start : start + length]
            messages.append(self._inflate(message) if flag and self._inflate else message)
            start += length
        self._prefix = data[start:end]

    def end_of(self, data: bytes, start: int, end: int, most: int) -> int:
        """Where at most so many messages end, the one that has begun being the first."""
        if self.missing:
            return end_of_messages(data, start + self.missing, end, most - 1)
        if not self._prefix:
            return end_of_messages(data, start, end, most)
        begun = len(self._prefix)
        together = self._prefix + data[start:end]
        return end_of_messages(together, 0, len(together), most) + start - begun

    @property
    def mid_message(self) -> bool:
        """Whether the bytes so far end inside a message."""
        return bool(self.missing or self._prefix)

    def add(self, pieces: Iterable[memoryview], messages: list[Data]) -> None:
        """Take what comes next of the message that has begun, and no more than is ``missing``."""
        self.missing -= self._pieces.extend(pieces)
        if not self.missing and self._pieces:
            message = self._pieces.take()
            if self._compressed and self._inflate:
                message = self._inflate(bytes(message))
            messages.append(message)

    def _check(self, flag: int, length: int) -> None:
        # The length first: it tells an operator more, and nothing of such a message was stored.
        if length > self._limit:
            raise MessageTooLong(self._limit, length)
        if flag != 1:
            raise ProtocolError("no gRPC message prefix", f"flag byte {flag:#04x}")
        if self._inflate is None:
            raise ProtocolError("compressed message on a stream without grpc-encoding")


class Pieces:
    """Joined at the end, if at all: joining at every piece would be quadratic. Not thread-safe.

    Large pieces are kept as they came and not copied twice. Small ones run together: each of them
    would cost an object, and keep the buffer alive that it came in.
    """

    __slots__ = ("_parts", "_run", "_size")

    def __init__(self) -> None:
        self._parts: list[memoryview | bytearray] = []
        self._size = 0
        self._run: bytearray | None = None  # the last part, while there is room in it

    def __bool__(self) -> bool:
        return bool(self._parts)

    def extend(self, pieces: Iterable[memoryview]) -> int:
        """Keep them, in this order; how many bytes they are."""
        count = 0
        parts = self._parts
        for piece in pieces:
            size = len(piece)
            count += size
            if not size:
                continue
            if size > _SMALL:
                parts.append(piece)
                self._run = None
            elif self._run is None:
                self._run = bytearray(piece)
                parts.append(self._run)
            else:
                self._run += piece
                if len(self._run) > _RUN:
                    self._run = None
        self._size += count
        return count

    def take(self) -> Data:
        """All of it; from here on there is none."""
        parts, self._parts = self._parts, []
        is_large, self._size = self._size >= ROPE_BYTES, 0
        self._run = None
        return Rope(parts) if is_large else b"".join(parts)
