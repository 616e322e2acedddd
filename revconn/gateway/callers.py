"""Any unary gRPC call from outside, as a call that a connector or a backend answers."""

from __future__ import annotations

import asyncio
import logging
import math
import uuid
from collections.abc import AsyncIterator
from functools import lru_cache, partial
from typing import Any

import grpc
import grpc.aio

from revconn._proto.registry_pb2 import ConnectionMessage, ForwardRequest, ForwardResponse
from revconn.core.deadline import format_grpc_timeout
from revconn.core.framing import is_framed, pack, unframe
from revconn.core.metadata import (
    application_metadata,
    headers_from_metadata,
    headers_size,
    metadata_from_headers,
)
from revconn.core.routing import Wanted, split_method_path
from revconn.core.status import ProtocolError, StatusCode, decode_message, response_code
from revconn.gateway.backends import BackendRequest, Reply
from revconn.gateway.calls import Call
from revconn.gateway.limits import Watch
from revconn.gateway.refusals import STOPPING, Refused, begin, fail, over_limit
from revconn.gateway.shared import Shared
from revconn.logger import get_logger, level_check

__all__ = ["Callers", "OutsideCall"]

# Its name is what applications configure: it stays, whatever the file is called.
logger = get_logger("revconn.gateway.proxy")
_would_log = level_check("revconn.gateway.proxy")  # asked for every call

# Seconds from the first message of a call to its end. A unary call sends them together: for it
# this is no limit.
_END_TIMEOUT = 1.0

Context = grpc.aio.ServicerContext[Any, Any]


class OutsideCall(Call):
    """A call of a gRPC client's, whose rpc waits for what it is answered."""

    def __init__(
        self, request: ForwardRequest, wanted: Wanted, deadline: float, context: Context
    ) -> None:
        super().__init__(request.request_id, request.method_path, wanted, deadline)
        self._context = context
        loop = asyncio.get_running_loop()
        self.answered: asyncio.Future[ForwardResponse | Reply] = loop.create_future()

    def respond(self, response: ForwardResponse) -> None:
        """Let the caller's rpc have what a connector, or the gateway itself, answered."""
        if not self.answered.done():  # a caller that gave up has cancelled it
            self.answered.set_result(response)

    def relay(self, reply: Reply) -> None:
        """Let the caller's rpc have what a backend answered."""
        if not self.answered.done():
            self.answered.set_result(reply)

    def for_backend(self, request: ForwardRequest) -> BackendRequest:
        """The caller's message and metadata as they came, and what is left of its time."""
        payload = unframe(request.payload) if is_framed(request.payload) else request.payload
        metadata = application_metadata(self._context.invocation_metadata() or ())
        return BackendRequest(payload, metadata, _remaining(self._context, self.deadline))


