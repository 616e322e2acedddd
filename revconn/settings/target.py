"""Gateways' addresses."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Union

from revconn.settings.checks import refuse

__all__ = ["IPAddress", "Target", "bare_host", "ip_address", "parse_targets"]

IPAddress = Union[ipaddress.IPv4Address, ipaddress.IPv6Address]

_TARGET_REMEDY = (
    'write host:port, such as "gateway.example.com:443" ([::1]:50051 for IPv6, unix:/path for a'
    " socket); TLS is chosen by tls=, not by the address"
)
# [0-9] and not \d: int() would read the digits of other scripts too.
_HOST_PORT = re.compile(r"(?:\[(?P<v6>[^\[\]]+)\]|(?P<name>[\w.-]+)):(?P<port>[0-9]{1,6})")


@dataclass(frozen=True)
class Target:
    """A gateway's address: ``host:port``, ``[v6]:port``, ``dns:///host:port`` or ``unix:path``.

    What it says of itself is worked out once: every connection asks for it again.

    :param address: as it was given, for users to recognize it.
    :param host: of that; ``localhost`` for a socket in the file system.
    :param port: ``None`` for such a socket.
    :param ip: the one of the host's addresses that is meant; ``None``: any of them.
    """

    address: str
    host: str
    port: int | None
    ip: str | None = None

    @classmethod
    def parse(cls, text: Any) -> Target:
        """Raises :class:`ConfigurationError` for anything else."""
        # Of a file or a variable there is a newline at the end, most often; none belongs inside.
        address = text.strip() if isinstance(text, str) else ""
        if not address or not address.isprintable():
            refuse("targets", text, "not an address", _TARGET_REMEDY)
        # A socket has no name that a certificate could hold, so it goes by this machine's.
        if address.startswith("unix:") and len(address) > len("unix:"):
            return cls(address, "localhost", None)
        matched = _HOST_PORT.fullmatch(address[len("dns:///") :] if _is_dns(address) else address)
        if matched is None:
            problem = "a URL, not an address" if "://" in address else "not host:port"
            refuse("targets", text, problem, _TARGET_REMEDY)
        port = int(matched["port"])
        if not 1 <= port <= 65535:
            refuse("targets", text, f"port {port} does not exist", "use a port from 1 to 65535")
        host = matched["v6"] or matched["name"]
        if matched["v6"] and not isinstance(ip_address(host), ipaddress.IPv6Address):
            refuse("targets", text, f"{host} is not an IPv6 address", _TARGET_REMEDY)
        return cls(address, host, port)

    def at(self, ip: str) -> Target:
        """The gateway at one of the host's addresses: its name is the same, to TLS too."""
        return replace(self, ip=ip)

    @property
    def is_name(self) -> bool:
        """Whether the host is to be looked up, and may have several addresses."""
        return self.port is not None and ip_address(self.host) is None

    @cached_property
    def is_loopback(self) -> bool:
        """Whether the address cannot leave this machine."""
        # By what it says. What a name resolves to is for the network to decide, and to change; this
        # decides whether the key is sent in the clear.
        host = bare_host(self.host)
        if self.port is None or host == "localhost":
            return True
        address = ip_address(host)
        return address is not None and address.is_loopback

    @cached_property
    def authority(self) -> str:
        """What HTTP/2 calls the gateway: as certificates name it, and the port."""
        if self.port is None:
            return "localhost"
        host = bare_host(self.host)
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"

    @cached_property
    def destination(self) -> str:
        """What a proxy is asked for. A zone means something on this machine only."""
        return _in_ascii(re.sub(r"%[^\]]*", "", self.address.rpartition("dns:///")[2]))

    @cached_property
    def place(self) -> tuple[str, int | None]:
        """Host and port, or a socket's path: the same for every spelling of one address."""
        if self.port is None:
            return self.unix_path, None
        address = ip_address(self.host)
        return bare_host(self.host) if address is None else str(address), self.port

    @cached_property
    def unix_path(self) -> str:
        """The socket's path, for a target without a port."""
        path = self.address[len("unix:") :]
        return path[2:] if path.startswith("//") else path

    def __str__(self) -> str:
        return self.address if self.ip is None else f"{self.address} ({self.ip})"


def parse_targets(targets: str | Sequence[str]) -> tuple[Target, ...]:
    """One target or several; no target twice."""
    texts = [targets] if isinstance(targets, str) else targets
    try:
        parsed = tuple(Target.parse(text) for text in texts)
    except TypeError:
        refuse("targets", targets, "neither an address nor a list of them", _TARGET_REMEDY)
    if not parsed:
        refuse("targets", targets, "names no gateway", _TARGET_REMEDY)
    # By place, not by spelling: a second connection to one gateway would only share in the requests
    # of the first, and end with it.
    if len({target.place for target in parsed}) < len(parsed):
        refuse("targets", targets, "names a gateway twice", "name each gateway once")
    return parsed


def _is_dns(address: str) -> bool:
    return address.startswith("dns:///")


def ip_address(host: str) -> IPAddress | None:
    """The address that a host is; ``None`` for a name."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def bare_host(host: str) -> str:
    """A host as certificates know it: no zone, no final dot, ASCII, one spelling of an address."""
    address = ip_address(host.partition("%")[0])
    return _in_ascii(host).lower().rstrip(".") if address is None else str(address)


def _in_ascii(name: str) -> str:
    """An internationalized name as DNS has it, as resolvers and Python's ssl make it too."""
    if name.isascii():
        return name
    # Python's own codec, which knows IDNA 2003: so that all sides ask for one name, whether it is
    # resolved here, by a proxy, or looked for in a certificate.
    try:
        return name.encode("idna").decode()
    except UnicodeError:
        return name  # it does not resolve either
