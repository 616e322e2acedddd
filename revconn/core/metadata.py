"""gRPC metadata as headers of a request, and headers of a response as gRPC metadata."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping
from typing import Union
from urllib.parse import unquote

from revconn.core.requests import encode_varint
from revconn.core.status import encode_message

__all__ = [
    "HEADER_BUDGET",
    "Metadata",
    "application_metadata",
    "encode_header",
    "headers_from_metadata",
    "headers_size",
    "metadata_from_headers",
    "truncate_message",
]

Metadata = tuple[tuple[str, Union[str, bytes]], ...]

# gRPC implementations refuse a header block over 8 KiB, and with it the whole call: a call whose
# headers do not fit loses headers, not its status.
HEADER_BUDGET = 4096
MESSAGE_BUDGET = 3072

_PER_HEADER = 32  # what HTTP/2 counts for each header besides its name and value
_LEGAL_KEY = re.compile(r"[0-9a-z_.-]+")
_CUT_ESCAPE = re.compile(r"%.?$")
_LEGAL_VALUE = re.compile(r"[\x20-\x7e]*")
_STATUS_DETAILS = "grpc-status-details-bin"
_OF_THE_TRANSPORT = frozenset(
    {
        "connection",
        "content-encoding",
        "content-length",
        "content-type",
        "date",
        "host",
        "keep-alive",
        "proxy-connection",
        "server",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "user-agent",
    }
)


def headers_from_metadata(metadata: Iterable[tuple[str, str | bytes]]) -> dict[str, str]:
    """A caller's metadata as a request's headers.

    Binary (``-bin``) values are base64 without padding, as they are on the wire; values of a
    repeated key are joined with commas, as HTTP has it. What is not ASCII is dropped.
    """
    headers: dict[str, str] = {}
    for key, value in metadata:
        text = _encode_binary(value) if isinstance(value, bytes) else value
        if text.isascii():
            headers[key] = f"{headers[key]},{text}" if key in headers else text
    return headers


def encode_header(name: bytes, value: bytes) -> bytes:
    """A header as an entry of ``ForwardRequest.headers``, encoded; nothing if it is not ASCII.

    As :func:`headers_from_metadata` has it, for one whose value is as it is on the wire.
    """
    if not (name.isascii() and value.isascii()):
        return b""
    if name.endswith(b"-bin"):
        value = value.rstrip(b"=")
    entry = b"".join((b"\x0a", _varint(len(name)), name, b"\x12", _varint(len(value)), value))
    return b"\x1a" + _varint(len(entry)) + entry


def _varint(number: int) -> bytes:
    return b"%c" % number if number < 0x80 else encode_varint(number)


def headers_size(headers: Mapping[str, str]) -> int:
    """The bytes of a request's headers, as HTTP/2 counts them."""
    size = len(headers) * _PER_HEADER
    for name, text in headers.items():  # no sum(): a generator is entered once for each header
        size += len(name) + len(text)
    return size


def application_metadata(metadata: Iterable[tuple[str, str | bytes]]) -> Metadata:
    """The part of a call's metadata that an application set, without the transport's own."""
    return tuple((key, value) for key, value in metadata if _is_applications(key))


def metadata_from_headers(headers: Mapping[str, str]) -> Metadata:
    """A response's headers as metadata for its caller.

    The transport's own headers are left out, and ``grpc-*`` except the status details that
    applications may set; so is what gRPC would refuse, and what exceeds the budget.
    """
    metadata: list[tuple[str, str | bytes]] = []
    budget = HEADER_BUDGET
    for name, text in headers.items():
        key = name.lower()
        value = _legal_value(key, text)
        if value is None or not _is_applications(key):
            continue
        size = len(key) + len(text) + _PER_HEADER
        # One that does not fit is left out, and smaller ones behind it are not.
        if size <= budget:
            budget -= size
            metadata.append((key, value))
    return tuple(metadata)


def truncate_message(message: str) -> str:
    """A status message, cut to what fits into a header block once it is percent-encoded."""
    encoded = encode_message(message)
    if len(encoded) <= MESSAGE_BUDGET:
        return message
    # The encoded text is cut, which is what has to fit: each character outside ASCII takes six
    # bytes or more of it. What is left of an escape, or of a character, at the cut goes too.
    cut = encoded[: MESSAGE_BUDGET - len(encode_message("..."))]
    return unquote(_CUT_ESCAPE.sub("", cut), errors="ignore") + "..."


def _is_applications(key: str) -> bool:
    if not _LEGAL_KEY.fullmatch(key) or key in _OF_THE_TRANSPORT:
        return False
    return not key.startswith("grpc-") or key == _STATUS_DETAILS


def _legal_value(key: str, text: str) -> str | bytes | None:
    if key.endswith("-bin"):
        return _decode_binary(text)
    return text.strip(" ") if _LEGAL_VALUE.fullmatch(text) else None


def _encode_binary(value: bytes) -> str:
    return base64.b64encode(value).decode("ascii").rstrip("=")


def _decode_binary(text: str) -> bytes | None:
    # gRPC asks to send it unpadded, and to take both.
    unpadded = text.rstrip("=")
    try:
        return base64.b64decode(unpadded + "=" * (-len(unpadded) % 4), validate=True)
    except ValueError:  # binascii.Error, or text that is not ASCII
        return None
