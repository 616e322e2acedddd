"""The embedded gateway: connectors dial in, any gRPC client calls their services through it."""

from __future__ import annotations

from revconn.gateway.registry import ConnectionInfo
from revconn.gateway.server import Gateway
from revconn.gateway.tls import ServerTLS

__all__ = ["ConnectionInfo", "Gateway", "ServerTLS"]
