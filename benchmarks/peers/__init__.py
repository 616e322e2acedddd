"""The programs that are compared. Each is a small program of its own that echoes payloads."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from benchmarks.golang import GUIDE_CLIENT

__all__ = ["PEERS", "Peer"]


@dataclass(frozen=True)
class Peer:
    """One row of the report.

    ``command`` gets the gateway's address appended. A peer that ``listens`` instead prints the
    address where it serves ordinary gRPC calls.
    """

    name: str
    description: str
    command: tuple[str, ...]
    listens: bool = False


def _python(module: str, *arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-m", f"benchmarks.peers.{module}", *arguments)


PEERS = {
    peer.name: peer
    for peer in [
        Peer("revconn", "this library's Connector as it comes", _python("connector")),
        Peer(
            "revconn-inline",
            "the same with an inline handler",
            _python("connector", "--inline"),
        ),
        Peer(
            "revconn-grpcio",
            "the same over grpcio",
            _python("connector", "--transport", "grpcio"),
        ),
        Peer("literal", "the guide's client, a thread per request", _python("literal")),
        Peer("bare", "a grpcio stream answered in the receive loop", _python("bare")),
        Peer("server", "not reverse: grpc.server called directly", _python("server"), True),
        Peer("go", "the guide's client in Go", (str(GUIDE_CLIENT),)),
    ]
}
