"""Which connectors are there, what they serve, and whose turn it is.

Everything here belongs to the gateway's thread, except :meth:`Registry.describe`.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Callable

from revconn._proto.registry_pb2 import ConnectionMessage
from revconn.core.routing import lookup_order
from revconn.core.status import StatusCode

__all__ = ["Connection", "ConnectionInfo", "Registry"]


@dataclass(frozen=True)
class ConnectionInfo:
    """One connector's connection, as it was when it was asked for.

    :ivar connection_id: the UUID the gateway gave it.
    :ivar services: the full gRPC names it registered.
    :ivar peer: its address as gRPC writes it, ``ipv4:192.0.2.1:54321``.
    :ivar age: seconds since it registered.
    :ivar heartbeat_age: seconds since its last heartbeat, or since it registered.
    :ivar pending: requests sent to it that are not settled yet.
    :ivar draining: whether it is leaving: it finishes what it has and gets nothing new.
    :ivar unmatched: its answers that no pending request waited for, duplicates included.
    """

    connection_id: str
    services: tuple[str, ...]
    peer: str
    age: float
    heartbeat_age: float
    pending: int
    draining: bool
    unmatched: int


@dataclass(eq=False)
class Connection:
    """One connector's stream.

    ``key`` says which API key it showed (never the key itself). ``send`` queues a message and
    says whether there was room for it; ``end`` ends the stream with a status and a reason, the
    first call counts. ``departure`` says how it takes its leave, once it does. Times are
    monotonic seconds.
    """

    id: str
    key: int
    services: tuple[str, ...]
    peer: str
    connected_at: float
    send: Callable[[ConnectionMessage], bool]
    end: Callable[[StatusCode, str], None]
    pending: set[str] = field(default_factory=set)
    departure: str = ""
    unmatched: int = 0
    last_heartbeat: float = field(init=False)

    def __post_init__(self) -> None:
        self.last_heartbeat = self.connected_at

    @property
    def draining(self) -> bool:
        """Whether it is leaving: it finishes what it has and gets nothing new."""
        return bool(self.departure)

    def end_if_drained(self) -> None:
        """End the stream in peace once it is leaving and all it was sent is settled."""
        if self.draining and not self.pending:
            self.end(StatusCode.OK, f"{self.departure}, and all that was sent to it is settled")

    def describe(self, now: float) -> ConnectionInfo:
        """A picture of the connection at ``now``."""
        return ConnectionInfo(
            connection_id=self.id,
            services=self.services,
            peer=self.peer,
            age=now - self.connected_at,
            heartbeat_age=now - self.last_heartbeat,
            pending=len(self.pending),
            draining=self.draining,
            unmatched=self.unmatched,
        )


class Registry:
    """The live connections, and a ring of them for every service."""

    def __init__(self) -> None:
        # Replaced, never changed: any thread may read it without a lock.
        self._connections: tuple[Connection, ...] = ()
        self._rings: dict[str, deque[Connection]] = {}

    @property
    def connections(self) -> tuple[Connection, ...]:
        """All connections, oldest first."""
        return self._connections

    def describe(self, now: float) -> tuple[ConnectionInfo, ...]:
        """A picture of every connection. Safe from any thread."""
        return tuple(connection.describe(now) for connection in self._connections)

    def add(self, connection: Connection) -> None:
        """Route the services of ``connection`` to it, among others that serve them."""
        self._connections = (*self._connections, connection)
        for service in connection.services:
            self._rings.setdefault(service, deque()).append(connection)

    def drain(self, connection: Connection, departure: str) -> None:
        """Route nothing new to ``connection``; its stream ends when all it has is settled."""
        if not connection.draining:
            connection.departure = departure
            self._unroute(connection)
        connection.end_if_drained()

    def remove(self, connection: Connection) -> None:
        """Forget ``connection``."""
        self._connections = tuple(other for other in self._connections if other is not connection)
        if not connection.draining:
            self._unroute(connection)

    def _unroute(self, connection: Connection) -> None:
        for service in connection.services:
            ring = self._rings[service]
            ring.remove(connection)
            if not ring:
                del self._rings[service]

    def serves(self, service: str) -> bool:
        """Whether anybody serves ``service``, or a dotted parent of it."""
        return any(name in self._rings for name in lookup_order(service))

    def take_turn(self, service: str) -> Connection | None:
        """The connection whose turn it is to serve ``service``; ``None`` when nobody does."""
        for name in lookup_order(service):
            ring = self._rings.get(name)
            if ring is not None:
                connection = ring[0]
                ring.rotate(-1)
                return connection
        return None

    def expired(self, now: float, heartbeat_timeout: float) -> list[Connection]:
        """The connections whose last heartbeat is ``heartbeat_timeout`` seconds old or older."""
        return [
            connection
            for connection in self._connections
            if now - connection.last_heartbeat >= heartbeat_timeout
        ]
