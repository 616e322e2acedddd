"""Gateways that say nonsense, over the wire: each has a defined outcome and loses nothing."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Callable

import pytest

from revconn import Connector, State
from revconn._proto.registry_pb2 import (
    ConnectionMessage,
    ConnectionRegister,
    ConnectionStatus,
    EventMessage,
    Heartbeat,
)
from tests.support.scripted_gateway import Peer
from tests.support.threads import in_thread
from tests.support.waiting import eventually

TIMEOUT = 60.0
UNKNOWN_TYPE = b"\xca>\x03new"  # field 1001, length-delimited


@pytest.fixture
def release() -> threading.Event:
    return threading.Event()


@pytest.fixture
def serve(new_connector, release) -> Iterator[Callable[[str], Connector]]:
    """A started connector that echoes; the request ``late`` once ``release`` is set."""

    def start(address: str, **options) -> Connector:
        connector = new_connector(address, **options)

        @connector.method("/echo.Echo/Say")
        def say(request) -> bytes:
            if request.request_id == "late":
                assert release.wait(TIMEOUT)
            return b"Echo: " + request.payload

        connector.start(block=False)
        return connector

    yield start
    release.set()


def assert_serves(peer: Peer, request_id: str = "probe") -> None:
    peer.request(request_id, payload=b"hi")
    assert peer.answer(request_id).payload == b"Echo: hi"


def say_garbage(peer: Peer) -> None:
    peer.say(b"\xff\xfe not protobuf at all")


def say_a_request_that_is_not_utf8(peer: Peer) -> None:
    peer.say(b"\x12\x06\x0a\x04\xff\xff\xff\xff")


def say_connected_with_another_id(peer: Peer) -> None:
    peer.connected("another-id")


def say_connected_without_an_id(peer: Peer) -> None:
    peer.connected("")


NONSENSE = {
    "garbage": (say_garbage, "bytes that are no ConnectionMessage"),
    "text that is no UTF-8": (say_a_request_that_is_not_utf8, "bytes that are no Connection"),
    "CONNECTED again, with another id": (
        say_connected_with_another_id,
        "a second CONNECTED with another connection_id (received 'another-id')",
    ),
    "CONNECTED again, without an id": (
        say_connected_without_an_id,
        "CONNECTED without a connection_id",
    ),
}


@pytest.mark.parametrize(("say", "reason"), NONSENSE.values(), ids=NONSENSE)
def test_after_nonsense_it_connects_anew_and_answers_what_it_had_accepted(
    serve, gateway, caplog, say, reason, release
) -> None:
    connector = serve(gateway.address)
    peer = gateway.accept_ready("id-1")
    peer.request("late")
    eventually(lambda: connector.stats()["in_flight"] == 1)
    say(peer)
    peer.hears_hang_up()
    second = gateway.accept_ready("id-2")
    release.set()
    assert second.answer("late").status_code == 200
    assert_serves(second)
    assert reason in caplog.text


def test_what_came_before_the_nonsense_is_accepted(serve, gateway, release) -> None:
    connector = serve(gateway.address)
    peer = gateway.accept_ready("id-1")
    peer.request("late", payload=b"1")
    say_garbage(peer)
    second = gateway.accept_ready("id-2")
    assert connector.stats()["accepted"] == 1
    release.set()
    assert second.answer("late").payload == b"Echo: 1"


def test_nonsense_instead_of_connected_is_a_failed_handshake(serve, gateway, caplog) -> None:
    caplog.set_level(logging.DEBUG, "revconn.runtime.link")
    serve(gateway.address)
    first = gateway.accept()
    first.hears("register")
    say_garbage(first)
    second = gateway.accept()
    second.hears("register")
    say_connected_without_an_id(second)
    assert_serves(gateway.accept_ready())
    assert "bytes that are no ConnectionMessage" in caplog.text
    assert "CONNECTED without a connection_id" in caplog.text


@pytest.mark.parametrize("connection_id", ["x" * 1000, "line\nbreak"])
def test_an_unusable_id_is_a_failed_handshake(serve, gateway, caplog, connection_id) -> None:
    serve(gateway.address)
    peer = gateway.accept()
    peer.hears("register")
    peer.connected(connection_id)
    assert_serves(gateway.accept_ready())
    assert "CONNECTED with an unusable connection_id" in caplog.text
    assert "line\nbreak" not in caplog.text
    assert "x" * 300 not in caplog.text


def test_connected_again_with_the_same_id_changes_nothing(serve, gateway) -> None:
    connector = serve(gateway.address)
    peer = gateway.accept_ready("id-1")
    peer.connected("id-1")
    assert_serves(peer)
    assert connector.stats()["connections"] == 1


def test_status_error_on_a_connection_that_works_is_logged_and_nothing_else(
    serve, gateway, caplog
) -> None:
    connector = serve(gateway.address)
    peer = gateway.accept_ready()
    peer.status(ConnectionStatus.ERROR, "id-1", "disk full\nand more")
    assert_serves(peer)
    assert connector.stats()["connections"] == 1
    assert r"the gateway reported an error: 'disk full\nand more'" in caplog.text


@pytest.mark.parametrize(
    "message",
    [
        b"",
        UNKNOWN_TYPE,
        ConnectionMessage(status=ConnectionStatus(status=77)),
        ConnectionMessage(heartbeat=Heartbeat(connection_id="id-1")),
        ConnectionMessage(register=ConnectionRegister(api_key="k")),
        ConnectionMessage(event=EventMessage(event_type="news")),
    ],
    ids=["nothing", "a newer type", "a newer status", "a heartbeat", "a registration", "an event"],
)
def test_what_a_gateway_need_not_say_is_ignored(serve, gateway, message) -> None:
    connector = serve(gateway.address)
    peer = gateway.accept_ready()
    peer.say(message)
    assert_serves(peer)
    assert connector.stats()["connections"] == 1


def test_silence_after_connected_is_no_reason_to_leave(serve, gateway) -> None:
    connector = serve(gateway.address, heartbeat_interval=0.02, liveness_timeout=0.5)
    peer = gateway.accept_ready()
    for _ in range(10):
        peer.hears("heartbeat")
    assert_serves(peer)
    assert connector.stats()["connections"] == 1


@pytest.mark.parametrize("method", ["no-slash", "/a//b", "/", "/echo.Echo/", "\n"])
def test_a_malformed_method_path_is_a_404(serve, gateway, method) -> None:
    serve(gateway.address)
    peer = gateway.accept_ready()
    peer.request("odd", method=method)
    assert peer.answer("odd").status_code == 404
    assert_serves(peer)


# What listens there is no gateway at all


@contextmanager
def listener(behave: Callable[[socket.socket], None]) -> Iterator[str]:
    """Something that takes connections and treats each as told."""

    def serve() -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return  # closed
            connection.settimeout(TIMEOUT)
            with connection, contextlib.suppress(OSError):
                behave(connection)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        serving = in_thread(serve)
        yield f"127.0.0.1:{listening.getsockname()[1]}"
        listening.shutdown(socket.SHUT_RDWR)
        serving.result(TIMEOUT)


def read_on(connection: socket.socket) -> None:
    while connection.recv(65536):
        pass


def say_ssh(connection: socket.socket) -> None:
    connection.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")
    read_on(connection)


def say_http1(connection: socket.socket) -> None:
    connection.recv(1000)
    connection.sendall(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")


def say_random_bytes(connection: socket.socket) -> None:
    connection.sendall(bytes(range(256)) * 4)
    read_on(connection)


def hang_up(connection: socket.socket) -> None:
    connection.recv(1)


@pytest.mark.parametrize("behave", [say_ssh, say_http1, say_random_bytes, hang_up])
def test_what_is_no_gateway_is_tried_again_and_the_log_says_why(serve, caplog, behave) -> None:
    with listener(behave) as address:
        caplog.set_level(logging.DEBUG, "revconn.runtime.link")
        connector = serve(address)
        eventually(lambda: caplog.text.count("; trying again in") > 1)
        assert connector.state in (State.CONNECTING, State.BACKING_OFF)
        connector.abort()
    assert f"no connection: {address}: " in caplog.text
