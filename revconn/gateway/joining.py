"""Answers that come in chunks, until they are whole. It belongs to the gateway's thread."""

from __future__ import annotations

from collections.abc import Iterable

from revconn._proto.registry_pb2 import ForwardResponse
from revconn.core.chunks import ChunkJoiner, ResponseTooLarge
from revconn.core.errors import ProtocolError
from revconn.core.status import StatusCode
from revconn.core.terms import CHUNKS
from revconn.gateway.limits import Counters, Limits
from revconn.gateway.refusals import Refused, over_limit
from revconn.gateway.routes import Connection

__all__ = ["Joiners", "Joining"]

# A connector whose connection is being replaced sends the same answer on both: the chunks of each
# connection are joined for themselves, and whichever is whole first is the answer.
Joiners = dict[Connection, ChunkJoiner]


class Joining:
    """How much of answers that are not whole is held; each call keeps its own joiners.

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
        if CHUNKS not in sender.features:
            raise self._broken("in chunks, which it did not announce")
        joiner = joiners.get(sender)
        if joiner is None:
            joiner = joiners[sender] = ChunkJoiner(self._limits.max_response_bytes)
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
        """What these have not finished is not needed, or starts afresh on another connection."""
        for sender in senders:
            joiner = joiners.pop(sender, None)
            if joiner is not None:
                self.held_bytes -= joiner.held_bytes

    def _broken(self, how: str) -> Refused:
        self._counters.answers_broken += 1
        return Refused(StatusCode.INTERNAL, f"the connector answered {how}")
