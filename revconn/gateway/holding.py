"""What calls hold in memory while they wait, within the gateway's limits.

Requests of calls whose service is expected back, and answers in chunks that are not whole yet.
Everything here belongs to the gateway's thread.
"""

from __future__ import annotations

from collections.abc import Iterable

from revconn._proto.registry_pb2 import ForwardResponse
from revconn.core.chunks import ChunkJoiner, ResponseTooLarge
from revconn.core.connection import CHUNKS
from revconn.core.status import ProtocolError, StatusCode
from revconn.gateway.limits import KEY_SHARE, Budget, Counters, Limits
from revconn.gateway.refusals import Refused, over_limit
from revconn.gateway.routes import Connection
from revconn.http2.requests import closing_block
from revconn.http2.streams import ErrorCode, Stream

__all__ = ["HeldRequests", "Joiners", "Joining", "UnreadAnswers"]


class HeldRequests:
    """Requests that wait for a service to come back, limited as if they waited for one connector.

    Nobody is there whose own limits would count, and the grace alone bounds only the time.

    :ivar sizes: the bytes of each, by its id; first come first.
    :ivar bytes: all of them.
    """

    def __init__(self, limits: Limits, counters: Counters) -> None:
        self._limits = limits
        self._counters = counters
        self.sizes: dict[str, int] = {}
        self.bytes = 0

    @property
    def has_room(self) -> bool:
        """Whether one more may wait."""
        return (
            len(self.sizes) < self._limits.max_pending_per_connection
            and self.bytes < self._limits.max_queued_bytes
        )

    def require_room(self) -> None:
        """Raises :class:`Refused` unless one more may wait."""
        if self.has_room:
            return
        problem = "too much waits for services to come back"
        # Each limit is named where it is met: who is told can change the right one.
        if self.bytes >= self._limits.max_queued_bytes:
            raise over_limit(self._counters, "max_queued_bytes", problem)
        problem = f"{problem}: {self._limits.max_pending_per_connection:,} calls"
        raise over_limit(self._counters, "max_pending_per_connection", problem)

    def add(self, request_id: str, size: int) -> None:
        """Count one more request that waits, of ``size`` bytes."""
        self._counters.calls_held += 1
        # The order of a dict is that of arrival: whoever came first goes on first.
        self.sizes[request_id] = size
        self.bytes += size

    def discard(self, request_id: str) -> None:
        """The request does not wait any more, if it did."""
        self.bytes -= self.sizes.pop(request_id, 0)


# A connector whose connection is being replaced sends the same answer on both: the chunks of each
# connection are joined for themselves, and whichever is whole first is the answer.
Joiners = dict[Connection, ChunkJoiner]


class Joining:
    """Joins answers, and counts what is held of those that are not whole.

    A call holds its own joiners; they are filled and emptied here alone, so that the count is true.

    Each connection, and all of one key, may have their share: see :class:`Budget`.
    """

    def __init__(self, limits: Limits, counters: Counters) -> None:
        self._limits = limits
        self._counters = counters
        self._connections = Budget(limits.max_joining_bytes)
        self._keys = Budget(limits.max_joining_bytes, KEY_SHARE)

    @property
    def held_bytes(self) -> int:
        """All of it."""
        return self._connections.used

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
        has_room = self._connections.has_room(sender, size)
        if not (has_room and self._keys.has_room(sender.key, size)):
            problem = f"unfinished answers hold {self.held_bytes:,} bytes already"
            raise over_limit(self._counters, "max_joining_bytes", problem)
        before = joiner.held_bytes
        try:
            return joiner.add(chunk)
        except ResponseTooLarge as error:
            raise over_limit(self._counters, "max_response_bytes", str(error)) from None
        except ProtocolError as error:
            raise self._broken(f"in chunks that do not make one: {error}") from None
        finally:
            self._connections.take(sender, joiner.held_bytes - before)
            self._keys.take(sender.key, joiner.held_bytes - before)

    def drop(self, joiners: Joiners, senders: Iterable[Connection]) -> None:
        """Forget what came on these connections: the call is settled, or they have ended."""
        for sender in senders:
            joiner = joiners.pop(sender, None)
            if joiner is not None:
                self._connections.give_back(sender, joiner.held_bytes)
                self._keys.give_back(sender.key, joiner.held_bytes)

    def _broken(self, how: str) -> Refused:
        self._counters.answers_broken += 1
        return Refused(StatusCode.INTERNAL, f"the connector answered {how}")


class UnreadAnswers:
    """Answers for which a caller's window had no room, until they have left.

    Who does not read them keeps them in memory: bounded in bytes, and by their calls' deadlines.
    """

    def __init__(self, limits: Limits, counters: Counters) -> None:
        self._budget = Budget(limits.max_unread_bytes)
        self._counters = counters
        self._answers: dict[Stream, tuple[int, float]] = {}  # bytes, deadline

    def add(self, stream: Stream, deadline: float) -> None:
        """An answer waits, until ``deadline`` on the loop's clock."""
        size = stream.unsent_bytes
        if not self._budget.has_room(stream.owner, size):
            problem = "too many answers wait that callers do not read"
            refused = over_limit(self._counters, "max_unread_bytes", problem)
            stream.drop_unsent()
            stream.finish(closing_block(refused.code, refused.message))
            return
        self._budget.take(stream.owner, size)
        self._answers[stream] = size, deadline

    def discard(self, stream: Stream) -> None:
        """The stream is over."""
        size, _ = self._answers.pop(stream, (0, 0.0))
        if size:
            self._budget.give_back(stream.owner, size)

    def expire(self, now: float) -> None:
        """End the calls whose deadline has passed while their answers waited."""
        for stream, (_, deadline) in tuple(self._answers.items()):
            if now >= deadline:
                stream.reset(ErrorCode.CANCEL)
