"""TLS with real certificates: what works, and what each failure says to do."""

from __future__ import annotations

import datetime
import pathlib
import socket
import ssl
import warnings
from typing import Callable

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from revconn import TLS, ConfigurationError
from revconn.core.status import StatusCode
from revconn.transport.base import StreamEnded
from revconn.transport.http2.tls import explain
from tests.support.certificates import Authority
from tests.support.descriptors import open_descriptors
from tests.support.http2_client import Client
from tests.support.scripted_http2 import Http2Peer, ScriptedHttp2
from tests.support.threads import TIMEOUT, in_thread

MIB = 1 << 20
NOW = datetime.datetime.now(datetime.timezone.utc)
DAY = datetime.timedelta(days=1)


@pytest.fixture(scope="module")
def stranger() -> Authority:
    """An authority that nobody here trusts."""
    return Authority()


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
    assert received.result(TIMEOUT) == [payload]
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


def test_the_certificates_name_may_be_another_than_the_targets(serve, authority) -> None:
    context = authority.server_context("gateway.example.com")
    serve(context, TLS(ca=authority.pem, server_name="gateway.example.com")).open()


def test_an_authority_of_the_systems_is_trusted_by_default(serve, authority, tmp_path, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.write(tmp_path / "system.pem")))
    serve(authority.server_context(), TLS()).open()


@pytest.mark.parametrize("as_file", [True, False])
def test_a_client_certificate_is_shown_to_a_gateway_that_asks(
    serve, authority, stranger, tmp_path, as_file: bool
) -> None:
    key, cert = stranger.issue("client@example.com")
    if as_file:
        (tmp_path / "key.pem").write_bytes(key)
        (tmp_path / "cert.pem").write_bytes(cert)
        tls = TLS(ca=authority.pem, cert=tmp_path / "cert.pem", key=str(tmp_path / "key.pem"))
    else:
        tls = TLS(ca=authority.pem, cert=cert, key=key)
    peer = serve(authority.server_context(clients=stranger), tls).open()
    names = dict(peer.socket.getpeercert()["subjectAltName"])
    assert names == {"email": "client@example.com"}


def test_a_bundle_with_comments_in_any_language_is_read(serve, authority) -> None:
    bundle = "# Főtanúsítvány\n".encode() + authority.pem + b"# \xff\n"
    serve(authority.server_context(), TLS(ca=bundle)).open()


def test_certificates_that_changed_on_disk_are_used_by_the_next_connection(
    new_client, authority, stranger, tmp_path
) -> None:
    file = stranger.write(tmp_path / "ca.pem")
    with ScriptedHttp2(tls=authority.server_context()) as server:
        client = new_client(server.address, tls=TLS(ca=file))
        assert "unknown authority" in Secured(server, client).why_not()
        authority.write(file)
        again = Client(server.address, tls=client.transport.dialer._tls)
        again.transport = client.transport
        Secured(server, again).open()
        again.close()


# What does not, and what to do


def test_a_port_without_tls_is_said_to_be_one(new_client, server) -> None:
    for answer, hint in (
        (b"\x00\x00\x00\x04\x00\x00\x00\x00\x00", "does not speak TLS"),  # a gRPC server's SETTINGS
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "does not speak TLS"),
        (b"", "hung up during the TLS handshake"),
    ):
        client = new_client(server.address, tls=TLS())
        opening = in_thread(client.stream.open)
        peer = server.accept()
        peer.socket.recv(10_000)
        peer.say(answer)
        peer.close()
        with pytest.raises(StreamEnded) as raised:
            opening.result(TIMEOUT)
        assert hint in raised.value.details
        assert "check the port, or give tls=False" in raised.value.details


def test_an_unknown_authority_is_said_to_be_unknown(serve, authority, stranger) -> None:
    details = serve(stranger.server_context(), TLS(ca=authority.pem)).why_not()
    assert "signed by an unknown authority: give that as TLS(ca=...)" in details


def test_a_self_signed_certificate_is_said_to_be_one(serve, authority, tmp_path) -> None:
    pem = self_signed("127.0.0.1")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    (tmp_path / "self.pem").write_bytes(pem)
    context.load_cert_chain(tmp_path / "self.pem")
    context.set_alpn_protocols(["h2"])
    details = serve(context, TLS(ca=authority.pem)).why_not()
    assert "is self-signed: if you trust it, give it as TLS(ca=...)" in details
    certificate = pem[pem.index(b"-----BEGIN CERTIFICATE") :]
    serve(context, TLS(ca=certificate, server_name="gateway.example.com")).open()


