"""Requests, as a table of calls makes them of what a gateway sent."""

from __future__ import annotations

from typing import Any

from revconn import Request
from revconn._proto.registry_pb2 import ForwardRequest
from revconn.core.connector_side import Arrival
from revconn.messages import received
from revconn.serving.replies import Replies

__all__ = ["arrival", "request_of", "settle"]


def request_of(
    message: ForwardRequest, due: float | None = None, *, arrived: float = 0.0, link: Any = None
) -> Request:
    """What a handler is given of a message; it came by a link of its own, where none is given.

    It is in a table of its own, until :func:`settle`.
    """
    in_flight: dict[str, Request] = {}
    request = received(
        message,
        message.request_id,
        message.method_path,
        None,
        message.ByteSize(),
        arrived,
        0.0,
        Replies() if link is None else link,
        in_flight,
        False,
    )
    request._due = due
    in_flight[request.request_id] = request
    return request


def settle(request: Request) -> None:
    """As a table of calls does: it is in there no more."""
    in_flight: Any = request._in_flight
    in_flight.clear()


def arrival(message: ForwardRequest) -> Arrival:
    """What a connection says of a message that came."""
    return message, message.request_id, message.method_path, None, message.ByteSize()
