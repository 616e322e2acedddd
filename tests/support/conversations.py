"""Conversations in each phase, and what a gateway may say in them."""

from __future__ import annotations

from revconn._proto.registry_pb2 import (
    CancelRequest,
    ConnectionMessage,
    ConnectionStatus,
    ForwardRequest,
)
from revconn.core.protocol import Conversation, Inbound
from revconn.core.terms import Terms

CONNECTED = ConnectionStatus.CONNECTED
DISCONNECTED = ConnectionStatus.DISCONNECTED
ERROR = ConnectionStatus.ERROR


def status(kind: int, connection_id: str = "", message: str = "") -> bytes:
    fields = ConnectionStatus(status=kind, connection_id=connection_id, message=message)
    return ConnectionMessage(status=fields).SerializeToString()


def request(request_id: str = "r1") -> bytes:
    fields = ForwardRequest(request_id=request_id, method_path="/echo.Echo/Say")
    return ConnectionMessage(request=fields).SerializeToString()


def cancel(request_id: str = "r1", reason: str = "") -> bytes:
    fields = CancelRequest(request_id=request_id, reason=reason)
    return ConnectionMessage(cancel=fields).SerializeToString()


def agreed(conversation: Conversation, *features: str) -> Conversation:
    """The same, with a gateway that announced these features."""
    terms = Terms(30.0, 90.0, 4 << 20)
    conversation.agree(terms.met_with([("revconn-features", ",".join(features))]))
    return conversation


def registering(liveness_timeout: float | None = 90.0) -> Conversation:
    conversation = Conversation(liveness_timeout=liveness_timeout)
    conversation.register("key", ["echo.Echo"])
    return conversation


def ready(liveness_timeout: float | None = 90.0) -> Conversation:
    conversation = registering(liveness_timeout)
    conversation.receive([status(CONNECTED, "id-1")])
    return conversation


def leaving() -> Conversation:
    conversation = ready()
    conversation.disconnect()
    return conversation


def ended() -> Conversation:
    conversation = ready()
    conversation.end()
    return conversation


def ids(inbound: Inbound) -> list[str]:
    return [message.request_id for message, _ in inbound.requests]