class Callers(grpc.GenericRpcHandler):
    """Takes every call that nothing before it took, until it is closed.

    gRPC does not tell a server whether a call is unary. With its requests taken as a stream, a
    streaming one can be told apart by what it does.

    :ivar inside: how many calls are in here, those that are still received included.
    """

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._is_closed = False
        self._receiving = 0  # calls whose request has not come yet
        self.inside = 0

    def close(self) -> None:
        """Refuse every call from now on. Those inside go on."""
        self._is_closed = True

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """The handler of any method."""
        # Of the plain function: grpc has to see that it is a coroutine's, on every Python.
        take = partial(Callers._take, self, handler_call_details.method)
        return grpc.stream_unary_rpc_method_handler(take)

    async def _take(self, path: str, messages: AsyncIterator[bytes], context: Context) -> bytes:
        shared = self._shared
        # Asked here too: without TLS, the usual case, a call costs neither peer() nor the function.
        if shared.arrivals.is_used:
            shared.arrivals.called(context.peer)
        if self._is_closed:
            await fail(context, StatusCode.UNAVAILABLE, STOPPING)
            return b""
        # From before the request has come: a gateway that stops waits for these, too.
        self.inside += 1
        try:
            answer: ForwardResponse | Reply
            try:
                wanted = _wanted(path)
                headers = headers_from_metadata(context.invocation_metadata() or ())
                shared.calls.admit(wanted, headers_size(headers))
                # The caller's own deadline is grpc's business: it cancels this when it passes.
                deadline = asyncio.get_running_loop().time() + shared.request_timeout
                payload = pack(await self._read(messages))
                # grpc takes the caller's grpc-timeout out of the metadata; whoever answers is to
                # know it, less what the request took to come.
                remaining = context.time_remaining()
                if remaining is not None:
                    headers["grpc-timeout"] = format_grpc_timeout(remaining)
                message = _message(path, headers, payload, _remaining(context, deadline))
                call = OutsideCall(message.request, wanted, deadline, context)
                shared.calls.submit(call, message)
                del message, payload  # they may be large, and the answer may take a while
                try:
                    answer = await call.answered
                except asyncio.CancelledError:  # grpc's doing: the caller is gone, or its time up
                    shared.calls.give_up(call, "the caller gave up")
                    raise
            except Refused as refused:
                answer = refused.response()
            if isinstance(answer, Reply):
                reply = self._relayed(path, answer, context)
            else:
                reply = self._reply(path, answer, context)
            if reply.code is StatusCode.OK:
                # Only of backends: a ForwardResponse has one set of headers, which go last.
                if reply.initial:
                    await begin(context, reply.initial)
                context.set_trailing_metadata(reply.trailing)
                return reply.payload
            await fail(context, reply.code, reply.message, reply.trailing, reply.initial)
            return b""  # which is not sent
        finally:
            self.inside -= 1

    # What is asked

    async def _read(self, messages: AsyncIterator[bytes]) -> bytes:
        """The one message of a unary call, once its end has come. Raises :class:`Refused`."""
        timeout, limits = self._shared.request_timeout, self._shared.limits
        if self._receiving >= limits.max_pending:
            problem = f"the requests of {self._receiving:,} calls are still on their way"
            raise over_limit(self._shared.counters, "max_pending", problem)
        only: bytes | None = None
        watch = Watch(timeout)
        self._receiving += 1
        try:
            async for message in messages:
                if only is not None:
                    only = None
                    break
                only = message
                watch.restart(_END_TIMEOUT)
        except asyncio.CancelledError:
            if not watch.ran_out:
                raise
            if only is None:
                problem = f"the request did not end within {timeout:g} seconds"
                problem = f"{problem}; only unary calls work"
                raise Refused(StatusCode.DEADLINE_EXCEEDED, problem) from None
            only = None  # a stream that is held open behind its first message
        finally:
            self._receiving -= 1
            watch.stop()
        if only is None:
            problem = "the request is not exactly one message; only unary calls are forwarded"
            raise Refused(StatusCode.UNIMPLEMENTED, problem)
        if len(only) > limits.max_message_bytes:
            problem = f"a request of {len(only):,} bytes exceeds {limits.max_message_bytes:,}"
            raise over_limit(self._shared.counters, "max_message_bytes", problem)
        return only

    # What is answered

    def _relayed(self, path: str, reply: Reply, context: Context) -> Reply:
        """What the caller gets of a backend's answer: all but the transport's own metadata."""
        logger.debug("%.200r from %s: %s, from a backend", path, context.peer(), reply.code.name)
        return reply._replace(
            initial=application_metadata(reply.initial),
            trailing=application_metadata(reply.trailing),
        )

    def _reply(self, path: str, response: ForwardResponse, context: Context) -> Reply:
        """What the caller gets of the answer of a connector, or of the gateway itself."""
        code = response_code(response.status_code, response.headers)
        if _would_log(logging.DEBUG):
            logger.debug("%.200r from %s: %s", path, context.peer(), code.name)
        metadata = metadata_from_headers(response.headers)
        if code is not StatusCode.OK:
            return Reply(code, _problem(response), trailing=metadata)
        payload, limit = response.payload, self._shared.limits.max_sent_message_bytes
        if len(payload) > limit:
            problem = f"{path[:200]}: a response of {len(payload):,} bytes exceeds the {limit:,}"
            problem = f"{problem} that may be sent"
            refused = over_limit(self._shared.counters, "max_sent_message_bytes", problem)
            return Reply(refused.code, refused.message)
        if is_framed(payload):
            try:
                payload = unframe(payload, response.headers.get("grpc-encoding", ""), limit)
            except ProtocolError as error:
                return Reply(StatusCode.INTERNAL, f"the connector's payload: {error}")
        return Reply(code, "", payload, trailing=metadata)


# Callers call the same methods again and again. Bounded, because it is they who name them.
@lru_cache(maxsize=256)
def _wanted(path: str) -> Wanted:
    try:
        service, _ = split_method_path(path)
    except ValueError as error:
        raise Refused(StatusCode.UNIMPLEMENTED, str(error)) from None
    return Wanted.by_outsider(service)


def _remaining(context: Context, deadline: float) -> float:
    """Seconds until the gateway or the caller gives the call up, whoever is first."""
    own = deadline - asyncio.get_running_loop().time()
    caller: float | None = context.time_remaining()
    return own if caller is None else min(own, caller)


def _message(
    path: str, headers: dict[str, str], payload: bytes, seconds: float
) -> ConnectionMessage:
    """The call as a request to a connector."""
    headers["content-type"] = "application/grpc"
    message = ConnectionMessage()
    request = message.request
    request.request_id = str(uuid.uuid4())
    request.method_path = path
    request.headers.update(headers)
    request.payload = payload
    request.timeout_seconds = max(1, math.ceil(seconds))
    return message


def _problem(response: ForwardResponse) -> str:
    encoded = response.headers.get("grpc-message")
    if encoded is not None:
        return decode_message(encoded)
    return response.error_message or f"the connector answered with status {response.status_code}"
