"""Which HTTP proxy to go through."""

from __future__ import annotations

import base64
import ipaddress
import re
import urllib.parse
from dataclasses import dataclass, field

from revconn.settings.checks import refuse
from revconn.settings.target import IPAddress, Target, bare_host, ip_address

__all__ = ["Proxy", "proxy_for"]


@dataclass(frozen=True)
class Proxy:
    """An HTTP proxy: its address, and its URL and credentials, which are never shown."""

    host: str
    port: int
    url: str = field(repr=False)
    authorization: str | None = field(repr=False)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @classmethod
    def parse(cls, url: str, name: str = "proxy") -> Proxy:
        """``http://[user:password@]host[:port]``; raises :class:`ConfigurationError`."""
        host, port, parts = None, None, None
        try:
            parts = urllib.parse.urlsplit(url if "://" in url else f"http://{url}")
            host, port = parts.hostname, parts.port
        except ValueError:  # whose text may show the credentials
            pass
        # None of the words of it goes into the error: part of the URL may be a password.
        if (
            port == 0
            or parts is None
            or parts.scheme != "http"
            or not host
            or not _HOST.fullmatch(host)
        ):
            refuse(name, None, "not an HTTP proxy", "write http://[user:password@]host:port")
        authorization = None
        if parts.username is not None:
            # RFC 3986: what means something to a URL is escaped: an @ in a password is %40.
            user = urllib.parse.unquote(parts.username)
            password = urllib.parse.unquote(parts.password or "")
            credentials = base64.b64encode(f"{user}:{password}".encode()).decode()
            authorization = f"Basic {credentials}"
        return cls(host, 80 if port is None else port, url, authorization)


def proxy_for(target: Target, proxy: str | bool | None) -> Proxy | None:
    """The proxy to go through: the given one, or the environment's; ``False`` means none.

    The environment's (``HTTPS_PROXY``, ``NO_PROXY``) is not used for this machine itself.
    """
    if isinstance(proxy, str):
        return Proxy.parse(proxy)
    # A proxy elsewhere cannot reach what listens on this machine alone.
    if proxy is False or target.is_loopback:
        return None
    import urllib.request  # brings http.client and more of email along

    # The environment's exceptions go with its proxies, and the system's with the system's.
    environment = urllib.request.getproxies_environment()
    if environment:
        is_exempt = _is_exempt(target, environment.get("no", ""))
    else:  # macOS and Windows have settings of their own
        is_exempt = bool(urllib.request.proxy_bypass(target.host))
    url = urllib.request.getproxies().get("https")
    return Proxy.parse(url, "HTTPS_PROXY") if url and not is_exempt else None


_HOST = re.compile(r"[\w.-]+|[0-9A-Fa-f:.]+(?:%\w+)?")  # a name, or an IPv6 address
_SEPARATOR = re.compile(r"[,\s]+")
_WITH_PORT = re.compile(r"(?:\[(?P<v6>[^\]]+)\]|(?P<name>[^:\[\]]+)):(?P<port>[0-9]+)")


def _is_exempt(target: Target, no_proxy: str) -> bool:
    return any(_names(entry, target) for entry in _SEPARATOR.split(no_proxy) if entry)


def _names(entry: str, target: Target) -> bool:
    """Whether an entry of ``NO_PROXY`` names the target: docs/topics/transports says how."""
    with_port = _WITH_PORT.fullmatch(entry)
    if with_port is not None:
        if int(with_port["port"]) != target.port:
            return False
        entry = with_port["v6"] or with_port["name"]
    if entry == "*":
        return True
    host = bare_host(target.host)
    address = ip_address(host)
    if address is not None:
        return _covers(entry, address)
    if entry.startswith("*."):
        return host.endswith(f".{bare_host(entry[2:])}")
    name = bare_host(entry.lstrip("."))
    return bool(name) and f".{host}".endswith(f".{name}")


def _covers(entry: str, address: IPAddress) -> bool:
    """Whether an entry is an address, in whatever spelling, or a block that it is in."""
    try:
        block = ipaddress.ip_network(bare_host(re.sub(r"[\[\]]", "", entry)), strict=False)
    except ValueError:
        return False
    # ::ffff:10.0.0.1 is 10.0.0.1 as a socket of both families has it.
    mapped = getattr(address, "ipv4_mapped", None)
    return address in block or (mapped is not None and mapped in block)
