"""The transparent proxy: any unary gRPC call, forwarded to a connector that serves it."""

from __future__ import annotations

import asyncio
import logging
import math
import uuid
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio

from revconn._proto.registry_pb2 import ConnectionMessage, ForwardRequest, ForwardResponse
from revconn.core.deadline import format_grpc_timeout
from revconn.core.errors import ProtocolError
from revconn.core.framing import is_framed, unframe
from revconn.core.routing import split_method_path
from revconn.core.status import StatusCode, decode_message, response_code
from revconn.exceptions import Overloaded
from revconn.gateway.failures import failure
from revconn.gateway.metadata import headers_from_metadata, metadata_from_headers
from revconn.gateway.pending import PendingRequests
from revconn.gateway.registry import Connection, Registry
from revconn.gateway.statuses import answer, fail

__all__ = ["Proxy"]

logger = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]


class Proxy(grpc.GenericRpcHandler):
    """Takes every call that nothing before it took.

    gRPC does not tell a server whether a call is unary. Taken as streams, a streaming one can be
    told apart by what it does, and a failure goes out without an empty message before it.
    """

    def __init__(
        self, registry: Registry, pending: PendingRequests, request_timeout: float
    ) -> None:
        self._registry = registry
        self._pending = pending
        self._request_timeout = request_timeout

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """The handler of any method."""
        path = handler_call_details.method

        async def call(messages: AsyncIterator[bytes], context: Context) -> None:
            await self._call(path, messages, context)

        return grpc.stream_stream_rpc_method_handler(call)

    async def _call(self, path: str, messages: AsyncIterator[bytes], context: Context) -> None:
        response = await self._forward(path, messages, context)
        code = response_code(response.status_code, response.headers)
        logger.debug("%.200r from %s: %s", path, context.peer(), code.name)
        metadata = metadata_from_headers(response.headers)
        if code is not StatusCode.OK:
            return await fail(context, code, _message(response), metadata)
        try:
            payload = _bare(response.payload)
        except ProtocolError as error:
            problem = f"the connector's payload: {error}"
        else:
            return await answer(context, payload, metadata)
        return await fail(context, StatusCode.INTERNAL, problem)

    async def _forward(
        self, path: str, messages: AsyncIterator[bytes], context: Context
    ) -> ForwardResponse:
        try:
            service, _ = split_method_path(path)
        except ValueError as error:
            return failure(StatusCode.UNIMPLEMENTED, str(error))
        if not self._registry.serves(service):
            return _nobody_serves(service)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._request_timeout
        try:
            payload = await asyncio.wait_for(_only_message(messages), self._request_timeout)
        except asyncio.TimeoutError:
            problem = f"the request did not end within {self._request_timeout:g} seconds"
            return failure(StatusCode.DEADLINE_EXCEEDED, f"{problem}; only unary calls work")
        if payload is None:
            problem = "the request is not exactly one message; only unary calls are forwarded"
            return failure(StatusCode.UNIMPLEMENTED, problem)
        connection = self._registry.take_turn(service)
        if connection is None:  # it left in the meantime
            return _nobody_serves(service)
        remaining: float | None = context.time_remaining()
        timeout = min(deadline - loop.time(), math.inf if remaining is None else remaining)
        request = ForwardRequest(
            request_id=str(uuid.uuid4()),
            method_path=path,
            headers=_headers(context, remaining),
            payload=payload,
            timeout_seconds=max(1, math.ceil(timeout)),
        )
        # The caller's own deadline is grpc's business: it cancels this when it passes.
        return await self._exchange(request, connection, deadline)

    async def _exchange(
        self, request: ForwardRequest, connection: Connection, deadline: float
    ) -> ForwardResponse:
        """Send the request and wait for its answer, until ``deadline`` on the loop's clock."""
        loop = asyncio.get_running_loop()
        answered: asyncio.Future[ForwardResponse] = loop.create_future()

        def settle(response: ForwardResponse) -> None:
            if not answered.done():  # a caller that gave up has cancelled it
                answered.set_result(response)

        try:
            self._pending.add(request.request_id, connection, settle)
        except Overloaded as error:
            return failure(StatusCode.RESOURCE_EXHAUSTED, str(error))
        late = "the connector did not answer in time"
        timer = loop.call_at(
            deadline, self._pending.fail, request.request_id, StatusCode.DEADLINE_EXCEEDED, late
        )
        try:
            if not connection.send(ConnectionMessage(request=request)):
                return failure(StatusCode.RESOURCE_EXHAUSTED, "the connector does not keep up")
            return await answered
        finally:
            timer.cancel()
            self._pending.discard(request.request_id)


async def _only_message(messages: AsyncIterator[bytes]) -> bytes | None:
    """The message of a unary call; ``None`` when the stream holds none, or a second one."""
    only = None
    async for message in messages:
        if only is not None:
            return None
        only = message
    return only


def _nobody_serves(service: str) -> ForwardResponse:
    return failure(StatusCode.UNAVAILABLE, f"no connector serves {service}")


def _bare(payload: bytes) -> bytes:
    return unframe(payload) if is_framed(payload) else payload


def _headers(context: Context, remaining: float | None) -> dict[str, str]:
    headers = headers_from_metadata(context.invocation_metadata() or ())
    headers["content-type"] = "application/grpc"
    if remaining is not None:
        headers["grpc-timeout"] = format_grpc_timeout(remaining)
    return headers


def _message(response: ForwardResponse) -> str:
    encoded = response.headers.get("grpc-message")
    if encoded is not None:
        return decode_message(encoded)
    return response.error_message or f"the connector answered with status {response.status_code}"
