"""Which connectors are there, what they serve, whose turn it is, and who is expected back.

Everything here belongs to the gateway's thread, except :meth:`Registry.describe`.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Callable

from revconn.core.gateway_side import GatewayConnection
from revconn.core.rope import Data
from revconn.core.routing import Wanted
from revconn.core.status import StatusCode
from revconn.core.streams import Streams
from revconn.gateway.limits import KEY_SHARE, SHARE, Counters, Load
from revconn.gateway.outbound import Outbound
from revconn.gateway.refusals import Refused, is_pending_already, over_limit, require_size
from revconn.gateway.report import ConnectionInfo, Journal
from revconn.gateway.tenants import Tenants

__all__ = ["Connection", "Registry"]

_MOST_PARTS = 64  # keys or connections for each of which some places are kept
_VERY_FEW = 4  # calls, where there are more
_MOST_EXPECTED = 10_000  # names expected back at once: as many as one connector may register


@dataclass(eq=False)
class Connection:
    """One connector's stream.

    ``protocol`` says what may be said to it, and what it has said. ``key`` says which API key it
    showed (never the key itself). ``outbound`` takes what is to be sent to it; ``end`` ends the
    stream with a status and a reason, the first call counts. ``max_pending`` bounds the requests
    that wait for it, ``max_message_bytes`` is the largest message that may be sent to it.
    ``pending`` are the ids of the calls that it is to answer, and ``asked`` of those that it makes.
    ``streams`` are its streaming calls, ``None`` if it knows none; ``streaming`` the paths of its
    methods that stream, ``mixed`` those of its services of whose methods that is not known, and
    ``introspection`` the services by which it tells of itself: health, reflection.
    ``subscriptions`` are for :class:`revconn.gateway.events.Events` to change. ``departure`` says
    how it takes its leave, once it does. ``load`` is its key's. Times are monotonic seconds.
    """

    id: str
    key: int
    services: tuple[str, ...]
    peer: str
    connected_at: float
    protocol: GatewayConnection
    outbound: Outbound
    end: Callable[[StatusCode, str], None]
    max_pending: int
    max_message_bytes: int
    journal: Journal = field(default_factory=Journal)
    load: Load = field(default_factory=Load)
    # Filled and emptied by Call.queue() and Call.leave(), and by Calls and settle_asked(), and by
    # nobody else: a method for each time that a call comes by would be some of the forty that it
    # costs in all.
    pending: set[str] = field(default_factory=set)
    asked: set[str] = field(default_factory=set)
    subscriptions: set[str] = field(default_factory=set)
    streams: Streams | None = None
    streaming: frozenset[str] = frozenset()
    mixed: frozenset[str] = frozenset()
    introspection: frozenset[str] = frozenset()
    departure: str = ""
    unmatched: int = 0
    events_dropped: int = 0
    _noted: set[str] = field(init=False, default_factory=set)

    @property
    def draining(self) -> bool:
        """Whether it is leaving: it finishes what it has and gets nothing new."""
        return bool(self.departure)

    @property
    def has_room(self) -> bool:
        """Whether one more request may wait for it."""
        return len(self.pending) < self.max_pending and not self.outbound.is_full

    def is_ready(self, now: float) -> bool:
        """Whether one more request would be sent to it without delay."""
        return len(self.pending) < self.max_pending and self.outbound.is_ready(now)

    def streams_method(self, path: str, name: str) -> bool:
        """Whether a call of that may be a stream, one more of which it takes.

        :param name: by which its service was registered.
        """
        if self.streams is None or self.streams.is_full:
            return False
        return path in self.streaming or name in self.mixed

    def require_size(self, data: Data, counters: Counters) -> None:
        """Raises :class:`Refused` for a message larger than the connector takes."""
        # Measured once it is encoded: what counts for the connector's receive limit is the whole
        # message, headers and all, not the payload.
        if len(data) > self.max_message_bytes:
            require_size(data, self.max_message_bytes, counters)

    def require_room_to_ask(self, request_id: str, counters: Counters) -> None:
        """Raises :class:`Refused` unless the connector may make one more call, by that id."""
        if request_id in self.asked:
            raise is_pending_already(request_id)
        if len(self.asked) >= self.max_pending:
            problem = f"the connector has {self.max_pending:,} calls of its own under way"
            raise over_limit(counters, "max_pending_per_connection", problem)

    def settle_asked(self, request_id: str) -> None:
        """A call of the connector's own is settled; one that is leaving goes with its last."""
        self.asked.discard(request_id)
        if self.departure:
            self.end_if_drained()

    def count_unmatched(self) -> None:
        """The connector answered what no call waits for."""
        self.unmatched += 1

    def note(self, what: str, detail: str = "") -> bool:
        """Log what the connector says in vain, as often as that is worth a line.

        Whether this was the first time. What a peer can vary as it likes belongs into ``detail``.
        """
        self.journal.ignored(self, what, detail)
        # The log counts by peer, over connections; a connector is told once on each of its own.
        is_first = what not in self._noted
        self._noted.add(what)
        return is_first

    def lose_events(self, count: int) -> None:
        """The connector lost so many events: it did not read them, or they were too large."""
        self.events_dropped += count
        self.journal.lost_events(self)

    def leave(self, departure: str) -> None:
        """The connector leaves, in the way that ``departure`` says; the first word counts."""
        self.departure = self.departure or departure

    def disown(self) -> None:
        """The connector serves nothing any more, and is not told: a fault that tests ask for."""
        self.services = ()

    def end_if_drained(self) -> None:
        """End the stream in peace once it is leaving and all it was sent, or asked, is settled."""
        is_idle = not (self.pending or self.asked or (self.streams and self.streams.open))
        if self.draining and is_idle:
            self.end(StatusCode.OK, f"{self.departure}, and all that was sent to it is settled")

    def dismiss(self, reason: str) -> None:
        """Send it away: what waits is still written, DISCONNECTED last."""
        # DISCONNECTED is the last word: nothing may follow it on the stream.
        if self.protocol.established:  # not twice
            self.outbound.put(self.protocol.dismiss(reason))
        self.outbound.close()
        self.end(StatusCode.UNAVAILABLE, reason)

    def describe(self, now: float) -> ConnectionInfo:
        """A picture of the connection at ``now``."""
        return ConnectionInfo(
            connection_id=self.id,
            services=self.services,
            peer=self.peer,
            age=now - self.connected_at,
            heartbeat_age=now - self.protocol.last_heartbeat,
            pending=len(self.pending),
            draining=self.draining,
            unmatched=self.unmatched,
            asked=len(self.asked),
            features=self.protocol.features,
            subscriptions=len(self.subscriptions),
            events_dropped=self.events_dropped,
        )


