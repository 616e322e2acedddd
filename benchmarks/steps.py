"""Where an inline request's microseconds go: `python -m benchmarks.steps`.

Each step of the real path takes a batch as one read of the socket brings it, without the socket
and without other threads. What a whole run needs beyond their sum is the kernel's and the
threads'.
"""

from __future__ import annotations

import argparse
import functools
import time
from typing import Any, Callable

from revconn import Request
from revconn._proto.registry_pb2 import ConnectionMessage, ConnectionStatus, ForwardRequest
from revconn.core.chunks import LargeAnswer
from revconn.core.connector_side import Arrival, ConnectorConnection
from revconn.core.framing import frame
from revconn.core.liveness import ConnectorLiveness
from revconn.core.routing import Routes
from revconn.core.sending import Answer, Outbound
from revconn.http2.connection import Engine
from revconn.http2.frames import (
    USUAL_FRAME,
    data_header,
    header_frames,
    settings_frame,
    window_update,
)
from revconn.http2.headers import encode_fields
from revconn.messages import received
from revconn.serving.handlers import Answering, Handler
from revconn.serving.replies import Replies
from revconn.transport.base import METHOD

_PATH = "/echo.Echo/Say"
_PAYLOAD = b"\x0a" + b"x" * 63
_HEADERS = {"content-type": "application/grpc", "te": "trailers", "user-agent": "grpc-go/1.80.0"}


class Path:
    """The library's parts, after the handshake, and the steps between them."""

    def __init__(self, batch: int) -> None:
        self._engine = Engine(1 << 20)
        self._engine.open_stream("http", "gateway", METHOD, {"user-agent": "steps"})
        self._engine.receive(_greeting(b"".join(self._engine.take_output()[0])))
        self._connection = ConnectorConnection(
            ConnectorLiveness(10.0, 30.0, None, lambda: "probe"), token="0" * 32
        )
        self._connection.register("key", ["echo.Echo"], 0.0)
        status = ConnectionStatus(status=ConnectionStatus.CONNECTED, connection_id="id")
        self._connection.receive([ConnectionMessage(status=status).SerializeToString()], 0.0)
        routes: Routes[Handler] = Routes()
        routes.add_method(_PATH, lambda request: request.payload)
        self._answer_one = Answering(routes, 4 << 20).answer
        self._outbound = Outbound()
        self._replies = Replies()
        self.read = b"".join(_request(number) for number in range(batch))

    def steps(self) -> list[tuple[str, Callable[[Any], Any]]]:
        """What is done one after the other; each takes what the one before gave."""
        return [
            ("HTTP/2 frames and gRPC messages taken apart", self._engine.receive),
            ("protobuf decoded, the connection's rules", self._decode),
            ("request objects and deadlines", self._requests),
            ("handler found and run, answer encoded", self._answer),
            ("outbound queue", self._queue),
            ("gRPC messages and HTTP/2 frames put together", self._frames),
        ]

    def _decode(self, messages: list[bytes]) -> list[Arrival]:
        return self._connection.receive(messages, 0.0).requests

    def _requests(self, arrivals: list[Arrival]) -> list[Request]:
        return [self._request(arrival, time.monotonic()) for arrival in arrivals]

    def _request(self, arrival: Arrival, now: float) -> Request:
        return received(*arrival, now, now, self._replies, {}, True)

    def _answer(self, requests: list[Request]) -> list[Answer | LargeAnswer]:
        return [self._answer_one(each) for each in requests]

    def _queue(self, answers: list[Answer | LargeAnswer]) -> list[bytes]:
        self._outbound.put_all(answers)
        return [answer[0] for answer in self._outbound.take_answers(1 << 20)]

    def _frames(self, messages: list[bytes]) -> None:
        self._engine.put(messages)
        self._engine.grant()
        output, _ = self._engine.take_output()
        assert output, "more rounds than the peer opened its window for"


def _greeting(preface: bytes) -> bytes:
    """A gateway's settings, headers, and a window that stays open."""
    headers = encode_fields([(b":status", b"200"), (b"content-type", b"application/grpc")])
    windows = [window_update(stream_id, (1 << 31) - (1 << 17)) for stream_id in (0, 1)]
    return b"".join([settings_frame([]), *header_frames(1, headers, 0, USUAL_FRAME), *windows])


def _request(number: int) -> bytes:
    request = ForwardRequest(
        request_id=f"{number:08x}-0000-4000-8000-000000000000",
        method_path=_PATH,
        headers=_HEADERS,
        payload=_PAYLOAD,
        timeout_seconds=30,
    )
    message = frame(ConnectionMessage(request=request).SerializeToString())
    return data_header(len(message), 1) + message


def measure(batch: int, rounds: int) -> dict[str, float]:
    """Seconds per request of each step; the quickest round of each, as others only disturb."""
    path = Path(batch)
    steps = path.steps()
    best = {name: float("inf") for name, _ in steps}
    for _ in range(rounds):
        value: Any = path.read
        for name, step in steps:
            started = time.perf_counter()
            value = step(value)
            best[name] = min(best[name], time.perf_counter() - started)
    return {name: seconds / batch for name, seconds in best.items()}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.steps", description=__doc__)
    parser.add_argument("--batch", type=int, default=64, help="requests that one read brings (64)")
    parser.add_argument("--rounds", type=int, default=2000)
    options = parser.parse_args()
    measured = measure(options.batch, options.rounds)
    row = functools.partial("| {:<46} | {:>6} |".format)
    print(row("step", "µs"))
    print(row("-" * 46, "-----:"))
    for name, seconds in measured.items():
        print(row(name, f"{1e6 * seconds:.2f}"))
    print(row("together", f"{1e6 * sum(measured.values()):.2f}"))


if __name__ == "__main__":
    main()
