"""Certificates: checked when they are given, read again when they change."""

from __future__ import annotations

import pathlib
import socket
import ssl
from contextlib import ExitStack

import grpc
import pytest
from cryptography.hazmat.primitives import serialization

from revconn import TLS, Connector
from revconn.exceptions import ConfigurationError
from revconn.gateway import Gateway, ServerTLS
from revconn.gateway.tls import Contexts
from tests.support.certificates import Authority

NOBODY_SERVES = "no connector serves echo.Echo"


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture(scope="module")
def stranger() -> Authority:
    """Another authority."""
    return Authority()


@pytest.fixture
def files(authority, tmp_path) -> tuple[pathlib.Path, pathlib.Path]:
    return authority.issue_files(tmp_path)


def call(gateway: Gateway, trusted: Authority, client: tuple[bytes, bytes] = (None, None)) -> str:
    """What a caller is told who connects now."""
    credentials = grpc.ssl_channel_credentials(trusted.pem, *client)
    options = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.secure_channel(gateway.address, credentials, options=options) as channel:
        with pytest.raises(grpc.RpcError) as refused:
            channel.unary_unary("/echo.Echo/Say")(b"", timeout=60)
        return refused.value.details()


def is_served(gateway: Gateway, trusted: Authority, **client: tuple[bytes, bytes]) -> bool:
    return call(gateway, trusted, **client) == NOBODY_SERVES


# Reading


def test_callers_and_connectors_are_served(run_gateway, files, authority, tmp_path) -> None:
    gateway = run_gateway(tls=ServerTLS(*files))
    ca = authority.write(tmp_path / "ca.pem")
    connector = Connector(gateway.address, api_key="key", tls=TLS(ca=ca))
    connector.add_method("/echo.Echo/Say", lambda request: request.payload)
    credentials = grpc.ssl_channel_credentials(authority.pem)
    with connector, grpc.secure_channel(gateway.address, credentials) as channel:
        connector.wait_ready(timeout=60)
        assert channel.unary_unary("/echo.Echo/Say")(b"safe", timeout=60) == b"safe"


def test_plaintext_is_not_served(run_gateway, files) -> None:
    gateway = run_gateway(tls=ServerTLS(*files))
    with grpc.insecure_channel(gateway.address) as channel, pytest.raises(grpc.RpcError):
        channel.unary_unary("/echo.Echo/Say")(b"", timeout=1)


def test_renewed_files_are_used_for_new_connections_and_end_no_old_one(
    run_gateway, files, authority, stranger, resources, tmp_path, caplog
) -> None:
    caplog.set_level("INFO", "revconn.gateway.tls")
    gateway = run_gateway(tls=ServerTLS(*files))
    credentials = grpc.ssl_channel_credentials(authority.pem)
    old = resources.enter_context(grpc.secure_channel(gateway.address, credentials))
    for _ in range(2):
        assert is_served(gateway, authority)
        with pytest.raises(grpc.RpcError, match=NOBODY_SERVES):
            old.unary_unary("/echo.Echo/Say")(b"", timeout=60)
        stranger.issue_files(tmp_path)
        assert is_served(gateway, stranger)
        assert not is_served(gateway, authority)
        with pytest.raises(grpc.RpcError, match=NOBODY_SERVES):
            old.unary_unary("/echo.Echo/Say")(b"", timeout=60)
        authority.issue_files(tmp_path)
    assert caplog.text.count("the TLS files have changed: new connections use them") >= 2


def test_new_files_that_cannot_be_used_leave_the_old_ones_in_force(
    run_gateway, files, authority, stranger, tmp_path, caplog
) -> None:
    gateway = run_gateway(tls=ServerTLS(*files))
    key = files[1].read_bytes()
    files[1].write_bytes(stranger.issue("localhost")[0])
    for _ in range(3):
        assert is_served(gateway, authority)
    assert caplog.text.count("the TLS files have changed and cannot be used") == 1
    assert "ServerTLS(key=)" in caplog.text
    assert "BEGIN" not in caplog.text
    files[1].unlink()
    assert is_served(gateway, authority)
    assert "cannot be read: No such file" in caplog.text
    caplog.clear()
    files[1].write_bytes(key)
    assert is_served(gateway, authority)


def test_files_are_read_again_only_when_they_have_changed(
    files, tmp_path, stranger, caplog
) -> None:
    contexts = Contexts(ServerTLS(*files))
    first = contexts.current()
    assert contexts.current() is first
    stranger.issue_files(tmp_path)
    second = contexts.current()
    assert second is not first
    assert contexts.current() is second
    files[0].write_bytes(b"")
    assert contexts.current() is second
    assert "cannot be used: ServerTLS(cert=): holds no PEM" in caplog.text
    caplog.clear()
    assert contexts.current() is second
    assert caplog.text == ""
    stranger.issue_files(tmp_path)
    assert contexts.current() not in (first, second)


