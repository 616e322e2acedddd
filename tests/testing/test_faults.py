"""Each fault, as a connector meets it: on both transports."""

from __future__ import annotations

import threading
import time
from typing import Any, Callable

import grpc
import pytest

from revconn import AuthenticationError, ConfigurationError, Connector, State, StatusCode
from revconn.testing import Faults, TestGateway
from revconn.transport import grpcio, http2
from tests.support.waiting import eventually

SAY = "/echo.Echo/Say"
Connect = Callable[..., Connector]


@pytest.fixture
def heard() -> list[bytes]:
    """The payloads that handlers got."""
    return []


@pytest.fixture
def connect(
    revconn_gateway: TestGateway, new_connector: Callable[..., Connector], heard: list[bytes]
) -> Connect:
    """A connector that is connected, and says what it hears."""

    def connect(**options: Any) -> Connector:
        made = new_connector(revconn_gateway.address, api_key=revconn_gateway.api_key, **options)

        @made.method(SAY)
        def say(request):
            heard.append(request.payload)
            return b"Echo: " + request.payload

        made.start(block=False)
        made.wait_ready(10.0)
        return made

    return connect


def serves(gateway: TestGateway) -> bool:
    return gateway.call(SAY, b"hello") == b"Echo: hello"


def test_after_a_drop_the_connector_is_back(
    connect: Connect, revconn_gateway: TestGateway, revconn_faults: Faults
) -> None:
    # grpcio 1.62 may notice the reset of a young connection only when it next writes.
    connector = connect(heartbeat_interval=0.1)
    before = connector.connection_id
    revconn_faults.drop()
    (connection,) = revconn_gateway.wait_connected()
    assert connection.connection_id != before
    assert serves(revconn_gateway)


def test_a_half_open_connection_is_found_by_keepalive_alone(
    connect: Connect, revconn_gateway: TestGateway, revconn_faults: Faults
) -> None:
    connector = connect(keepalive_interval=1.5, keepalive_timeout=1.5, heartbeat_interval=0.1)
    revconn_faults.half_open()
    eventually(lambda: not revconn_gateway.gateway.connections())
    assert connector.state is State.READY  # as far as it knows
    revconn_gateway.wait_connected()
    assert serves(revconn_gateway)


def test_a_forgotten_connection_stays_open_and_gets_no_requests(
    connect: Connect, revconn_gateway: TestGateway, revconn_faults: Faults
) -> None:
    connector = connect(heartbeat_interval=0.05)
    before = connector.connection_id
    revconn_faults.forget()
    assert revconn_gateway.connections() == ()
    with pytest.raises(grpc.RpcError) as failed:
        revconn_gateway.call(SAY)
    assert failed.value.code() is grpc.StatusCode.UNAVAILABLE
    (connection,) = revconn_gateway.gateway.connections()
    assert (connection.connection_id, connector.connection_id) == (before, before)


def test_nothing_is_forgotten_by_a_gateway_that_is_stopped(
    revconn_gateway: TestGateway, revconn_faults: Faults
) -> None:
    revconn_gateway.stop()
    revconn_faults.forget()


def test_a_delay_holds_up_what_is_said_until_it_is_lifted(
    connect: Connect, revconn_gateway: TestGateway, revconn_faults: Faults
) -> None:
    connect()
    with revconn_faults.delay(3600.0):
        waiting = revconn_gateway.call_future(SAY, b"hello", timeout=30.0)
        with pytest.raises(grpc.FutureTimeoutError):
            waiting.result(timeout=0.1)
    assert waiting.result() == b"Echo: hello"


def test_a_delay_counts_for_each_direction(
    connect: Connect, revconn_gateway: TestGateway, revconn_faults: Faults
) -> None:
    connect()
    revconn_faults.delay(0.1)
    started = time.monotonic()
    assert serves(revconn_gateway)
    assert time.monotonic() - started >= 0.2


def test_a_connector_that_is_refused_comes_back_when_it_is_not_any_more(
    connect: Connect, revconn_gateway: TestGateway, revconn_faults: Faults
) -> None:
    connector = connect()
    with revconn_faults.refuse():
        assert serves(revconn_gateway)  # who is there already goes on
        revconn_faults.drop()
        eventually(lambda: revconn_gateway.gateway.stats()["connections_refused"] >= 2)
        assert connector.state is not State.READY
    revconn_gateway.wait_connected()
    assert serves(revconn_gateway)


