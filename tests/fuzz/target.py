"""What is fuzzed: the http2 transport's engine and all that its messages go through, without I/O.

Whatever a gateway sends, the engine ends the stream with a reason or goes on; nothing is raised,
nothing goes on for ever, and what is kept stays in proportion to what was sent.
"""

from __future__ import annotations

import contextlib

from revconn.core.connector_side import ConnectorConnection
from revconn.core.liveness import ConnectorLiveness
from revconn.core.responses import encode_response
from revconn.exceptions import ProtocolError
from revconn.http2.connection import Engine
from revconn.messages import Request, received
from revconn.serving.replies import Replies
from revconn.transport.base import METHOD

__all__ = ["converse"]

MESSAGE_LIMIT = 1 << 20
OUTPUT_LIMIT = 4 << 20  # the engine's bound for what a peer asks for, and what we say ourselves
ANSWER = b"\x0a" + b"x" * 99


class Broken(AssertionError):
    """An invariant does not hold."""


def converse(data: bytes) -> Engine:
    """Let a gateway say ``data``; its first byte tells in which pieces it arrives."""
    engine = Engine(MESSAGE_LIMIT)
    connection = ConnectorConnection(
        ConnectorLiveness(10.0, 30.0, None, lambda: "probe"), token="0" * 32
    )
    engine.open_stream("http", "gateway.example.com", METHOD, {"user-agent": "fuzz"})
    engine.put([connection.register("key", ["echo.Echo"], 0.0)])
    _write(engine)
    for piece in _pieces(data):
        messages = engine.receive(piece)
        _require(sum(map(len, messages)) <= len(data) + MESSAGE_LIMIT, "messages out of nothing")
        inbound = connection.receive(messages, 0.0)
        link = Replies()
        for arrival in inbound.requests:
            request = received(*arrival, 0.0, 0.0, link, {}, True)
            engine.put([_answer(request)])
        engine.grant()
        engine.ping()
        _write(engine)
        if engine.end is not None:
            _require(bool(engine.end.details), "the stream ended without a reason")
            break
    engine.describe_end()
    return engine


def _pieces(data: bytes) -> list[bytes]:
    size = 1 + 7 * data[0] if data else 1
    return [data[start : start + size] for start in range(1, len(data), size)]


def _answer(request: Request) -> bytes:
    with contextlib.suppress(ProtocolError):  # a payload in a frame that is broken
        request.payload  # noqa: B018
    return encode_response(request.request_id, ANSWER, framed=request.framed)


def _write(engine: Engine) -> None:
    written = 0
    while True:
        output, carried = engine.take_output()
        if not output:
            return
        size = sum(map(len, output))
        _require(carried <= size, "more carried than written")
        _require(engine.end is None, "output after the end")
        written += size
        _require(written <= OUTPUT_LIMIT, "output without end")


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise Broken(otherwise)
