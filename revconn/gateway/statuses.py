"""What grpc needs to be told carefully: the message and the status that an rpc ends with."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import grpc.aio

from revconn.core.status import StatusCode
from revconn.gateway.metadata import Metadata, truncate_message

__all__ = ["answer", "begin", "fail"]

Context = grpc.aio.ServicerContext[Any, Any]

_GRPC_STATUS = {StatusCode(status.value[0]): status for status in grpc.StatusCode}


async def begin(context: Context, initial: Metadata) -> None:
    """Send the metadata that goes before all else, if there is any."""
    try:
        if initial:
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
