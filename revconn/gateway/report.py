"""What a gateway tells of its connections: a picture of each, and a line in the log for each event.

The event's facts are the ``extra`` of the record: ``event``, ``connection_id``, ``key`` (its
number, 0 where no key is checked), ``services``, ``peer``, ``age`` in seconds and, where there is
one, the ``reason``. Who was refused has no more than ``event``, ``peer`` and ``reason``.

What a peer can repeat has a line at first, and then at growing intervals, with ``times``. Of what
whoever has no key can cause there is one line for all peers together, with ``addresses``, too.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

from revconn.core.status import StatusCode
from revconn.gateway.addresses import network_of
from revconn.gateway.keys import ApiKeys
from revconn.logger import MOST_SOURCES, Reminders, Sum, Sums, get_logger, presentable

__all__ = ["ConnectionInfo", "Journal"]

# Its name is what applications configure: it stays, whatever the file is called.
logger = get_logger("revconn.gateway.journal")

# A connector may register 10,000 services of 1,024 characters: what it can put into one line of the
# log is bounded.
_MOST_SERVICES = 100  # that are listed
_FEW_SERVICES = 10  # where the line is of something else
_LONGEST_NAME = 200

# What strangers can cause: how its lines begin, by event.
_OF_STRANGERS = {
    "refused": (logger, "refused a connector at"),
    "refused_backend": (logger, "refused a backend at"),
    "flooding": (logger, "ended a connection of"),
    "no_tls": (get_logger("revconn.gateway.arrivals"), "no TLS with"),
}


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
    :ivar asked: its own calls to others that are not settled yet.
    :ivar features: what it and the gateway both can do beyond the published protocol.
    :ivar subscriptions: how many types of events it is subscribed to.
    :ivar events_dropped: events that it lost because it did not read them in time.
    """

    connection_id: str
    services: tuple[str, ...]
    peer: str
    age: float
    heartbeat_age: float
    pending: int
    draining: bool
    unmatched: int
    asked: int
    features: frozenset[str]
    subscriptions: int
    events_dropped: int


# Not routes.Connection itself, which holds a Journal: routes stands on this room.
class Reported(Protocol):
    """A connection, as far as the log tells of it."""

    id: str
    key: int
    services: tuple[str, ...]
    peer: str
    connected_at: float
    events_dropped: int


