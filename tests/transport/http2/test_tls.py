"""TLS with real certificates: what works, and what each failure says to do."""

from __future__ import annotations

import datetime
import os
import pathlib
import socket
import ssl
from typing import Callable

import pytest
from cryptography.hazmat.primitives import serialization

from revconn import TLS, ConfigurationError
from revconn.core.status import StatusCode
from revconn.transport.base import StreamEnded
from revconn.transport.tls import client_context, explain
from tests.support.certificates import Authority
from tests.support.descriptors import open_descriptors
from tests.support.http2_client import Client
from tests.support.scripted_http2 import Http2Peer, ScriptedHttp2
from tests.support.threads import TIMEOUT, in_thread
from tests.transport.tls_cases import Papers

MIB = 1 << 20
NOW = datetime.datetime.now(datetime.timezone.utc)
DAY = datetime.timedelta(days=1)


@pytest.fixture(scope="module")
def stranger() -> Authority:
    """An authority that nobody here trusts."""
    return Authority()


@pytest.fixture(scope="module")
def papers() -> Papers:
    return Papers()


@pytest.fixture
def serve(new_client):
    """``serve(context, tls)``: a client that opens, and the server's side of its connection."""
    servers = []

    def serve(context: ssl.SSLContext, tls: TLS, target: str = "127.0.0.1") -> Secured:
        servers.append(ScriptedHttp2(tls=context))
        return Secured(servers[-1], new_client(f"{target}:{servers[-1].port}", tls=tls))

    yield serve
    for server in servers:
        server.close()


class Secured:
    """The two sides of a handshake, which need a thread each."""

    def __init__(self, server: ScriptedHttp2, client: Client) -> None:
        self.client = client
        self._accepting = in_thread(server.accept)

    def open(self) -> Http2Peer:
        """Both sides agree."""
        self.client.open()
        peer = self._accepting.result(TIMEOUT)
        peer.begin()
        peer.accept_stream()
        return peer

    def why_not(self) -> str:
        """Why they do not."""
        try:
            self.client.open()
            peer = self._accepting.result(TIMEOUT)
            peer.begin()
            ended = self.client.end()
        except StreamEnded as error:
            ended = error
        except (ssl.SSLError, ConnectionError):
            # In TLS 1.3 the client learns only later that the server does not agree.
            ended = self.client.end()
        self._accepting.exception(TIMEOUT)
        assert ended.code is StatusCode.UNAVAILABLE
        return ended.details


def only(version: str, context: ssl.SSLContext) -> ssl.SSLContext:
    context.minimum_version = context.maximum_version = getattr(ssl.TLSVersion, version)
    return context


# What works


@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
def test_large_messages_travel_both_ways(serve, authority: Authority, version: str) -> None:
    context = only(version, authority.server_context())
    secured = serve(context, TLS(ca=authority.pem))
    peer = secured.open()
    assert dict(peer.headers)[":scheme"] == "https"
    assert peer.socket.selected_alpn_protocol() == "h2"
    payload = bytes(range(256)) * (3 * MIB // 256)
    received = in_thread(secured.client.receive)
    peer.send(payload)
    assert [bytes(each) for each in received.result(TIMEOUT)] == [payload]
    peer.open_window(4 * MIB)
    secured.client.send(payload, b"next")
    assert peer.hears_message() == payload
    assert peer.hears_message() == b"next"


@pytest.mark.parametrize("polite", [True, False])
def test_an_end_with_or_without_tls_own_goodbye_is_an_end(
    serve, authority: Authority, polite: bool
) -> None:
    secured = serve(authority.server_context(), TLS(ca=authority.pem))
    peer = secured.open()
    peer.send(b"last")
    if polite:
        peer.socket.settimeout(0.0)
        with pytest.raises((ssl.SSLWantReadError, OSError)):
            peer.socket.unwrap()  # says goodbye, and would wait for ours
    peer.hang_up()
    assert secured.client.receive() == [b"last"]
    assert secured.client.end().details == "the gateway closed the connection"


def test_an_authority_of_the_systems_is_trusted_by_default(serve, authority, tmp_path, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.write(tmp_path / "system.pem")))
    serve(authority.server_context(), TLS()).open()


def test_an_old_companys_authority_among_the_systems_is_trusted_too(
    serve, papers, tmp_path, monkeypatch
) -> None:
    (tmp_path / "system.pem").write_bytes(papers.old.pem)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "system.pem"))
    context = papers.old_leaf.show(http2_context(), tmp_path)
    serve(context, TLS(server_name="gateway.example.com")).open()


def http2_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols(["h2"])
    return context


def test_a_bundle_with_comments_in_any_language_is_read(serve, authority) -> None:
    bundle = "# Főtanúsítvány\n".encode() + authority.pem + b"# \xff\n"
    serve(authority.server_context(), TLS(ca=bundle)).open()


# What does not, and what to do


