"""Every decoder that a peer's words go through, and what it may make of them.

Each takes any bytes, and returns or raises an error of its own; whatever else it does is a bug.
"""

from __future__ import annotations

import contextlib
from typing import Callable

from revconn._proto.registry_pb2 import (
    ConnectionMessage,
    ConnectionRegister,
    ConnectionStatus,
    ForwardRequest,
    ForwardResponse,
)
from revconn.core.chunks import ChunkJoiner
from revconn.core.connection import SUPPORTED, Terms, decode
from revconn.core.connector_side import Arrival, ConnectorConnection
from revconn.core.deadline import request_deadline
from revconn.core.framing import GzipInflater, is_framed, unframe
from revconn.core.gateway_side import GatewayConnection, GatewayLiveness
from revconn.core.liveness import ConnectorLiveness, Prober
from revconn.core.metadata import metadata_from_headers, truncate_message
from revconn.core.requests import split_request
from revconn.core.routing import Routes
from revconn.core.status import ProtocolError, decode_message, response_code
from revconn.core.web import body_parts, read_request_part, read_response_part, travelling
from revconn.gateway.keys import ApiKeys, check_registration
from revconn.gateway.refusals import Refused
from revconn.http2.frames import FrameSplitter, parse_window_update, unpad
from revconn.http2.grpc import (
    MessageReader,
    decode_metadata,
    end_by_trailers,
    parse_goaway,
    refusal,
)
from revconn.logger import presentable
from revconn.messages import received
from revconn.serving.replies import Replies
from revconn.serving.wsgi import _environ
from revconn.settings.proxy import Proxy
from revconn.transport import dial
from revconn.transport.grpcio import explain

__all__ = ["DECODERS", "OWN_ERRORS", "decode_all"]

OWN_ERRORS = (ProtocolError, Refused, OSError)  # OSError: of a proxy that gives no tunnel

_LIMIT = 1000
_CONNECTED = ConnectionMessage(
    status=ConnectionStatus(connection_id="id", status=ConnectionStatus.CONNECTED)
).SerializeToString()
_REGISTER = ConnectionMessage(
    register=ConnectionRegister(api_key="key", services=["a.B"])
).SerializeToString()
_KEYS = ApiKeys({"key": ["a.*"]})
_PROXY = Proxy.parse("http://proxy.example.com:3128")
_ROUTES: Routes[str] = Routes()
_ROUTES.add_service("a.B", "handler")


def _frames(data: bytes) -> None:
    splitter = FrameSplitter(_LIMIT)
    for *_, buffer, start, end in splitter.feed(data):
        assert 0 <= start <= end <= len(buffer)
    splitter.describe_end()


def _goaway(data: bytes) -> None:
    assert str(parse_goaway(data)).isprintable()


def _messages(data: bytes) -> None:
    messages: list[bytes] = []
    reader = MessageReader(_LIMIT)
    reader.inflate_with(GzipInflater(_LIMIT))
    reader.feed(data, 0, len(data), messages)
    assert all(len(message) <= _LIMIT for message in messages)


def _gzip(data: bytes) -> None:
    assert len(GzipInflater(_LIMIT)(data)) <= _LIMIT


def _headers(data: bytes) -> None:
    """Names and values by turns, a null byte after each."""
    words = data.split(b"\0")
    metadata = decode_metadata(zip(words[::2], words[1::2]))
    for end in (refusal(metadata), end_by_trailers(metadata)):
        assert end is None or end.details.isprintable()
    terms = Terms(30.0, 90.0, 4 << 20).met_with(metadata.items())
    assert all(note.isprintable() for note in terms.notes)


def _connection(data: bytes) -> None:
    """What a gateway says to a connector."""
    connection = ConnectorConnection(
        ConnectorLiveness(10.0, 30.0, None, lambda: "probe"), token="1" * 32
    )
    connection.register("key", ["a.B"], 0.0)
    connection.receive([_CONNECTED], 0.0)
    connection.request(ForwardRequest(request_id="probe"))
    inbound = connection.receive([data], 0.0)
    assert inbound.end is None or str(inbound.end).isprintable()
    for request in inbound.requests:
        _request(request)
    for response in inbound.responses:
        prober = Prober(["a.B"], 60.0, 20.0, b"1" * 32)
        prober.start(0.0)
        prober.ask("probe", 0.0)
        prober.answered(response, 1.0)


