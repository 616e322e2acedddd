"""Connections over TLS that never come to a call."""

from __future__ import annotations

import socket
import ssl
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Callable

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from revconn.gateway import Gateway, ServerTLS
from tests.support.certificates import Authority
from tests.support.waiting import eventually

HTTP_1 = b"GET / HTTP/1.1\r\n\r\n"


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture
def run(run_gateway, authority, tmp_path) -> Callable[..., Gateway]:
    def run(**options: float) -> Gateway:
        return run_gateway(tls=ServerTLS(*authority.issue_files(tmp_path)), **options)

    return run


@pytest.fixture
def told(caplog) -> Callable[[], list[str]]:
    """What was said of handshakes that failed."""
    return lambda: [text for text in caplog.messages if text.startswith("no TLS with ")]


@contextmanager
def plain(gateway: Gateway) -> Iterator[socket.socket]:
    host, _, port = gateway.address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=60) as sock:
        yield sock


def speak_plaintext(gateway: Gateway) -> str:
    """Say what is no TLS, until the gateway hangs up; from where."""
    with plain(gateway) as sock:
        host, port = sock.getsockname()
        sock.sendall(HTTP_1)
        while sock.recv(100):
            pass
    on_its_thread(gateway)
    return f"ipv4:{host}:{port}"


def on_its_thread(gateway: Gateway) -> None:
    """Wait until the gateway has done what it did just now to the end."""
    done = threading.Event()
    gateway._thread._loop.call_soon_threadsafe(done.set)
    assert done.wait(60)


def test_a_handshake_that_fails_is_told_of_with_its_peer_and_the_reason(run, told) -> None:
    gateway = run()
    peer = speak_plaintext(gateway)
    (said,) = eventually(told)
    assert said.startswith(f"no TLS with {peer}: TLS: ")
    assert "HTTP_REQUEST" in said.upper().replace(" ", "_")


def test_those_that_follow_are_summed(clock, run, told) -> None:
    gateway = run()
    for _ in range(5):
        speak_plaintext(gateway)
    eventually(told)
    clock.advance(3600.0)
    eventually(lambda: len(told()) == 2)
    assert told()[1].endswith(", and 3 more in 3600 s, from one address")


def test_a_handshake_that_does_not_go_on_is_ended_and_told_of(run, told) -> None:
    gateway = run(handshake_timeout=0.2)
    with plain(gateway) as sock:
        sock.sendall(b"\x16\x03\x01")  # the beginning of a record
        assert sock.recv(100) == b""
    (said,) = eventually(told)
    assert said.endswith("TLS: the handshake took too long")
    assert gateway.stats()["refused_handshake_timeout"] == 1


def test_one_that_breaks_a_handshake_off_holds_up_nobody(run, authority, told) -> None:
    gateway = run()
    with plain(gateway) as sock:
        sock.sendall(b"\x16\x03\x01")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    credentials = grpc.ssl_channel_credentials(authority.pem)
    with grpc.secure_channel(gateway.address, credentials) as channel:
        check(channel)


def test_a_client_that_speaks_http_1_is_hung_up_on(run, authority) -> None:
    gateway = run()
    context = ssl.create_default_context(cadata=authority.pem.decode())
    context.set_alpn_protocols(["http/1.1"])
    with plain(gateway) as sock, context.wrap_socket(sock, server_hostname="localhost") as tls:
        tls.sendall(HTTP_1)
        with suppress(ssl.SSLError, ConnectionError):  # it may be told no more than that
            while tls.recv(1000):
                pass


def test_calls_of_any_kind_are_not_told_of(run, authority, told) -> None:
    gateway = run()
    credentials = grpc.ssl_channel_credentials(authority.pem)
    options = [("grpc.use_local_subchannel_pool", 1)]
    for ask in (check, reflect, call):
        with grpc.secure_channel(gateway.address, credentials, options=options) as channel:
            ask(channel)
    speak_plaintext(gateway)
    eventually(told)
    assert len(told()) == 1


def check(channel: grpc.Channel) -> None:
    request = health_pb2.HealthCheckRequest()
    health_pb2_grpc.HealthStub(channel).Check(request, timeout=60)


def reflect(channel: grpc.Channel) -> None:
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    assert list(stub.ServerReflectionInfo(iter([request]), timeout=60))


def call(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError, match="no connector serves"):
        channel.unary_unary("/a.A/B")(b"", timeout=60)
