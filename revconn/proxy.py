"""Which HTTP proxy to go through."""

from __future__ import annotations

import base64
import urllib.parse
import urllib.request
from dataclasses import dataclass, field

from revconn.target import Target
from revconn.validation import refuse

__all__ = ["Proxy", "proxy_for"]


@dataclass(frozen=True)
class Proxy:
    """An HTTP proxy: its address, and its URL and credentials, which are never shown."""

    host: str
    port: int
    url: str = field(repr=False)
    authorization: str | None = field(repr=False)

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"

    @classmethod
    def parse(cls, url: str, name: str = "proxy") -> Proxy:
        """``http://[user:password@]host[:port]``; raises :class:`ConfigurationError`."""
        host, port, parts = None, 80, None
        try:
            parts = urllib.parse.urlsplit(url if "://" in url else f"http://{url}")
            host, port = parts.hostname, parts.port or 80
        except ValueError:  # whose text may show the credentials
            pass
        if parts is None or parts.scheme != "http" or not host:
            refuse(name, None, "not an HTTP proxy", "write http://[user:password@]host:port")
        authorization = None
        if parts.username is not None:
            user = urllib.parse.unquote(parts.username)
            password = urllib.parse.unquote(parts.password or "")
            credentials = base64.b64encode(f"{user}:{password}".encode()).decode()
            authorization = f"Basic {credentials}"
        return cls(host, port, url, authorization)


def proxy_for(target: Target, proxy: str | bool | None) -> Proxy | None:
    """The proxy to go through: the given one, or the environment's; ``False`` means none.

    The environment's (``HTTPS_PROXY``, ``NO_PROXY``) is not used for this machine itself.
    """
    if isinstance(proxy, str):
        return Proxy.parse(proxy)
    if proxy is False or target.is_loopback:
        return None
    # Entries of NO_PROXY may name a port.
    if any(urllib.request.proxy_bypass(name) for name in (target.host, target.authority)):
        return None
    url = urllib.request.getproxies().get("https")
    return Proxy.parse(url, "HTTPS_PROXY") if url else None
