"""Messages that have come in part: what they may take in memory, and who waits for more.

Everything here belongs to the gateway's thread.
"""

from __future__ import annotations

import asyncio
from itertools import islice
from typing import Callable

from revconn.gateway.budgets import Budget
from revconn.gateway.limits import SHARE, Counters
from revconn.gateway.refusals import over_limit
from revconn.http2.grpc import MessageRefused
from revconn.http2.streams import Stream

__all__ = ["Receiving"]

_LEAST = 1024  # bytes that a stream counts, whatever is missing: it takes as many itself
_FIRST_IN_LINE = 16  # messages that wait for credit
_LONGEST_WAIT = 5.0  # seconds for credit, where others have more


class Receiving:
    """Accounts for the rest of what has come in part, until it is whole.

    What still goes into a message's usual window may come any time: there is no waiting for that.
    What is beyond it is asked for once there is credit.

    :param most: bytes, a quarter of them for windows.
    """

    def __init__(self, most: int, counters: Counters) -> None:
        self._counters = counters
        self._loop = asyncio.get_running_loop()
        windows, credit = most // 4, most - most // 4
        # A connector that finds none for its window ends with all its calls; for credit it waits.
        self._windows = _Bytes(windows, most, self._refuse)
        self._credit = _Bytes(credit, credit // 2, self._refuse)
        self._begun: set[Stream] = set()
        self._wanting: dict[Stream, float] = {}  # since when, on the loop's clock
        self._is_making_room = False

    def want(self, stream: Stream) -> None:
        """A message has come in part; what is still to come of it is accounted for."""
        if stream not in self._begun:
            size = max(_LEAST, stream.missing - stream.wanted)
            if stream.wanted > self._credit.most or not self._windows.make_room(stream, size):
                self._refuse(stream)
                return
            self._windows.take(stream, size)
            self._begun.add(stream)
            stream.granted = size
        if stream.wanted and stream not in self._wanting:
            if self._credit.has_room(stream, stream.wanted):
                self._grant(stream)
            else:
                self._counters.refused["max_receiving_bytes"] += 1
                self._wanting[stream] = self._loop.time()

    def _refuse(self, stream: Stream) -> None:
        used = self._windows.used + self._credit.used
        problem = f"messages that have come in part take {used:,} bytes already"
        refused = over_limit(self._counters, "max_receiving_bytes", problem)
        stream.give_up(MessageRefused(refused.message))

    def _grant(self, stream: Stream) -> None:
        self._credit.take(stream, stream.wanted)
        stream.granted += stream.wanted
        stream.owner.endpoint.grant(stream)

    def discard(self, stream: Stream) -> None:
        """The message is whole, or will never be."""
        if stream in self._begun:
            self._begun.discard(stream)
            self._windows.give_back(stream)
            self._credit.give_back(stream)
            stream.granted = 0
        self._wanting.pop(stream, None)
        if not self._is_making_room:
            self._serve_line()

    def _serve_line(self) -> None:
        # Of those first in line: who has had more than its share goes to the end, and does not hold
        # up the others.
        for waiting in tuple(islice(self._wanting, _FIRST_IN_LINE)):
            since = self._wanting.pop(waiting)
            if self._credit.has_room(waiting, waiting.wanted):
                self._grant(waiting)
            else:
                self._wanting[waiting] = since

    def relieve_line(self) -> None:
        """Who has waited for long waits no longer, if others have far more."""
        # As a rule messages are whole before, and then nobody need lose one.
        latest = self._loop.time() - _LONGEST_WAIT
        for stream, since in tuple(self._wanting.items()):
            if since <= latest and stream in self._wanting and self._make_room(stream):
                del self._wanting[stream]
                self._grant(stream)

    def _make_room(self, stream: Stream) -> bool:
        # What others lose is for this one, not for whoever is first in line.
        self._is_making_room = True
        try:
            made = self._credit.make_room(stream, stream.wanted)
        finally:
            self._is_making_room = False
        return made and stream in self._wanting


class _Bytes:
    """Bytes that callers share, but for what registered connectors have of them: half at most.

    A connector's are never taken back: others' calls would be lost with its stream.

    :param for_connectors: how many they may have together, which may be more.
    """

    def __init__(self, most: int, for_connectors: int, take_back: Callable[[Stream], None]) -> None:
        self.most = most
        self._callers = Budget(most, take_back)
        self._connectors = Budget(for_connectors, take_back)

    @property
    def used(self) -> int:
        """How many are taken."""
        return self._callers.used + self._connectors.used

    def _budget(self, stream: Stream) -> Budget[Stream]:
        return self._connectors if stream.receiver.carries_calls else self._callers

    def has_room(self, stream: Stream, size: int) -> bool:
        """Whether it may have so many more at once: who has most waits before all are gone."""
        budget = self._budget(stream)
        left = min(budget.most - budget.used, max(0, self.most - self.used))
        if size > left:
            return False
        return budget.used <= left or budget.of(stream.owner.owners) < SHARE * left

    def make_room(self, stream: Stream, size: int) -> bool:
        """Whether it may have so many more, if need be in the place of callers that have most."""
        if self._budget(stream) is self._callers:
            return self._callers.make_room(stream.owner.owners, size)
        used = self._connectors.used
        most = SHARE * (self._connectors.most - used - size) - size
        # None has more than all together have: as a rule nobody need count what one has.
        if used > most and self._connectors.of(stream.owner.owners) > most:
            return False
        self._callers.most = max(self.most // 2, self.most - self._connectors.used - size)
        return self._callers.make_room((), 0)

    def take(self, stream: Stream, size: int) -> None:
        """It has so many more."""
        self._budget(stream).take(stream.owner.owners, stream, size)
        self._leave_the_rest()

    def give_back(self, stream: Stream) -> None:
        """It needs them no longer, if it had any."""
        # As whatever it was when they were taken.
        self._callers.give_back(stream)
        self._connectors.give_back(stream)
        self._leave_the_rest()

    def _leave_the_rest(self) -> None:
        self._callers.most = max(self.most // 2, self.most - self._connectors.used)
