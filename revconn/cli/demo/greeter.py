"""The service that the demo calls, behind a connector. Run by ``revconn serve``."""

from __future__ import annotations

import os

from revconn import Backoff, Connector, Request, RequestError, StatusCode
from revconn._proto.demo_pb2 import HelloReply, HelloRequest

__all__ = ["connector"]


def connector() -> Connector:
    """A connector to the gateway that ``REVCONN_TARGET`` and ``REVCONN_API_KEY`` name."""
    made = Connector(
        os.environ["REVCONN_TARGET"],
        api_key=os.environ["REVCONN_API_KEY"],
        heartbeat_interval=0.5,  # so short that one can watch
        backoff=Backoff(initial=0.2, maximum=1.0),
    )

    @made.method("/demo.Greeter/Hello")
    def hello(request: Request) -> HelloReply:
        message = HelloRequest.FromString(request.payload)
        if not message.name:
            raise RequestError(StatusCode.INVALID_ARGUMENT, "the name is empty: greet whom?")
        return HelloReply(
            greeting=f"Hello, {message.name}!",
            padding=message.padding,
            connection_id=made.connection_id or "",
        )

    return made
