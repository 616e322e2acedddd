"""Streaming calls from outside, each as a stream of the connector that answers it.

A call is two streams: one of HTTP/2, on which its caller speaks, and one of the tunnel. What comes
on either is said on the other, as far as that one has room; until then its window stays shut.
Everything here belongs to the gateway's thread.
"""

from __future__ import annotations

import asyncio
import logging
from functools import lru_cache

from revconn._proto.registry_pb2 import StreamOpening
from revconn.core.metadata import Metadata, bounded, entries_of
from revconn.core.rope import Data
from revconn.core.routing import Wanted, split_method_path
from revconn.core.status import ProtocolError, StatusCode
from revconn.core.streams import OVERHEAD, Listener, Stream
from revconn.gateway.refusals import STOPPING, NobodyServes, Refused, over_limit
from revconn.gateway.routes import Connection
from revconn.gateway.rpcs import Rpc
from revconn.gateway.shared import Shared
from revconn.http2 import streams as http2
from revconn.http2.grpc import MessageTooLong
from revconn.http2.requests import RequestHead
from revconn.logger import get_logger, level_check

__all__ = ["StreamingCall", "StreamingCalls"]

# Its name is what applications configure: it stays, whatever the file is called.
logger = get_logger("revconn.gateway.proxy")
_would_log = level_check("revconn.gateway.proxy")

_OF_HTTP = frozenset({"content-type", "te", "grpc-accept-encoding"})


class StreamingCalls:
    """Takes the calls of methods that stream, and counts those that there are."""

    def __init__(self, shared: Shared) -> None:
        self.shared = shared
        self.is_leaving = False
        self._open: dict[StreamingCall, None] = {}

    def __len__(self) -> int:
        return len(self._open)

    def serve(self, stream: http2.Stream, head: RequestHead, peer: str) -> Rpc:
        """Take a call."""
        return StreamingCall(stream, head, peer, self)

    def leave(self) -> None:
        """Refuse every call from now on. Those inside go on."""
        self.is_leaving = True

    def end(self, code: StatusCode, problem: str) -> None:
        """End those that there are."""
        for call in tuple(self._open):
            call.turn_away(Refused(code, problem))

    def add(self, call: StreamingCall) -> None:
        """One more. Raises :class:`Refused`."""
        limit = self.shared.limits.max_streaming_calls
        if len(self._open) >= limit:
            problem = f"{limit:,} streaming calls are open"
            raise over_limit(self.shared.counters, "max_streaming_calls", problem)
        self._open[call] = None

    def discard(self, call: StreamingCall) -> None:
        """It is over, if it was there."""
        if self._open.pop(call, 0) is None and self.shared.calls.on_settled is not None:
            self.shared.calls.on_settled()


