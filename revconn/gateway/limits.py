"""How much of everything a gateway puts up with and how long it waits, and how much there was."""

from __future__ import annotations

import asyncio
import dataclasses
from dataclasses import dataclass, field

__all__ = ["KEY_SHARE", "SHARE", "Counters", "Limits", "Load", "Watch"]

SHARE = 16
"""Times what is left, that one may have of what is given without anybody losing it for that."""

KEY_SHARE = 64
"""The same, of the connections of one key together."""

_TICKS = 20  # each late by as much as others wait for the processor: then all take longer


@dataclass(frozen=True)
class Limits:
    """The gateway's options that bound something; :class:`revconn.gateway.Gateway` says why."""

    max_pending: int = 1000
    max_pending_per_connection: int = 500
    max_connections: int = 10_000
    max_connections_per_key: int = 5_000
    max_subscriptions: int = 1000
    max_queued_bytes: int = 64 * 1024 * 1024
    max_queued_events: int = 1000
    max_message_bytes: int = 4 * 1024 * 1024
    max_sent_message_bytes: int = 100_000_000
    max_response_bytes: int = 64 * 1024 * 1024
    max_joining_bytes: int = 256 * 1024 * 1024
    max_metadata_bytes: int = 8192
    max_sockets: int = 16_384
    max_streams: int = 256
    max_streaming_calls: int = 10_000
    max_streaming_calls_per_connection: int = 2_000
    max_receiving_bytes: int = 256 * 1024 * 1024
    max_unread_bytes: int = 256 * 1024 * 1024
    handshake_timeout: float = 10.0


@dataclass
class Counters:
    """Numbers that only grow. They belong to the gateway's thread; any thread may read them.

    :ivar connections_opened: connectors that registered.
    :ivar connections_refused: streams refused before that, whatever the reason.
    :ivar connections_expired: connections ended because they sent no heartbeat.
    :ivar connections_flooding: callers' and connectors' connections ended because they cost more
        than they brought.
    :ivar calls: calls sent on to a connector, those of connectors included.
    :ivar calls_answered: calls that a connector answered, whatever with.
    :ivar calls_unserved: calls refused because nobody serves what they ask for.
    :ivar calls_held: calls that had to wait for a service to come back, whatever came of it.
    :ivar calls_expired: calls whose deadline passed while they waited for an answer.
    :ivar calls_given_up: calls whose caller did not wait for the answer.
    :ivar calls_rerouted: calls moved to another connector before the first had been sent them.
    :ivar calls_lost: calls failed because their connector was gone before it was sent them.
    :ivar answers_late: answers to calls settled before, second answers included.
    :ivar answers_unknown: answers to what nobody asked.
    :ivar answers_foreign: answers from a connector with another key than the one that was asked.
    :ivar answers_broken: answers in chunks that do not make one.
    :ivar events_published: events that connectors published.
    :ivar events_delivered: events queued for a subscriber, once for each.
    :ivar events_unwanted: events that nobody had subscribed to.
    :ivar events_dropped: events that a slow subscriber lost.
    :ivar events_forbidden: events that their publisher's key may not publish.
    :ivar subscriptions_forbidden: types of events asked for that the key may not have.
    :ivar refused: how often each limit was met, by the name of its option.
    """

    connections_opened: int = 0
    connections_refused: int = 0
    connections_expired: int = 0
    connections_flooding: int = 0
    calls: int = 0
    calls_answered: int = 0
    calls_unserved: int = 0
    calls_held: int = 0
    calls_expired: int = 0
    calls_given_up: int = 0
    calls_rerouted: int = 0
    calls_lost: int = 0
    answers_late: int = 0
    answers_unknown: int = 0
    answers_foreign: int = 0
    answers_broken: int = 0
    events_published: int = 0
    events_delivered: int = 0
    events_unwanted: int = 0
    events_dropped: int = 0
    events_forbidden: int = 0
    subscriptions_forbidden: int = 0
    # All of them from the beginning: monitoring wants to see a zero, not a name that comes up with
    # the first refusal.
    refused: dict[str, int] = field(
        default_factory=lambda: {limit.name: 0 for limit in dataclasses.fields(Limits)}
    )

    def snapshot(self) -> dict[str, int]:
        """All of them as they are now; limits as ``refused_max_pending`` and so on."""
        counts = {
            each.name: getattr(self, each.name)
            for each in dataclasses.fields(self)
            if each.name != "refused"
        }
        return counts | {f"refused_{name}": count for name, count in self.refused.items()}


class Load:
    """How many calls wait for all the connectors of one API key."""

    __slots__ = ("pending",)

    def __init__(self) -> None:
        self.pending = 0


class Watch:
    """Cancels the task that made it when time runs out; wait_for() would cost a task of its own.

    It counts time in which the loop really ran: after a stall of the process, what has come
    meanwhile is seen to first.

    :ivar ran_out: whether time ran out: then a ``CancelledError`` in that task is the watch's, for
        the task to catch.
    """

    def __init__(self, timeout: float) -> None:
        self.ran_out = False
        self._task = asyncio.current_task()
        self._loop = asyncio.get_running_loop()
        self._begin(timeout)

    def restart(self, timeout: float) -> None:
        """Give it so many seconds from now on."""
        self._timer.cancel()
        self._begin(timeout)

    def stop(self) -> None:
        """What was to be done is done in time: do not cancel its task."""
        self._timer.cancel()

    def _begin(self, timeout: float) -> None:
        # In ticks of which each is set when the one before has rung: after a stall of the process
        # one single timer would be over at once, though what was waited for has arrived and waits
        # to be read. A starved gateway took unary calls for streaming ones.
        self._tick = timeout / _TICKS
        self._ticks = _TICKS
        self._timer = self._loop.call_later(self._tick, self._count)

    def _count(self) -> None:
        self._ticks -= 1
        if self._ticks:
            self._timer = self._loop.call_later(self._tick, self._count)
            return
        self.ran_out = True
        if self._task is not None:
            self._task.cancel()
