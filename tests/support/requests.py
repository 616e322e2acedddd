"""Requests, as a table of calls makes them of what a gateway sent."""

from __future__ import annotations

from typing import Any

from revconn import Request
from revconn._proto.registry_pb2 import ForwardRequest
from revconn.messages import received
from revconn.serving.replies import Replies

__all__ = ["arrival", "request_of"]


def request_of(
    message: ForwardRequest, due: float | None = None, *, arrived: float = 0.0, link: Any = None
) -> Request:
    """What a handler is given of a message; it came by a link of its own, where none is given."""
    return received(
        message,
        message.request_id,
        message.method_path,
        due,
        arrived,
        message.ByteSize(),
        Replies() if link is None else link,
    )


def arrival(message: ForwardRequest) -> tuple[ForwardRequest, str, str, int]:
    """What a connection says of a message that came."""
    return message, message.request_id, message.method_path, message.ByteSize()
