"""Events: who is subscribed to what, and their delivery. It belongs to the gateway's thread."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable

from revconn._proto.registry_pb2 import ConnectionMessage, EventMessage
from revconn.core.status import StatusCode
from revconn.gateway.limits import Counters, Limits
from revconn.gateway.refusals import Refused, over_limit
from revconn.gateway.routes import Connection

__all__ = ["Events"]

_LONGEST_TYPE = 256


class Events:
    """Every subscription. Events are delivered at most once, and delay nothing and nobody."""

    def __init__(self, limits: Limits, counters: Counters) -> None:
        self._limit = limits.max_subscriptions
        self._counters = counters
        # A dict for its order: subscribers hear of an event in the order they subscribed.
        self._subscribers: dict[str, dict[Connection, None]] = {}

    def subscribe(self, connection: Connection, event_types: Iterable[str]) -> None:
        """Subscribe; twice is once.

        Raises :class:`Refused` at the first type that goes too far; those before it hold.
        """
        for event_type in event_types:
            if len(event_type) > _LONGEST_TYPE:
                problem = f"{event_type[:64]!r}...: no type of events is that long"
                raise Refused(StatusCode.INVALID_ARGUMENT, problem)
            if event_type not in connection.subscriptions:
                if len(connection.subscriptions) >= self._limit:
                    problem = f"a connection may have {self._limit:,} subscriptions"
                    raise over_limit(self._counters, "max_subscriptions", problem)
                connection.subscriptions.add(event_type)
                self._subscribers.setdefault(event_type, {})[connection] = None

    def unsubscribe(self, connection: Connection, event_types: Iterable[str]) -> None:
        """Undo subscriptions, as far as there are any."""
        for event_type in event_types:
            if event_type in connection.subscriptions:
                connection.subscriptions.remove(event_type)
                # No type is kept that nobody wants: connectors choose the names.
                subscribers = self._subscribers[event_type]
                del subscribers[connection]
                if not subscribers:
                    del self._subscribers[event_type]

    def forget(self, connection: Connection) -> None:
        """The subscriptions of a connection end with it."""
        # A copy, since unsubscribing takes each out of it.
        self.unsubscribe(connection, tuple(connection.subscriptions))

    def publish(self, event: EventMessage) -> None:
        """Send an event to everyone subscribed to its type, whoever published it included."""
        self._counters.events_published += 1
        subscribers = self._subscribers.get(event.event_type)
        if subscribers is None:
            self._counters.events_unwanted += 1
            return
        # What a publisher left out is filled in here, for all subscribers alike.
        if not event.event_id:
            event.event_id = str(uuid.uuid4())
        if not event.timestamp:
            event.timestamp = int(time.time())
        # Once for all subscribers: what is queued for each is the same bytes.
        data = ConnectionMessage(event=event).SerializeToString()
        for connection in subscribers:
            self._deliver(data, connection)

    def _deliver(self, data: bytes, connection: Connection) -> None:
        # It would end the subscriber's whole stream, and with it every call there.
        if len(data) > connection.max_message_bytes:
            self._drop(connection, 1)
            return
        self._counters.events_delivered += 1
        dropped = connection.outbound.put_event(data)
        if dropped:
            self._drop(connection, dropped)

    def _drop(self, connection: Connection, count: int) -> None:
        self._counters.events_dropped += count
        connection.lose_events(count)
