"""What type checkers make of handlers: `make types` checks this file, in which nothing runs.

Where an error has to be found it is expected by its code; one that is not found is an error too.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Callable

from revconn import Connector, Handler, Request, Response
from revconn._proto.registry_pb2 import Heartbeat

connector = Connector("gateway.example.com", api_key="key")


@connector.method("/echo.Echo/Say")
def say(request: Request) -> bytes:
    return request.payload


@connector.method("/echo.Echo/Beat", inline=True)
def beat(request: Request) -> Heartbeat | Response | None:
    return Heartbeat(connection_id=request.request_id)


class Servicer:
    def view(self, request: Request) -> memoryview:
        return memoryview(request.payload)

    def __call__(self, request: Request, *, loudly: bool = False) -> bytearray:
        return bytearray(request.payload)


# The decorator leaves a function what it is.
said: Callable[[Request], bytes] = say
beats: Callable[[Request], Heartbeat | Response | None] = beat
say("no request")  # type: ignore[arg-type]

handlers: dict[str, Handler] = {
    "/echo.Echo/View": Servicer().view,
    "/echo.Echo/Call": Servicer(),
    "/echo.Echo/Empty": lambda request: None,
}
for path, handler in handlers.items():
    connector.add_method(path, handler)


def text(request: Request) -> str:
    return "no bytes"


def nothing() -> bytes:
    return b""


async def later(request: Request) -> bytes:
    return b""


connector.add_method("/echo.Echo/Text", text)  # type: ignore[arg-type]
connector.add_method("/echo.Echo/Nothing", nothing)  # type: ignore[arg-type]
connector.add_service("later.Later", later)  # type: ignore[arg-type]
connector.method("/echo.Echo/Text")(text)  # type: ignore[type-var]
connector.method("/echo.Echo/Later")(later)  # type: ignore[type-var]


# Methods that stream.


@connector.method("/echo.Echo/Down")
def down(request: Request) -> Iterator[bytes]:
    yield request.payload


@connector.method("/echo.Echo/Up", kind="client_streaming")
def up(request: Request) -> bytes:
    return b"".join(request.messages())


@connector.method("/echo.Echo/Both", kind="bidirectional_streaming")
def both(request: Request) -> Iterator[Heartbeat]:
    for message in request.messages():
        yield Heartbeat.FromString(message)


downs: Callable[[Request], Iterator[bytes]] = down


def letters(request: Request) -> Iterator[int]:
    yield 1


connector.add_method("/echo.Echo/Letters", letters)  # type: ignore[arg-type]
connector.add_method("/echo.Echo/Kind", up, kind="streaming")  # type: ignore[arg-type]
