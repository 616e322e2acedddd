"""Where a backend says that it listens."""

from __future__ import annotations

import re
from typing import NamedTuple

from revconn.exceptions import ConfigurationError
from revconn.target import Target, bare_host

__all__ = ["Address", "quoted"]

_LONGEST = 300  # characters: a name of DNS has 253 at most
_PORTS = {"http": 80, "https": 443}
_USER_INFO = re.compile(r"^([a-z]+://)?.*@", re.DOTALL | re.IGNORECASE)


class Address(NamedTuple):
    """An address that can be dialled: ``host:port``, over TLS or in plaintext."""

    host_port: str
    is_tls: bool

    @classmethod
    def parse(cls, text: str) -> Address | None:
        """``host:port``, or a URL of HTTP's without a path; ``None`` for anything else."""
        if len(text) > _LONGEST:
            return None
        scheme, separator, rest = text.partition("://")
        if not separator:
            return cls._of(text, is_tls=False)
        port = _PORTS.get(scheme.lower())
        if port is None:
            return None
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

    def __str__(self) -> str:
        return f"https://{self.host_port}" if self.is_tls else self.host_port


def quoted(text: str) -> str:
    """Whatever was given for an address, for a log: without a password that may be in it."""
    return repr(_USER_INFO.sub(r"\1***@", text)[:200])
