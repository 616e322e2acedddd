"""Any bytes, there and back, past gateways that send payloads bare and such as prefix them."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from revconn import Connector, Request, Response
from revconn._proto.registry_pb2 import ConnectionMessage, ForwardRequest, ForwardResponse
from revconn.core.framing import frame, is_framed, pack, unframe
from revconn.core.routing import Routes
from revconn.core.sending import Outbound
from revconn.gateway import Gateway
from revconn.serving.handlers import Answering
from tests.core.test_framing import LOOKALIKES
from tests.support.connectors import QUICK
from tests.support.requests import request_of
from tests.support.scripted_connector import ScriptedConnector

METHOD = "/echo.Echo/Say"
LIMIT = 10_000
TIMEOUT = 30.0

EXAMPLES = [
    b"\0\0\0\0\x01A",
    b"\x01\0\0\0\x01A",
    frame(frame(b"A")),
    frame(b""),
    b"\x01\0\0\0\0",
    b"\0",
    b"\x01A",
    b"",
    b"\0" * 5_000_000,
    frame(b"\0" * 5_000_000),
]


def answer(said: bytes, payload: bytes) -> tuple[bytes, ForwardResponse]:
    """What a handler that says so heard, and its answer as a gateway gets it."""
    heard = []

    def handler(request: Request) -> bytes:
        heard.append(request.payload)
        return said

    routes: Routes = Routes()
    routes.add_method(METHOD, handler)
    message = ForwardRequest(request_id="r1", method_path=METHOD, payload=payload)
    outbound = Outbound()
    outbound.agree(LIMIT, chunks=False)
    outbound.put(Answering(routes, LIMIT).answer(request_of(message)))
    response = ConnectionMessage.FromString(outbound.take_answers(1)[0][0]).response
    return heard[0], response


@given(asked=LOOKALIKES, said=LOOKALIKES, prefixes=st.booleans())
def test_any_bytes_arrive_through_a_gateway_of_either_kind(
    asked: bytes, said: bytes, prefixes: bool
) -> None:
    payload = pack(asked, framed=prefixes)
    heard, response = answer(said, payload)
    assert heard == asked
    assert (unframe(response.payload) if is_framed(response.payload) else response.payload) == said
    if is_framed(payload):  # in kind
        assert response.payload == frame(said)
        assert response.headers["content-type"] == "application/grpc"
        assert response.headers["grpc-status"] == "0"
    else:
        assert not response.headers


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    with Gateway(api_keys="key", max_message_bytes=16 << 20) as gateway:
        yield gateway


@pytest.fixture
def echo(gateway, new_connector, transport_options) -> Connector:
    connector = new_connector(gateway.address, **{**QUICK, **transport_options})
    connector.add_method(METHOD, lambda request: request.payload)
    connector.add_method("/echo.Echo/Inline", lambda request: request.payload, inline=True)
    connector.start(block=False)
    connector.wait_ready(TIMEOUT)
    return connector


def test_callers_and_handlers_see_the_same_bytes(gateway, echo) -> None:
    options = [("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(gateway.address, options) as channel:
        for method in (METHOD, "/echo.Echo/Inline"):
            for payload in EXAMPLES:
                said = channel.unary_unary(method)(payload, timeout=TIMEOUT)
                assert said == payload, payload[:20]


@pytest.mark.parametrize("chunks", [False, True])
def test_connectors_call_one_another_with_any_bytes(gateway, echo, chunks) -> None:
    features = [("revconn-features", "chunks")] if chunks else []
    with ScriptedConnector(gateway.address, metadata=features) as asker:
        asker.register()
        examples = EXAMPLES[:-2] if not chunks else EXAMPLES[-2:]
        for number, message in enumerate(examples):
            for framed in (False, True):
                request_id = f"{number} {framed} {chunks}"
                asker.ask(request_id, METHOD, pack(message, framed=framed), timeout_seconds=30)
                parts = [asker.receive_response()]
                while chunks and not parts[-1].response_stream_info.is_final_chunk:
                    parts.append(asker.receive_response())
                payload = b"".join(part.payload for part in parts)
                assert payload == pack(message, framed=framed)
                assert parts[-1].request_id == request_id


def test_a_failures_payload_is_told_from_a_prefixed_one_too() -> None:
    routes: Routes = Routes()
    routes.add_method(METHOD, lambda request: Response(request.payload, status=409))
    message = ForwardRequest(request_id="r1", method_path=METHOD, payload=frame(frame(b"A")))
    failure, *_ = Answering(routes, LIMIT).answer(request_of(message))
    payload = ConnectionMessage.FromString(failure).response.payload
    assert payload == frame(frame(b"A"))