class Journal:
    """The log of one gateway, as far as peers can make it grow. It belongs to its thread.

    A peer is known by its address without the port, which is another one each time, and an address
    of IPv6 by its network of 64 bits, in which anybody may have as many as he likes. What it says
    is quoted shortened, in one line, and without any of ``keys``.
    """

    def __init__(self, keys: ApiKeys | None = None) -> None:
        self._keys = keys or ApiKeys(None)
        self._reminders = Reminders()
        self._sums = Sums()
        self._pairs = Reminders(most=10_000)  # as many as one connector may register

    # The life of a connection

    def connected(self, connection: Reported) -> None:
        """The connector has registered."""
        fields = self._fields("connected", connection)
        services = presentable(", ".join(fields["services"])) or "no services"
        logger.info(
            "connection %s from %s registered %s",
            connection.id,
            connection.peer,
            services,
            extra=fields,
        )

    def draining(self, connection: Reported, reason: str) -> None:
        """The connector is leaving: it finishes what it has and gets nothing new."""
        reason = self._quotable(reason)
        said = f": {reason}" if reason else ""
        fields = self._fields("draining", connection, reason)
        logger.info("connection %s is leaving%s", connection.id, said, extra=fields)

    def expired(self, connection: Reported, reason: str) -> None:
        """The connector fell silent, for longer than the heartbeat timeout."""
        reason = self._quotable(reason)
        fields = self._fields("expired", connection, reason)
        logger.warning("connection %s expired: %s", connection.id, reason, extra=fields)

    def ended(self, connection: Reported, reason: str) -> None:
        """The connector's stream is over."""
        reason = self._quotable(reason)
        fields = self._fields("ended", connection, reason)
        logger.info("connection %s ended: %s", connection.id, reason, extra=fields)

    # What strangers can cause

    def refused(self, peer: str, code: StatusCode, reason: str) -> None:
        """A connector at ``peer`` was not let in."""
        self._note("refused", peer, code, reason)

    def refused_backend(self, peer: str, code: StatusCode, reason: str) -> None:
        """Somebody's ``Register`` was refused."""
        self._note("refused_backend", peer, code, reason)

    def ended_peer(self, peer: str, reason: str) -> None:
        """A connection was ended that cost more than it brought."""
        self._note("flooding", peer, StatusCode.RESOURCE_EXHAUSTED, reason)

    def failed_tls(self, peer: str, reason: str) -> None:
        """A connection was made, and TLS did not come about."""
        self._note("no_tls", peer, StatusCode.UNAVAILABLE, reason)

    def _note(self, event: str, peer: str, code: StatusCode, reason: str) -> None:
        # By code, without the reason: that may quote what the peer said, which it can vary as it
        # likes to fill the log and the memory of what was said.
        kind, now = (event, code), time.monotonic()
        if self._sums.count(kind, network_of(peer), (peer, reason), now):
            self._tell(Sum(kind, (peer, reason), 1, 1, 0.0))

    def tick(self, now: float) -> None:
        """Tell what is due of that. It is to be called every now and then, and :meth:`close`."""
        for each in self._sums.due(now):
            self._tell(each)

    def close(self) -> None:
        """Tell the rest of it."""
        for each in self._sums.rest(time.monotonic()):
            self._tell(each)

    def _tell(self, told: Sum) -> None:
        (event, _), (peer, reason) = cast("tuple[str, StatusCode]", told.kind), told.last
        reason = self._quotable(reason)
        fields: dict[str, Any] = {"event": event, "peer": peer, "reason": reason}
        more = ""
        if told.times > 1:
            fields.update(times=told.times, addresses=told.sources)
            more = (
                f", and {told.times - 1:,} more in {told.seconds:.0f} s,"
                f" from {_addresses(told.sources)}"
            )
        log, beginning = _OF_STRANGERS[event]
        log.warning("%s %s: %s%s", beginning, peer, reason, more, extra=fields)

    # What peers can repeat

    def ignored(self, connection: Reported, what: str, detail: str = "") -> None:
        """A connector said something in vain; what it can vary at will belongs into ``detail``."""
        times = self._count("ignored", connection.peer, what)
        if times:
            said = what + self._quotable(detail)
            fields = {**self._fields("ignored", connection, said), **_times(times)}
            again = _again(times)
            logger.warning("connection %s: ignored %s%s", connection.id, said, again, extra=fields)

    def lost_events(self, connection: Reported) -> None:
        """A connector did not read its events in time."""
        if self._count("lost events", connection.peer):
            logger.warning(
                "connection %s does not keep up with the events it subscribed to: %d lost so far",
                connection.id,
                connection.events_dropped,
            )

    def failed(self, connection: Reported) -> None:
        """An exception that nobody foresaw is being handled, and ends the connection."""
        times = self._count("failed", connection.peer)
        if times:
            again = _again(times)
            logger.exception("connection %s: a bug in the gateway%s", connection.id, again)

    def shared(self, services: Sequence[str], key: int, other: int) -> None:
        """Services of the one key are served with the other one, too."""
        now, pair = time.monotonic(), frozenset((key, other))
        # Every service is remembered, and all that are due are one line.
        due = [name for name in services if self._pairs.count((pair, name), now)]
        if due:
            names = self._quotable(", ".join(due[:_FEW_SERVICES]))
            more = f" and {len(due) - _FEW_SERVICES:,} more" if len(due) > _FEW_SERVICES else ""
            logger.warning(
                "API keys number %d and %d both serve %s%s: either may get calls meant for the"
                " other; give each patterns of its own if that is not meant",
                key,
                other,
                names,
                more,
                extra={"event": "shared", "keys": [key, other], "services": self._services(due)},
            )

    # Backends

    def not_dialled(self, peer: str, reason: str) -> None:
        """Somebody's ``Register`` was answered with success, and nothing else done."""
        times = self._count("not dialled", peer)
        if times:
            reason = self._quotable(reason)
            logger.info("%s registered, and is not dialled: %s%s", peer, reason, _again(times))

    def registered_backend(self, peer: str, address: str, services: tuple[str, ...]) -> None:
        """The gateway dials ``address`` for those services from now on."""
        times = self._count("backend", peer, address)
        if times:
            names = self._quotable(", ".join(services[:_MOST_SERVICES]))
            logger.info("backend %s registered %s%s", address, names, _again(times))

    def forgot_backend(self, address: str, reason: str) -> None:
        """The gateway does not dial ``address`` any more."""
        times = self._count("forgotten", "", address)
        if times:
            logger.info("backend %s forgotten: %s%s", address, reason, _again(times))

    def unreachable(self, address: str, reason: str) -> None:
        """A call to ``address`` did not get there."""
        times = self._count("unreachable", "", address)
        if times:
            said = presentable(reason)
            logger.warning("backend %s cannot be reached: %s%s", address, said, _again(times))

    def _count(self, event: str, peer: str, *more: Any) -> int:
        # The port is another one for each connection, and would make each the first.
        return self._reminders.count((event, network_of(peer), *more), time.monotonic())

    def _quotable(self, text: str) -> str:
        return self._keys.mask(presentable(text))

    def _fields(
        self, event: str, connection: Reported, reason: str | None = None
    ) -> dict[str, Any]:
        fields = {
            "event": event,
            "connection_id": connection.id,
            "key": connection.key,
            "services": self._services(connection.services),
            "peer": connection.peer,
            "age": round(time.monotonic() - connection.connected_at, 3),
        }
        return fields if reason is None else {**fields, "reason": reason}

    def _services(self, services: Sequence[str]) -> list[str]:
        names = [name[:_LONGEST_NAME] for name in services[:_MOST_SERVICES]]
        # Masked together: for each name alone every key would be looked for again.
        return self._keys.mask("\n".join(names)).split("\n") if names else []


def _addresses(count: int) -> str:
    if count > MOST_SOURCES:
        return f"more than {MOST_SOURCES:,} addresses"
    return f"{count:,} addresses" if count > 1 else "one address"


def _times(times: int) -> dict[str, int]:
    return {"times": times} if times > 1 else {}


def _again(times: int) -> str:
    return f" ({times:,} times since this was last logged)" if times > 1 else ""
