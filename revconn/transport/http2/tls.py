"""TLS settings as Python's ssl takes them, and its errors in words that say what to do."""

from __future__ import annotations

import os
import ssl
import tempfile

from revconn.config import TLS

__all__ = ["client_context", "explain"]


def client_context(tls: TLS) -> ssl.SSLContext:
    """A context that trusts what ``tls`` says. Raises :class:`OSError` for unusable files."""
    context = ssl.create_default_context()
    ca = tls.read("ca")
    if ca is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata=ca.decode("ascii", "replace"))
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["h2"])
    cert, key = tls.read("cert"), tls.read("key")
    if cert is not None and key is not None:
        _load_pair(context, cert, key)
    return context


def _load_pair(context: ssl.SSLContext, cert: bytes, key: bytes) -> None:
    """Python's ssl takes a certificate from a file only."""
    descriptor, path = tempfile.mkstemp(prefix="revconn-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(key + b"\n" + cert)
        context.load_cert_chain(path)
    finally:
        os.unlink(path)


_VERIFY_CODES = {
    9: "the gateway's certificate is not yet valid: check this machine's clock",
    10: "the gateway's certificate has expired: it has to be renewed",
    18: "the gateway's certificate is self-signed: give it as TLS(ca=…) if you trust it",
    19: "the gateway's certificate is signed by an unknown authority: give it as TLS(ca=…)",
    20: "the gateway's certificate is signed by an unknown authority: give it as TLS(ca=…)",
    62: "the gateway's certificate is for another name: check the target, or TLS(server_name=…)",
    64: "the gateway's certificate is for another address: use its name, or TLS(server_name=…)",
}

_REASONS = (
    ("WRONG_VERSION_NUMBER", "what listens there does not speak TLS: check the port, or tls=False"),
    ("UNKNOWN_PROTOCOL", "what listens there does not speak TLS: check the port, or tls=False"),
    ("HTTP_REQUEST", "what listens there does not speak TLS: check the port, or tls=False"),
    ("PROTOCOL_VERSION", "the gateway's TLS is too old: 1.2 is the least"),
    ("UNSUPPORTED_PROTOCOL", "the gateway's TLS is too old: 1.2 is the least"),
    ("CERTIFICATE_REQUIRED", "the gateway demands a client certificate: give TLS(cert=…, key=…)"),
    ("NO_APPLICATION_PROTOCOL", "the gateway does not speak HTTP/2 over TLS"),
    ("BAD_CERTIFICATE", "the gateway refused the client certificate"),
    ("UNKNOWN_CA", "the gateway does not trust the client certificate's authority"),
    ("CERTIFICATE_EXPIRED", "the gateway refused the client certificate: it has expired"),
    ("CERTIFICATE_UNKNOWN", "the gateway refused the client certificate"),
    ("HANDSHAKE_FAILURE", "the gateway broke off the handshake (no client certificate?)"),
    ("EOF", "the gateway hung up during the handshake"),
)


def explain(error: Exception) -> str:
    """What a failed handshake means, and what to do about it."""
    if isinstance(error, ssl.SSLCertVerificationError) and error.verify_code in _VERIFY_CODES:
        return f"{_VERIFY_CODES[error.verify_code]} ({error.verify_message})"
    text = str(getattr(error, "reason", None) or error)
    for sign, meaning in _REASONS:
        if sign in text.upper().replace(" ", "_"):
            return f"{meaning} ({text})"
    return f"TLS failed: {text}"
