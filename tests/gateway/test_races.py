"""Somebody hangs up in the one moment when it matters."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from typing import Any, Callable

import grpc
import grpc.aio
import pytest

from revconn._proto.registry_pb2 import ForwardResponse
from revconn.core.status import StatusCode
from revconn.gateway.callers import Callers
from revconn.gateway.keys import ApiKeys
from revconn.gateway.limits import Limits
from revconn.gateway.refusals import answer, begin, fail
from revconn.gateway.shared import Settings, Shared
from tests.gateway.test_routes import make


class GoneContext:
    """A call whose peer is gone: every operation fails, as grpc's do."""

    async def send_initial_metadata(self, metadata: Any) -> None:
        raise grpc.aio.InternalError("Failed to execute batch")

    async def write(self, message: bytes) -> None:
        raise grpc.aio.InternalError("Failed to execute batch")

    async def abort(self, *arguments: Any) -> None:
        raise grpc.aio.InternalError("Failed to execute batch")


@pytest.mark.parametrize(
    "ending",
    [
        lambda context: answer(context, b""),
        lambda context: begin(context, (("a", "b"),)),
        lambda context: fail(context, StatusCode.NOT_FOUND, "no such thing"),
    ],
    ids=["answered", "begun", "failed"],
)
def test_it_counts_as_a_cancellation_not_as_an_error(
    ending: Callable[[Any], Awaitable[None]],
) -> None:
    async def scenario() -> None:
        with pytest.raises(asyncio.CancelledError):
            await ending(GoneContext())

    asyncio.run(scenario())


class Context:
    """A call from a caller that is still there; what it ends with."""

    status: tuple[Any, ...] = ()

    def peer(self) -> str:
        return "ipv4:127.0.0.1:1"

    def invocation_metadata(self) -> None:
        return None

    def time_remaining(self) -> None:
        return None

    async def abort(self, *status: Any) -> None:
        self.status = status


class Call:
    """A call of /echo.Echo/Say, and the one connection that serves it."""

    def __init__(self, messages: Callable[[Call], AsyncIterator[bytes]]) -> None:
        self.shared = Shared(Settings(ApiKeys(None), Limits()))
        self.connection = make("a", "echo.Echo")
        self.shared.registry.add(self.connection)
        self.context = Context()
        details = type("Details", (), {"method": "/echo.Echo/Say"})()
        handler = Callers(self.shared).service(details).stream_unary
        self.task = asyncio.ensure_future(handler(messages(self), self.context))


def test_an_answer_that_meets_a_cancelled_caller_is_dropped() -> None:
    async def only_message(call: Call) -> AsyncIterator[bytes]:
        yield b""

    async def scenario() -> None:
        call = Call(only_message)
        while not call.connection.pending:
            await asyncio.sleep(0)
        (request_id,) = call.connection.pending
        call.task.cancel()  # which it learns when the loop comes round to it, after the answer:
        call.shared.calls.answer(ForwardResponse(request_id=request_id), call.connection)
        with pytest.raises(asyncio.CancelledError):
            await call.task
        assert len(call.shared.calls) == 0

    asyncio.run(scenario())


def test_a_connector_may_leave_while_a_request_is_still_arriving() -> None:
    async def message_and_farewell(call: Call) -> AsyncIterator[bytes]:
        yield b""
        call.shared.rerouting.drain(call.connection, "it left")

    async def scenario() -> None:
        call = Call(message_and_farewell)
        await call.task
        assert call.context.status[:2] == (
            grpc.StatusCode.UNAVAILABLE,
            "no connector serves echo.Echo",
        )

    asyncio.run(scenario())
