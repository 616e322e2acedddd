"""Certificates, made when the tests run: an authority, and what it issued."""

from __future__ import annotations

import datetime
import pathlib
import ssl

import grpc
import trustme

__all__ = ["Authority"]


class Authority:
    """A certificate authority of the tests' own, and the server credentials it vouches for."""

    def __init__(self) -> None:
        self._ca = trustme.CA()
        self.pem: bytes = self._ca.cert_pem.bytes()

    def write(self, path: pathlib.Path) -> pathlib.Path:
        """The authority's certificate as a PEM file."""
        path.write_bytes(self.pem)
        return path

    def issue(self, *names: str, **dates: datetime.datetime) -> tuple[bytes, bytes]:
        """A private key and the certificate chain for these names, as PEM."""
        leaf = self._ca.issue_cert(*names, **dates)
        return leaf.private_key_pem.bytes(), b"".join(c.bytes() for c in leaf.cert_chain_pems)

    def issue_files(
        self, directory: pathlib.Path, *names: str
    ) -> tuple[pathlib.Path, pathlib.Path]:
        """The same, by default for loopback, as ``cert.pem`` and ``key.pem``."""
        key, chain = self.issue(*(names or ("127.0.0.1", "localhost")))
        (directory / "cert.pem").write_bytes(chain)
        (directory / "key.pem").write_bytes(key)
        return directory / "cert.pem", directory / "key.pem"

    def server(
        self, *names: str, clients: Authority | None = None, **dates: datetime.datetime
    ) -> grpc.ServerCredentials:
        """A gateway's credentials, by default for loopback; with ``clients`` it asks for theirs."""
        pair = self.issue(*(names or ("127.0.0.1", "localhost")), **dates)
        if clients is None:
            return grpc.ssl_server_credentials([pair])
        return grpc.ssl_server_credentials([pair], clients.pem, require_client_auth=True)

    def server_context(
        self, *names: str, clients: Authority | None = None, **dates: datetime.datetime
    ) -> ssl.SSLContext:
        """The same for a socket: it speaks HTTP/2, TLS 1.2 and newer."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._ca.issue_cert(*(names or ("127.0.0.1", "localhost")), **dates).configure_cert(context)
        context.set_alpn_protocols(["h2"])
        if clients is not None:
            context.verify_mode = ssl.CERT_REQUIRED
            clients._ca.configure_trust(context)
        return context

    def expired_server(self) -> grpc.ServerCredentials:
        now = datetime.datetime.now(datetime.timezone.utc)
        return self.server(not_before=now - _DAY * 2, not_after=now - _DAY)

    def future_server(self) -> grpc.ServerCredentials:
        now = datetime.datetime.now(datetime.timezone.utc)
        return self.server(not_before=now + _DAY, not_after=now + _DAY * 2)


_DAY = datetime.timedelta(days=1)
