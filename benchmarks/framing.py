"""What HTTP/2 costs a gateway for a call, by two libraries: `python -m benchmarks.framing`.

64 unary calls of 64 bytes arrive in one read, and each is answered: HEADERS and DATA come, HEADERS,
DATA and trailers go. There is no socket, and nothing is done about the calls. Needs h2.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from typing import Callable

import h2.config
import h2.connection
import h2.events

from revconn.core.framing import frame as prefixed
from revconn.core.rope import Data
from revconn.core.status import ProtocolError, StatusCode
from revconn.http2.endpoint import Endpoint
from revconn.http2.headers import Field
from revconn.http2.requests import closing_block, opening_block
from revconn.http2.streams import Receiver, Stream
from revconn.http2.writing import Acceptor, Settings

__all__ = ["Ours", "Theirs", "measure"]

_CALLS = 64
_MESSAGE = b"\x0a" + b"x" * 63
_REQUEST = [
    (":method", "POST"),
    (":scheme", "http"),
    (":path", "/echo.Echo/Say"),
    (":authority", "gateway:50051"),
    ("content-type", "application/grpc"),
    ("user-agent", "grpc-go/1.80.0"),
    ("te", "trailers"),
]
_RESPONSE = [(":status", "200"), ("content-type", "application/grpc")]
_TRAILERS = [("grpc-status", "0")]


class Theirs:
    """The h2 package."""

    def __init__(self) -> None:
        configuration = h2.config.H2Configuration(client_side=False, header_encoding=None)
        self._connection = h2.connection.H2Connection(configuration)
        self._connection.initiate_connection()

    def answer(self, data: bytes) -> bytes:
        """Take in what a caller sent; what it is answered."""
        connection = self._connection
        for event in connection.receive_data(data):
            if isinstance(event, h2.events.DataReceived):
                size = event.flow_controlled_length
                connection.acknowledge_received_data(size, event.stream_id)
            elif isinstance(event, h2.events.StreamEnded):
                connection.send_headers(event.stream_id, _RESPONSE)
                connection.send_data(event.stream_id, prefixed(_MESSAGE))
                connection.send_headers(event.stream_id, _TRAILERS, end_stream=True)
        return connection.data_to_send()


class _Call(Receiver):
    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    def take(self, messages: list[Data], *, ended: bool) -> None:
        if ended:
            trailers = closing_block(StatusCode.OK, "", ())
            self._stream.respond(opening_block(()), _MESSAGE, trailers)

    def refuse(self, error: ProtocolError) -> None:
        raise error

    def break_off(self, reason: str) -> None:
        raise ProtocolError(reason)


class Ours(Acceptor):
    """revconn.http2."""

    def __init__(self) -> None:
        self._endpoint = Endpoint(Settings(max_streams=2 * _CALLS), self)

    def accept(self, stream: Stream, fields: list[Field], size: int, *, ended: bool) -> None:
        """A call has come."""
        stream.receiver = _Call(stream)

    def wake(self) -> None:
        """What is to be written is taken below."""

    def answer(self, data: bytes) -> bytes:
        """Take in what a caller sent; what it is answered."""
        while data:
            data = self._endpoint.receive(data)
        return b"".join(self._endpoint.take())


def _reads(count: int, server: Theirs | Ours) -> Iterator[tuple[bytes, Callable[[bytes], bool]]]:
    """What a caller sends, 64 calls at a time, and what says whether all of them are answered."""
    configuration = h2.config.H2Configuration(client_side=True, header_encoding=None)
    client = h2.connection.H2Connection(configuration)
    client.initiate_connection()
    client.receive_data(server.answer(client.data_to_send()))

    def is_whole(answer: bytes) -> bool:
        events = client.receive_data(answer)
        for event in events:
            if isinstance(event, h2.events.DataReceived):
                size = event.flow_controlled_length
                client.acknowledge_received_data(size, event.stream_id)
        return sum(isinstance(each, h2.events.StreamEnded) for each in events) == _CALLS

    for _ in range(count):
        for _ in range(_CALLS):
            stream_id = client.get_next_available_stream_id()
            client.send_headers(stream_id, _REQUEST)
            client.send_data(stream_id, prefixed(_MESSAGE), end_stream=True)
        yield client.data_to_send(), is_whole


def measure(server: Theirs | Ours, reads: int) -> float:
    """CPU seconds that ``server`` takes for a call. Raises :class:`ValueError` if one is lost."""
    taken = 0.0
    for data, is_whole in _reads(reads, server):
        begun = time.thread_time()
        answer = server.answer(data)
        taken += time.thread_time() - begun
        if not is_whole(answer):
            raise ValueError("not every call was answered")
    return taken / (reads * _CALLS)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m benchmarks.framing")
    parser.add_argument("--reads", type=int, default=100, help="of 64 calls each (100)")
    arguments = parser.parse_args()
    theirs, ours = measure(Theirs(), arguments.reads), measure(Ours(), arguments.reads)
    print(f"h2: {theirs * 1e6:.0f} µs of CPU a call; revconn.http2: {ours * 1e6:.1f} µs")


if __name__ == "__main__":
    main()
