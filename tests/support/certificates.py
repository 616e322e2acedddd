"""Certificates, made when the tests run: an authority, and what it issued."""

from __future__ import annotations

import datetime
import ipaddress
import pathlib
import ssl

import grpc
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

__all__ = ["Authority", "Certificate"]

_DAY = datetime.timedelta(days=1)


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


class Certificate:
    """One certificate and its key, which trustme would not make so.

    :ivar pem: the certificate alone.
    :ivar key: its private key.

    :param issuer: who signed it; by default itself.
    :param names: host names and addresses, as subjectAltName; the first one is the common name.
    :param authority: says that it may sign others.
    :param bare: without what RFC 5280 wants an authority to have besides: key identifiers,
        keyUsage, and basicConstraints that are critical.
    :param says_nothing: without any extension.
    :param rsa_bits: an RSA key of that size.
    :param days: how long it has been valid, and how long it will be.
    """

    def __init__(
        self,
        *names: str,
        issuer: Certificate | None = None,
        authority: bool = False,
        bare: bool = False,
        says_nothing: bool = False,
        rsa_bits: int | None = None,
        days: tuple[int, int] = (1, 1),
    ) -> None:
        private = ec.generate_private_key(ec.SECP256R1())
        self._private = rsa.generate_private_key(65537, rsa_bits) if rsa_bits else private
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])])
        signer = issuer or self
        now = datetime.datetime.now(datetime.timezone.utc)
        builder = (
            x509.CertificateBuilder()
            .subject_name(self._name)
            .issuer_name(signer._name)
            .public_key(self._private.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - days[0] * _DAY)
            .not_valid_after(now + days[1] * _DAY)
        )
        for extension, critical in self._extensions(signer, names, authority, bare):
            if not says_nothing:
                builder = builder.add_extension(extension, critical)
        signed = builder.sign(signer._private, hashes.SHA256())
        pem = serialization.Encoding.PEM
        self.pem: bytes = signed.public_bytes(pem)
        self.key: bytes = self._private.private_bytes(
            pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    def show(
        self, context: ssl.SSLContext, directory: pathlib.Path, *others: Certificate
    ) -> ssl.SSLContext:
        """Have a context show it, and others after it."""
        pair = directory / "pair.pem"
        pair.write_bytes(self.key + b"".join(each.pem for each in (self, *others)))
        context.load_cert_chain(pair)
        return context

    def _extensions(
        self, signer: Certificate, names: tuple[str, ...], authority: bool, bare: bool
    ) -> list[tuple[x509.ExtensionType, bool]]:
        extensions: list[tuple[x509.ExtensionType, bool]] = []
        extensions.append((x509.BasicConstraints(authority, None), not bare))
        if not authority:
            extensions.append((x509.SubjectAlternativeName([_general(n) for n in names]), False))
        if not bare:
            own, signers = self._private.public_key(), signer._private.public_key()
            extensions += [
                (x509.SubjectKeyIdentifier.from_public_key(own), False),
                (x509.AuthorityKeyIdentifier.from_issuer_public_key(signers), False),
            ]
        if authority and not bare:
            signs = dict.fromkeys(("key_cert_sign", "crl_sign"), True)
            others = ("digital_signature", "content_commitment", "key_encipherment")
            more = ("data_encipherment", "key_agreement", "encipher_only", "decipher_only")
            usage = x509.KeyUsage(**signs, **dict.fromkeys((*others, *more), False))
            extensions.append((usage, True))
        return extensions


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