class StreamingCall(Rpc):
    """One call, from its opening to its end."""

    __slots__ = (
        "_calls", "_connection", "_is_known", "_timer", "_tunnel", "_unread", "_wanted",
    )  # fmt: skip

    def __init__(
        self, stream: http2.Stream, head: RequestHead, peer: str, calls: StreamingCalls
    ) -> None:
        super().__init__(stream, head, peer)
        self._calls = calls
        self._connection: Connection | None = None
        self._tunnel: Stream | None = None
        self._unread = 0  # what the messages cost that the caller has not read
        self._timer: asyncio.TimerHandle | None = None
        self._is_known = False
        self._wanted: Wanted | None = None

    def start(self) -> None:
        """Find who answers it. Raises :class:`Refused`."""
        super().start()
        calls, head = self._calls, self.head
        if calls.is_leaving:
            raise Refused(StatusCode.UNAVAILABLE, STOPPING)
        self._wanted = wanted_of(head.path)
        calls.shared.calls.admit(self._wanted, head.size)
        calls.add(self)
        self._limit_time()
        # Where it is not known whether the method streams, what comes together goes together: a
        # unary call is one frame then.
        self._is_known = head.method_path in calls.shared.registry.streaming
        if self._is_known:
            self._open()

    def forward(self, connection: Connection, message: Data) -> None:
        """Have this connector answer; the one message has come, and nothing follows it."""
        try:
            self._calls.add(self)
            self._limit_time()
            tunnel = self._ask(connection)
            tunnel.send(message)
            tunnel.half_close()
        except Refused as refused:
            self.turn_away(refused)

    @property
    def carries_calls(self) -> bool:
        """Whether it is one that goes on."""
        return True

    def _limit_time(self) -> None:
        seconds = self.head.seconds
        if seconds is not None:
            self._timer = asyncio.get_running_loop().call_later(seconds, self._expire)

    def _open(self) -> Stream:
        shared = self._calls.shared
        assert self._wanted is not None
        connection = shared.registry.take_turn_to_stream(self._wanted, self.head.method_path)
        if connection is None:
            raise self._nobody(self._wanted)
        return self._ask(connection)

    def _ask(self, connection: Connection) -> Stream:
        assert connection.streams is not None
        self._connection = connection
        tunnel = self._tunnel = connection.streams.ask(self._opening(), _Answer(self))
        self._calls.shared.counters.calls += 1
        return tunnel

    def _nobody(self, wanted: Wanted) -> Refused:
        shared = self._calls.shared
        if not shared.registry.serves(wanted):
            return NobodyServes(wanted.service)
        limit = shared.limits.max_streaming_calls_per_connection
        problem = f"the connectors of the service have {limit:,} streaming calls each"
        return over_limit(shared.counters, "max_streaming_calls_per_connection", problem)

    def _opening(self) -> StreamOpening:
        head = self.head
        metadata = tuple(pair for pair in head.metadata() if pair[0] not in _OF_HTTP)
        opening = StreamOpening(
            method_path=head.method_path,
            metadata=entries_of(
                tuple(
                    (key, value)
                    for key, value in metadata
                    if isinstance(value, bytes) or value.isascii()
                )
            ),
            peer=self.peer,
        )
        if self._timer is not None:
            left = self._timer.when() - asyncio.get_running_loop().time()
            opening.timeout_microseconds = max(1, int(left * 1e6))
        return opening

    # What the caller says

    def take(self, messages: list[Data], *, ended: bool) -> None:
        """Say it on the tunnel."""
        if self.is_over:
            return
        if self.inflater is not None:
            self.inflater.renew()
        tunnel = self._tunnel
        if tunnel is None:
            try:
                tunnel = self._open()
            except Refused as refused:
                self.turn_away(refused)
                return
        for message in messages:
            tunnel.send(message)
        if ended:
            tunnel.half_close()
        elif tunnel.room <= 0:
            self.stream.hold()

    def go_on(self) -> None:
        """What the caller said has room again."""
        if self.stream.is_held:
            self.stream.release()

    def refuse(self, error: ProtocolError) -> None:
        """A message is too large, or broken."""
        if isinstance(error, MessageTooLong):
            shared = self._calls.shared
            problem = f"a message of {error.size:,} bytes exceeds"
            problem = f"{problem} {shared.limits.max_message_bytes:,}"
            self.turn_away(over_limit(shared.counters, "max_message_bytes", problem))
        else:
            super().refuse(error)

    def _expire(self) -> None:
        self._timer = None
        self._calls.shared.counters.calls_expired += 1
        self.turn_away(Refused(StatusCode.DEADLINE_EXCEEDED, "the deadline has passed"))

    def turn_away(self, refused: Refused) -> None:
        """It cannot go on: the caller is told why, at once."""
        self.stream.drop_unsent()
        super().turn_away(refused)

    def abandon(self) -> None:
        """The caller gave up, or is refused: the connector is told."""
        tunnel = self._tunnel
        if tunnel is not None and not tunnel.is_over:
            self._calls.shared.counters.calls_given_up += 1
            tunnel.cancel("the caller gave up")
        self._forget()

    def _forget(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._calls.discard(self)
        connection, self._connection = self._connection, None
        if connection is not None and connection.departure:
            connection.end_if_drained()

    # What is answered

    def take_initial(self, metadata: Metadata) -> None:
        """Metadata goes before all else."""
        if not self.is_over:
            self.begin(bounded(metadata, self.header_list))

    def pass_on(self, messages: list[bytes]) -> None:
        """Messages of the answer."""
        stream, tunnel = self.stream, self._tunnel
        assert tunnel is not None
        self.send(messages)
        cost = sum(map(len, messages)) + OVERHEAD * len(messages)
        if stream.unsent_bytes or self._unread:
            self._unread += cost
            stream.await_room()
        else:
            tunnel.consume(cost)

    def resume(self) -> None:
        """The caller has read what there was."""
        if self._tunnel is not None:
            unread, self._unread = self._unread, 0
            self._tunnel.consume(unread)

    def answered(self, code: StatusCode, message: str, trailing: Metadata) -> None:
        """The answer has ended."""
        shared = self._calls.shared
        shared.counters.calls_answered += 1
        if _would_log(logging.DEBUG):
            logger.debug("%.200r from %s: %s", self.head.method_path, self.peer, code.name)
        self._forget()
        self.finish(code, message, bounded(trailing, self.header_list))
        if self.stream.unsent_bytes:
            # Nobody waits for ever for a caller that does not read.
            deadline = asyncio.get_running_loop().time() + shared.request_timeout
            shared.answers.add(self.stream, deadline)

    def lost(self, code: StatusCode, reason: str) -> None:
        """The tunnel's stream is over before its end."""
        self._forget()
        self.finish(code, reason)


class _Answer(Listener):
    """Hears what comes on the tunnel's stream of a call."""

    __slots__ = ("_call",)

    def __init__(self, call: StreamingCall) -> None:
        self._call = call

    def take_initial(self, metadata: Metadata) -> None:
        """The answer's initial metadata has come."""
        self._call.take_initial(metadata)

    def take(self, messages: list[bytes], *, ended: bool) -> None:
        """Messages have come."""
        if not self._call.is_over:
            self._call.pass_on(messages)

    def take_status(self, code: StatusCode, message: str, trailing: Metadata) -> None:
        """The answer's end has come."""
        self._call.answered(code, message, trailing)

    def break_off(self, code: StatusCode, reason: str) -> None:
        """It is over before its end."""
        if code is StatusCode.UNAVAILABLE:
            reason = f"the connector's connection ended: {reason}"
        elif code is StatusCode.RESOURCE_EXHAUSTED:
            reason = f"the connector {reason}"
        self._call.lost(code, reason)

    def resume(self) -> None:
        """There is room for what the caller says."""
        self._call.go_on()


# Callers call the same methods again and again. Bounded, because it is they who name them.
@lru_cache(maxsize=256)
def wanted_of(path: bytes) -> Wanted:
    """Which service an outside caller's path names. Raises :class:`Refused`."""
    try:
        service, _ = split_method_path(path.decode("utf-8", "replace"))
    except ValueError as error:
        raise Refused(StatusCode.UNIMPLEMENTED, str(error)) from None
    return Wanted.by_outsider(service)
