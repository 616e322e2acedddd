"""A connector's side of a connection in each phase, and what a gateway may say in it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import Any

from revconn._proto.registry_pb2 import (
    CancelRequest,
    ConnectionMessage,
    ConnectionRegister,
    ConnectionStatus,
    ForwardRequest,
)
from revconn.core.connection import Terms
from revconn.core.connector_side import ConnectorConnection, FromGateway
from revconn.core.gateway_side import GatewayConnection, GatewayLiveness
from revconn.core.liveness import ConnectorLiveness, Prober

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


TOKEN = "0" * 32


class Connector(ConnectorConnection):
    """One whose time stands still where a test says nothing of it, and that logs what it hears."""

    def receive(self, batch: Sequence[bytes], now: float = 0.0) -> FromGateway:
        inbound = super().receive(batch, now)
        self.log()
        return inbound


def opened(liveness_timeout: float | None = 90.0, *, handshake_timeout: float = 10.0) -> Connector:
    numbers = count(1)
    liveness = ConnectorLiveness(
        handshake_timeout, 30.0, liveness_timeout, lambda: f"probe-{next(numbers)}"
    )
    return Connector(liveness, token=TOKEN)


def agreed(connection: Connector, *features: str) -> Connector:
    """The same, with a gateway that announced these features."""
    terms = Terms(30.0, 90.0, 4 << 20)
    connection.agree(terms.met_with([("revconn-features", ",".join(features))]))
    return connection


def registering(
    liveness_timeout: float | None = 90.0, *, now: float = 0.0, prober: Prober | None = None
) -> Connector:
    connection = opened(liveness_timeout)
    connection.register("key", ["echo.Echo"], now, prober)
    return connection


def ready(
    liveness_timeout: float | None = 90.0, *, now: float = 0.0, prober: Prober | None = None
) -> Connector:
    connection = registering(liveness_timeout, now=now, prober=prober)
    connection.receive([status(CONNECTED, "id-1")], now)
    return connection


def leaving() -> Connector:
    connection = ready()
    connection.disconnect()
    return connection


def ended() -> Connector:
    connection = ready()
    connection.end()
    return connection


def said(inbound: FromGateway) -> dict[str, Any]:
    """What a batch meant, without what it did not mean."""
    parts = {name: getattr(inbound, name) for name in FromGateway.__slots__}
    is_rare = parts.pop("is_rare")
    meant = {name: part for name, part in parts.items() if part}
    assert is_rare or meant.keys() <= {"requests", "end"}, "nobody looks for anything else"
    return meant


def ids(inbound: FromGateway) -> list[str]:
    return [request_id for _, request_id, *_ in inbound.requests]


def accepted(connection_id: str = "id-1", now: float = 0.0, *features: str) -> GatewayConnection:
    """A gateway's side of a connection that it has accepted."""
    liveness = GatewayLiveness(now, 10.0, 120.0)
    connection = GatewayConnection(
        liveness, features=frozenset(features), max_message_bytes=4 << 20
    )
    register = ConnectionMessage(register=ConnectionRegister(api_key="key"))
    connection.receive([register.SerializeToString()], now)
    connection.accept(connection_id, now)
    return connection
