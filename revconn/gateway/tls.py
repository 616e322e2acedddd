"""TLS: the gateway's certificates, read again when the files change, and each connection's part."""

from __future__ import annotations

import contextlib
import os
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, Union

from revconn.core.rope import Piece
from revconn.exceptions import ConfigurationError
from revconn.logger import get_logger
from revconn.settings.checks import refuse, warn_of_readers

__all__ = ["Contexts", "ServerTLS", "TLSFilter"]

logger = get_logger(__name__)

_RECORD = 16 << 10  # bytes
_Path = Union[str, "os.PathLike[str]"]
_Signature = tuple[Union[tuple[int, int, int], None], ...]
_PEM_REMEDY = "give the path of a PEM file that the gateway may read"


@dataclass(frozen=True)
class ServerTLS:
    """How a gateway speaks TLS. Each file is PEM.

    The files are looked at whenever somebody connects, and read again when they have changed. New
    ones that cannot be used leave the old ones in force, and are logged. Connections that are open
    stay open.

    :param cert: the path of the gateway's certificate, followed by those between it and its
        authority.
    :param key: the path of its private key, without a passphrase.
    :param client_ca: the path of the authorities that certificates of connectors and callers
        have to come from (mutual TLS). ``None``: nobody is asked for one.

    Raises :class:`ConfigurationError` for a file that cannot be read, and for a key that is not
    the certificate's.
    """

    cert: _Path
    key: _Path
    client_ca: _Path | None = None

    def __post_init__(self) -> None:
        _load(self)

    def _signature(self) -> _Signature:
        """Changes when a file does."""
        paths = (self.cert, self.key, self.client_ca)
        return tuple(None if path is None else _file_signature(path) for path in paths)


class Contexts:
    """What each new connection is spoken TLS with. It belongs to the gateway's thread.

    :param http1: whether peers may choose HTTP/1.1.

    Raises as :class:`ServerTLS` does.
    """

    def __init__(self, tls: ServerTLS | ssl.SSLContext, *, http1: bool = False) -> None:
        self._protocols = ["h2", "http/1.1"] if http1 else ["h2"]
        self._tls = tls if isinstance(tls, ServerTLS) else None
        # Before the files are read: one that changes in between is read again at the next
        # handshake, in the other order it would pass for seen.
        self._seen = None if self._tls is None else self._tls._signature()
        self._context = _load(tls, self._protocols) if isinstance(tls, ServerTLS) else tls

    def current(self) -> ssl.SSLContext:
        """The context to use from now on."""
        if self._tls is None:
            return self._context
        signature = self._tls._signature()
        if signature == self._seen:
            return self._context
        # Even of files that cannot be used: they are complained of once, not with every handshake.
        self._seen = signature
        try:
            self._context = _load(self._tls, self._protocols)
        except ConfigurationError as error:
            logger.error("the TLS files have changed and cannot be used: %s", error)
        else:
            logger.info("the TLS files have changed: new connections use them")
        return self._context


