"""Responses, encoded: success and failure, bare or in gRPC's framing as the request was."""

from __future__ import annotations

from collections.abc import Mapping

from revconn._proto.registry_pb2 import ConnectionMessage
from revconn.core.framing import frame, pack
from revconn.core.metadata import Metadata, entries_of
from revconn.core.status import StatusCode, encode_message, http_status, is_success, status_code
from revconn.logger import encodable

__all__ = ["encode_failure", "encode_response"]


def encode_response(
    request_id: str,
    payload: bytes,
    *,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
    error: str = "",
    framed: bool = False,
    metadata: tuple[Metadata, Metadata] = ((), ()),
) -> bytes:
    """The message that answers ``request_id``.

    :param metadata: initial and trailing, where headers cannot tell it.
    """
    if framed:
        # A failure without a payload is what gRPC calls trailers-only: there is nothing to frame.
        payload = frame(payload) if payload or is_success(status) else b""
        # A handler's own headers win: the code that it chose is more exact than its status.
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
    initial, trailing = metadata
    if initial or trailing:
        response.initial_metadata.extend(entries_of(initial))
        response.trailing_metadata.extend(entries_of(trailing))
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
    metadata: tuple[Metadata, Metadata] = ((), ()),
) -> bytes:
    """The message that fails ``request_id``; the exact gRPC code travels in its headers.

    ``status`` defaults to the code's HTTP status.
    """
    # Before both uses: a lone surrogate in a handler's error once cost the caller the status.
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
        metadata=metadata,
    )
