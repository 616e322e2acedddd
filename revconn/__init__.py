"""Answer gRPC requests from behind a firewall: the service dials out, the gateway calls in."""

from __future__ import annotations

from typing import TYPE_CHECKING

from revconn.connector import Connector, LinkStatus
from revconn.core.status import StatusCode
from revconn.exceptions import (
    AuthenticationError,
    CallError,
    ConfigurationError,
    ConnectionLost,
    HandshakeError,
    MessageTooLarge,
    Overloaded,
    ProtocolError,
    RequestError,
    RevconnError,
    is_fatal,
)
from revconn.messages import Request, Response
from revconn.runtime.state import State
from revconn.serving.handlers import Handler
from revconn.settings.options import TLS, Backoff

__all__ = [
    "TLS",
    "AuthenticationError",
    "Backoff",
    "CallError",
    "ConfigurationError",
    "ConnectionLost",
    "Connector",
    "Handler",
    "HandshakeError",
    "LinkStatus",
    "MessageTooLarge",
    "Overloaded",
    "ProtocolError",
    "Request",
    "RequestError",
    "Response",
    "RevconnError",
    "State",
    "StatusCode",
    "is_fatal",
]

__version__: str

if not TYPE_CHECKING:  # it would have every name of this module be known to type checkers

    def __getattr__(name: str) -> str:
        if name != "__version__":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return _find_version()


def _find_version() -> str:
    """What setup.cfg says, in a source tree, and else what was installed."""
    import configparser
    import importlib.metadata
    import pathlib

    declared = configparser.ConfigParser(interpolation=None)
    declared.read(pathlib.Path(__file__).parents[1] / "setup.cfg", encoding="utf-8")
    if declared.get("metadata", "name", fallback=None) == __name__:
        return declared["metadata"]["version"]
    return importlib.metadata.version(__name__)
