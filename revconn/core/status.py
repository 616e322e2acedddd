"""How things end: gRPC's status codes, their HTTP counterparts, whose word one is; and errors."""

from __future__ import annotations

import copyreg
from collections.abc import Mapping
from enum import Enum, IntEnum
from functools import partial
from typing import Any, Callable
from urllib.parse import quote, unquote

__all__ = [
    "FINAL_CODES",
    "ProtocolError",
    "RevconnError",
    "Speaker",
    "StatusCode",
    "decode_message",
    "encode_message",
    "http_status",
    "is_success",
    "response_code",
    "status_code",
]


class RevconnError(Exception):
    """The base of every error that revconn raises on purpose."""

    # Some are made of other things than the words that they show, which are all that pickle sees:
    # an error of a task in another process would break the pool that it came from.
    def __reduce__(self) -> tuple[Any, ...]:
        return copyreg.__newobj__, (type(self), *self.args), self.__dict__  # type: ignore[attr-defined]


class ProtocolError(RevconnError):
    """A peer broke the wire protocol; the message says which rule, the attributes what it sent."""

    def __init__(self, reason: str, received: str = "") -> None:
        super().__init__(f"{reason} (received {received})" if received else reason)
        self.reason = reason
        self.received = received


class StatusCode(IntEnum):
    """The gRPC status codes (google.rpc.Code)."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


# google.rpc.Code's own mapping. Several codes share a number: the exact one travels in a header.
# google.rpc.Code's own mapping. UNKNOWN, INTERNAL and DATA_LOSS are 500, as is any other.
_HTTP_STATUS = {
    StatusCode.OK: 200,
    StatusCode.CANCELLED: 499,
    StatusCode.INVALID_ARGUMENT: 400,
    StatusCode.DEADLINE_EXCEEDED: 504,
    StatusCode.NOT_FOUND: 404,
    StatusCode.ALREADY_EXISTS: 409,
    StatusCode.PERMISSION_DENIED: 403,
    StatusCode.RESOURCE_EXHAUSTED: 429,
    StatusCode.FAILED_PRECONDITION: 400,
    StatusCode.ABORTED: 409,
    StatusCode.OUT_OF_RANGE: 400,
    StatusCode.UNIMPLEMENTED: 501,
    StatusCode.UNAVAILABLE: 503,
    StatusCode.UNAUTHENTICATED: 401,
}

# The other way round, for those who send no grpc-status: a number has to mean one code. Beyond that
# mapping: 408 and 502, which are proxies' words.
_STATUS_CODE = {
    400: StatusCode.INVALID_ARGUMENT,
    401: StatusCode.UNAUTHENTICATED,
    403: StatusCode.PERMISSION_DENIED,
    404: StatusCode.NOT_FOUND,
    408: StatusCode.DEADLINE_EXCEEDED,
    409: StatusCode.ABORTED,
    429: StatusCode.RESOURCE_EXHAUSTED,
    499: StatusCode.CANCELLED,
    500: StatusCode.INTERNAL,
    501: StatusCode.UNIMPLEMENTED,
    502: StatusCode.UNAVAILABLE,
    503: StatusCode.UNAVAILABLE,
    504: StatusCode.DEADLINE_EXCEEDED,
}


def http_status(code: StatusCode) -> int:
    """The HTTP status of a gRPC code, as google.rpc.Code maps it."""
    return _HTTP_STATUS.get(code, 500)


def is_success(status: int) -> bool:
    """Whether a response's ``status_code`` is a success: 0 (gRPC's OK) and 2xx are."""
    # The guide says 200, another document 0: who writes a response says 200, who reads takes both.
    return status == 0 or 200 <= status <= 299


def status_code(status: int) -> StatusCode:
    """The gRPC code that comes nearest to a response's ``status_code``."""
    if is_success(status):
        return StatusCode.OK
    return _STATUS_CODE.get(status, StatusCode.UNKNOWN)


def response_code(status: int, headers: Mapping[str, str]) -> StatusCode:
    """The exact gRPC code of a response: its ``grpc-status`` header, else its ``status_code``.

    A header that contradicts the status (one a success, the other not) or that is no code at
    all is not believed.
    """
    # Handlers set headers too: one that says OK over a failure's status would make the failure's
    # payload an answer.
    try:
        code = StatusCode(int(headers.get("grpc-status", "")))
    except ValueError:
        return status_code(status)
    if (code is StatusCode.OK) != is_success(status):
        return status_code(status)
    return code


encode_message: Callable[[str], str] = partial(
    quote, safe=" !\"#$&'()*+,-./:;<=>?@[\\]^_`{|}~", errors="replace"
)
"""Percent-encode a status message for the ``grpc-message`` header (PROTOCOL-HTTP2)."""

# Whatever a peer sent is words for people: nothing here may fail for want of an encoding.
decode_message: Callable[[str], str] = partial(unquote, errors="replace")
"""Undo :func:`encode_message`; a stray ``%`` is kept, bytes that are no UTF-8 become U+FFFD."""

# Whose word a refused handshake is

FINAL_CODES = frozenset(
    {
        StatusCode.UNAUTHENTICATED,
        StatusCode.PERMISSION_DENIED,
        StatusCode.INVALID_ARGUMENT,
        StatusCode.UNIMPLEMENTED,
    }
)
"""With which a gateway refuses a handshake for good: trying again changes nothing."""


class Speaker(Enum):
    """Whose word a refusal is."""

    GATEWAY = "a gateway that speaks this protocol"
    PERHAPS = "a gRPC server whose words may be a gateway's, or a proxy's"
    STRANGER = "whatever stands in the gateway's place"
