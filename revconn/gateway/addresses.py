"""The addresses of services that listen themselves: what can be dialled, and what may be.

Whoever holds a key names them, and the gateway reaches places that such a holder does not: itself
and its neighbours on the same machine, and the service of a cloud that tells a machine its own
secrets. Those are dialled only where the gateway's owner says so.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from typing import NamedTuple
from urllib.parse import unquote

from revconn.exceptions import ConfigurationError
from revconn.settings.target import IPAddress, Target, bare_host, ip_address

__all__ = ["Address", "is_private", "lookup", "network_of", "networks_of", "quoted"]

_LONGEST = 300  # characters: a name of DNS has 253 at most
_PORTS = {"http": 80, "https": 443}
_USER_INFO = re.compile(r"^([a-z]+://)?.*@", re.DOTALL | re.IGNORECASE)

# Where clouds tell a machine about itself, apart from link-local addresses.
_METADATA = frozenset(
    ipaddress.ip_address(text)
    for text in (
        "fd00:ec2::254",  # AWS
        "fd20:ce::254",  # Google
        "100.100.100.200",  # Alibaba
        "168.63.129.16",  # Azure
        "192.0.0.192",  # Oracle
    )
)
_THIS_NETWORK = ipaddress.ip_network("0.0.0.0/8")  # Linux takes 0.0.0.0 for the machine itself
_SITE_LOCAL = ipaddress.ip_network("fec0::/10")
# IPv6 addresses whose last four bytes are an IPv4 address, which is what is reached by them.
_EMBEDDING = tuple(
    ipaddress.ip_network(text) for text in ("::/96", "::ffff:0:0:0/96", "64:ff9b::/96")
)


class Address(NamedTuple):
    """An address that can be dialled: ``host:port``, over TLS or in plaintext."""

    host_port: str
    is_tls: bool

    @classmethod
    def parse(cls, text: str) -> Address | None:
        """``host:port``, or a URL of HTTP's without a path; ``None`` for anything else."""
        # Before anything is searched in it: a peer may send megabytes.
        if len(text) > _LONGEST:
            return None
        scheme, separator, rest = text.partition("://")
        if not separator:
            return cls._of(text, is_tls=False)
        port = _PORTS.get(scheme.lower())
        if port is None:
            return None
        # What deployed services write: http://bot-a:50051, with or without a slash or a port.
        host = rest[:-1] if rest.endswith("/") else rest
        is_tls = scheme.lower() == "https"
        return cls._of(host, is_tls) or cls._of(f"{host}:{port}", is_tls)

    @classmethod
    def _of(cls, host_port: str, is_tls: bool) -> Address | None:
        try:
            target = Target.parse(host_port)
        except ConfigurationError:
            return None
        if target.port is None or target.address != host_port or "/" in host_port:
            return None
        if not host_port.isascii():  # gRPC's resolver knows no internationalized names
            host_port = f"{bare_host(target.host)}:{target.port}"
        return cls(host_port, is_tls) if host_port.isascii() else None

    @property
    def host(self) -> str:
        """A name or a literal, without brackets."""
        return self.host_port.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        """A number from 1 on."""
        return int(self.host_port.rpartition(":")[2])

    @property
    def is_private(self) -> bool:
        """Whether it is private as it is written; what a name leads to, :func:`lookup` finds."""
        host = self.host.rstrip(".").lower()
        ip = ip_address(host)
        if ip is not None:
            return is_private(ip)
        return host == "localhost" or host.endswith(".localhost")

    def __str__(self) -> str:
        return f"https://{self.host_port}" if self.is_tls else self.host_port


def is_private(ip: IPAddress) -> bool:
    """Whether it is this machine itself, its link's, or a cloud's service of metadata.

    So are addresses that no service has: unspecified, multicast, reserved. Addresses of private
    networks (10.0.0.0/8, fc00::/7) are not: that is where services have theirs.
    """
    if isinstance(ip, ipaddress.IPv6Address):
        embedded = _embedded(ip)
        if embedded is not None:
            return is_private(embedded)
        if ip in _SITE_LOCAL:
            return True
        ip = ipaddress.IPv6Address(int(ip))  # without its scope: no other address equals one
    elif ip in _THIS_NETWORK:
        return True
    return (
        ip.is_loopback
        or ip.is_link_local
        or ip.is_unspecified
        or ip.is_multicast
        or (ip.version == 4 and ip.is_reserved)
        or ip in _METADATA
    )


def _embedded(ip: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address that is reached by it, if it is one of those."""
    found = ip.ipv4_mapped or ip.sixtofour
    # ::1 and :: are addresses of IPv6's own.
    if found is None and int(ip) > 1 and any(ip in network for network in _EMBEDDING):
        found = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    return found


def lookup(address: Address, *, dial_private: bool) -> tuple[IPAddress, ...]:
    """The IP addresses behind a host that may be dialled, the best first. It blocks.

    What it returns is to be connected to, and not the name: that could lead elsewhere by then.
    Raises :class:`OSError` when there are none.
    """
    found: dict[IPAddress, None] = {}  # for its order
    # As bytes: of text Python would make IDNA first, and raise what is no OSError.
    host = address.host.encode()
    for *_, where in socket.getaddrinfo(host, address.port, type=socket.SOCK_STREAM):
        ip = ip_address(str(where[0]))
        if ip is not None:
            found[ip] = None
    allowed = tuple(ip for ip in found if dial_private or not is_private(ip))
    if not allowed:
        listed = ", ".join(map(str, found)) or "no address"
        problem = f"{address.host} is {listed}, which this gateway does not dial (dial_private)"
        raise OSError(problem)
    return allowed


def quoted(text: str) -> str:
    """What a peer gave for an address, quoted for the log without a password in it."""
    return repr(_USER_INFO.sub(r"\1***@", text)[:200])


def network_of(peer: str) -> str:
    """``ipv4:192.0.2.1:54321`` without the port; of ``ipv6:[2001:db8::1]:54321`` the network."""
    return networks_of(peer)[-1]


def networks_of(peer: str) -> tuple[str, ...]:
    """The same, and of IPv6 the network before it that is given to a site, of 48 bits."""
    host = peer.rpartition(":")[0] or peer
    ip = ip_address(unquote(host.partition(":")[2]).strip("[]"))
    if not isinstance(ip, ipaddress.IPv6Address):
        return (host,)
    if ip.ipv4_mapped:  # whoever comes by IPv4 to a socket of both
        return (str(ip.ipv4_mapped),)
    site, network = (ipaddress.IPv6Address(int(ip) >> bits << bits) for bits in (80, 64))
    return f"{site}/48", str(network)
