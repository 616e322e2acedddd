"""TLS with real certificates: who is trusted, and what the error says of who is not."""

from __future__ import annotations

import pathlib
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Callable

import grpc
import pytest
from packaging.version import Version

from revconn import TLS, Backoff, Connector, HandshakeError
from tests.support.certificates import Authority
from tests.support.scripted_gateway import ScriptedGateway
from tests.support.threads import in_thread
from tests.support.waiting import eventually

TIMEOUT = 60.0
GRPCIO_SAYS_WHY = Version(version("grpcio")) >= Version("1.49")


@pytest.fixture(scope="module")
def stranger() -> Authority:
    """An authority that nobody here trusts."""
    return Authority()


@contextmanager
def secure_gateway(credentials: grpc.ServerCredentials) -> Iterator[ScriptedGateway]:
    with ScriptedGateway(credentials=credentials) as gateway:
        yield gateway


@pytest.fixture
def assert_connects(new_connector) -> Callable[..., None]:
    def check(credentials: grpc.ServerCredentials, tls: TLS) -> None:
        with secure_gateway(credentials) as gateway:
            connector = new_connector(gateway.address, tls=tls)
            connector.add_method("/echo.Echo/Say", lambda request: b"safe")
            connector.start(block=False)
            peer = gateway.accept_ready()
            peer.request()
            assert peer.answer().payload == b"safe"
            connector.abort()

    return check


@pytest.fixture
def assert_refuses(new_connector, transport_options) -> Callable[..., None]:
    """``assert_refuses(address, tls, reason)``: a connector tries, tries again, and says why."""

    def check(address: str, tls: TLS | bool, reason: str) -> None:
        backoff = Backoff(initial=0.01, maximum=0.01, max_attempts=2)
        connector: Connector = new_connector(address, tls=tls, backoff=backoff)
        connector.start(block=False)
        with pytest.raises(HandshakeError) as raised:
            connector.wait(TIMEOUT)
        assert connector.stats()["connections"] == 0
        if transport_options == {"transport": "grpcio"} and not GRPCIO_SAYS_WHY:
            reason = "grpcio 1.49 or newer says which"
        assert reason in str(raised.value)

    return check


# Who is trusted


def test_the_authority_may_be_given_as_pem_or_as_a_file(
    assert_connects, authority: Authority, tmp_path: pathlib.Path
) -> None:
    assert_connects(authority.server(), TLS(ca=authority.pem))
    assert_connects(authority.server(), TLS(ca=authority.write(tmp_path / "ca.pem")))


def test_the_name_to_expect_may_be_another_than_the_targets(
    assert_connects, authority: Authority
) -> None:
    tls = TLS(ca=authority.pem, server_name="gateway.example")
    assert_connects(authority.server("gateway.example"), tls)


def test_a_gateway_that_asks_for_the_clients_certificate_gets_it(
    assert_connects, authority: Authority, stranger: Authority
) -> None:
    key, cert = stranger.issue("connector@example")
    tls = TLS(ca=authority.pem, cert=cert, key=key)
    assert_connects(authority.server(clients=stranger), tls)


def test_a_certificate_file_that_was_renewed_is_read_again(
    new_connector, authority: Authority, stranger: Authority, tmp_path: pathlib.Path
) -> None:
    path = stranger.write(tmp_path / "ca.pem")
    with secure_gateway(authority.server()) as gateway:
        connector = new_connector(gateway.address, tls=TLS(ca=path))
        connector.start(block=False)
        with pytest.raises(TimeoutError):
            connector.wait_ready(0.1)
        authority.write(path)
        gateway.accept_ready()
        connector.wait_ready(TIMEOUT)
        connector.abort()


def test_a_certificate_file_that_is_gone_for_a_moment_is_tried_again(
    new_connector, authority: Authority, tmp_path: pathlib.Path, caplog
) -> None:
    path = authority.write(tmp_path / "ca.pem")
    with secure_gateway(authority.server()) as gateway:
        connector = new_connector(gateway.address, tls=TLS(ca=path))
        path.unlink()
        connector.start(block=False)
        eventually(lambda: "TLS(ca=): cannot be read: No such file" in caplog.text)
        authority.write(path)
        gateway.accept_ready()
        connector.wait_ready(TIMEOUT)
        connector.abort()


# Who is not, and what the error says of it


def test_an_authority_that_the_system_does_not_know(assert_refuses, authority: Authority) -> None:
    with secure_gateway(authority.server()) as gateway:
        assert_refuses(gateway.address, TLS(), "unknown authority")


def test_an_authority_other_than_the_one_given(
    assert_refuses, authority: Authority, stranger: Authority
) -> None:
    with secure_gateway(authority.server()) as gateway:
        assert_refuses(gateway.address, TLS(ca=stranger.pem), "unknown authority")


def test_a_certificate_for_another_name(assert_refuses, authority: Authority) -> None:
    with secure_gateway(authority.server("gateway.example")) as gateway:
        assert_refuses(
            gateway.address,
            TLS(ca=authority.pem, server_name="other.example"),
            "the gateway's certificate is for another name",
        )


def test_a_certificate_for_another_address(assert_refuses, authority: Authority) -> None:
    with secure_gateway(authority.server("gateway.example")) as gateway:
        assert_refuses(
            gateway.address, TLS(ca=authority.pem), "the gateway's certificate is for another"
        )


def test_a_certificate_that_has_expired(assert_refuses, authority: Authority) -> None:
    with secure_gateway(authority.expired_server()) as gateway:
        assert_refuses(gateway.address, TLS(ca=authority.pem), "has expired")


def test_a_certificate_that_is_not_yet_valid(assert_refuses, authority: Authority) -> None:
    with secure_gateway(authority.future_server()) as gateway:
        assert_refuses(gateway.address, TLS(ca=authority.pem), "is not yet valid")


def test_a_gateway_that_does_not_speak_tls(assert_refuses, gateway, authority: Authority) -> None:
    assert_refuses(gateway.address, TLS(ca=authority.pem), "what listens there does not speak TLS")


def test_a_gateway_that_speaks_nothing_but_tls(assert_refuses, authority: Authority) -> None:
    with secure_gateway(authority.server()) as gateway:
        assert_refuses(gateway.address, False, "expect TLS")


def test_a_gateway_that_wants_a_client_certificate_and_gets_none(
    assert_refuses, authority: Authority
) -> None:
    with secure_gateway(authority.server(clients=authority)) as gateway:
        assert_refuses(gateway.address, TLS(ca=authority.pem), "client certificate")


def test_a_web_server_that_speaks_tls_and_no_http2(
    assert_refuses, authority: Authority, tmp_path: pathlib.Path
) -> None:
    with web_server(authority, tmp_path) as address:
        assert_refuses(address, TLS(ca=authority.pem), "the gateway speaks TLS but not HTTP/2")


@contextmanager
def web_server(authority: Authority, directory: pathlib.Path) -> Iterator[str]:
    """Completes TLS handshakes, agrees on no protocol, and reads until the peer hangs up."""
    key, cert = authority.issue("127.0.0.1")
    pair = directory / "server.pem"
    pair.write_bytes(key + cert)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair)

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return  # closed
            connection.settimeout(TIMEOUT)
            try:
                with context.wrap_socket(connection, server_side=True) as secured:
                    while secured.recv(1024):
                        pass
            except OSError:
                pass

    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving = in_thread(serve)
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
        serving.result(TIMEOUT)
