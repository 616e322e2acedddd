"""TLS: its settings as Python's ssl takes them, its errors in words, and what it does in memory."""

from __future__ import annotations

import os
import socket
import ssl
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from revconn.http2.connection import Buffer
from revconn.settings.checks import refuse
from revconn.settings.options import TLS, PathOrPEM

__all__ = ["NO_HTTP2", "READ_BYTES", "TLSFilter", "client_context", "explain"]

READ_BYTES = 256 << 10

_DESCRIPTORS = "/proc/self/fd"
_PARTIAL_CHAIN = ssl.VerifyFlags(0x80000)  # it has a name since Python 3.10


def client_context(tls: TLS) -> ssl.SSLContext:
    """The user's own context, or one made of the certificates as they are on disk now.

    Raises :class:`ConfigurationError` for unusable ones.
    """
    if tls.ssl_context is not None:
        return tls.ssl_context
    # Read for each connection: certificates are renewed under a connector that runs for months.
    ca = tls.read("ca")
    if ca is None:
        context = ssl.create_default_context()
    else:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        _trust(context, ca, tls)
    # As grpcio has it: whatever certificate is trusted need not be a root, and an old authority's
    # need not be as RFC 5280 wants it, which Python checks since 3.13.
    context.verify_flags |= _PARTIAL_CHAIN
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= getattr(ssl, "OP_NO_RENEGOTIATION", 0)  # HTTP/2 forbids it
    context.set_alpn_protocols(["h2"])
    if tls.cert is not None and tls.key is not None:
        for name in ("cert", "key"):
            tls.read(name)  # says which of them is gone
        _load_pair(context, tls.cert, tls.key)
    return context


def _trust(context: ssl.SSLContext, ca: bytes, tls: TLS) -> None:
    try:
        # Comments between the certificates may be in any encoding.
        context.load_verify_locations(cadata=ca.decode("ascii", "ignore"))
    except (ssl.SSLError, ValueError) as error:
        refuse("TLS(ca=)", _shown(tls.ca), f"holds no usable certificate: {error}", "give PEM")


def _load_pair(context: ssl.SSLContext, cert: PathOrPEM, key: PathOrPEM) -> None:
    # Without it OpenSSL asks the terminal for a password, and a service would wait there for ever.
    def encrypted() -> str:
        refuse(
            "TLS(key=)", _shown(key), "is encrypted", "decrypt it: openssl pkey -in ... -out ..."
        )

    try:
        with _as_file("cert", cert) as cert_path, _as_file("key", key) as key_path:
            context.load_cert_chain(cert_path, key_path, password=encrypted)
    except OSError as error:
        problem = "do not belong together, or hold no usable certificate and key"
        reason = getattr(error, "reason", None) or error.strerror
        refuse("TLS(cert=, key=)", _shown(cert), f"{problem}: {reason}", "give PEM of one pair")


@contextmanager
def _as_file(name: str, source: PathOrPEM) -> Iterator[str | os.PathLike[str]]:
    """Python's ssl takes a certificate from a file only."""
    if not isinstance(source, bytes):
        yield source
        return
    with _in_memory(source) as path:
        if path is not None:
            yield path
            return
    with ExitStack() as cleanup:
        try:
            descriptor, path = tempfile.mkstemp(prefix="revconn-")
            cleanup.callback(os.unlink, path)
            with os.fdopen(descriptor, "wb") as file:
                file.write(source)
        except OSError as error:
            problem = f"has to be in a file, and cannot be written to one: {error.strerror}"
            refuse(f"TLS({name}=)", None, problem, "give a path, or set TMPDIR")
        yield path


@contextmanager
def _in_memory(content: bytes) -> Iterator[str | None]:
    """The path of a file that is on no disk; ``None`` where the system has no such files."""
    try:
        descriptor = os.memfd_create("revconn")  # the key stays in memory
    except (AttributeError, OSError):  # not Linux, or it is forbidden
        yield None
        return
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        path = f"{_DESCRIPTORS}/{descriptor}"
        yield path if os.path.exists(path) else None


