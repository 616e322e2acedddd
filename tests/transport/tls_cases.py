"""Certificates and names, and what becomes of them: one table for both transports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from revconn import TLS
from tests.support.certificates import Certificate

__all__ = ["CASES", "Case", "Papers"]

NAME = "gateway.example.com"


class Papers:
    """The certificates in the table, each made when it is first asked for."""

    root = cached_property(lambda p: Certificate("root", authority=True))
    issuing = cached_property(lambda p: Certificate("issuing", issuer=p.root, authority=True))
    stranger = cached_property(lambda p: Certificate("stranger", authority=True))
    leaf = cached_property(lambda p: Certificate(NAME, issuer=p.issuing))
    another_leaf = cached_property(lambda p: Certificate(NAME, issuer=p.issuing))
    strangers_leaf = cached_property(lambda p: Certificate(NAME, issuer=p.stranger))
    self_signed = cached_property(lambda p: Certificate(NAME))
    expired = cached_property(lambda p: Certificate(NAME, issuer=p.root, days=(2, -1)))
    future = cached_property(lambda p: Certificate(NAME, issuer=p.root, days=(-1, 2)))
    # What companies made for themselves, long ago
    old = cached_property(lambda p: Certificate("old", authority=True, bare=True))
    old_leaf = cached_property(lambda p: Certificate(NAME, issuer=p.old, bare=True))
    no_authority = cached_property(lambda p: Certificate("old", says_nothing=True))
    its_leaf = cached_property(lambda p: Certificate(NAME, issuer=p.no_authority))
    only_common_name = cached_property(
        lambda p: Certificate(NAME, issuer=p.root, says_nothing=True)
    )
    weak = cached_property(lambda p: Certificate(NAME, issuer=p.root, rsa_bits=1024))
    # Names
    international = cached_property(lambda p: Certificate("xn--bcher-kva.example", issuer=p.root))
    wildcard = cached_property(lambda p: Certificate("*.example.com", issuer=p.root))
    v4 = cached_property(lambda p: Certificate("192.0.2.1", issuer=p.root))
    v6 = cached_property(lambda p: Certificate("2001:db8::1", issuer=p.root))
    link_local = cached_property(lambda p: Certificate("fe80::1", issuer=p.root))
    # Connectors'
    client = cached_property(lambda p: Certificate("connector", issuer=p.root))
    expired_client = cached_property(
        lambda p: Certificate("connector", issuer=p.root, days=(2, -1))
    )
    strangers_client = cached_property(lambda p: Certificate("connector", issuer=p.stranger))

    def chain(self, names: str) -> list[Certificate]:
        """Those of these names, in this order."""
        return [getattr(self, name) for name in names.split()]


@dataclass(frozen=True)
class Case:
    """Who shows what to whom. Certificates are named as in :class:`Papers`.

    :param chain: what the gateway shows.
    :param ca: whom the connector trusts; empty: the system's authorities.
    :param host: the target's; ``sni`` is what the gateway hears of it, ``None`` for an address.
    :param client: what the connector shows, ``clients`` whose the gateway wants to see.
    :param refused: why they do not come together, in each transport's words; a transport that is
        not there connects.
    """

    title: str
    chain: str = "leaf issuing"
    ca: str = "root"
    host: str = NAME
    server_name: str | None = None
    sni: str | None = NAME
    client: str = ""
    clients: str = ""
    version: str | None = None
    protocols: tuple[str, ...] = ("h2",)
    refused: Mapping[str, str] = field(default_factory=dict)

    def tls(self, papers: Papers) -> TLS:
        """What the connector is told."""
        ca = b"".join(each.pem for each in papers.chain(self.ca))
        shown = papers.chain(self.client)
        return TLS(
            ca=ca or None,
            cert=b"".join(each.pem for each in shown) or None,
            key=shown[0].key if shown else None,
            server_name=self.server_name,
        )


def both(words: str) -> Mapping[str, str]:
    return {"http2": words, "grpcio": words}


UNKNOWN = both("the gateway's certificate is signed by an unknown authority")
ANOTHER_NAME = both("the gateway's certificate is for another name")
NO_CLIENT = {"http2": "demands a client certificate", "grpcio": "client certificate"}
BROKE_OFF = both("broke off the handshake: does it demand TLS(cert=...)?")

CASES = [
    # Whom to trust
    Case("a root that signed the one that signed the gateway's"),
    Case("several authorities, one of which is the right one", ca="stranger root"),
    Case("an issuing authority alone", ca="issuing"),
    Case("an issuing authority alone, which the gateway does not show", chain="leaf", ca="issuing"),
    Case("the gateway's own certificate alone", ca="leaf"),
    Case("the gateway's own certificate alone, and it shows no other", chain="leaf", ca="leaf"),
    Case("a certificate that vouches for itself", chain="self_signed", ca="self_signed"),
    Case("another certificate of the same authority", ca="another_leaf", refused=UNKNOWN),
    Case("another authority", ca="stranger", refused=UNKNOWN),
    Case(
        "an authority whose key is another one by now",
        chain="its_leaf",
        ca="old",
        refused=both("is signed by another key of that authority"),
    ),
    Case("only the system's authorities", ca="", refused=UNKNOWN),
    Case("an issuing authority is missing", chain="leaf", refused=UNKNOWN),
    Case(
        "a certificate that vouches for itself, and nobody else does",
        chain="self_signed",
        refused={
            "http2": "is self-signed: if you trust it, give it as TLS(ca=...)",
            "grpcio": "unknown authority",
        },
    ),
    # What is in certificates
    Case("an old company's authority", chain="old_leaf", ca="old"),
    Case("a common name, and no other", chain="only_common_name"),
    Case(
        "an authority that does not say that it is one",
        chain="its_leaf",
        ca="no_authority",
        refused={"http2": "or give the gateway's own certificate as TLS(ca=...)"},
    ),
    Case("what such an authority signed", chain="its_leaf", ca="its_leaf"),
    Case("a key of 1,024 bits", chain="weak", refused={"http2": "is too weak"}),
    Case(
        "an expired certificate",
        chain="expired",
        refused={"http2": "certificate has expired", "grpcio": "has expired"},
    ),
    Case(
        "one of the future",
        chain="future",
        refused={"http2": "certificate is not yet valid", "grpcio": "is not yet valid"},
    ),
    # Names
    Case("a name in capitals", host="Gateway.EXAMPLE.com"),
    Case("a final dot", host=f"{NAME}."),
    Case("a final dot in the name to expect", host="a.test", server_name=f"{NAME}."),
    Case("a name to expect instead of the target's", host="a.test", server_name=NAME),
    Case("a name to expect instead of an address", host="192.0.2.9", server_name=NAME),
    Case(
        "a name that is not ASCII",
        chain="international",
        host="bücher.example",
        sni="xn--bcher-kva.example",
    ),
    Case("a wildcard", chain="wildcard"),
    Case(
        "a wildcard for one label alone", chain="wildcard", host=f"a.{NAME}", refused=ANOTHER_NAME
    ),
    Case("an IPv4 address", chain="v4", host="192.0.2.1", sni=None),
    Case("an IPv6 address", chain="v6", host="[2001:db8::1]", sni=None),
    Case("another spelling of it", chain="v6", host="[2001:0DB8:0::0001]", sni=None),
    Case("a zone", chain="link_local", host="[fe80::1%eth0]", sni=None),
    Case("an address to expect", chain="v6", host="a.test", server_name="2001:DB8::1", sni=None),
    Case("another name", host="a.test", refused=ANOTHER_NAME),
    Case("another name to expect", server_name="a.test", refused=ANOTHER_NAME),
    Case(
        "another address",
        chain="v4",
        host="192.0.2.2",
        refused={
            "http2": "is for another address: use its name as the target, or give TLS(server_name=",
            "grpcio": "the gateway's certificate is for another name",
        },
    ),
    # The connector's own certificate
    Case("a client certificate", client="client", clients="root"),
    Case("a client certificate before TLS 1.3", client="client", clients="root", version="TLSv1_2"),
    Case("one that nobody asks for", client="client"),
    Case("none where one is demanded", clients="root", refused=NO_CLIENT),
    Case("none, before TLS 1.3", clients="root", version="TLSv1_2", refused=BROKE_OFF),
    Case(
        "one of a stranger",
        client="strangers_client stranger",
        clients="root",
        refused={
            "http2": "refused the client certificate: it does not know who signed it",
            "grpcio": "client certificate",
        },
    ),
    Case(
        "an expired one",
        client="expired_client",
        clients="root",
        refused={
            "http2": "refused the client certificate: it has expired",
            "grpcio": "client certificate",
        },
    ),
    # What is spoken
    Case("nothing newer than TLS 1.2", version="TLSv1_2"),
    Case("nothing newer than TLS 1.1", version="TLSv1_1", refused=both("TLS is too old")),
    Case("no HTTP/2", protocols=(), refused=both("speaks TLS but not HTTP/2")),
    Case(
        "HTTP/1.1 alone",
        protocols=("http/1.1",),
        refused={"http2": "is there a web server in front?", "grpcio": ""},
    ),
]