def self_signed(name: str) -> bytes:
    """A key and a certificate that vouches for itself, for gateway.example.com."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - DAY)
        .not_valid_after(NOW + DAY)
        .add_extension(
            x509.SubjectAlternativeName([x509.DNSName("gateway.example.com")]), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ) + certificate.public_bytes(serialization.Encoding.PEM)


@pytest.mark.parametrize(
    ("dates", "words"),
    [
        (
            {"not_before": NOW - 2 * DAY, "not_after": NOW - DAY},
            "has expired: it has to be renewed",
        ),
        (
            {"not_before": NOW + DAY, "not_after": NOW + 2 * DAY},
            "is not yet valid: check this machine's clock",
        ),
    ],
)
def test_a_certificate_out_of_its_time_is_said_to_be(serve, authority, dates, words: str) -> None:
    context = authority.server_context("127.0.0.1", **dates)
    assert words in serve(context, TLS(ca=authority.pem)).why_not()


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("localhost", "is for another name: check the target, or give TLS(server_name=...)"),
        ("127.0.0.1", "is for another address: use its name as the target, or give TLS("),
    ],
)
def test_a_certificate_for_another_name_is_said_to_be(
    serve, authority, target: str, words: str
) -> None:
    context = authority.server_context("gateway.example.com")
    assert words in serve(context, TLS(ca=authority.pem), target).why_not()


@pytest.mark.parametrize(
    ("version", "words"),
    [
        ("TLSv1_3", "demands a client certificate: give TLS(cert=..., key=...)"),
        ("TLSv1_2", "broke off the handshake: does it demand TLS(cert=...)?"),
    ],
)
def test_a_gateway_that_demands_a_client_certificate_is_said_to(
    serve, authority, stranger, version: str, words: str
) -> None:
    context = only(version, authority.server_context(clients=stranger))
    assert words in serve(context, TLS(ca=authority.pem)).why_not()


@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
@pytest.mark.parametrize(
    ("expired", "words"), [(False, "it does not know who signed it"), (True, "it has expired")]
)
def test_a_gateway_that_refuses_the_client_certificate_is_said_to(
    serve, authority, stranger, version: str, expired: bool, words: str
) -> None:
    context = only(version, authority.server_context(clients=stranger))
    if expired:
        key, cert = stranger.issue("me@x.org", not_before=NOW - 2 * DAY, not_after=NOW - DAY)
    else:
        key, cert = authority.issue("me@example.com")
    details = serve(context, TLS(ca=authority.pem, cert=cert, key=key)).why_not()
    assert f"the gateway refused the client certificate: {words}" in details


@pytest.mark.parametrize("protocols", [None, ["http/1.1"]])
def test_a_gateway_without_http2_is_said_to_have_none(serve, authority, protocols) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority._ca.issue_cert("127.0.0.1").configure_cert(context)
    if protocols:
        context.set_alpn_protocols(protocols)
    details = serve(context, TLS(ca=authority.pem)).why_not()
    assert "speaks TLS but not HTTP/2 (no ALPN h2): is there a web server in front?" in details


def test_a_gateway_whose_tls_is_too_old_is_said_to_be(serve, authority) -> None:
    context = authority.server_context()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    details = serve(context, TLS(ca=authority.pem)).why_not()
    assert "the gateway's TLS is too old: it has to speak TLS 1.2 or newer" in details


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
    assert open_descriptors() == before


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


def test_a_handshake_that_hangs_costs_no_connection(new_client, authority) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = new_client(f"127.0.0.1:{listener.getsockname()[1]}", tls=TLS(ca=authority.pem))
        opening = in_thread(client.stream.open)
        sock, _ = listener.accept()
        with sock:
            # A hello that never ends, a byte at a time.
            for byte in b"\x16\x03\x03\x40":
                sock.sendall(bytes([byte]))
            client.stream.close()
            with pytest.raises(StreamEnded, match="no answer to the TLS handshake"):
                opening.result(TIMEOUT)
