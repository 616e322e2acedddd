"""Answer gRPC requests from behind a firewall: the service dials out, the gateway calls in."""

from revconn.config import TLS, Backoff
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
)
from revconn.messages import Request, Response
from revconn.runtime.failures import is_fatal
from revconn.runtime.state import State

__all__ = [
    "TLS",
    "AuthenticationError",
    "Backoff",
    "CallError",
    "ConfigurationError",
    "ConnectionLost",
    "Connector",
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
