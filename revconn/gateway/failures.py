"""What the gateway itself answers when no connector does."""

from __future__ import annotations

from revconn._proto.registry_pb2 import ForwardResponse
from revconn.core.status import StatusCode, encode_message, http_status

__all__ = ["failure"]


def failure(code: StatusCode, message: str, request_id: str = "") -> ForwardResponse:
    """A response that fails a request, in the shape a connector would have given it."""
    return ForwardResponse(
        request_id=request_id,
        status_code=http_status(code),
        headers={"grpc-status": str(int(code)), "grpc-message": encode_message(message)},
        error_message=message,
    )
