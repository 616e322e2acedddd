"""Responses, encoded: success and failure, bare or in gRPC's framing as the request was."""

from __future__ import annotations

from collections.abc import Mapping

from revconn._proto.registry_pb2 import ConnectionMessage
from revconn.core.framing import frame, pack
from revconn.core.status import StatusCode, encode_message, http_status, is_success, status_code
from revconn.core.text import encodable

__all__ = ["encode_failure", "encode_response", "encode_success"]

_MOST_SHAPES = 1024

_shapes: dict[tuple[int, int], tuple[bytes, bytes]] = {}


def encode_success(request_id: str, payload: bytes) -> bytes:
    """The message that answers ``request_id`` with 200 and a bare payload: what most are.

    The same bytes as :func:`encode_response`'s, put together by hand: building the messages, which
    copies the payload twice, takes a quarter of all that a small request costs. What stands before
    the id and before the payload depends on how long they are, and answers are of few lengths.
    """
    if not payload or payload[0] < 2:  # empty, or to be told apart from gRPC's framing
        return encode_response(request_id, payload)
    name = request_id.encode()
    try:
        before_name, before_payload = _shapes[len(name), len(payload)]
    except KeyError:
        before_name, before_payload = _shape(len(name), len(payload))
    return b"".join((before_name, name, before_payload, payload))


def _shape(name_size: int, payload_size: int) -> tuple[bytes, bytes]:
    before_name = b"\x0a" + _varint(name_size)
    before_payload = b"\x10" + _varint(200) + b"\x22" + _varint(payload_size)
    size = len(before_name) + name_size + len(before_payload) + payload_size
    if len(_shapes) >= _MOST_SHAPES:
        _shapes.clear()
    shape = _shapes[name_size, payload_size] = (
        b"\x1a" + _varint(size) + before_name,
        before_payload,
    )
    return shape


def _varint(number: int) -> bytes:
    digits = bytearray()
    while number > 127:
        digits.append(number & 127 | 128)
        number >>= 7
    digits.append(number)
    return bytes(digits)


def encode_response(
    request_id: str,
    payload: bytes,
    *,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
    error: str = "",
    framed: bool = False,
) -> bytes:
    """The message that answers ``request_id``."""
    if framed:
        # A failure without a payload is what gRPC calls trailers-only: there is nothing to frame.
        payload = frame(payload) if payload or is_success(status) else b""
        headers = {
            "content-type": "application/grpc",
            "grpc-status": str(int(status_code(status))),
            **(headers or {}),
        }
    elif payload[:1] < b"\x02":  # all others are bare beyond doubt, without a call
        payload = pack(payload)
    # Filled in place: built from keywords it would be copied into its envelope, at twice the cost.
    message = ConnectionMessage()
    response = message.response
    response.request_id = request_id
    response.status_code = status
    response.payload = payload
    if headers:
        texts = {encodable(name): encodable(value) for name, value in headers.items()}
        response.headers.update(texts)
    if error:
        response.error_message = encodable(error)
    return message.SerializeToString()


def encode_failure(
    request_id: str,
    code: StatusCode,
    message: str,
    *,
    status: int | None = None,
    headers: Mapping[str, str] | None = None,
    payload: bytes = b"",
    framed: bool = False,
) -> bytes:
    """The message that fails ``request_id``; the exact gRPC code travels in its headers.

    ``status`` defaults to the code's HTTP status.
    """
    message = encodable(message)
    return encode_response(
        request_id,
        payload,
        status=http_status(code) if status is None else status,
        headers={
            "grpc-status": str(int(code)),
            "grpc-message": encode_message(message),
            **(headers or {}),
        },
        error=message,
        framed=framed,
    )
