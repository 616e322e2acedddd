"""A connection that has to be replaced while it still works: the new one first."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from typing import Any, Callable

import pytest

from revconn import AuthenticationError, Backoff, Connector, Request, State
from revconn._proto.registry_pb2 import (
    ConnectionMessage,
    ConnectionRegister,
    ConnectionStatus,
    ForwardRequest,
    ForwardResponse,
)
from tests.support.connectors import QUICK
from tests.support.scripted_http2 import Http2Peer, ScriptedHttp2
from tests.support.threads import TIMEOUT, in_thread
from tests.support.waiting import eventually

EVERY_STREAM = (1 << 31) - 1

Handler = Callable[[Request], bytes]


def echo(request: Request) -> bytes:
    return request.payload


@pytest.fixture
def server() -> Iterator[ScriptedHttp2]:
    with ScriptedHttp2() as server:
        yield server


@pytest.fixture
def let_handler_end() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture
def connector(server: ScriptedHttp2, let_handler_end: threading.Event) -> Iterator[Connector]:
    connector = Connector(server.address, transport="http2", **QUICK)
    connector.add_method("/echo.Echo/Say", lambda request: request.payload)

    @connector.method("/echo.Echo/Wait")
    def wait(request) -> bytes:
        let_handler_end.wait(TIMEOUT)
        return b"waited"

    yield connector
    let_handler_end.set()
    connector.abort()


@pytest.fixture
def start(server: ScriptedHttp2) -> Iterator[Callable[..., Connector]]:
    """``start(*elsewhere, **options)``: a started connector, aborted after the test."""
    started: list[Connector] = []

    def start(*elsewhere: str, handler: Handler = echo, **options: Any) -> Connector:
        targets = [server.address, *elsewhere]
        connector = Connector(targets, transport="http2", **{**QUICK, **options})
        connector.add_method("/echo.Echo/Say", handler)
        started.append(connector)
        connector.start(block=False)
        return connector

    yield start
    for connector in started:
        connector.abort()


def hears(peer: Http2Peer, kind: str) -> ConnectionMessage:
    """The next message of a kind; others are passed over."""
    while True:
        message = ConnectionMessage.FromString(peer.hears_message())
        if message.WhichOneof("message_type") == kind:
            return getattr(message, kind)


def say(peer: Http2Peer, **fields: object) -> None:
    peer.send(ConnectionMessage(**fields).SerializeToString())


def welcome(server: ScriptedHttp2, connection_id: str) -> tuple[Http2Peer, ConnectionRegister]:
    peer = server.accept_stream()
    register = hears(peer, "register")
    connected = ConnectionStatus(connection_id=connection_id, status=ConnectionStatus.CONNECTED)
    say(peer, status=connected)
    return peer, register


def ask(peer: Http2Peer, request_id: str, method: str = "Say") -> None:
    path = f"/echo.Echo/{method}"
    say(peer, request=ForwardRequest(request_id=request_id, method_path=path, payload=b"x"))


def answer(peer: Http2Peer, request_id: str) -> ForwardResponse:
    """The answer to a request; during a hand-over others may come twice."""
    while True:
        response = hears(peer, "response")
        if response.request_id == request_id:
            return response


def is_goodbye(status: ConnectionStatus, connection_id: str) -> bool:
    return (status.status, status.connection_id) == (ConnectionStatus.DISCONNECTED, connection_id)


def test_a_gateway_that_goes_away_gets_a_second_connection_before_it_loses_the_first(
    server, connector, caplog
) -> None:
    caplog.set_level(logging.INFO, "revconn")
    states: list[State] = []
    connector.start(block=False)
    first, _ = welcome(server, "id-1")
    connector.wait_ready(TIMEOUT)
    connector.on_state_change(states.append)
    first.goaway(0, EVERY_STREAM)
    second = server.accept_stream()
    assert list(hears(second, "register").services) == ["echo.Echo"]
    assert connector.connection_id == "id-1"
    ask(first, "r1")
    answer(first, "r1")
    say(second, status=ConnectionStatus(connection_id="id-2", status=ConnectionStatus.CONNECTED))
    assert is_goodbye(hears(first, "status"), "id-1")
    assert connector.connection_id == "id-2"
    ask(first, "r2")  # it was on its way already
    assert answer(second, "r2").payload == b"x"
    first.trailers(("grpc-status", "0"))
    ask(second, "r3")
    answer(second, "r3")
    assert states == [], "it was READY throughout"
    assert "as id-2, in place of id-1" in caplog.text
    assert "lost the connection" not in caplog.text
    assert connector.stats()["replayed"] == 0


def test_what_is_in_flight_is_answered_on_both_and_goodbye_comes_after_it(
    server, connector, let_handler_end
) -> None:
    connector.start(block=False)
    first, _ = welcome(server, "id-1")
    ask(first, "r1", "Wait")
    eventually(lambda: connector.stats()["in_flight"] == 1)
    first.goaway(0, EVERY_STREAM)
    second, _ = welcome(server, "id-2")
    eventually(lambda: connector.connection_id == "id-2")
    let_handler_end.set()
    answer(second, "r1")
    answer(first, "r1")
    assert is_goodbye(hears(first, "status"), "id-1")


def test_the_first_serves_on_while_a_second_cannot_be_had(server, connector, caplog) -> None:
    connector.start(block=False)
    first, _ = welcome(server, "id-1")
    first.goaway(0, EVERY_STREAM)
    for number in range(3):
        refused = server.accept_stream()
        hears(refused, "register")
        refused.trailers(("grpc-status", "14"))
        ask(first, f"r{number}")
        answer(first, f"r{number}")
    assert (connector.state, connector.connection_id) == (State.READY, "id-1")
    second, _ = welcome(server, "id-2")
    assert is_goodbye(hears(first, "status"), "id-1")
    ask(second, "last")
    answer(second, "last")


def test_if_the_first_breaks_before_the_second_serves_that_is_a_lost_connection(
    server, connector, caplog
) -> None:
    connector.start(block=False)
    first, _ = welcome(server, "id-1")
    first.goaway(0, EVERY_STREAM)
    second = server.accept_stream()
    first.hang_up()
    eventually(lambda: connector.state is State.CONNECTING)
    assert connector.connection_id is None
    assert "lost the connection" in caplog.text
    hears(second, "register")
    say(second, status=ConnectionStatus(connection_id="id-2", status=ConnectionStatus.CONNECTED))
    connector.wait_ready(TIMEOUT)
    ask(second, "r1")
    answer(second, "r1")


def test_one_that_goes_away_before_it_is_accepted_is_replaced_once_it_is(server, connector) -> None:
    connector.start(block=False)
    first = server.accept_stream()
    hears(first, "register")
    first.goaway(0, EVERY_STREAM)
    for _ in range(3):
        first.ping()
    say(first, status=ConnectionStatus(connection_id="id-1", status=ConnectionStatus.CONNECTED))
    second, _ = welcome(server, "id-2")
    assert is_goodbye(hears(first, "status"), "id-1")
    ask(second, "r1")
    answer(second, "r1")


def test_a_first_one_that_never_ends_is_ended(server) -> None:
    options = {**QUICK, "drain_timeout": 0.2}
    with Connector(server.address, transport="http2", **options) as connector:
        first, _ = welcome(server, "id-1")
        connector.wait_ready(TIMEOUT)
        first.goaway(0, EVERY_STREAM)
        welcome(server, "id-2")
        assert is_goodbye(hears(first, "status"), "id-1")
        first.hears_hang_up()
        assert connector.state is State.READY
        connector.abort()


def refuse(server: ScriptedHttp2, code: int) -> None:
    refused = server.accept_stream()
    hears(refused, "register")
    refused.trailers(("grpc-status", str(code)))


UNAVAILABLE, UNAUTHENTICATED = 14, 16


@pytest.mark.parametrize(
    ("codes", "reason"),
    [
        ([UNAUTHENTICATED], "UNAUTHENTICATED"),
        ([UNAVAILABLE, UNAVAILABLE], "UNAVAILABLE"),
    ],
    ids=["the key is refused", "max_attempts"],
)
def test_one_that_cannot_be_replaced_serves_on_until_it_ends_and_then_it_is_lost_as_any_other(
    server, start, caplog, codes, reason
) -> None:
    caplog.set_level(logging.INFO, "revconn")
    backoff = Backoff(initial=0.01, maximum=0.01, stable_after=0.0, max_attempts=3)
    connector = start(backoff=backoff)
    first, _ = welcome(server, "id-1")
    connector.wait_ready(TIMEOUT)
    first.goaway(0, EVERY_STREAM)
    for code in codes:
        refuse(server, code)
    eventually(lambda: "serves on" in caplog.text)
    (said,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert said.levelno == logging.ERROR
    assert reason in said.getMessage()
    ask(first, "r1")
    assert answer(first, "r1").payload == b"x"
    assert (connector.state, connector.connection_id) == (State.READY, "id-1")
    first.hang_up()
    second, _ = welcome(server, "id-2")
    ask(second, "r2")
    answer(second, "r2")
    assert "lost the connection" in caplog.text
    second.hang_up()
    refuse(server, UNAUTHENTICATED)
    with pytest.raises(AuthenticationError):
        connector.wait(TIMEOUT)
    assert connector.state is State.CLOSED


def test_if_the_second_breaks_before_the_first_was_told_goodbye_the_first_serves_on(
    server, connector, let_handler_end, caplog
) -> None:
    caplog.set_level(logging.INFO, "revconn")
    connector.start(block=False)
    first, _ = welcome(server, "id-1")
    ask(first, "r1", "Wait")
    eventually(lambda: connector.stats()["in_flight"] == 1)
    first.goaway(0, EVERY_STREAM)
    second, _ = welcome(server, "id-2")
    eventually(lambda: connector.connection_id == "id-2")
    second.hang_up()
    third = server.accept_stream()
    hears(third, "register")
    assert (connector.state, connector.connection_id) == (State.READY, "id-1")
    ask(first, "r2")
    assert answer(first, "r2").payload == b"x"
    say(third, status=ConnectionStatus(connection_id="id-3", status=ConnectionStatus.CONNECTED))
    eventually(lambda: connector.connection_id == "id-3")
    let_handler_end.set()
    assert answer(first, "r1").payload == b"waited"
    assert is_goodbye(hears(first, "status"), "id-1")
    assert "lost the connection" not in caplog.text


def test_if_the_second_breaks_after_the_first_was_told_goodbye_the_first_is_read_to_its_end(
    server, connector
) -> None:
    connector.start(block=False)
    first, _ = welcome(server, "id-1")
    first.goaway(0, EVERY_STREAM)
    second, _ = welcome(server, "id-2")
    assert is_goodbye(hears(first, "status"), "id-1")
    second.hang_up()
    third = server.accept_stream()
    hears(third, "register")
    ask(first, "r1")  # it was on its way already
    say(third, status=ConnectionStatus(connection_id="id-3", status=ConnectionStatus.CONNECTED))
    assert answer(third, "r1").payload == b"x"
    ask(first, "r2")
    assert answer(third, "r2").payload == b"x"
    first.trailers(("grpc-status", "0"))
    first.hears_hang_up()
    ask(third, "r3")
    answer(third, "r3")


def test_an_answer_that_is_ready_before_the_second_is_accepted_leaves_on_the_first(
    server, connector
) -> None:
    connector.start(block=False)
    first, _ = welcome(server, "id-1")
    first.goaway(0, EVERY_STREAM)
    second = server.accept_stream()
    hears(second, "register")
    ask(first, "r1")
    answer(first, "r1")


def test_the_goodbye_waits_for_no_other_gateways_requests(server, start) -> None:
    entered, let_handler_end = threading.Event(), threading.Event()

    def wait(request) -> bytes:
        entered.set()
        let_handler_end.wait(TIMEOUT)
        return b"waited"

    with ScriptedHttp2() as elsewhere:
        connector = start(elsewhere.address, handler=wait, drain_timeout=1e6)
        first, _ = welcome(server, "id-1")
        other, _ = welcome(elsewhere, "id-other")
        ask(other, "busy")
        assert entered.wait(TIMEOUT)
        first.goaway(0, EVERY_STREAM)
        welcome(server, "id-2")
        assert is_goodbye(hears(first, "status"), "id-1")
        assert connector.stats()["in_flight"] == 1
        let_handler_end.set()
        assert answer(other, "busy").payload == b"waited"
        connector.abort()


def test_what_the_second_brings_before_it_is_accepted_is_answered_there_too(
    server, connector
) -> None:
    connector.start(block=False)
    first, _ = welcome(server, "id-1")
    first.goaway(0, EVERY_STREAM)
    second = server.accept_stream()
    hears(second, "register")
    ask(second, "early")
    answer(first, "early")  # there is no telling whether they lead to the same gateway
    say(second, status=ConnectionStatus(connection_id="id-2", status=ConnectionStatus.CONNECTED))
    assert answer(second, "early").payload == b"x"


def test_stopping_in_the_middle_of_it_loses_nothing_that_either_brought(
    server, connector, let_handler_end
) -> None:
    connector.start(block=False)
    first, _ = welcome(server, "id-1")
    ask(first, "r1", "Wait")
    eventually(lambda: connector.stats()["in_flight"] == 1)
    first.goaway(0, EVERY_STREAM)
    second, _ = welcome(server, "id-2")
    eventually(lambda: connector.connection_id == "id-2")
    stopping = in_thread(connector.stop)
    stand_in, register = welcome(server, "stand-in")
    assert list(register.services) == []
    ask(first, "r2")
    answer(first, "r2")
    let_handler_end.set()
    answer(first, "r1")
    assert is_goodbye(hears(first, "status"), "id-1")
    assert is_goodbye(hears(second, "status"), "id-2")
    ask(first, "r3")
    answer(stand_in, "r3")
    first.trailers(("grpc-status", "0"))
    second.trailers(("grpc-status", "0"))
    assert is_goodbye(hears(stand_in, "status"), "stand-in")
    stand_in.trailers(("grpc-status", "0"))
    stopping.result(TIMEOUT)


def test_stopping_while_there_is_no_key_for_a_second_leaves_the_first_in_order(server) -> None:
    asked_again, go_on, let_handler_end = (threading.Event() for _ in range(3))

    def api_key() -> str:
        if not connector.stats()["connections"]:
            return "key"
        asked_again.set()
        go_on.wait(TIMEOUT)
        raise OSError("no key to be had")

    connector = Connector(server.address, transport="http2", **{**QUICK, "api_key": api_key})
    connector.add_method("/echo.Echo/Say", lambda _: let_handler_end.wait(TIMEOUT) and b"done")
    connector.start(block=False)
    first, _ = welcome(server, "id-1")
    connector.wait_ready(TIMEOUT)
    ask(first, "r1")
    first.goaway(0, EVERY_STREAM)
    assert asked_again.wait(TIMEOUT)
    stopping = in_thread(connector.stop)
    eventually(lambda: connector.state is State.DRAINING)
    eventually(lambda: connector._supervisor.links[0]._plan.is_leaving)
    go_on.set()
    let_handler_end.set()
    assert answer(first, "r1").payload == b"done"
    assert is_goodbye(hears(first, "status"), "id-1")
    first.trailers(("grpc-status", "0"))
    stopping.result(TIMEOUT)


@pytest.mark.parametrize(
    "close", [lambda c: c.stop(0.5), lambda c: c.abort()], ids=["stop", "abort"]
)
def test_closing_in_the_middle_of_it_ends_both(server, connector, close) -> None:
    connector.start(block=False)
    first, _ = welcome(server, "id-1")
    connector.wait_ready(TIMEOUT)
    first.goaway(0, EVERY_STREAM)
    second = server.accept_stream()
    hears(second, "register")
    close(connector)
    first.hears_hang_up()
    second.hears_hang_up()
    assert connector.state is State.CLOSED
