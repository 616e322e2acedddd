"""TLS: the gateway's certificates, read again when the files change, and who never comes to a call.

grpc tells nobody of a handshake that failed, nor whose it was. What can be known is that it began,
because grpc asks for the certificates before each, and that a call came, with its peer's address.
"""

from __future__ import annotations

import os
import ssl
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import Any, Callable, NoReturn, Union

import grpc

from revconn.exceptions import ConfigurationError
from revconn.logger import Reminder, get_logger
from revconn.settings.checks import refuse, warn_of_readers

__all__ = ["Arrivals", "ServerTLS", "server_credentials"]

logger = get_logger(__name__)
# Its name is what applications configure: it stays, whatever the file is called.
_arrivals_logger = get_logger("revconn.gateway.arrivals")

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


def server_credentials(tls: ServerTLS, arrivals: Arrivals) -> grpc.ServerCredentials:
    """Credentials that follow the files. Raises as :class:`ServerTLS` does."""
    source = _Source(tls, arrivals)
    return grpc.dynamic_ssl_server_credentials(
        source.initial,
        source.fetch,  # type: ignore[arg-type]  # None, which grpc documents, its types forgot
        require_client_authentication=tls.client_ca is not None,
    )


class _Source:
    """Where grpc asks for certificates, from any thread of its own, before each handshake."""

    def __init__(self, tls: ServerTLS, arrivals: Arrivals) -> None:
        self._tls = tls
        self._arrivals = arrivals
        self._lock = threading.Lock()  # guards _seen
        # Before the files are read: one that changes in between is read again at the next
        # handshake, in the other order it would pass for seen.
        self._seen = tls._signature()
        self.initial = _load(tls)

    def fetch(self) -> grpc.ServerCertificateConfiguration | None:
        """The certificates to use from now on; ``None`` to go on with those before."""
        self._arrivals.begun(time.monotonic())
        signature = self._tls._signature()
        with self._lock:
            if signature == self._seen:
                return None
            # Even of files that cannot be used: they are complained of once, not with every
            # handshake.
            self._seen = signature
        try:
            configuration = _load(self._tls)
        except ConfigurationError as error:
            logger.error("the TLS files have changed and cannot be used: %s", error)
            return None
        logger.info("the TLS files have changed: new connections use them")
        return configuration


def _load(tls: ServerTLS) -> grpc.ServerCertificateConfiguration:
    cert = _read("cert", tls.cert)
    key = _read("key", tls.key)
    client_ca = None if tls.client_ca is None else _read("client_ca", tls.client_ca)
    # grpc takes whatever it is given, and then fails every handshake: OpenSSL looks first.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(tls.cert, tls.key, password=_refuse_passphrase)
    except ssl.SSLError as error:
        _refuse_pair(tls, error)
    if tls.client_ca is not None:
        try:
            context.load_verify_locations(tls.client_ca)
        except ssl.SSLError as error:
            _refuse("client_ca", tls.client_ca, f"holds no usable certificate: {_reason(error)}")
    return grpc.ssl_server_certificate_configuration([(key, cert)], client_ca)


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


_PATIENCE = 30.0  # seconds from the beginning of a connection to its first call
_REMEMBERED = 60.0  # seconds, after its last call, in which an address is the same connection's
_MOST = 100_000  # connections begun, and addresses, that are counted at once


class Arrivals:
    """Counts. :meth:`begun` may be called from any thread, the rest belongs to the gateway's.

    Times are monotonic seconds. An address that is heard again after a while counts as another
    connection's: it hides one that came to nothing, and makes none up.
    """

    def __init__(self) -> None:
        self._begun: deque[float] = deque(maxlen=_MOST)
        self._heard: dict[str, float] = {}
        self.is_used = False
        self._unsaid = 0
        self._reminder = Reminder()

    def begun(self, now: float) -> None:
        """A TLS handshake begins."""
        self.is_used = True
        # A deque's append is one step of the interpreter's: grpc's threads need no lock for it.
        self._begun.append(now)

    def called(self, get_peer: Callable[[], str]) -> None:
        """A call came; whose it is is asked only where there is TLS: an address with its port."""
        if self.is_used:
            self._hear(get_peer(), time.monotonic())

    def _hear(self, peer: str, now: float) -> None:
        last = self._heard.pop(peer, None)
        self._heard[peer] = now
        # Whose handshake it was grpc does not say. The oldest is taken for it: all that counts is
        # how many came to nothing.
        if (last is None or now - last > _REMEMBERED) and self._begun:
            self._begun.popleft()
        if len(self._heard) > _MOST:
            del self._heard[next(iter(self._heard))]

    def look(self, now: float) -> None:
        """Tell of those that have come to nothing, at first and then at growing intervals."""
        while self._begun and now - self._begun[0] > _PATIENCE:
            self._begun.popleft()
            self._unsaid += 1
        while self._heard and now - next(iter(self._heard.values())) > _REMEMBERED:
            del self._heard[next(iter(self._heard))]
        if self._unsaid and self._reminder.is_due(now):
            _arrivals_logger.warning(
                "TLS: no call came within %g seconds on new connections, %d of them: their"
                " handshake failed (another authority, no certificate, no TLS at all), or they were"
                " checks of the port; the peers' logs tell which, grpc does not",
                _PATIENCE,
                self._unsaid,
            )
            self._unsaid = 0
        elif not self._unsaid:
            self._reminder.rest(now)
