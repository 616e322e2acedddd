"""The programs that are compared. Each is a small program of its own that echoes payloads."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from benchmarks.golang import GUIDE_CLIENT

__all__ = ["FLEET", "PEERS", "Peer", "connector", "gateway", "serve"]


@dataclass(frozen=True)
class Peer:
    """One row of the report.

    ``command`` gets the gateway's address appended. A peer that ``listens`` instead prints the
    address where it serves ordinary gRPC calls. One with ``tls`` gets the certificate to trust
    after ``--ca``; one with several ``connections`` has so many connectors in its process.
    """

    name: str
    description: str
    command: tuple[str, ...]
    listens: bool = False
    tls: bool = False
    connections: int = 1


def _python(module: str, *arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-m", f"benchmarks.peers.{module}", *arguments)


def connector(*arguments: str) -> tuple[str, ...]:
    """The command of a peer that is this library's Connector."""
    return _python("connector", *arguments)


def gateway(*arguments: str) -> tuple[str, ...]:
    """The command of this library's Gateway, which is no peer of the table below."""
    return _python("gateway", *arguments)


def serve(*arguments: str) -> tuple[str, ...]:
    """The command of a connector in several processes, with a handler that computes."""
    return _python("serve", *arguments)


FLEET = 50

PEERS = {
    peer.name: peer
    for peer in [
        Peer("revconn", "this library's Connector as it comes", connector()),
        Peer("revconn-inline", "the same with an inline handler", connector("--inline")),
        Peer("revconn-grpcio", "the same over grpcio", connector("--transport", "grpcio")),
        Peer("literal", "the guide's client, a thread per request", _python("literal")),
        Peer("bare", "a grpcio stream answered in the receive loop", _python("bare")),
        Peer("server", "not reverse: grpc.server called directly", _python("server"), True),
        Peer("go", "the guide's client in Go", (str(GUIDE_CLIENT),)),
        Peer("revconn-tls", "revconn over TLS", connector(), tls=True),
        Peer("go-tls", "the guide's client in Go over TLS", (str(GUIDE_CLIENT),), tls=True),
        Peer(
            "revconn-busy",
            "32 handlers that compute without a pause",
            connector("--handler=busy", "--workers=32"),
        ),
        Peer(
            "revconn-fleet",
            f"{FLEET} connectors in one process, as docs/topics/performance sets it up",
            connector(f"--connectors={FLEET}", "--switch-interval=0.05"),
            connections=FLEET,
        ),
        Peer(
            "revconn-fleet-5ms",
            f"{FLEET} connectors in one process with Python's own switch interval",
            connector(f"--connectors={FLEET}"),
            connections=FLEET,
        ),
        Peer("revconn-slow", "a handler that takes 0.05 s", connector("--handler=slow")),
    ]
}
