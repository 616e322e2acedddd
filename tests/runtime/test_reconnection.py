from __future__ import annotations

import contextlib
import logging
import queue
import re
import socket
import threading
import time
from typing import Callable

import grpc
import pytest

from revconn import (
    AuthenticationError,
    Backoff,
    ConnectionLost,
    Connector,
    HandshakeError,
    State,
    StatusCode,
)
from revconn._proto.registry_pb2 import ConnectionStatus
from revconn.testing import Fault, FaultProxy
from tests.support.scripted_gateway import Peer, ScriptedGateway
from tests.support.waiting import eventually

TIMEOUT = 60.0
NOBODY_LISTENS = "127.0.0.1:1"
GATEWAY = {"revconn-features": ""}  # whoever says so is one


@pytest.fixture
def serve(new_connector) -> Callable[..., Connector]:
    """A started connector that echoes."""

    def start(address: str, **options) -> Connector:
        connector = new_connector(address, **options)
        connector.add_method("/echo.Echo/Say", lambda request: b"Echo: " + request.payload)
        connector.start(block=False)
        return connector

    return start


class NoPause(Backoff):
    """Waits for nothing, and remembers after how many failures in a row it was asked."""

    def delay(self, failures: int) -> float:
        self.__dict__.setdefault("asked", []).append(failures)
        return 0.0


def assert_serves(peer: Peer) -> None:
    peer.request("probe", payload=b"hi")
    assert peer.answer("probe").payload == b"Echo: hi"


# A connection that worked is lost: whatever the reason, there is a new one


def end_with(code: grpc.StatusCode) -> Callable[[Peer, FaultProxy], None]:
    def end(peer: Peer, proxy: FaultProxy) -> None:
        peer.end(code, "some reason")

    return end


def say_disconnected(peer: Peer, proxy: FaultProxy) -> None:
    peer.status(ConnectionStatus.DISCONNECTED, "id-1", "moving house")


def reset(peer: Peer, proxy: FaultProxy) -> None:
    proxy.reset_all()


def cut(peer: Peer, proxy: FaultProxy) -> None:
    proxy.cut_all()


LOSSES = {
    "the stream ends with OK": (end_with(grpc.StatusCode.OK), "the gateway ended the stream"),
    "the stream ends with UNAVAILABLE": (end_with(grpc.StatusCode.UNAVAILABLE), "some reason"),
    "the key is refused later": (end_with(grpc.StatusCode.UNAUTHENTICATED), "some reason"),
    "the gateway says DISCONNECTED": (
        say_disconnected,
        "the gateway said DISCONNECTED: 'moving house'",
    ),
    "the connection is reset": (reset, ""),
    "the connection is closed": (cut, ""),
}


@pytest.mark.parametrize(("lose", "reason"), LOSSES.values(), ids=LOSSES)
def test_a_lost_connection_is_replaced_and_the_log_says_why(
    serve, gateway, proxy, caplog, lose, reason
) -> None:
    caplog.set_level(logging.INFO, "revconn")
    # grpcio 1.62 may notice the reset of a young connection only when it next writes.
    connector = serve(proxy.address, heartbeat_interval=0.1)
    first = gateway.accept_ready("id-1")
    connector.wait_ready(TIMEOUT)
    lose(first, proxy)
    second = gateway.accept_ready("id-2")
    assert_serves(second)
    assert connector.connection_id == "id-2"
    assert f"lost the connection: {proxy.address}: {reason}" in caplog.text
    eventually(lambda: f"connected to {proxy.address} again as id-2" in caplog.text)


def test_a_gateway_that_dies_and_comes_back_is_found_again(serve) -> None:
    with ScriptedGateway() as first:
        connector = serve(first.address)
        first.accept_ready("id-1")
        connector.wait_ready(TIMEOUT)
    with ScriptedGateway(first.port) as second:
        assert_serves(second.accept_ready("id-2"))


