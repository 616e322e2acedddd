"""Who takes part: the command lines of connectors and clients, each a program of its own."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from tests.interop.building import BUILD, GO, HERE, JAVA, NODE, Sources
from tests.support.pairwise import pairwise

__all__ = [
    "CLIENTS",
    "CONNECTORS",
    "KEY",
    "TRIES",
    "client_command",
    "connector_command",
    "needed",
]

KEY = "the-right-key"

CONNECTORS = ("go", "node", "java", "python-http2", "python-grpcio")
CLIENTS = ("go", "node", "java", "python")

# What clients try, and report on in one line each.
CASES = (
    "echo",
    "empty",
    "large",
    "gzip",
    "metadata",
    "many",
    "error",
    "details",
    "unknown method",
    "unknown service",
    "deadline",
    "timeout told",
    "cancel",
)

# (connector, client, case): everyone meets everyone, and every case with everyone on both sides.
TRIES = pairwise(CONNECTORS, CLIENTS, CASES)

_SOURCES = {"go": GO, "node": NODE, "java": JAVA}
_JAVA = ("java", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-cp")
_CLASSES = f"{BUILD}/java/classes:{BUILD}/java/libraries/*"


def needed(peer: str) -> Sources | None:
    """What has to be built before a peer can run."""
    return _SOURCES.get(peer)


def connector_command(peer: str, address: str, key: str) -> list[str]:
    """A connector that registers ``demo.Greeter`` until SIGTERM."""
    language, _, transport = peer.partition("-")
    if language == "go":
        program = f"{BUILD}/go/connector"
        return [program, "-service", "demo.Greeter", "-api-key", key, address]
    if language == "node":
        return ["node", f"{BUILD}/node/connector.js", address, key]
    if language == "java":
        return [*_JAVA, _CLASSES, "interop.Connector", address, key]
    return [sys.executable, f"{HERE}/python/connector.py", address, key, transport]


def client_command(peer: str, tries: Sequence[str]) -> list[str]:
    """A client that tries each ``ADDRESS/CASE`` on ``demo.Greeter``, and ends."""
    if peer == "go":
        return [f"{BUILD}/go/client", *tries]
    if peer == "node":
        return ["node", f"{BUILD}/node/client.js", *tries]
    if peer == "java":
        return [*_JAVA, _CLASSES, "interop.Client", *tries]
    return [sys.executable, f"{HERE}/python/client.py", *tries]
