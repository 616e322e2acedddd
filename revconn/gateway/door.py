"""The door to the gateway's handlers: once it is closed, nothing new comes in."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio

from revconn.core.status import StatusCode
from revconn.gateway.arrivals import Arrivals
from revconn.gateway.statuses import fail

__all__ = ["STOPPING", "Door"]

STOPPING = "the gateway is stopping"

Context = grpc.aio.ServicerContext[Any, Any]


class Door(grpc.GenericRpcHandler):
    """Stands before a handler whose methods all take streams of requests; counts the calls inside.

    It belongs to the gateway's thread.
    """

    def __init__(self, behind: grpc.GenericRpcHandler, arrivals: Arrivals) -> None:
        self._behind = behind
        self._arrivals = arrivals
        self._is_closed = False
        self.inside = 0

    def close(self) -> None:
        """Refuse every call from now on. Those inside go on."""
        self._is_closed = True

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """The handler behind the door, if it takes that method."""
        handler: Any = self._behind.service(handler_call_details)
        if handler is None:
            return None

        behind = handler.stream_stream or handler.stream_unary

        async def enter(messages: AsyncIterator[bytes], context: Context) -> Any:
            self._arrivals.called(context.peer)
            if self._is_closed:
                return await fail(context, StatusCode.UNAVAILABLE, STOPPING)
            self.inside += 1
            try:
                return await behind(messages, context)
            finally:
                self.inside -= 1

        if handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(enter)
        return grpc.stream_unary_rpc_method_handler(enter)