def test_a_port_without_tls_is_said_to_be_one(new_client, server) -> None:
    for answer, hint in (
        (b"\x00\x00\x00\x04\x00\x00\x00\x00\x00", "does not speak TLS"),  # a gRPC server's SETTINGS
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "does not speak TLS"),
        (b"", "hung up during the TLS handshake"),
    ):
        client = new_client(server.address, tls=TLS())
        opening = client.opening()
        peer = server.accept()
        peer.socket.recv(10_000)
        peer.say(answer)
        peer.close()
        with pytest.raises(StreamEnded) as raised:
            opening.result(TIMEOUT)
        assert hint in raised.value.details
        assert "check the port, or give tls=False" in raised.value.details


def test_a_tls_port_spoken_to_in_plaintext_is_said_to_be_one(new_client, authority) -> None:
    with ScriptedHttp2(tls=authority.server_context()) as server:
        accepting = in_thread(server.accept)
        client = new_client(server.address)
        client.open()
        with pytest.raises((ssl.SSLError, ConnectionError)):
            accepting.result(TIMEOUT)
        details = client.end().details
    assert "speaks TLS: give tls=True" in details or "does the port expect TLS" in details


def test_every_failure_gives_back_its_descriptor(serve, authority, stranger) -> None:
    secured = serve(stranger.server_context(), TLS(ca=authority.pem))
    before = open_descriptors()
    secured.why_not()
    assert open_descriptors() <= before


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ssl.SSLError(1, "[SSL: TLSV1_ALERT_NO_APPLICATION_PROTOCOL] …"), "not HTTP/2"),
        (ssl.SSLError(1, "[SSL: TLSV1_UNRECOGNIZED_NAME] …"), "check TLS(server_name=...)"),
        (ConnectionResetError(104, "Connection reset by peer"), "hung up during the TLS handshake"),
        (ValueError("server_hostname cannot be empty"), "TLS failed: server_hostname cannot be"),
        (ssl.SSLError(1, "[SSL] something new"), "TLS failed: [SSL] something new"),
    ],
)
def test_failures_that_other_tls_libraries_report_are_explained_too(
    error: Exception, words: str
) -> None:
    assert words in explain(error)


def test_a_certificate_refused_for_any_other_reason_shows_openssls_words() -> None:
    error = ssl.SSLCertVerificationError(1, "certificate verify failed")
    error.verify_code, error.verify_message = 99, "path too strange"
    assert explain(error) == "the gateway's certificate is not accepted (path too strange)"


# Files that cannot be used (any more)


def refused(client: Client) -> str:
    with pytest.raises(ConfigurationError) as raised:
        client.open()
    return str(raised.value)


def test_an_authority_that_vanished_is_named(new_client, authority, tmp_path) -> None:
    file = authority.write(tmp_path / "ca.pem")
    client = new_client("127.0.0.1:1", tls=TLS(ca=file))
    file.unlink()
    assert refused(client).startswith("TLS(ca=): cannot be read: No such file or directory")


@pytest.mark.parametrize(
    "content",
    [
        b"-----BEGIN CERTIFICATE-----\ngarbage\n-----END CERTIFICATE-----\n",
        b"-----BEGIN CERTIFICATE-----\nMIIB",
        b"-----BEGIN CERTIFICATE-----\n\x00\xff\n-----END CERTIFICATE-----\n",
    ],
)
def test_an_authority_that_became_garbage_is_named(
    new_client, authority, tmp_path: pathlib.Path, content: bytes
) -> None:
    file = authority.write(tmp_path / "ca.pem")
    client = new_client("127.0.0.1:1", tls=TLS(ca=file))
    file.write_bytes(content)
    problem = refused(client)
    assert problem.startswith("TLS(ca=): holds no usable certificate")
    assert str(file) in problem


def test_a_certificate_that_vanished_is_named(new_client, authority, tmp_path) -> None:
    key, cert = authority.issue("me@example.com")
    (tmp_path / "cert.pem").write_bytes(cert)
    client = new_client("127.0.0.1:1", tls=TLS(cert=tmp_path / "cert.pem", key=key))
    (tmp_path / "cert.pem").unlink()
    assert refused(client).startswith("TLS(cert=): cannot be read")


def other_key(authority: Authority) -> bytes:
    return authority.issue("other@example.com")[0]


def no_key(authority: Authority) -> bytes:
    return b"-----BEGIN PRIVATE KEY-----\ngarbage\n-----END PRIVATE KEY-----\n"


@pytest.mark.parametrize("wrong", [other_key, no_key])
def test_a_key_that_is_not_the_certificates_is_refused_and_not_shown(
    new_client, authority, wrong: Callable[[Authority], bytes]
) -> None:
    _, cert = authority.issue("me@example.com")
    key = wrong(authority)
    problem = refused(new_client("127.0.0.1:1", tls=TLS(cert=cert, key=key)))
    assert "TLS(cert=, key=): do not belong together, or hold no usable certificate" in problem
    assert key.splitlines()[1].decode() not in problem


