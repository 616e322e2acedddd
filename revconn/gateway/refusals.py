"""What the gateway itself answers where it refuses or fails, and how grpc is told of it."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import grpc.aio

from revconn._proto.registry_pb2 import ForwardResponse
from revconn.core.metadata import Metadata, truncate_message
from revconn.core.status import StatusCode, encode_message, http_status
from revconn.gateway.limits import Counters

__all__ = [
    "STOPPING",
    "NobodyServes",
    "Refused",
    "answer",
    "begin",
    "fail",
    "failure",
    "is_pending_already",
    "over_limit",
    "require_size",
]

STOPPING = "the gateway is stopping"


class Refused(Exception):
    """The gateway does not do what it was asked for; whoever asked is told code and message."""

    def __init__(self, code: StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message

    def response(self, request_id: str = "") -> ForwardResponse:
        """The refusal as the response to a request."""
        return failure(self.code, self.message, request_id)


class NobodyServes(Refused):
    """A call of a service that no connector has registered.

    Whoever calls from outside is told UNAVAILABLE; between connectors it is a 404.
    """

    def __init__(self, service: str, *, is_asked_by_connector: bool = False) -> None:
        code = StatusCode.NOT_FOUND if is_asked_by_connector else StatusCode.UNAVAILABLE
        super().__init__(code, f"no connector serves {service[:200]}")


def over_limit(counters: Counters, option: str, problem: str) -> Refused:
    """A refusal, counted, because of the limit that ``option`` sets."""
    # Named as the option is: whoever reads the message knows which number to change.
    counters.refused[option] += 1
    return Refused(StatusCode.RESOURCE_EXHAUSTED, f"{problem} (the gateway's {option})")


def is_pending_already(request_id: str) -> Refused:
    """A refusal of a second call by the id of one that is not settled."""
    problem = f"a request with the id {request_id[:64]!r} is pending already"
    return Refused(StatusCode.ALREADY_EXISTS, problem)


def require_size(data: bytes, limit: int, counters: Counters) -> None:
    """Raises :class:`Refused` for a request that no connector, or not that one, takes."""
    if len(data) > limit:
        problem = f"a request of {len(data):,} bytes exceeds the connector's {limit:,}"
        raise over_limit(counters, "max_sent_message_bytes", problem)


def failure(code: StatusCode, message: str, request_id: str = "") -> ForwardResponse:
    """A response that fails a request, in the shape a connector would have given it."""
    return ForwardResponse(
        request_id=request_id,
        status_code=http_status(code),
        headers={"grpc-status": str(int(code)), "grpc-message": encode_message(message)},
        error_message=message,
    )


Context = grpc.aio.ServicerContext[Any, Any]

# Ours are plain integers, since core knows nothing of grpc; grpc wants its own members.
_GRPC_STATUS = {StatusCode(status.value[0]): status for status in grpc.StatusCode}


async def begin(context: Context, initial: Metadata) -> None:
    """Send the metadata that goes before all else, if there is any."""
    try:
        if initial:
            # Only where there is some: it is an operation of its own, which costs every call of a
            # caller's.
            await context.send_initial_metadata(initial)
    except grpc.aio.InternalError:
        raise _peer_is_gone() from None


async def answer(context: Context, message: bytes) -> None:
    """Send the message of a streaming rpc that then ends with OK."""
    try:
        await context.write(message)
    except grpc.aio.InternalError:
        raise _peer_is_gone() from None


async def fail(
    context: Context,
    code: StatusCode,
    message: str,
    metadata: Metadata = (),
    initial: Metadata = (),
) -> None:
    """End the rpc; its handler has nothing to do but to return.

    Not to be called while an exception is handled: see below.
    """
    await begin(context, initial)
    try:
        await context.abort(_GRPC_STATUS[code], truncate_message(message), metadata)
    except grpc.aio.AbortError as done:
        # grpc keeps what abort raises. Its traceback (and that of what was being handled) would
        # keep the call and the server until the garbage collector comes by.
        done.__traceback__ = None
    except grpc.aio.InternalError:
        raise _peer_is_gone() from None


def _peer_is_gone() -> BaseException:
    # To grpc a failed operation is an error to be logged; that somebody hung up is none.
    return asyncio.CancelledError()
