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
from revconn.gateway.limits import Counters, Limits
from revconn.gateway.refusals import Refused, over_limit
from revconn.gateway.routes import Connection

__all__ = ["HeldRequests", "Joiners", "Joining"]


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

    :ivar held_bytes: all of it.
    """

    def __init__(self, limits: Limits, counters: Counters) -> None:
        self._limits = limits
        self._counters = counters
        self.held_bytes = 0

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
        if self.held_bytes + len(chunk.payload) > self._limits.max_joining_bytes:
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
            self.held_bytes += joiner.held_bytes - before

    def drop(self, joiners: Joiners, senders: Iterable[Connection]) -> None:
        """Forget what came on these connections: the call is settled, or they have ended."""
        for sender in senders:
            joiner = joiners.pop(sender, None)
            if joiner is not None:
                self.held_bytes -= joiner.held_bytes

    def _broken(self, how: str) -> Refused:
        self._counters.answers_broken += 1
        return Refused(StatusCode.INTERNAL, f"the connector answered {how}")
