"""HTTP over streaming calls: the parts that requests and responses travel in (``web.proto``)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from revconn._proto.web_pb2 import Header, RequestHead, RequestPart, ResponseHead, ResponsePart
from revconn.core.requests import decode_varint, encode_varint
from revconn.core.rope import Data, Piece, Rope
from revconn.core.status import ProtocolError

__all__ = [
    "SERVE",
    "HeaderLine",
    "body_parts",
    "is_bodiless",
    "read_request_part",
    "read_response_part",
    "request_part",
    "response_part",
    "travelling",
]

SERVE = "Serve"
"""The method of a service that answers HTTP."""

HeaderLine = tuple[bytes, bytes]

_BODY = b"\x12"  # both parts' tag of it
_LONGEST_BODY = 64 << 10  # bytes of one part: others' messages go between two

_LEGAL_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9a-z-]+")
_ILLEGAL_VALUE = re.compile(rb"[\x00\r\n]")
# RFC 9110, section 7.6.1: of one connection, which the next is not.
_OF_A_CONNECTION = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade", b"te",
     b"trailer", b"http2-settings")
)  # fmt: skip
_BODILESS = frozenset((204, 304))


# What is sent


def request_part(head: RequestHead) -> bytes:
    """The first part of a request, encoded."""
    return RequestPart(head=head).SerializeToString()


def response_part(status: int, headers: Iterable[HeaderLine]) -> bytes:
    """The first part of a response, encoded."""
    lines = [Header(name=name, value=value) for name, value in headers]
    return ResponsePart(head=ResponseHead(status=status, headers=lines)).SerializeToString()


def body_parts(data: Piece) -> Iterator[bytes]:
    """Some of a body in as many parts as it takes, each encoded; none of nothing."""
    view = memoryview(data)
    for start in range(0, len(view), _LONGEST_BODY):
        piece = view[start : start + _LONGEST_BODY]
        yield b"".join((_BODY, encode_varint(len(piece)), piece))


def travelling(headers: Iterable[HeaderLine]) -> Iterator[HeaderLine]:
    """Those headers that are not of one connection, their names in lower case.

    Raises :class:`ProtocolError` for what is no header.
    """
    lines = [(name.lower(), value) for name, value in headers]
    dropped = set(_OF_A_CONNECTION)
    for name, value in lines:
        if name == b"connection":
            dropped.update(each.strip().lower() for each in value.split(b","))
    for name, value in lines:
        if not _LEGAL_NAME.fullmatch(name) or _ILLEGAL_VALUE.search(value):
            raise ProtocolError(f"a header that HTTP does not allow: {name[:64]!r}")
        if name not in dropped:
            yield name, value.strip(b" \t")


def is_bodiless(method: bytes, status: int) -> bool:
    """Whether a response has no body, whatever its headers say."""
    return method == b"HEAD" or status in _BODILESS


# What comes


def read_request_part(message: Data) -> RequestHead | Piece:
    """A request's head, or some of its body. Raises :class:`ProtocolError`."""
    body = _body(message)
    return _read(RequestPart, message) if body is None else body


def read_response_part(message: Data | memoryview) -> ResponseHead | Piece:
    """A response's head, or some of its body. Raises :class:`ProtocolError`."""
    body = _body(message)
    return _read(ResponsePart, message) if body is None else body


def _body(message: Data | memoryview) -> memoryview | None:
    """What a part holds that is some of a body and nothing else, without a copy."""
    data = memoryview(bytes(message) if isinstance(message, Rope) else message)
    if data[:1] != _BODY:
        return None
    try:
        size, start = decode_varint(data, 1)
    except (IndexError, ValueError):
        return None
    return data[start:] if len(data) - start == size else None


def _read(kind: Any, message: Data | memoryview) -> Any:
    try:
        part = kind.FromString(bytes(message))
    except Exception:  # noqa: BLE001 - a protobuf that is written in C raises its own
        raise ProtocolError("a part that is no protobuf message") from None
    return part.head if part.WhichOneof("part") == "head" else part.body