def test_a_context_of_the_applications_own_is_used_as_it_is(run_gateway, authority) -> None:
    gateway = run_gateway(tls=authority.server_context("localhost", "127.0.0.1"))
    assert is_served(gateway, authority)


def test_files_that_went_bad_are_an_error_at_the_next_start(files) -> None:
    gateway = Gateway(api_keys="key", tls=ServerTLS(*files))
    files[0].unlink()
    with pytest.raises(ConfigurationError, match=r"ServerTLS\(cert=\)"):
        gateway.start()
    assert repr(gateway).endswith("stopped>")


# Mutual TLS


def test_with_client_ca_only_those_with_its_certificate_are_served(
    run_gateway, files, authority, stranger, tmp_path
) -> None:
    ca = authority.write(tmp_path / "clients.pem")
    gateway = run_gateway(tls=ServerTLS(*files, client_ca=ca))
    assert is_served(gateway, authority, client=authority.issue("client"))
    assert not is_served(gateway, authority)
    assert not is_served(gateway, authority, client=stranger.issue("stranger"))
    stranger.write(ca)
    assert is_served(gateway, authority, client=stranger.issue("client.now"))
    assert not is_served(gateway, authority, client=authority.issue("stranger.now"))


def test_a_connector_shows_its_certificate(run_gateway, files, authority, tmp_path) -> None:
    ca = authority.write(tmp_path / "ca.pem")
    gateway = run_gateway(tls=ServerTLS(*files, client_ca=ca))
    key, cert = authority.issue("connector")
    tls = TLS(ca=ca, cert=cert, key=key)
    with Connector(gateway.address, api_key="key", services=["a.A"], tls=tls) as connector:
        connector.wait_ready(timeout=60)
        assert gateway.connections()[0].services == ("a.A",)


# What cannot be used


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"cert": "missing"}, r"ServerTLS\(cert=\): cannot be read: No such file"),
        ({"key": "missing"}, r"ServerTLS\(key=\): cannot be read: No such file"),
        ({"client_ca": "missing"}, r"ServerTLS\(client_ca=\): cannot be read: No such file"),
        ({"cert": "\0"}, r"ServerTLS\(cert=\): cannot be read: embedded null byte"),
        ({"cert": "."}, r"ServerTLS\(cert=\): cannot be read: Is a directory"),
        ({"cert": "text"}, r"ServerTLS\(cert=\): holds no PEM"),
        ({"cert": "key.pem"}, r"ServerTLS\(cert=\): cannot be used with"),
        ({"key": "cert.pem"}, r"ServerTLS\(cert=\): cannot be used with"),
        ({"key": "other.pem"}, r"ServerTLS\(key=\): is not the key of the certificate in cert.pem"),
        ({"client_ca": "key.pem"}, r"ServerTLS\(client_ca=\): holds no usable certificate"),
        ({"cert": None}, r"ServerTLS\(cert=\): is NoneType, not a path"),
        ({"key": b"pem"}, r"ServerTLS\(key=\): is bytes, not a path"),
    ],
)
def test_files_that_cannot_be_used_are_refused_by_name(
    changes, said, files, stranger, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pathlib.Path("text").write_text("no certificate", encoding="utf-8")
    pathlib.Path("other.pem").write_bytes(stranger.issue("localhost")[0])
    with pytest.raises(ConfigurationError, match=said):
        ServerTLS(**{"cert": "cert.pem", "key": "key.pem", **changes})


def test_a_private_key_is_never_shown(files) -> None:
    with pytest.raises(ConfigurationError, match="is PEM, not a path") as refused:
        ServerTLS(files[0], files[1].read_text())
    assert "BEGIN" not in str(refused.value)
    with pytest.raises(ConfigurationError, match="tls: is str, not TLS settings") as refused:
        Gateway(tls=files[1].read_text())  # type: ignore[arg-type]
    assert "BEGIN" not in str(refused.value)


def test_a_key_with_a_passphrase_is_refused_without_asking_for_it(files, tmp_path) -> None:
    key = serialization.load_pem_private_key(files[1].read_bytes(), password=None)
    encrypted = tmp_path / "encrypted.pem"
    encrypted.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    with pytest.raises(ConfigurationError, match="is protected by a passphrase; decrypt it"):
        ServerTLS(files[0], encrypted)


def test_http2_is_negotiated(run_gateway, files, authority) -> None:
    gateway = run_gateway(tls=ServerTLS(*files))
    context = ssl.create_default_context(cadata=authority.pem.decode())
    context.set_alpn_protocols(["h2"])
    host, port = gateway.address.split(":")
    with ExitStack() as stack:
        plain = stack.enter_context(socket.create_connection((host, int(port)), timeout=60))
        wrapped = stack.enter_context(context.wrap_socket(plain, server_hostname=host))
        assert wrapped.selected_alpn_protocol() == "h2"