def test_a_gateway_that_does_not_listen_yet_is_waited_for(serve, caplog) -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
        caplog.set_level(logging.DEBUG, "revconn.runtime.link")
        connector = serve(f"127.0.0.1:{port}")
        eventually(lambda: caplog.text.count("; trying again in") > 1)
    with ScriptedGateway(port) as gateway:
        assert_serves(gateway.accept_ready())
        connector.abort()


def test_each_connection_registers_without_an_id_and_uses_the_one_it_is_given(
    serve, gateway
) -> None:
    connector = serve(gateway.address, heartbeat_interval=0.05)
    for connection_id in ("id-1", "id-2", "id-3"):
        peer = gateway.accept()
        assert peer.hears("register").connection_id == ""
        peer.connected(connection_id)
        assert peer.hears("heartbeat").connection_id == connection_id
        assert connector.connection_id == connection_id
        peer.end()


# The handshake


REFUSALS = {
    "UNAUTHENTICATED": (grpc.StatusCode.UNAUTHENTICATED, AuthenticationError, "check api_key"),
    "PERMISSION_DENIED": (grpc.StatusCode.PERMISSION_DENIED, AuthenticationError, "check api_key"),
    "INVALID_ARGUMENT": (grpc.StatusCode.INVALID_ARGUMENT, HandshakeError, "check services"),
    "UNIMPLEMENTED": (grpc.StatusCode.UNIMPLEMENTED, HandshakeError, "check the target"),
}


@pytest.mark.parametrize(("code", "kind", "remedy"), REFUSALS.values(), ids=REFUSALS)
def test_a_refused_handshake_ends_it_with_an_error_that_says_what_to_fix(
    serve, gateway, code, kind, remedy
) -> None:
    gateway.announces = GATEWAY
    connector = serve(gateway.address)
    gateway.accept().end(code, "because")
    with pytest.raises(kind, match=f"{gateway.address}: {code.name}: because; {remedy}") as raised:
        connector.wait(TIMEOUT)
    assert raised.value.code is StatusCode[code.name]
    assert connector.state is State.CLOSED


@pytest.mark.parametrize(
    "code",
    [
        grpc.StatusCode.OK,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.UNKNOWN,
    ],
)
def test_a_handshake_that_failed_otherwise_is_tried_again(serve, gateway, code) -> None:
    serve(gateway.address)
    gateway.accept().end(code, "not now")
    assert_serves(gateway.accept_ready())


def test_a_gateway_that_says_error_instead_of_connected_is_tried_again(
    serve, gateway, caplog
) -> None:
    serve(gateway.address)
    gateway.accept().status(ConnectionStatus.ERROR, message="out of memory")
    assert_serves(gateway.accept_ready())
    assert "the gateway said ERROR: 'out of memory'" in caplog.text


def test_a_gateway_that_never_says_connected_is_tried_again(serve, gateway, caplog) -> None:
    serve(gateway.address, connect_timeout=1.5)
    silent = gateway.accept()
    silent.hears("register")
    silent.hears_hang_up()
    assert_serves(gateway.accept_ready())
    assert "no CONNECTED within 1.5 s" in caplog.text


def test_a_peer_that_takes_the_connection_and_says_nothing_is_tried_again(
    serve, gateway, caplog
) -> None:
    with FaultProxy(gateway.port, fault=Fault.STALL) as proxy:
        serve(proxy.address, connect_timeout=1.5)
        proxy.wait_connections(2)
        proxy.fault = Fault.NONE
        serves = False
        while not serves:  # what was opened while the proxy stalled may have been given up
            with contextlib.suppress(AssertionError):
                assert_serves(gateway.accept_ready())
                serves = True
    assert "no CONNECTED within 1.5 s" in caplog.text


# Who decides what is fatal


def test_is_fatal_can_give_up_what_would_be_tried_again(serve, gateway) -> None:
    def is_fatal(error: Exception) -> bool:
        return isinstance(error, ConnectionLost) and error.code is StatusCode.RESOURCE_EXHAUSTED

    connector = serve(gateway.address, is_fatal=is_fatal)
    gateway.accept_ready().end(grpc.StatusCode.RESOURCE_EXHAUSTED, "quota")
    with pytest.raises(ConnectionLost, match="quota"):
        connector.wait(TIMEOUT)


