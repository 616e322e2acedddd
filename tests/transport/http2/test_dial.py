from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import pytest

from revconn import TLS, HandshakeError
from revconn.core.status import StatusCode
from revconn.settings.proxy import Proxy
from revconn.transport import dial
from revconn.transport.base import StreamEnded
from tests.support.black_hole import BlackHole
from tests.support.descriptors import open_descriptors
from tests.support.http2_client import Client
from tests.support.scripted_http2 import ScriptedHttp2
from tests.support.threads import TIMEOUT

NAME = "gateway.example.com"
LOOPBACK = ("127.0.0.1", 0)


@pytest.fixture(scope="module")
def black_hole() -> Iterator[BlackHole]:
    with BlackHole() as black_hole:
        yield black_hole


@pytest.fixture
def closed_port() -> int:
    """A port where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@pytest.fixture
def resolves(monkeypatch):
    """``resolves((address, port), …)``: what every name resolves to."""

    def fake(*addresses: tuple[str, int]) -> None:
        def getaddrinfo(host: str, port: int, **options: Any) -> list[Any]:
            return [
                (socket.AF_INET6 if ":" in each[0] else socket.AF_INET, 1, 6, "", each)
                for each in addresses
            ]

        monkeypatch.setattr(dial.socket, "getaddrinfo", getaddrinfo)

    return fake


def works(client: Client, server: ScriptedHttp2) -> None:
    client.open()
    peer = server.accept_stream()
    peer.send(b"hello")
    assert client.receive() == [b"hello"]


def why_not(client: Client) -> str:
    """Why the client could not connect. No descriptor is left behind."""
    before = open_descriptors()
    with pytest.raises(StreamEnded) as raised:
        client.open()
    assert raised.value.code is StatusCode.UNAVAILABLE
    assert open_descriptors() <= before
    return raised.value.details


# Addresses


@pytest.mark.parametrize("target", ["127.0.0.1:{}", "localhost:{}", "dns:///127.0.0.1:{}"])
def test_names_and_numbers_lead_to_the_server(new_client, server, target: str) -> None:
    works(new_client(target.format(server.port)), server)


def test_a_name_that_does_not_resolve_is_said_to(new_client, monkeypatch) -> None:
    def getaddrinfo(*args: Any, **options: Any) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(dial.socket, "getaddrinfo", getaddrinfo)
    details = why_not(new_client(f"{NAME}:443"))
    assert details == f"cannot connect: {NAME} does not resolve: Name or service not known"


def test_what_cannot_be_a_name_does_not_resolve_either(new_client) -> None:
    assert "a..b does not resolve: " in why_not(new_client("a..b:443"))


def test_a_port_where_nobody_listens_is_said_to_refuse(new_client, closed_port) -> None:
    details = why_not(new_client(f"127.0.0.1:{closed_port}"))
    assert details == "cannot connect: Connection refused (127.0.0.1)"


def test_every_address_is_tried_and_named_when_none_works(
    new_client, resolves, closed_port
) -> None:
    resolves(("127.0.0.1", closed_port), ("127.0.0.2", closed_port))
    details = why_not(new_client(f"{NAME}:443"))
    assert details == "cannot connect: Connection refused (127.0.0.1, 127.0.0.2)"


def test_addresses_that_refuse_hold_nobody_up(new_client, server, resolves, closed_port) -> None:
    resolves(*[("127.0.0.1", closed_port)] * 200, ("127.0.0.1", server.port))
    started = time.monotonic()
    works(new_client(f"{NAME}:443"), server)
    assert time.monotonic() - started < 200 * 0.25 / 2  # less than the head starts together


def test_a_dead_first_address_costs_only_its_head_start(
    new_client, server, resolves, black_hole
) -> None:
    resolves(("127.0.0.1", black_hole.port), ("127.0.0.1", server.port))
    before = open_descriptors()
    client = new_client(f"{NAME}:443")
    works(client, server)
    client.close()
    server.close()
    assert open_descriptors() < before


def test_the_families_of_addresses_take_turns(new_client, server, resolves, monkeypatch) -> None:
    tried = []
    begin = dial._begin

    def record(family: int, address: Any) -> socket.socket:
        tried.append(address[0])
        return begin(family, address)

    monkeypatch.setattr(dial, "_begin", record)
    # Documentation addresses: nothing there, and nothing here routes to them.
    six = [("100::1", 9, 0, 0), ("100::2", 9, 0, 0)]
    resolves(*six, ("127.0.0.1", 1), ("127.0.0.1", server.port))
    client = new_client(f"{NAME}:443")
    works(client, server)
    assert tried[:3] == ["100::1", "127.0.0.1", "100::2"]


def test_an_address_that_fails_in_tls_comes_last_the_next_time(
    new_client, resolves, monkeypatch
) -> None:
    tried = []
    begin = dial._begin

    def record(family: int, address: Any) -> socket.socket:
        tried.append(address)
        return begin(family, address)

    monkeypatch.setattr(dial, "_begin", record)
    with socket.create_server(LOOPBACK) as one, socket.create_server(LOOPBACK) as other:
        addresses = [one.getsockname(), other.getsockname()]
        resolves(*addresses)
        dialer = new_client(f"{NAME}:443", tls=TLS()).transport.dialer
        for _ in range(3):
            asked = iter([False] * 5)  # it is given up soon after the connection is there
            with pytest.raises(StreamEnded, match="no answer to the TLS handshake"):
                dialer.dial(lambda asked=asked: next(asked, True))
    assert tried == [addresses[0], addresses[1], addresses[0]]


def test_a_server_on_ipv6_alone_is_reached() -> None:
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    try:
        listener = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError:
        pytest.skip("no IPv6 here")
    with listener:
        client = Client(f"[::1]:{listener.getsockname()[1]}")
        client.open()
        sock, _ = listener.accept()
        with sock:
            assert sock.recv(24).startswith(b"PRI * HTTP/2.0")
        client.close()


def test_small_messages_are_not_delayed_and_dead_peers_noticed(new_client, server) -> None:
    client = new_client(server.address, keepalive_timeout=7.5)
    client.open()
    sock = client.stream._wire._socket
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    assert sock.gettimeout() is None
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 7500


# Unix sockets


@pytest.mark.parametrize("form", ["unix:{}", "unix://{}"])
def test_a_unix_socket_leads_to_the_server(new_client, tmp_path, form: str) -> None:
    path = str(tmp_path / "gateway.sock")
    with ScriptedHttp2(path=path) as server:
        client = new_client(form.format(path))
        client.open()
        peer = server.accept_stream()
        assert dict(peer.headers)[":authority"] == "localhost"
        peer.send(b"hello")
        assert client.receive() == [b"hello"]


def test_a_unix_socket_that_is_not_there_is_said_not_to_be(new_client, tmp_path) -> None:
    path = f"{tmp_path}/nobody.sock"
    details = why_not(new_client(f"unix:{path}"))
    assert details == f"cannot connect: No such file or directory ({path})"


def test_a_unix_socket_whose_queue_is_full_is_no_connection(new_client, tmp_path) -> None:
    path = str(tmp_path / "full.sock")
    queued = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(0)
        try:
            while True:
                queued.append(socket.socket(socket.AF_UNIX))
                queued[-1].setblocking(False)
                queued[-1].connect(path)
        except BlockingIOError:
            pass
        assert os.strerror(11) in why_not(new_client(f"unix:{path}"))
        for sock in queued:
            sock.close()


# Closing while it connects


def ends_at_once(client: Client, opening: Future) -> StreamEnded:
    """``close()`` was called: so the opening ends, and soon."""
    started = time.monotonic()
    client.stream.close()
    with pytest.raises(StreamEnded) as raised:
        opening.result(TIMEOUT)
    assert time.monotonic() - started < TIMEOUT / 2
    return raised.value


def test_closing_ends_the_resolving_of_a_name(new_client, monkeypatch) -> None:
    asked, answer = threading.Event(), threading.Event()

    def getaddrinfo(*args: Any, **options: Any) -> list[Any]:
        asked.set()
        assert answer.wait(TIMEOUT)
        return []

    monkeypatch.setattr(dial.socket, "getaddrinfo", getaddrinfo)
    client = new_client(f"{NAME}:443")
    opening = client.opening()
    assert asked.wait(TIMEOUT)
    try:
        assert f"{NAME} did not resolve in time" in ends_at_once(client, opening).details
    finally:
        answer.set()


def test_closing_ends_the_wait_for_a_connection(new_client, black_hole, monkeypatch) -> None:
    begun = threading.Event()
    begin = dial._begin

    def record(family: int, address: Any) -> socket.socket:
        begun.set()
        return begin(family, address)

    monkeypatch.setattr(dial, "_begin", record)
    before = open_descriptors()
    client = new_client(black_hole.address)
    opening = client.opening()
    assert begun.wait(TIMEOUT)
    details = ends_at_once(client, opening).details
    assert details == "cannot connect: no answer in time from 127.0.0.1"
    assert open_descriptors() <= before


def test_closing_ends_a_tls_handshake(new_client, server) -> None:
    client = new_client(server.address, tls=TLS())
    opening = client.opening()
    peer = server.accept()
    assert peer.socket.recv(1) == b"\x16"  # the client has said hello
    assert ends_at_once(client, opening).details == "no answer to the TLS handshake"
    while peer.socket.recv(1000):
        pass


def test_closing_ends_the_wait_for_a_proxy(new_client, server) -> None:
    client = new_client(f"{NAME}:443", proxy=Proxy.parse(server.address))
    opening = client.opening()
    peer = server.accept()
    assert peer.socket.recv(7) == b"CONNECT"
    details = ends_at_once(client, opening).details
    assert details == f"no answer from the proxy {server.address}"
    while peer.socket.recv(1000):
        pass


def test_a_stream_that_was_closed_before_it_opened_does_not_connect(new_client, server) -> None:
    client = new_client(server.address)
    client.stream.close()
    with pytest.raises(StreamEnded):
        client.open()
    assert not client.stream._sender.is_alive()


def test_closing_at_the_moment_the_connection_opens_leaves_nothing(
    new_client, server, monkeypatch
) -> None:
    before = open_descriptors()
    client = new_client(server.address)
    dialled = client.transport.dialer.dial

    def close_then(cancelled):
        wire = dialled(cancelled)
        client.stream.close()
        return wire

    monkeypatch.setattr(client.transport.dialer, "dial", close_then)
    with pytest.raises(StreamEnded, match="CANCELLED: closed"):
        client.open()
    assert open_descriptors() <= before


# The whole is bounded


@pytest.mark.parametrize("transport_options", [{"transport": "http2"}])
def test_a_gateway_that_does_not_answer_is_given_up_after_connect_timeout(
    new_connector, black_hole, transport_options
) -> None:
    connector = new_connector(black_hole.address, connect_timeout=0.3, is_fatal=lambda error: True)
    connector.start(block=False)
    reason = "no CONNECTED within 0.3 s: cannot connect: no answer in time from 127.0.0.1"
    with pytest.raises(HandshakeError, match=reason):
        connector.wait(TIMEOUT)
