"""What calls hold in memory while they wait, within the gateway's limits.

Requests of calls whose service is expected back, and answers in chunks that are not whole yet.
Everything here belongs to the gateway's thread.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Callable

from revconn._proto.registry_pb2 import ForwardResponse
from revconn.core.chunks import ChunkJoiner, ResponseTooLarge
from revconn.core.connection import CHUNKS
from revconn.core.status import ProtocolError, StatusCode
from revconn.gateway.budgets import Budget, Owners
from revconn.gateway.limits import Counters, Limits
from revconn.gateway.refusals import Refused, over_limit
from revconn.gateway.routes import Connection
from revconn.http2.requests import closing_block
from revconn.http2.streams import ErrorCode, Stream

__all__ = ["HeldRequests", "Joiners", "Joining", "UnreadAnswers"]

_TOO_MUCH = "too much waits for services to come back"


class HeldRequests:
    """Requests that wait for a service to come back, limited as if they waited for one connector.

    Nobody is there whose own limits would count, and the grace alone bounds only the time.

    :param fail: fails the call of that id, of the service for which the most is waiting.
    :ivar sizes: the bytes of each, by its id; first come first.
    """

    def __init__(
        self, limits: Limits, counters: Counters, fail: Callable[[str, Refused], None]
    ) -> None:
        self._counters = counters
        self._places: Budget[str] = Budget(
            limits.max_pending_per_connection,
            lambda request_id: fail(request_id, self._too_many()),
        )
        self._bytes: Budget[str] = Budget(
            limits.max_queued_bytes, lambda request_id: fail(request_id, self._too_large())
        )
        self.sizes: dict[str, int] = {}

    def make_room(self, owners: Owners) -> bool:
        """Whether one more may wait, if need be in the place of others.

        :param owners: the service that is waited for, and the network or key that waits.
        """
        # The last may be larger than what is left: there is no limit for one.
        return self._places.make_room(owners) and self._bytes.make_room(owners)

    def no_room(self) -> Refused:
        """Why one more may not wait."""
        # Each limit is named where it is met: who is told can change the right one.
        return self._too_large() if self._places.has_room() else self._too_many()

    def _too_many(self) -> Refused:
        problem = f"{_TOO_MUCH}: {self._places.most:,} calls"
        return over_limit(self._counters, "max_pending_per_connection", problem)

    def _too_large(self) -> Refused:
        return over_limit(self._counters, "max_queued_bytes", _TOO_MUCH)

    def add(self, request_id: str, owners: Owners, size: int) -> None:
        """Count one more request that waits, of ``size`` bytes."""
        self._counters.calls_held += 1
        # The order of a dict is that of arrival: whoever came first goes on first.
        self.sizes[request_id] = size
        self._places.take(owners, request_id)
        self._bytes.take(owners, request_id, size)

    def discard(self, request_id: str) -> None:
        """The request does not wait any more, if it did."""
        if self.sizes.pop(request_id, None) is not None:
            self._places.give_back(request_id)
            self._bytes.give_back(request_id)


# A connector whose connection is being replaced sends the same answer on both: the chunks of each
# connection are joined for themselves, and whichever is whole first is the answer.
Joiners = dict[Connection, ChunkJoiner]


class Joining:
    """Joins answers, and counts what is held of those that are not whole.

    A call holds its own joiners; they are filled and emptied here alone, so that the count is true.

    :param fail: fails the call of that id, whose connector's key and connection hold the most.
    """

    def __init__(
        self, limits: Limits, counters: Counters, fail: Callable[[str, Refused], None]
    ) -> None:
        self._limits = limits
        self._counters = counters
        self._fail = fail
        self._budget = Budget(limits.max_joining_bytes, self._take_back)

    @property
    def held_bytes(self) -> int:
        """All of it."""
        return self._budget.used

    def add(
        self, joiners: Joiners, chunk: ForwardResponse, sender: Connection
    ) -> ForwardResponse | None:
        """The whole answer, once this was the final chunk. Raises :class:`Refused`."""
        if CHUNKS not in sender.protocol.features:
            raise self._broken("in chunks, which it did not announce")
        joiner = joiners.get(sender)
        if joiner is None:
            joiner = joiners[sender] = ChunkJoiner(self._limits.max_response_bytes)
        # One answer stays below max_response_bytes; many whose final chunks never come would not.
        size = len(chunk.payload)
        owners = (sender.key, sender)
        if not self._budget.make_room(owners, size):
            raise self._no_room()
        if joiners.get(sender) is not joiner:
            return None  # the call has made room itself, on another of its connections
        before = joiner.held_bytes
        try:
            whole = joiner.add(chunk)
        except ResponseTooLarge as error:
            raise over_limit(self._counters, "max_response_bytes", str(error)) from None
        except ProtocolError as error:
            raise self._broken(f"in chunks that do not make one: {error}") from None
        if whole is None:
            grown = joiner.held_bytes - before
            self._budget.take(owners, (chunk.request_id, sender), grown)
        return whole

    def drop(self, request_id: str, joiners: Joiners, senders: Iterable[Connection]) -> None:
        """Forget what came on these connections: the call is settled, or they have ended."""
        for sender in senders:
            if joiners.pop(sender, None) is not None:
                self._budget.give_back((request_id, sender))

    def _take_back(self, holder: tuple[str, Connection]) -> None:
        request_id, _ = holder
        self._fail(request_id, self._no_room())

    def _no_room(self) -> Refused:
        problem = f"unfinished answers hold {self.held_bytes:,} bytes already"
        return over_limit(self._counters, "max_joining_bytes", problem)

    def _broken(self, how: str) -> Refused:
        self._counters.answers_broken += 1
        return Refused(StatusCode.INTERNAL, f"the connector answered {how}")


class UnreadAnswers:
    """Answers for which a caller's window had no room, until they have left.

    Who does not read them keeps them in memory: bounded in bytes, and by their calls' deadlines.
    """

    def __init__(self, limits: Limits, counters: Counters) -> None:
        self._budget = Budget(limits.max_unread_bytes, self._take_back)
        self._counters = counters
        self._deadlines: dict[Stream, float] = {}
        self._unfinished: dict[Stream, Callable[[Refused], None]] = {}

    def add_unfinished(self, stream: Stream, turn_away: Callable[[Refused], None]) -> None:
        """The beginning of an answer waits, of a call that ``turn_away`` ends if need be."""
        self.discard(stream)
        self._unfinished[stream] = turn_away
        self._add(stream, math.inf)

    def add(self, stream: Stream, deadline: float) -> None:
        """An answer waits, until ``deadline`` on the loop's clock."""
        self.discard(stream)
        self._add(stream, deadline)

    def _add(self, stream: Stream, deadline: float) -> None:
        owners, size = stream.owner.owners, stream.unsent_bytes
        if not self._budget.make_room(owners, size):
            self._take_back(stream)
            return
        self._budget.take(owners, stream, size)
        self._deadlines[stream] = deadline

    def _take_back(self, stream: Stream) -> None:
        problem = "too many answers wait that callers do not read"
        refused = over_limit(self._counters, "max_unread_bytes", problem)
        self._deadlines.pop(stream, None)
        turn_away = self._unfinished.pop(stream, None)
        if turn_away is not None:
            turn_away(refused)
        else:
            stream.drop_unsent()
            stream.finish(closing_block(refused.code, refused.message))

    def discard(self, stream: Stream) -> None:
        """The stream is over, or what waited has left."""
        self._unfinished.pop(stream, None)
        if self._deadlines.pop(stream, None) is not None:
            self._budget.give_back(stream)

    def expire(self, now: float) -> None:
        """End the calls whose deadline has passed while their answers waited."""
        for stream, deadline in tuple(self._deadlines.items()):
            if now >= deadline:
                stream.reset(ErrorCode.CANCEL)