def test_is_fatal_can_try_again_what_would_be_given_up(serve, gateway) -> None:
    keys = iter(["revoked", "renewed"])
    serve(gateway.address, api_key=lambda: next(keys), is_fatal=lambda error: False)
    first = gateway.accept()
    assert first.hears("register").api_key == "revoked"
    first.end(grpc.StatusCode.UNAUTHENTICATED, "Invalid token")
    second = gateway.accept()
    assert second.hears("register").api_key == "renewed"
    second.connected()
    assert_serves(second)


# Attempts and waits


def test_max_attempts_gives_up_with_the_last_failure(serve, gateway) -> None:
    connector = serve(gateway.address, backoff=NoPause(max_attempts=3))
    for reason in ("first", "second", "third"):
        gateway.accept().end(grpc.StatusCode.UNAVAILABLE, reason)
    with pytest.raises(HandshakeError, match="third"):
        connector.wait(TIMEOUT)
    with pytest.raises(queue.Empty):
        gateway.accept(timeout=0)


def test_the_waits_grow_until_a_connection_was_stable(serve, gateway) -> None:
    backoff = NoPause(stable_after=0.0)
    serve(gateway.address, backoff=backoff)
    for _ in range(3):
        gateway.accept().end(grpc.StatusCode.UNAVAILABLE)
    gateway.accept_ready().end()
    gateway.accept().end(grpc.StatusCode.UNAVAILABLE)
    gateway.accept_ready()
    assert backoff.asked == [1, 2, 3, 1, 2]


# The key


def test_the_key_is_asked_for_before_every_handshake(serve, gateway) -> None:
    keys = iter(["key-1", "key-2", "key-3"])
    serve(gateway.address, api_key=lambda: next(keys))
    for key in ("key-1", "key-2", "key-3"):
        peer = gateway.accept()
        assert peer.hears("register").api_key == key
        peer.end()


class Timeout(BaseException):
    """As gevent's and eventlet's are."""


def test_a_key_callable_that_fails_is_asked_again(serve, gateway, caplog) -> None:
    answers = iter([OSError("vault sealed"), Timeout(), "", "secret-1\n", 42, "secret-2"])

    def ask() -> str:
        answer = next(answers)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    caplog.set_level(logging.DEBUG, "revconn.runtime.link")
    serve(gateway.address, api_key=ask, backoff=NoPause())
    peer = gateway.accept()
    assert peer.hears("register").api_key == "secret-2"
    peer.connected()
    assert_serves(peer)
    assert "vault sealed" in caplog.text
    assert "the api_key callable raised OSError" in caplog.text
    assert "the api_key callable raised Timeout" in caplog.text
    assert "no usable API key: api_key: is empty" in caplog.text
    assert "secret" not in caplog.text


def test_a_key_callable_that_wants_to_exit_ends_the_connector(serve) -> None:
    def ask() -> str:
        raise SystemExit(3)

    connector = serve(NOBODY_LISTENS, api_key=ask)
    with pytest.raises(SystemExit):
        connector.wait(TIMEOUT)
    assert connector.state is State.CLOSED


# What was accepted survives


@pytest.fixture
def slow(new_connector) -> tuple[Callable[..., Connector], threading.Semaphore]:
    """A started connector whose handler answers each time the semaphore is released."""
    finish = threading.Semaphore(0)

    def start(address: str, **options) -> Connector:
        connector = new_connector(address, **options)

        @connector.method("/echo.Echo/Say")
        def say(request) -> bytes:
            assert finish.acquire(timeout=TIMEOUT)
            return b"late but here"

        connector.start(block=False)
        return connector

    return start, finish


def test_an_answer_computed_after_a_break_goes_out_on_the_next_connection(slow, gateway) -> None:
    start, finish = slow
    connector = start(gateway.address)
    first = gateway.accept_ready()
    first.request("r1")
    eventually(lambda: connector.stats()["in_flight"] == 1)
    first.end()
    second = gateway.accept_ready("id-2")
    finish.release()
    assert second.answer("r1").payload == b"late but here"


