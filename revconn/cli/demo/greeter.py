"""The service demo.Greeter from both ends: its handler behind a connector, and its caller.

``revconn serve revconn.cli.demo.greeter:connector`` runs the first, in a process of its own; the
caller is an ordinary gRPC client with a generated stub, which knows nothing of revconn.
"""

from __future__ import annotations

import os
import time
from typing import NamedTuple

import grpc

from revconn import Backoff, Connector, Request, RequestError, StatusCode
from revconn._proto.demo_pb2 import HelloReply, HelloRequest
from revconn._proto.demo_pb2_grpc import GreeterStub

__all__ = ["Caller", "Outcome", "connector"]

_TIMEOUT = 10.0


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
            # The story checks that another connection answers, once the gateway was killed.
            connection_id=made.connection_id or "",
        )

    return made


class Outcome(NamedTuple):
    """How one call went: its gRPC status (``"OK"``), message, reply and latency in seconds."""

    status: str
    message: str
    reply: HelloReply
    latency: float

    @property
    def ok(self) -> bool:
        """Whether it was answered with a reply."""
        return self.status == grpc.StatusCode.OK.name


class Caller:
    """Calls ``demo.Greeter`` at a gateway's address, one call at a time."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.insecure_channel(
            address,
            [
                # A client that looks often for a gateway that is gone: the demo measures how
                # long the connector needs to come back, not how long its caller waits.
                ("grpc.initial_reconnect_backoff_ms", 100),
                ("grpc.max_reconnect_backoff_ms", 100),
                ("grpc.enable_http_proxy", 0),
            ],
        )
        # Between calls grpcio (1.76 still) goes on connecting only if somebody watches the channel.
        self._channel.subscribe(lambda state: None)
        self._stub = GreeterStub(self._channel)  # type: ignore[no-untyped-call]

    def hello(self, name: str, padding: bytes = b"") -> Outcome:
        """Call a method that the connector implements."""
        return self._call(self._stub.Hello, HelloRequest(name=name, padding=padding))

    def goodbye(self, name: str) -> Outcome:
        """Call a method that nobody implements."""
        return self._call(self._stub.Goodbye, HelloRequest(name=name))

    @staticmethod
    def _call(
        method: grpc.UnaryUnaryMultiCallable[HelloRequest, HelloReply], request: HelloRequest
    ) -> Outcome:
        started = time.perf_counter()
        try:
            reply = method(request, timeout=_TIMEOUT)
        except grpc.RpcError as error:
            latency = time.perf_counter() - started
            return Outcome(error.code().name, error.details() or "", HelloReply(), latency)
        return Outcome(grpc.StatusCode.OK.name, "", reply, time.perf_counter() - started)

    def close(self) -> None:
        """Give the connection back."""
        self._channel.close()