def _shown(source: PathOrPEM | None) -> str | None:
    return None if source is None or isinstance(source, bytes) else os.fspath(source)


NO_HTTP2 = "the gateway speaks TLS but not HTTP/2 (no ALPN h2): is there a web server in front?"

_NOT_TLS = "what listens there does not speak TLS: check the port, or give tls=False"
_TOO_OLD = "the gateway's TLS is too old: it has to speak TLS 1.2 or newer"
_UNTRUSTED = "the gateway's certificate is signed by an unknown authority: give that as TLS(ca=...)"
_REFUSED = "the gateway refused the client certificate"

_NO_AUTHORITY = (
    "the certificate that signed the gateway's does not say that it may: it has to be renewed with"
    " basicConstraints CA:TRUE; or give the gateway's own certificate as TLS(ca=...)"
)
_TOO_WEAK = (
    "the gateway's certificate or its authority's is too weak: it has to be renewed; a context of"
    ' your own may allow it, TLS(ssl_context=...) with set_ciphers("DEFAULT:@SECLEVEL=0")'
)
_TOO_STRICT = (
    "your ssl_context has certificates checked more strictly than the gateway's is:"
    " ssl_context.verify_flags &= ~ssl.VERIFY_X509_STRICT"
)

# By OpenSSL's numbers (X509_V_ERR_...), which are stable, where its words are not.
_VERIFY_CODES = {
    2: _UNTRUSTED,
    7: "the gateway's certificate is signed by another key of that authority: give its new"
    " certificate as TLS(ca=...)",
    9: "the gateway's certificate is not yet valid: check this machine's clock",
    10: "the gateway's certificate has expired: it has to be renewed",
    18: "the gateway's certificate is self-signed: if you trust it, give it as TLS(ca=...)",
    19: _UNTRUSTED,
    20: _UNTRUSTED,
    21: _UNTRUSTED,
    62: "the gateway's certificate is for another name: check the target, or give"
    " TLS(server_name=...)",
    64: "the gateway's certificate is for another address: use its name as the target, or give"
    " TLS(server_name=...)",
    24: _NO_AUTHORITY,  # OpenSSL 1.1.1
    79: _NO_AUTHORITY,
    **dict.fromkeys((66, 67, 68), _TOO_WEAK),
    **dict.fromkeys(range(80, 94), _TOO_STRICT),
}

# The first sign that is found in OpenSSL's reason, which differs by release, is what is told.
_REASONS = (
    ("WRONG_VERSION_NUMBER", _NOT_TLS),
    ("UNKNOWN_PROTOCOL", _NOT_TLS),
    ("HTTP_REQUEST", _NOT_TLS),
    ("RECORD_LAYER_FAILURE", _NOT_TLS),
    ("PROTOCOL_VERSION", _TOO_OLD),
    ("UNSUPPORTED_PROTOCOL", _TOO_OLD),
    (
        "CERTIFICATE_REQUIRED",
        "the gateway demands a client certificate: give TLS(cert=..., key=...)",
    ),
    ("NO_APPLICATION_PROTOCOL", NO_HTTP2),
    ("ALERT_UNKNOWN_CA", f"{_REFUSED}: it does not know who signed it"),
    ("ALERT_CERTIFICATE_EXPIRED", f"{_REFUSED}: it has expired"),
    ("ALERT_CERTIFICATE_REVOKED", f"{_REFUSED}: it is revoked"),
    ("ALERT_BAD_CERTIFICATE", _REFUSED),
    ("ALERT_CERTIFICATE_UNKNOWN", _REFUSED),
    ("ALERT_UNSUPPORTED_CERTIFICATE", _REFUSED),
    (
        "ALERT_HANDSHAKE_FAILURE",
        "the gateway broke off the handshake: does it demand TLS(cert=...)?",
    ),
    ("UNRECOGNIZED_NAME", "the gateway does not know this name: check TLS(server_name=...)"),
    ("EOF", "the gateway hung up during the TLS handshake: check the port, or give tls=False"),
    ("RESET", "the gateway hung up during the TLS handshake: check the port, or give tls=False"),
)