def _large_request(data: bytes) -> None:
    apart = split_request(data)
    if apart is not None:
        request, payload = apart
        request.payload = payload
        assert ConnectionMessage.FromString(data) == ConnectionMessage(request=request)


def _request(arrival: Arrival) -> None:
    request = received(*arrival, 0.0, 0.0, Replies(), {}, True)
    assert repr(request).isprintable()
    assert len(repr(request)) < 5000
    _ROUTES.find(request.method)
    assert isinstance(request.payload, bytes)


def _registration(data: bytes) -> None:
    """What a stranger says to a gateway, and a connector that was accepted."""
    for accepted in (False, True):
        connection = GatewayConnection(
            GatewayLiveness(0.0, 10.0, 120.0), features=SUPPORTED, max_message_bytes=_LIMIT
        )
        if accepted:
            connection.receive([_REGISTER], 0.0)
            connection.accept("id", 0.0)
        inbound = connection.receive([data], 0.0)
        assert inbound.end is None or inbound.end.reason.isprintable()
        if inbound.registration is not None:
            check_registration(inbound.registration, _KEYS)


def _answer(data: bytes) -> None:
    """What a connector answers a gateway."""
    response: ForwardResponse = decode(ConnectionMessage, data).response
    response_code(response.status_code, response.headers)
    metadata_from_headers(response.headers)
    truncate_message(response.error_message, 3072)
    joiner = ChunkJoiner(_LIMIT)
    joiner.add(response)
    assert joiner.held_bytes <= _LIMIT


def _payload(data: bytes) -> None:
    if is_framed(data):
        assert len(unframe(data, "gzip", _LIMIT)) <= max(len(data), _LIMIT)


def _web_parts(data: bytes) -> None:
    """What a gateway says of a request, and a service of its response."""
    parts = list(body_parts(data))
    assert b"".join(read_request_part(part) for part in parts) == data
    for read in (read_request_part, read_response_part):
        with contextlib.suppress(*OWN_ERRORS):
            part = read(data)
            if hasattr(part, "headers"):
                _check_travelling([(line.name, line.value) for line in part.headers])
    head = read_request_part(data)
    if hasattr(head, "authority"):
        assert all(isinstance(v, str) for k, v in _environ(head, None, "").items() if k.isupper())


def _check_travelling(lines: list[tuple[bytes, bytes]]) -> None:
    for name, value in travelling(lines):
        assert name == name.lower()
        assert not set(value) & set(b"\0\r\n")


def _web_headers(data: bytes) -> None:
    """Names and values by turns, a null byte after each."""
    words = data.split(b"\0")
    _check_travelling(list(zip(words[::2], words[1::2])))


def _text(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    assert presentable(text).isprintable()
    decode_message(text)
    explain(text, tls=True)
    request_deadline(0, {"grpc-timeout": text}, 0.0)
    _ROUTES.find(text)


DECODERS: dict[str, Callable[[bytes], object]] = {
    "HTTP/2 frames": _frames,
    "WINDOW_UPDATE": parse_window_update,
    "GOAWAY": _goaway,
    "padding": lambda data: unpad(data, 0, len(data)),
    "gRPC messages": _messages,
    "gzip": _gzip,
    "headers and trailers": _headers,
    "the connection": _connection,
    "payloads": _payload,
    "HTTP in parts": _web_parts,
    "HTTP's headers": _web_headers,
    "texts": _text,
    "a proxy's answer": lambda data: dial._check(data, _PROXY),
    "registrations": _registration,
    "large requests": _large_request,
    "answers": _answer,
}


def decode_all(data: bytes) -> None:
    """Give the same bytes to each of them."""
    for decoder in DECODERS.values():
        with contextlib.suppress(*OWN_ERRORS):
            decoder(data)
