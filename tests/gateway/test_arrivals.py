"""Connections over TLS that never come to a call."""

from __future__ import annotations

import socket

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from revconn.gateway import ServerTLS, tls
from revconn.gateway.tls import Arrivals
from tests.support.certificates import Authority
from tests.support.waiting import eventually

SAID = "TLS: no call came within 30 seconds on new connections, %d of them"


@pytest.fixture
def seen(caplog):
    """How many each line told of."""
    return lambda: [int(text.split(",")[1].split()[0]) for text in caplog.messages]


def test_what_came_to_no_call_is_told_of_at_growing_intervals(seen) -> None:
    watched = Arrivals()
    for second in range(150):
        watched.begun(float(second))
        watched.look(float(second))
    assert seen() == [1, 60]
    watched.look(600.0)
    assert sum(seen()) == 150


def test_a_connection_that_came_to_a_call_is_not_told_of(seen) -> None:
    watched = Arrivals()
    for second in range(100):
        watched.begun(float(second))
        for _ in range(3):
            watched._hear(f"ipv4:192.0.2.1:{second}", second + 0.5)
        watched.look(float(second))
    watched.look(1000.0)
    assert seen() == []
    assert len(watched._heard) == 0


def test_one_that_is_heard_again_and_again_hides_no_other(seen) -> None:
    watched = Arrivals()
    watched.begun(0.0)
    for second in range(100):
        watched._hear("ipv4:192.0.2.1:1", float(second))
        if second == 10:
            watched.begun(10.0)
        watched.look(float(second))
    assert seen() == [1]


def test_what_is_counted_is_bounded(monkeypatch) -> None:
    monkeypatch.setattr(tls, "_MOST", 3)
    watched = Arrivals()
    for number in range(5):
        watched.begun(0.0)
        watched._hear(str(number), 0.0)
    assert len(watched._heard) == 3


def test_where_there_is_no_tls_nobody_is_asked_for() -> None:
    Arrivals().called(lambda: pytest.fail("asked"))


def test_a_handshake_that_fails_is_told_of_and_calls_of_any_kind_are_not(
    clock, run_gateway, connect, tmp_path, monkeypatch, caplog
) -> None:
    monkeypatch.setattr(tls, "time", clock)
    authority = Authority()
    gateway = run_gateway(tls=ServerTLS(*authority.issue_files(tmp_path)))
    watched = gateway._thread._serving.shared.arrivals
    credentials = grpc.ssl_channel_credentials(authority.pem)
    options = [("grpc.use_local_subchannel_pool", 1)]
    for ask in (check, reflect, call):
        with grpc.secure_channel(gateway.address, credentials, options=options) as channel:
            ask(channel)
    host, _, port = gateway.address.rpartition(":")
    for _ in range(2):
        with socket.create_connection((host, int(port))) as plain:
            plain.sendall(b"GET / HTTP/1.1\r\n\r\n")
            plain.recv(100)
    eventually(lambda: len(watched._begun) == 2)
    clock.advance(31.0)
    eventually(lambda: SAID % 2 in caplog.text)


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