def explain(error: Exception) -> str:
    """What a TLS failure means, and what to do about it."""
    if isinstance(error, ssl.SSLCertVerificationError):
        meaning = _VERIFY_CODES.get(error.verify_code, "the gateway's certificate is not accepted")
        return f"{meaning} ({error.verify_message})"
    text = str(getattr(error, "reason", None) or getattr(error, "strerror", None) or error)
    for sign, meaning in _REASONS:
        if sign in text.upper().replace(" ", "_"):
            return f"{meaning} ({text})"
    return f"TLS failed: {text}"


class TLSFilter:
    """TLS in memory, so that reading and writing need no common lock around the socket.

    OpenSSL's objects are not safe to read and write at once: ``_lock`` guards ``_tls`` and its
    two buffers, and no I/O happens under it. One thread decrypts and feeds, one encrypts.
    """

    def __init__(self, context: ssl.SSLContext, server_name: str) -> None:
        self._lock = threading.Lock()
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=server_name)
        self._flight = b""  # of the handshake's own bytes: what is to be sent yet
        # Memory that is used again: allocating it anew takes longer than decrypting.
        self._decrypted = memoryview(bytearray(READ_BYTES))

    @property
    def alpn(self) -> str | None:
        """The protocol that was agreed on."""
        return self._tls.selected_alpn_protocol()

    def handshake(self, sock: socket.socket) -> bool:
        """One round of the handshake; true when it is done. Raises :class:`OSError`.

        Called before any other thread knows the socket.
        """
        try:
            self._tls.do_handshake()
            done = True
        except ssl.SSLWantReadError:
            done = False
        finally:
            # Also when it failed: the alert tells the peer why.
            self._flight += self._outgoing.read()
            # Not sendall(): the socket's timeout is short, and what it had not sent would be lost.
            while self._flight:
                self._flight = self._flight[sock.send(self._flight) :]
        if not done:
            self.feed(sock.recv(READ_BYTES))
        return done

    def feed(self, received: bytes) -> None:
        """More has arrived; nothing: that was the end."""
        with self._lock:
            if received:
                self._incoming.write(received)
            else:
                self._incoming.write_eof()

    def has_data(self) -> bool:
        """Whether something has arrived that was not decrypted yet."""
        with self._lock:
            return bool(self._tls.pending() or self._incoming.pending)

    def encrypt(self, output: Sequence[Buffer]) -> list[Buffer]:
        """What is to be written in the place of ``output``."""
        # As one, since each piece that OpenSSL is given becomes a record, however small it is.
        data = output[0] if len(output) == 1 else b"".join(output)
        with self._lock:
            rest = memoryview(data)
            while rest:
                rest = rest[self._tls.write(rest) :]
            encrypted = self._outgoing.read()
        return [encrypted] if encrypted else []

    def decrypt(self) -> bytes | None:
        """What can be decrypted now, nothing at the end; ``None`` when more has to arrive first.

        Raises :class:`OSError`.
        """
        # A TLS record holds 16 KiB at most: as many as have arrived come out at once, so that the
        # engine is not called for each.
        size = 0
        with self._lock:
            try:
                while size < READ_BYTES:
                    record: Any = self._tls.read(READ_BYTES, self._decrypted[size:])  # its size
                    size += record
                    if not record or not (self._tls.pending() or self._incoming.pending):
                        break
            except ssl.SSLWantReadError:
                if not size:
                    return None
            except ssl.SSLEOFError:
                pass  # the peer closed without TLS's own goodbye: HTTP/2 does not need it
            except ssl.SSLError as error:
                raise OSError(explain(error)) from None
            return bytes(self._decrypted[:size])