class Registry:
    """The live connections, a ring of them for every service, and the services expected back.

    :param grace: seconds that a service is expected back, once its last connector has left.
    :param get_loop: by whose clock and timers it is expected.
    :param tenants: told who serves what.
    """

    def __init__(
        self,
        grace: float = 0.0,
        get_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.get_running_loop,
        tenants: Tenants | None = None,
    ) -> None:
        self.on_change: list[Callable[[], None]] = []  # called when a service comes or goes
        self.on_absence_end: list[Callable[[], None]] = []  # when some are not expected any more
        # Any thread may copy it without a lock: the interpreter does that in one step.
        self._connections: dict[Connection, None] = {}
        self._loads: dict[int, Load] = {}
        self._rings: dict[str, deque[Connection]] = {}
        self._keys: Counter[int] = Counter()
        self._grace = grace
        self._get_loop = get_loop
        self._tenants = tenants or Tenants(Journal())
        self.streaming: Counter[str] = Counter()  # paths, by how many connections registered them
        self.mixed: Counter[str] = Counter()  # the same, of services
        self._left: dict[str, tuple[frozenset[str], frozenset[str]]] = {}  # both, by who is away
        self._absences: dict[str, float] = {}  # until when, on the loop's clock; the next end first

    @property
    def connections(self) -> tuple[Connection, ...]:
        """All connections, oldest first. Safe from any thread."""
        return tuple(self._connections)

    def __len__(self) -> int:
        return len(self._connections)

    def describe(self, now: float) -> tuple[ConnectionInfo, ...]:
        """A picture of every connection. Safe from any thread."""
        return tuple(connection.describe(now) for connection in self.connections)

    def add(self, connection: Connection) -> None:
        """Route the services of ``connection`` to it, among others that serve them."""
        self._connections[connection] = None
        for key in [key for key, load in self._loads.items() if not load.pending]:
            if not self._keys[key]:
                del self._loads[key]
        connection.load = self._loads.setdefault(connection.key, connection.load)
        self._keys[connection.key] += 1
        for service in connection.services:
            # To the end: whoever has waited longest has the next turn.
            self._rings.setdefault(service, deque()).append(connection)
        self.streaming.update(connection.streaming)
        self.mixed.update(connection.mixed)
        self._tenants.serve(connection.key, connection.services)
        self._tell_change()

    def shares(self, connection: Connection, left: int, kept: int) -> bool:
        """Whether it may have one more call, when ``left`` may wait.

        :param kept: so many are kept for those who have few: half of them in equal parts for each
            key, half for each connection, and for one that may come.
        """
        if left > kept:
            return True
        part, key_part = (
            kept // 2 // (len(those) + 1) if len(those) < _MOST_PARTS else 0
            for those in (self._connections, self._loads)
        )
        # Where nothing can be kept for each, some is kept for all who have very few.
        pool = kept // 2 if kept > _MOST_PARTS else 0
        for is_kept, pending, share in (
            (part, len(connection.pending), SHARE),
            (key_part, connection.load.pending, KEY_SHARE),
        ):
            if not is_kept and pending >= _VERY_FEW and (left <= pool or pending >= share * left):
                return False
        live: Counter[int] = Counter()
        wanting: Counter[int] = Counter()
        for each in self._connections if part else ():
            live[each.key] += len(each.pending)
            wanting[each.key] += max(0, part - len(each.pending))
        # Who comes again and again has on its account what was sent to it before.
        orphans = connection.load.pending - live[connection.key]
        if len(connection.pending) + orphans < part:
            return True
        # What a connection may have is of its key's part, too.
        reserved = max(part, key_part)
        for key, load in self._loads.items() if key_part else ():
            pending = load.pending + (key == connection.key)
            reserved += max(key_part - pending, wanting.pop(key, 0))
        return left > reserved + sum(wanting.values())

    def count(self, key: int) -> int:
        """How many connections showed the key of that number."""
        return self._keys[key]

    def drain(self, connection: Connection, departure: str) -> None:
        """Route nothing new to ``connection``; its stream ends when all it has is settled."""
        if not connection.draining:
            connection.leave(departure)
            # Before the change is told: calls that the change moves are held only for a service
            # that is expected back.
            self._expect_back(connection, self._unroute(connection))
            self._tell_change()
        connection.end_if_drained()

    def forget(self, connection: Connection) -> None:
        """Route nothing new to ``connection`` and tell it nothing: it goes on as if it served."""
        if not connection.draining:
            self._unroute(connection)
            self._tell_change()
        connection.disown()

    def remove(self, connection: Connection) -> None:
        """The stream of ``connection`` has ended."""
        del self._connections[connection]
        self._keys[connection.key] -= 1
        if not self._keys[connection.key]:
            del self._keys[connection.key]
            if not connection.load.pending:  # else it counts for the next connection
                del self._loads[connection.key]
        if not connection.draining:
            self._expect_back(connection, self._unroute(connection))
            self._tell_change()

    def _expect_back(self, connection: Connection, names: list[str]) -> None:
        self.expect_back(names)
        if connection.streaming or connection.mixed:
            told = connection.streaming, connection.mixed
            self._left.update((name, told) for name in names if name in self._absences)

    def _unroute(self, connection: Connection) -> list[str]:
        """The names that nobody serves from now on."""
        self._tenants.leave(connection.key, connection.services)
        absent = []
        for known, left in (
            (self.streaming, connection.streaming),
            (self.mixed, connection.mixed),
        ):
            for name in left:
                known[name] -= 1
                if not known[name]:
                    del known[name]
        for service in connection.services:
            ring = self._rings[service]
            ring.remove(connection)
            if not ring:
                del self._rings[service]
                absent.append(service)
        return absent

    def _tell_change(self) -> None:
        for listener in self.on_change:
            listener()

    def services(self) -> Iterable[str]:
        """The names that somebody serves."""
        return self._rings.keys()

    def serves(self, wanted: Wanted) -> bool:
        """Whether anybody serves that."""
        return not self._rings.keys().isdisjoint(wanted.names)  # any() would be a generator more

    def take_turn(self, wanted: Wanted, now: float) -> Connection | None:
        """The connection whose turn it is to serve that; ``None`` when nobody does, or has room.

        One that does not keep up with what it was sent is passed over, unless all are like that.
        """
        for name in wanted.names:
            ring = self._rings.get(name)
            # The first name that anybody registered takes all: a parent is no help for a child that
            # is served but busy.
            if ring is not None:
                connection = ring[0]
                if len(ring) > 1:
                    ring.rotate(-1)
                # By far the most; else whoever is next.
                return connection if connection.is_ready(now) else _next_of(ring, now)
        return None

    def streams(self, path: str, names: Sequence[str]) -> bool:
        """Whether a call of that may be a stream, by what anybody registered."""
        for name in names:  # as take_turn() does: the first that anybody registered takes all
            if name in self._rings:
                return path in self.streaming or name in self.mixed
        for name in names:
            if name in self._left:
                streaming, mixed = self._left[name]
                return path in streaming or name in mixed
        return False

    @property
    def knows_streams(self) -> bool:
        """Whether there may be a method that streams."""
        return bool(self.streaming or self.mixed or self._left)

    def take_turn_to_stream(self, wanted: Wanted, path: str, now: float) -> Connection | None:
        """The connection whose turn it is to answer a stream of that; ``None`` if nobody can.

        One that does not keep up with what it was sent is passed over, unless all are like that.
        """
        name = next((name for name in wanted.names if name in self._rings), None)
        if name is None:
            return None
        ring = self._rings[name]
        able = [each for each in ring if each.streams_method(path, name)]
        connection = next((each for each in able if each.outbound.is_ready(now)), None)
        if connection is None and able:
            connection = able[0]
        if connection is not None:
            ring.remove(connection)
            ring.append(connection)
        return connection

    def introspector(self, wanted: Wanted, name: str) -> Connection | None:
        """A connector that serves that, and has a service of that ``name`` to tell of it."""
        for served in wanted.names:
            for connection in self._rings.get(served, ()):
                if connection.streams is not None and name in connection.introspection:
                    return None if connection.streams.is_full else connection
        return None

    def describer(self, symbol: str, names: Sequence[str]) -> Connection | None:
        """A connector that may describe a symbol: it serves it, or something in its package.

        :param names: of the services that describe.
        """
        wanted = Wanted.by_outsider(symbol)
        found = (self.introspector(wanted, name) for name in names)
        connection = next((each for each in found if each is not None), None)
        if connection is not None:
            return connection
        package = symbol.rpartition(".")[0] + "."
        for service, ring in self._rings.items():
            if service.startswith(package):
                for each in ring:
                    is_able = each.streams is not None and not each.streams.is_full
                    if is_able and not each.introspection.isdisjoint(names):
                        return each
        return None

    def no_room(self, wanted: Wanted, counters: Counters) -> Refused:
        """Why a call is refused that is served, and that no connector has room for."""
        connection = next(self._rings[name][0] for name in wanted.names if name in self._rings)
        problem = "the connectors of the service do not keep up"
        if connection.outbound.is_full:
            return over_limit(counters, "max_queued_bytes", problem)
        problem = f"{problem}: {connection.max_pending:,} calls wait for each"
        return over_limit(counters, "max_pending_per_connection", problem)

    # Services whose last connector has just left

    def expect_back(self, names: Sequence[str]) -> None:
        """Nobody serves these names any more; for the grace's time somebody is expected to."""
        if not (self._grace and names):  # others serve all that it served
            return
        loop = self._get_loop()
        end = loop.time() + self._grace
        for name in names:
            self._absences.pop(name, None)  # to the end of the order: it has the whole grace again
            self._absences[name] = end
        while len(self._absences) > _MOST_EXPECTED:
            oldest = next(iter(self._absences))
            del self._absences[oldest]
            self._left.pop(oldest, None)
        # One timer for all the names of a connector, of which there may be thousands.
        loop.call_at(end, self._end_absences, end)

    def expects(self, wanted: Wanted) -> bool:
        """Whether a service by one of those names may come back any moment."""
        return self.expected(wanted) is not None

    def expected(self, wanted: Wanted) -> str | None:
        """By which of those names a service may come back, if it may."""
        return next((name for name in wanted.names if name in self._absences), None)

    def expect_nobody(self) -> None:
        """The gateway lets nobody in any more: no service is expected back."""
        self._grace = 0.0
        self._absences.clear()
        self._left.clear()

    def _end_absences(self, end: float) -> None:
        while self._absences:
            name = next(iter(self._absences))
            # All absences last equally long: behind the first that goes on, all go on.
            if self._absences[name] > end:
                break
            del self._absences[name]
            self._left.pop(name, None)
        for listener in self.on_absence_end:
            listener()


def _next_of(ring: deque[Connection], now: float) -> Connection | None:
    for _ in range(len(ring)):
        connection = ring[0]
        ring.rotate(-1)
        if connection.is_ready(now):
            return connection
    # A stalled one may get going again before the caller's deadline; a full one may not take more.
    return next((connection for connection in ring if connection.has_room), None)