def test_an_answer_computed_while_the_connection_is_down_waits_for_connected(slow, gateway) -> None:
    start, finish = slow
    connector = start(gateway.address)
    first = gateway.accept_ready()
    first.request("r1")
    eventually(lambda: connector.stats()["in_flight"] == 1)
    first.end()
    second = gateway.accept()
    second.hears("register")
    finish.release()
    eventually(lambda: connector.stats()["in_flight"] == 0)
    with pytest.raises(queue.Empty):
        second.hears_any(timeout=0.05)
    second.connected("id-2")
    assert second.answer("r1").payload == b"late but here"


def test_an_answer_nobody_waits_for_any_more_is_not_delivered_but_counted(slow, gateway) -> None:
    start, finish = slow
    connector = start(gateway.address)
    first = gateway.accept_ready()
    first.request("r1", grpc_timeout="2S")
    eventually(lambda: connector.stats()["in_flight"] == 1)
    first.end()
    second = gateway.accept()  # its handshake hangs until the deadline has passed
    second.hears("register")
    eventually(lambda: connector.stats()["expired"] == 1)
    second.end()
    third = gateway.accept_ready("id-3")
    finish.release()
    third.request("r2")
    finish.release()
    assert third.answer("r2").status_code == 200
    assert connector.stats()["undelivered"] == 1


def test_without_a_gateway_a_stop_tries_no_longer_than_an_answer_is_waited_for(
    slow, gateway
) -> None:
    start, finish = slow
    never = Backoff(initial=10 * TIMEOUT, maximum=10 * TIMEOUT)
    connector = start(gateway.address, drain_timeout=TIMEOUT, backoff=never)
    peer = gateway.accept_ready()
    peer.request("r1", grpc_timeout="3S")
    eventually(lambda: connector.stats()["accepted"] == 1)
    gateway.stop()
    eventually(lambda: connector.state is State.BACKING_OFF)
    finish.release()
    eventually(lambda: connector.stats()["in_flight"] == 0)
    began = time.monotonic()
    connector.stop()
    assert time.monotonic() - began < TIMEOUT / 2
    assert connector.stats()["undelivered"] == 1


def test_requests_that_arrive_before_connected_are_served_after_it(serve, gateway) -> None:
    connector = serve(gateway.address)
    peer = gateway.accept()
    peer.hears("register")
    peer.request("early", payload=b"bird")
    eventually(lambda: connector.stats()["answered"] == 1)
    peer.connected()
    assert peer.answer("early").payload == b"Echo: bird"


# What the log says


def link_lines(caplog) -> list[tuple[str, str]]:
    """What the log says of an outage at INFO and above, without ids and reasons."""
    said = []
    for record in caplog.records:
        if record.name == "revconn.runtime.link" and record.levelno >= logging.INFO:
            beginning = re.match("[a-z ]+", record.getMessage())[0].strip()
            said.append((record.levelname, beginning))
    return said


def test_an_outage_is_one_line_when_it_begins_and_one_when_it_ends(serve, gateway, caplog) -> None:
    caplog.set_level(logging.DEBUG, "revconn.runtime.link")
    connector = serve(gateway.address)
    gateway.accept_ready()
    connector.wait_ready(TIMEOUT)
    gateway.stop()
    eventually(lambda: caplog.text.count("no connection") > 10)
    with ScriptedGateway(gateway.port) as second:
        second.accept_ready("id-2")
        eventually(lambda: "as id-2" in caplog.text)
        connector.abort()
    assert link_lines(caplog) == [
        ("INFO", "connected to"),
        ("WARNING", "lost the connection"),
        ("INFO", "connected to"),
    ]
    last = [record.getMessage() for record in caplog.records if "as id-2" in record.getMessage()]
    assert re.fullmatch(
        rf"connected to {gateway.address} again as id-2: back after \d\.\d s, \d+ attempts,"
        " last error: UNAVAILABLE: .*",
        last[0],
    )
