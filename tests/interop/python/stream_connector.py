"""A connector: this library's own, whose plain handlers stream as the Go connector's methods do.

usage: stream_connector.py GATEWAY-ADDRESS API-KEY
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

from revconn import Connector, Request, RequestError, StatusCode


def down(request: Request) -> Iterator[bytes]:
    """Answer as many messages as it is asked for, each its number."""
    try:
        count = int(request.payload)
    except ValueError:
        problem = "keine Zahl, 100 % größer"
        raise RequestError(StatusCode.INVALID_ARGUMENT, problem) from None
    try:
        for number in range(count):
            yield str(number).encode()
    except GeneratorExit:
        say_over(request, "the caller gave up")
        raise


def up(request: Request) -> bytes:
    """Answer how many bytes came."""
    return str(sum(map(len, messages(request)))).encode()


def echo(request: Request) -> Iterator[bytes]:
    """Send back each message."""
    yield from messages(request)


def messages(request: Request) -> Iterator[bytes]:
    try:
        yield from request.messages()
    except RequestError:
        say_over(request, "the caller gave up")
        raise


def say_over(request: Request, why: str) -> None:
    print(f"{request.method} is over: {why}", flush=True)


def main() -> None:
    address, api_key = sys.argv[1:]
    connector = Connector(address, api_key=api_key, max_workers=32, max_streams=24)
    connector.method("/echo.Streams/Down")(down)
    connector.method("/echo.Streams/Up", kind="client_streaming")(up)
    connector.method("/echo.Streams/Echo", kind="bidirectional_streaming")(echo)
    connector.start()


if __name__ == "__main__":
    main()
