"""The embedded gateway: connectors dial in, any gRPC client calls their services through it."""

from __future__ import annotations

from revconn.gateway.gateway import Gateway
from revconn.gateway.report import ConnectionInfo
from revconn.gateway.tls import ServerTLS

__all__ = ["ConnectionInfo", "Gateway", "ServerTLS"]