def test_an_encrypted_key_is_refused_instead_of_asking_the_terminal(new_client, authority) -> None:
    key, cert = authority.issue("me@example.com")
    loaded = serialization.load_pem_private_key(key, None)
    encrypted = loaded.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"password"),
    )
    problem = refused(new_client("127.0.0.1:1", tls=TLS(cert=cert, key=encrypted)))
    assert problem.startswith("TLS(key=): is encrypted; decrypt it: openssl pkey")


def test_a_key_given_as_bytes_stays_on_disk_no_longer_than_it_is_read(
    new_client, authority, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    key, cert = authority.issue("me@example.com")
    client = new_client("127.0.0.1:1", tls=TLS(cert=cert, key=key))
    with pytest.raises(StreamEnded, match="Connection refused"):
        client.open()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("in_files", "memory_files", "descriptors", "temporary_directory"),
    [
        pytest.param(True, False, False, False, id="files"),
        pytest.param(False, True, True, False, id="memory"),
        pytest.param(False, False, True, True, id="temporary files"),
        pytest.param(False, True, False, True, id="temporary files, without /proc"),
    ],
)
def test_a_pair_is_shown_whether_it_is_in_files_or_not(
    serve,
    papers: Papers,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    in_files: bool,
    memory_files: bool,
    descriptors: bool,
    temporary_directory: bool,
) -> None:
    if not memory_files:
        monkeypatch.delattr("os.memfd_create", raising=False)
    elif not hasattr(os, "memfd_create"):
        pytest.skip("this system has no files in memory")
    if not descriptors:
        monkeypatch.setattr("revconn.transport.tls._DESCRIPTORS", str(tmp_path / "nowhere"))
    own = tmp_path / "own"
    monkeypatch.setattr("tempfile.tempdir", str(own))
    if temporary_directory:
        own.mkdir()
    cert: bytes | pathlib.Path = papers.client.pem
    key: bytes | str = papers.client.key
    if in_files:
        cert, key = tmp_path / "cert.pem", str(tmp_path / "key.pem")
        cert.write_bytes(papers.client.pem)
        pathlib.Path(key).write_bytes(papers.client.key)
    context = papers.leaf.show(http2_context(), tmp_path, papers.issuing)
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=papers.root.pem.decode())
    tls = TLS(ca=papers.root.pem, cert=cert, key=key, server_name="gateway.example.com")
    before = open_descriptors()
    client_context(tls)
    assert open_descriptors() <= before
    peer = serve(context, tls).open()
    assert dict(peer.socket.getpeercert()["subjectAltName"]) == {"DNS": "connector"}
    assert not (temporary_directory and list(own.iterdir()))


def test_a_pair_that_can_be_in_no_file_says_what_to_do(
    new_client, papers: Papers, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("os.memfd_create", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    tls = TLS(cert=papers.client.pem, key=papers.client.key)
    assert refused(new_client("127.0.0.1:1", tls=tls)) == (
        "TLS(cert=): has to be in a file, and cannot be written to one: No such file or directory;"
        " give a path, or set TMPDIR"
    )


# A context of the user's


def test_a_context_of_the_users_decides_everything(serve, authority) -> None:
    context = ssl.create_default_context(cadata=authority.pem.decode())
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    peer = serve(authority.server_context(), TLS(ssl_context=context)).open()
    assert peer.socket.version() == "TLSv1.2"


def test_a_context_of_the_users_may_expect_another_name(serve, authority) -> None:
    context = ssl.create_default_context(cadata=authority.pem.decode())
    tls = TLS(ssl_context=context, server_name="gateway.example.com")
    serve(authority.server_context("gateway.example.com"), tls).open()


def test_a_context_of_the_users_may_refuse(serve, authority) -> None:
    context = ssl.create_default_context()
    details = serve(authority.server_context(), TLS(ssl_context=context)).why_not()
    assert "signed by an unknown authority" in details


def test_a_context_of_the_users_that_is_too_strict_for_a_gateway_is_said_to_be(
    serve, papers: Papers, tmp_path: pathlib.Path
) -> None:
    strict = ssl.create_default_context(cadata=papers.old.pem.decode())
    strict.verify_flags |= ssl.VERIFY_X509_STRICT  # the default from Python 3.13 on
    tls = TLS(ssl_context=strict, server_name="gateway.example.com")
    details = serve(papers.old_leaf.show(http2_context(), tmp_path), tls).why_not()
    assert "ssl_context.verify_flags &= ~ssl.VERIFY_X509_STRICT" in details


def test_a_handshake_that_hangs_costs_no_connection(new_client, authority) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = new_client(f"127.0.0.1:{listener.getsockname()[1]}", tls=TLS(ca=authority.pem))
        opening = client.opening()
        sock, _ = listener.accept()
        with sock:
            # A hello that never ends, a byte at a time.
            for byte in b"\x16\x03\x03\x40":
                sock.sendall(bytes([byte]))
            client.stream.close()
            with pytest.raises(StreamEnded, match="no answer to the TLS handshake"):
                opening.result(TIMEOUT)