class TLSFilter:
    """One connection's TLS, in memory. It belongs to the gateway's thread.

    :param server_name: of a client's side: whose certificate it has to be. Raises
        :class:`ValueError` for what no certificate could name.
    :param http1: of a server's side: whether the peer may choose HTTP/1.1.
    :ivar is_shaking_hands: whether the handshake goes on still.
    :ivar is_over: whether the peer has said that it sends nothing more.
    """

    def __init__(
        self, context: ssl.SSLContext, server_name: str | None = None, *, http1: bool = False
    ) -> None:
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        is_server = server_name is None
        self._tls = context.wrap_bio(
            self._incoming, self._outgoing, server_side=is_server, server_hostname=server_name
        )
        # A client has nothing else to learn by it that the other end speaks HTTP/2 (RFC 9113,
        # section 3.2).
        self._protocols: tuple[str | None, ...] = ("h2", None) if is_server else ("h2",)
        if http1:
            self._protocols += ("http/1.1",)
        self.is_shaking_hands = True
        self.is_over = False

    def begin(self) -> bytes:
        """A client's first words."""
        with contextlib.suppress(ssl.SSLWantReadError):
            self._tls.do_handshake()
        return self.take_output()

    def decrypt(self, received: bytes) -> bytes:
        """What can be decrypted now. Raises :class:`ssl.SSLError`."""
        if received:
            self._incoming.write(received)
        else:
            self._incoming.write_eof()
        parts: list[bytes] = []
        try:
            if self.is_shaking_hands:
                self._tls.do_handshake()
                if self._tls.selected_alpn_protocol() not in self._protocols:
                    raise ssl.SSLError("the peer does not speak HTTP/2")
                self.is_shaking_hands = False
            # A record holds 16 KiB at most.
            while record := self._tls.read(_RECORD):
                parts.append(record)
            self.is_over = True
        except ssl.SSLWantReadError:
            pass
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
            if self.is_shaking_hands:
                raise
            self.is_over = True  # HTTP/2 does not need TLS's own goodbye
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def encrypt(self, output: Sequence[Piece]) -> bytes:
        """What is to be written in the place of ``output``."""
        # As one, since each piece that OpenSSL is given becomes a record, however small it is.
        rest = memoryview(output[0] if len(output) == 1 else b"".join(output))
        while rest:
            rest = rest[self._tls.write(rest) :]
        return self._outgoing.read()

    def take_output(self) -> bytes:
        """What TLS itself has to say: of the handshake, of keys, why it failed."""
        return self._outgoing.read()


def _load(tls: ServerTLS, protocols: Sequence[str] = ("h2",)) -> ssl.SSLContext:
    for name, path in (("cert", tls.cert), ("key", tls.key), ("client_ca", tls.client_ca)):
        if path is not None or name != "client_ca":
            _read(name, path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= getattr(ssl, "OP_NO_RENEGOTIATION", 0)  # HTTP/2 forbids it
    context.set_alpn_protocols(list(protocols))
    try:
        context.load_cert_chain(tls.cert, tls.key, password=_refuse_passphrase)
    except ssl.SSLError as error:
        _refuse_pair(tls, error)
    if tls.client_ca is not None:
        try:
            context.load_verify_locations(tls.client_ca)
        except ssl.SSLError as error:
            _refuse("client_ca", tls.client_ca, f"holds no usable certificate: {_reason(error)}")
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _read(name: str, path: Any) -> bytes:
    if not isinstance(path, (str, os.PathLike)):
        refuse(_argument(name), None, f"is {type(path).__name__}, not a path", _PEM_REMEDY)
    if "-----BEGIN " in os.fspath(path):  # it may be a private key
        refuse(_argument(name), None, "is PEM, not a path", "write it to a file")
    try:
        with open(path, "rb") as file:
            if name == "key":
                warn_of_readers(_argument(name), path, file.fileno())
            pem = file.read()
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        _refuse(name, path, f"cannot be read: {getattr(error, 'strerror', error)}")
    if b"-----BEGIN " not in pem:
        _refuse(name, path, "holds no PEM")
    return pem


def _refuse_passphrase() -> NoReturn:
    remedy = "decrypt it into a file that only the gateway may read: openssl pkey -in ... -out ..."
    refuse(_argument("key"), None, "is protected by a passphrase", remedy)


def _refuse_pair(tls: ServerTLS, error: ssl.SSLError) -> NoReturn:
    if error.reason == "KEY_VALUES_MISMATCH":
        problem = f"is not the key of the certificate in {os.fspath(tls.cert)}"
        refuse(_argument("key"), os.fspath(tls.key), problem, "give a certificate and its own key")
    _refuse("cert", tls.cert, f"cannot be used with {os.fspath(tls.key)}: {_reason(error)}")


def _refuse(name: str, path: _Path, problem: str) -> NoReturn:
    refuse(_argument(name), os.fspath(path), problem, _PEM_REMEDY)


def _argument(name: str) -> str:
    return f"ServerTLS({name}=)"


def _reason(error: ssl.SSLError) -> str:
    return error.reason or str(error)


def _file_signature(path: _Path) -> tuple[int, int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return (status.st_mtime_ns, status.st_size, status.st_ino)
