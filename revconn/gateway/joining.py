"""Answers that come in chunks, until they are whole. It belongs to the gateway's thread."""

from __future__ import annotations

from revconn._proto.registry_pb2 import ForwardResponse
from revconn.core.chunking import ChunkJoiner, ResponseTooLarge
from revconn.core.errors import ProtocolError
from revconn.core.features import CHUNKS
from revconn.core.status import StatusCode
from revconn.gateway.limits import Counters, Limits
from revconn.gateway.refusals import Refused, over_limit
from revconn.gateway.routes import Connection

__all__ = ["ChunkedAnswers"]


class ChunkedAnswers:
    """The chunks of every answer that is not whole yet, by the id of its request.

    A connector whose connection is being replaced sends the same answer on both: the chunks of
    each connection are joined for themselves, and whichever is whole first is the answer.
    """

    def __init__(self, limits: Limits, counters: Counters) -> None:
        self._limits = limits
        self._counters = counters
        self._begun: dict[str, dict[Connection, ChunkJoiner]] = {}
        self.held_bytes = 0

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._begun

    def add(self, chunk: ForwardResponse, sender: Connection) -> ForwardResponse | None:
        """The whole answer, once this was the final chunk. Raises :class:`Refused`."""
        if CHUNKS not in sender.features:
            raise self._broken("in chunks, which it did not announce")
        joiner = self._joiner(chunk.request_id, sender)
        self._require_room(len(chunk.payload))
        before = joiner.held_bytes
        try:
            return joiner.add(chunk)
        except ResponseTooLarge as error:
            raise over_limit(self._counters, "max_response_bytes", str(error)) from None
        except ProtocolError as error:
            raise self._broken(f"in chunks that do not make one: {error}") from None
        finally:
            self.held_bytes += joiner.held_bytes - before

    def forget(self, request_id: str) -> None:
        """Drop what has come of an answer, if anything has."""
        for joiner in self._begun.pop(request_id, {}).values():
            self.held_bytes -= joiner.held_bytes

    def forget_from(self, sender: Connection) -> None:
        """Drop what ``sender`` has not finished: on another connection it would start afresh."""
        for request_id, joiners in list(self._begun.items()):
            joiner = joiners.pop(sender, None)
            if joiner is not None:
                self.held_bytes -= joiner.held_bytes
            if not joiners:
                del self._begun[request_id]

    def _joiner(self, request_id: str, sender: Connection) -> ChunkJoiner:
        joiners = self._begun.setdefault(request_id, {})
        if sender not in joiners:
            joiners[sender] = ChunkJoiner(self._limits.max_response_bytes)
        return joiners[sender]

    def _require_room(self, size: int) -> None:
        if self.held_bytes + size > self._limits.max_joining_bytes:
            problem = f"unfinished answers hold {self.held_bytes:,} bytes already"
            raise over_limit(self._counters, "max_joining_bytes", problem)

    def _broken(self, how: str) -> Refused:
        self._counters.answers_broken += 1
        return Refused(StatusCode.INTERNAL, f"the connector answered {how}")
