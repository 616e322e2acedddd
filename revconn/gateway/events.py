"""Events: who is subscribed to what, and their delivery. It belongs to the gateway's thread."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable

from revconn._proto.registry_pb2 import ConnectionMessage, EventMessage
from revconn.core.status import StatusCode
from revconn.gateway.keys import ApiKeys
from revconn.gateway.limits import Counters, Limits
from revconn.gateway.refusals import Refused, over_limit
from revconn.gateway.routes import Connection

__all__ = ["Events"]

_LONGEST_TYPE = 256


class Events:
    """Every subscription. Events are delivered at most once, and delay nothing and nobody."""

    def __init__(self, keys: ApiKeys, limits: Limits, counters: Counters) -> None:
        self._keys = keys
        self._limit = limits.max_subscriptions
        self._counters = counters
        # A dict for its order: subscribers hear of an event in the order they subscribed.
        self._subscribers: dict[str, dict[Connection, None]] = {}

    def subscribe(self, connection: Connection, event_types: Iterable[str]) -> None:
        """Subscribe; twice is once.

        Raises :class:`Refused` at the first type that goes too far; those before it hold. And after
        the others, for those that the connection's key may not have.
        """
        forbidden: list[str] = []
        for event_type in event_types:
            if event_type in connection.subscriptions:
                continue
            if len(event_type) > _LONGEST_TYPE:
                problem = f"{event_type[:64]!r}...: no type of events is that long"
                raise Refused(StatusCode.INVALID_ARGUMENT, problem)
            if not self._keys.may_subscribe(connection.key, event_type):
                forbidden.append(event_type)
                # A message has room for a million, all of which would hold up everybody else.
                if len(forbidden) >= self._limit:
                    break
                continue
            if len(connection.subscriptions) >= self._limit:
                problem = f"a connection may have {self._limit:,} subscriptions"
                raise over_limit(self._counters, "max_subscriptions", problem)
            connection.subscriptions.add(event_type)
            self._subscribers.setdefault(event_type, {})[connection] = None
        if forbidden:
            self._counters.subscriptions_forbidden += len(forbidden)
            raise _forbidden("subscribe to", forbidden[0])

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

    def publish(self, event: EventMessage, publisher: Connection) -> None:
        """Send an event to everyone subscribed to its type, whoever published it included.

        Raises :class:`Refused` for a type that the publisher's key may not publish.
        """
        if not self._keys.may_publish(publisher.key, event.event_type):
            self._counters.events_forbidden += 1
            raise _forbidden("publish", event.event_type)
        self._counters.events_published += 1
        subscribers = self._subscribers.get(event.event_type)
        if subscribers is None:
            self._counters.events_unwanted += 1
            return
        # Subscribers know by it who it was: its own word could name anybody.
        event.publisher_id = publisher.id
        # What a publisher left out is filled in here, for all subscribers alike.
        if not event.event_id:
            event.event_id = str(uuid.uuid4())
        if not event.timestamp:
            event.timestamp = int(time.time())
        # Once for all subscribers: what is queued for each is the same bytes.
        data = ConnectionMessage(event=event).SerializeToString()
        for connection in subscribers:
            # Asked again: the key may have lost the right since it subscribed.
            if self._keys.may_subscribe(connection.key, event.event_type):
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


def _forbidden(what: str, event_type: str) -> Refused:
    problem = f"the API key may not {what} {event_type[:64]!r}"
    return Refused(StatusCode.PERMISSION_DENIED, problem)