def test_a_refusal_has_the_status_that_was_asked_for(
    revconn_gateway: TestGateway, revconn_faults: Faults, new_connector: Callable[..., Connector]
) -> None:
    revconn_faults.refuse(StatusCode.UNAUTHENTICATED, "no longer")
    connector = new_connector(revconn_gateway.address, api_key=revconn_gateway.api_key)
    with pytest.raises(AuthenticationError, match="no longer"):
        connector.start()


def test_a_request_that_comes_twice_is_answered_once(
    connect: Connect, revconn_gateway: TestGateway, revconn_faults: Faults, heard: list[bytes]
) -> None:
    let_go = threading.Event()
    connector = connect()
    connector.add_method("/echo.Echo/Wait", lambda request: let_go.wait(10.0) and b"done")
    revconn_faults.duplicate()
    waiting = revconn_gateway.call_future("/echo.Echo/Wait")
    eventually(lambda: connector.stats()["repeated"] == 1)
    let_go.set()
    assert waiting.result() == b"done"
    assert serves(revconn_gateway)
    assert connector.stats()["repeated"] == 1
    assert heard == [b"hello"]


def test_requests_arrive_in_the_opposite_order(
    connect: Connect, revconn_gateway: TestGateway, revconn_faults: Faults, heard: list[bytes]
) -> None:
    connect(max_workers=1)
    revconn_faults.reorder(3)
    waiting = []
    for payload in (b"one", b"two", b"three"):
        waiting.append(revconn_gateway.call_future(SAY, payload))
        sent = len(waiting)
        eventually(lambda sent=sent: revconn_gateway.gateway.stats()["calls"] == sent)
    assert [each.result() for each in waiting] == [b"Echo: one", b"Echo: two", b"Echo: three"]
    assert heard == [b"three", b"two", b"one"]
    assert serves(revconn_gateway)


def test_reordered_requests_reach_the_connector_that_each_was_for(
    connect: Connect, revconn_gateway: TestGateway, revconn_faults: Faults
) -> None:
    connectors = [connect(), connect()]
    revconn_faults.reorder(4)
    waiting = [revconn_gateway.call_future(SAY, b"hello") for _ in range(4)]
    assert {each.result() for each in waiting} == {b"Echo: hello"}
    assert [each.stats()["answered"] for each in connectors] == [2, 2]


def test_faults_add_up(
    connect: Connect, revconn_gateway: TestGateway, revconn_faults: Faults
) -> None:
    connector = connect(max_workers=1)
    revconn_faults.duplicate(2)
    revconn_faults.reorder(2)
    waiting = [revconn_gateway.call_future(SAY, each) for each in (b"one", b"two")]
    assert [each.result() for each in waiting] == [b"Echo: one", b"Echo: two"]
    eventually(lambda: connector.stats()["in_flight"] == 0)


@pytest.mark.parametrize("payload", [b"", b"hello"])
def test_a_larger_message_is_the_same_request(
    connect: Connect,
    revconn_gateway: TestGateway,
    revconn_faults: Faults,
    heard: list[bytes],
    payload: bytes,
) -> None:
    connect()
    revconn_faults.oversize(8 << 20)  # twice what gRPC takes by default
    assert revconn_gateway.call(SAY, payload) == b"Echo: " + payload
    assert heard == [payload]


def test_a_message_that_is_too_large_ends_the_stream_and_the_connector_comes_back(
    connect: Connect,
    revconn_gateway: TestGateway,
    revconn_faults: Faults,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in (grpcio, http2):
        monkeypatch.setattr(module, "LARGEST_MESSAGE", 1 << 20)
    before = connect().connection_id
    revconn_faults.oversize(2 << 20)
    with pytest.raises(grpc.RpcError):
        revconn_gateway.call(SAY, timeout=0.5)
    (connection,) = revconn_gateway.wait_connected()
    assert connection.connection_id != before
    assert serves(revconn_gateway)


@pytest.mark.parametrize(
    "ask",
    [
        lambda faults: faults.delay(-1),
        lambda faults: faults.duplicate(0),
        lambda faults: faults.reorder(1.5),
        lambda faults: faults.oversize(0),
        lambda faults: faults.oversize(2 << 30),
    ],
)
def test_what_cannot_be_is_refused(revconn_faults: Faults, ask: Callable[[Faults], None]) -> None:
    with pytest.raises(ConfigurationError):
        ask(revconn_faults)
