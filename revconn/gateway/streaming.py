"""Streaming calls from outside, each as a stream of the connector or backend that answers it.

A call is two streams: one of HTTP/2, on which its caller speaks, and one of the tunnel, or of the
connection to a backend. What comes on either is said on the other, as far as that one has room;
until then its window stays shut.

No backend says which of its methods stream. What comes whole is a unary call of the table's, until
its answer streams; what does not is a streaming one, on trial as long as it may be unary.
Everything here belongs to the gateway's thread.
"""

from __future__ import annotations

import asyncio
import logging
import time
from functools import lru_cache

from revconn._proto.registry_pb2 import StreamOpening
from revconn.core.metadata import (
    Metadata,
    application_metadata,
    bounded,
    entries_of,
    legal_metadata,
)
from revconn.core.rope import Data
from revconn.core.routing import Wanted, split_method_path
from revconn.core.status import ProtocolError, StatusCode
from revconn.core.stream import OVERHEAD, Listener, Received, Stream
from revconn.gateway.backend_streams import UNREACHABLE, BackendListener, BackendStream
from revconn.gateway.budgets import Budget
from revconn.gateway.refusals import STOPPING, NobodyServes, Refused, over_limit
from revconn.gateway.routes import Connection
from revconn.gateway.rpcs import COST_OF_RESET, NO_HASTE, Rpc
from revconn.gateway.shared import Shared
from revconn.gateway.trials import Trial
from revconn.http2 import streams as http2
from revconn.http2.grpc import MessageTooLong
from revconn.http2.requests import RequestHead
from revconn.logger import get_logger, level_check

__all__ = ["StreamingCall", "StreamingCalls"]

# Its name is what applications configure: it stays, whatever the file is called.
logger = get_logger("revconn.gateway.proxy")
_would_log = level_check("revconn.gateway.proxy")

_MUCH = 128 << 10  # bytes that wait for one caller, of an answer that has no large message

_OF_HTTP = frozenset({"content-type", "te", "grpc-accept-encoding"})


class StreamingCalls:
    """Takes the calls of methods that stream, and counts those that there are."""

    def __init__(self, shared: Shared) -> None:
        self.shared = shared
        self.is_leaving = False
        self._open: dict[StreamingCall, None] = {}
        # Who has far more than others loses some of them, where there is no room for these.
        self._budget = Budget(shared.limits.max_streaming_calls, self._turn_away)
        self._held: dict[StreamingCall, None] = {}  # whose service is expected back
        shared.registry.on_change.append(self._resume)
        shared.backends.on_change.append(self._resume)
        shared.registry.on_absence_end.append(self._resume)

    def __len__(self) -> int:
        return len(self._open)

    def serve(self, stream: http2.Stream, head: RequestHead, peer: str) -> Rpc:
        """Take a call."""
        return StreamingCall(stream, head, peer, self)

    def take_over(self, rpc: Rpc, came_at: float, messages: list[Data], *, ended: bool) -> None:
        """Have a backend answer a call that is not unary, or may not be; this has come of it."""
        StreamingCall(rpc.stream, rpc.head, rpc.peer, self, came_at).dial(rpc, messages, ended)

    def take_over_answer(self, rpc: Rpc, came_at: float, answer: BackendStream) -> None:
        """Go on with a call whose request has come, and whose answer streams."""
        StreamingCall(rpc.stream, rpc.head, rpc.peer, self, came_at).go_on_with(answer)

    def leave(self) -> None:
        """Refuse every call from now on, and those that wait for somebody to come."""
        self.is_leaving = True
        for call in tuple(self._held):
            call.turn_away(Refused(StatusCode.UNAVAILABLE, STOPPING))

    def end(self, code: StatusCode, problem: str) -> None:
        """End those that there are."""
        for call in tuple(self._open):
            call.turn_away(Refused(code, problem))

    def add(self, call: StreamingCall) -> None:
        """One more. Raises :class:`Refused`."""
        owners = call.stream.owner.owners
        if not self._budget.make_room(owners):
            raise self._no_room()
        self._budget.take(owners, call)
        self._open[call] = None

    def _turn_away(self, call: StreamingCall) -> None:
        call.turn_away(self._no_room())

    def _no_room(self) -> Refused:
        problem = f"{len(self._open):,} streaming calls are open"
        return over_limit(self.shared.counters, "max_streaming_calls", problem)

    def hold(self, call: StreamingCall) -> None:
        """It waits for somebody to come. Raises :class:`Refused`."""
        limit = self.shared.limits.max_pending
        if len(self._held) >= limit:
            problem = f"{limit:,} streaming calls wait for connectors to come back"
            raise over_limit(self.shared.counters, "max_pending", problem)
        self.shared.counters.calls_held += 1
        self._held[call] = None

    def is_held(self, call: StreamingCall) -> bool:
        """Whether it waits for somebody to come."""
        return call in self._held

    def _resume(self) -> None:
        for call in tuple(self._held):
            if call in self._held and call.find():
                self._held.pop(call, None)

    def discard(self, call: StreamingCall) -> None:
        """It is over, if it was there."""
        self._held.pop(call, None)
        if self._open.pop(call, 0) is None:
            self._budget.give_back(call)
            if self.shared.calls.on_settled is not None:
                self.shared.calls.on_settled()


class StreamingCall(Rpc):
    """One call, from its opening to its end."""

    __slots__ = (
        "_calls", "_came_at", "_connection", "_early", "_far", "_has_ended", "_may_dial", "_timer",
        "_trial", "_unread", "_wanted",
    )  # fmt: skip

    def __init__(
        self,
        stream: http2.Stream,
        head: RequestHead,
        peer: str,
        calls: StreamingCalls,
        came_at: float | None = None,
    ) -> None:
        super().__init__(stream, head, peer)
        self._calls = calls
        self._connection: Connection | None = None
        self._far: Stream | BackendStream | None = None  # of whoever answers
        self._may_dial = True  # a backend that was out of reach is not tried again
        self._trial: Trial | None = None
        self._unread = 0  # what the messages cost that the caller has not read
        self._timer: asyncio.TimerHandle | None = None
        self._came_at = asyncio.get_running_loop().time() if came_at is None else came_at
        self._early: list[Data] = []  # what came before there was somebody to tell
        self._has_ended = False
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
        registry = calls.shared.registry
        if self._is_for_backend(self._wanted):
            self._open()
        elif not registry.serves(self._wanted) and registry.expects(self._wanted):
            calls.hold(self)
        # Where it is not known whether the method streams, what comes together goes together: a
        # unary call is one frame then.
        elif head.method_path in registry.streaming:
            self._open()

    def find(self) -> bool:
        """Go on if somebody has come, or nobody comes; whether it need not wait any more."""
        registry, wanted = self._calls.shared.registry, self._wanted
        assert wanted is not None
        is_there = registry.serves(wanted) or self._is_for_backend(wanted)
        if not is_there and registry.expects(wanted):
            return False
        try:
            far = self._open()
        except Refused as refused:
            self.turn_away(refused)
        else:
            early, self._early = self._early, []
            self._say(far, early, ended=self._has_ended)
            self.go_on()
        return True

    def dial(self, rpc: Rpc, messages: list[Data], ended: bool) -> None:
        """Have a backend answer."""
        self.inflater = rpc.inflater
        try:
            self._wanted = wanted_of(self.head.path)
            self._calls.add(self)
            self._limit_time()
            end = self._came_at + self._calls.shared.request_timeout
            self._trial = Trial(end, self._fail_trial)
            self._open()
        except Refused as refused:
            self.turn_away(refused)
        else:
            self.take(messages, ended=ended)

    def go_on_with(self, answer: BackendStream) -> None:
        """Tell the caller what a backend answers from now on; nothing more is asked."""
        self._far = answer
        try:
            self._calls.add(self)
            self._limit_time()
            answer.listen(_BackendAnswer(self))
        except Refused as refused:
            self.turn_away(refused)

    def forward(self, connection: Connection, message: Data) -> None:
        """Have this connector answer; the one message has come, and nothing follows it."""
        try:
            self._calls.add(self)
            self._limit_time()
            far = self._ask(connection)
            far.send(message)
            far.half_close()
        except Refused as refused:
            self.turn_away(refused)

    @property
    def carries_calls(self) -> bool:
        """Whether it is one that goes on."""
        return True

    def _limit_time(self) -> None:
        seconds = self.head.seconds
        if seconds is not None:
            end = self._came_at + seconds
            self._timer = asyncio.get_running_loop().call_at(end, self._expire)

    def _is_for_backend(self, wanted: Wanted) -> bool:
        shared = self._calls.shared
        is_served = self._may_dial and shared.backends.serves(wanted)
        return is_served and not shared.registry.serves(wanted)

    def _open(self) -> Stream | BackendStream:
        shared = self._calls.shared
        assert self._wanted is not None
        if self._is_for_backend(self._wanted):
            return self._dial(self._wanted)
        path, now = self.head.method_path, time.monotonic()
        connection = shared.registry.take_turn_to_stream(self._wanted, path, now)
        if connection is None:
            raise self._nobody(self._wanted)
        return self._ask(connection)

    def _ask(self, connection: Connection) -> Stream:
        assert connection.streams is not None
        self._connection = connection
        far = self._far = connection.streams.ask(self._opening(), _Answer(self))
        self._calls.shared.counters.calls += 1
        return far

    def _dial(self, wanted: Wanted) -> BackendStream:
        shared = self._calls.shared
        metadata = application_metadata(self.head.metadata())
        far = self._far = shared.backends.stream(
            wanted,
            self.head.method_path,
            metadata,
            None if self._timer is None else self._timer.when(),
            shared.request_timeout,
            _BackendAnswer(self),
        )
        return far

    def _nobody(self, wanted: Wanted) -> Refused:
        shared = self._calls.shared
        if not shared.registry.serves(wanted):
            return NobodyServes(wanted.service)
        if not shared.registry.streams(self.head.method_path, wanted.names):
            problem = f"{self.head.method_path[:200]}: no connector of the service streams that"
            return Refused(StatusCode.UNIMPLEMENTED, problem)
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
        """Say it to whoever answers."""
        if self.is_over:
            return
        if self.inflater is not None:
            self.inflater.renew()
        # Small messages are no flood here: how many come is bounded by who reads them.
        self.stream.owner.endpoint.charge(-len(messages))
        if self._trial is not None:
            self._trial.take(len(messages), ended=ended)
        far = self._far
        if far is None and self._calls.is_held(self):
            self._early += messages
            self._has_ended |= ended
            self.stream.hold()
            return
        if far is None:
            try:
                far = self._open()
            except Refused as refused:
                self.turn_away(refused)
                return
        self._say(far, messages, ended=ended)

    def _say(self, far: Stream | BackendStream, messages: list[Data], *, ended: bool) -> None:
        for message in messages:
            far.send(message)
        if ended:
            far.half_close()
        elif far.room <= 0:
            self.stream.hold()

    def go_on(self) -> None:
        """What the caller said has room again."""
        if self.stream.is_held and self._far is not None and self._far.room > 0:
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

    def break_off(self, reason: str) -> None:
        """The caller has gone."""
        if asyncio.get_running_loop().time() - self._came_at >= NO_HASTE:
            self.stream.owner.endpoint.charge(-COST_OF_RESET)
        super().break_off(reason)

    def _expire(self) -> None:
        self._timer = None
        self._time_out("the deadline has passed")

    def _fail_trial(self) -> None:
        self._time_out("the backend did not answer in time")

    def _time_out(self, problem: str) -> None:
        self._calls.shared.counters.calls_expired += 1
        self.turn_away(Refused(StatusCode.DEADLINE_EXCEEDED, problem))

    def turn_away(self, refused: Refused) -> None:
        """It cannot go on: the caller is told why, at once."""
        self.stream.drop_unsent()
        super().turn_away(refused)

    def abandon(self) -> None:
        """The caller gave up, or is refused: whoever answers is told."""
        far = self._far
        if far is not None and not far.is_over:
            self._calls.shared.counters.calls_given_up += 1
            far.cancel("the caller gave up")
        self._forget()

    def _forget(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._end_trial()
        self._calls.discard(self)
        connection, self._connection = self._connection, None
        if connection is not None and connection.departure:
            connection.end_if_drained()

    # What is answered

    def take_initial(self, metadata: Metadata) -> None:
        """Metadata goes before all else."""
        if not self.is_over:
            self._end_trial()
            self.begin(bounded(legal_metadata(metadata), self.header_list))

    def _end_trial(self) -> None:
        if self._trial is not None:
            self._trial.end()
            self._trial = None

    def pass_on(self, messages: list[Received]) -> None:
        """Messages of the answer."""
        stream, far = self.stream, self._far
        assert far is not None
        self.send(messages)
        if self.is_over:  # they were not what they should be
            return
        cost = sum(map(len, messages)) + OVERHEAD * len(messages)
        if stream.unsent_bytes or self._unread:
            self._unread += cost
            stream.await_room()
            self._account(stream)
        else:
            far.consume(cost)

    def _account(self, stream: http2.Stream) -> None:
        # What a connector's streams hold is bounded where it comes; a backend may have sent a whole
        # message for each of its calls.
        if stream.unsent_bytes > _MUCH and isinstance(self._far, BackendStream):
            self._calls.shared.answers.add_unfinished(stream, self.turn_away)

    def resume(self) -> None:
        """The caller has read what there was."""
        if self._far is not None and not self.is_over:
            self._calls.shared.answers.discard(self.stream)
            unread, self._unread = self._unread, 0
            self._far.consume(unread)

    def answered(self, code: StatusCode, message: str, trailing: Metadata) -> None:
        """The answer has ended."""
        shared = self._calls.shared
        shared.counters.calls_answered += 1
        if _would_log(logging.DEBUG):
            logger.debug("%.200r from %s: %s", self.head.method_path, self.peer, code.name)
        self._end(code, message, bounded(legal_metadata(trailing), self.header_list))

    def note(self, problem: str) -> None:
        """Tell the operator what the connector did wrong."""
        if self._connection is not None:
            detail = f" to {self.head.method_path[:200]}: {problem}"
            self._connection.note("the rest of a streamed answer", detail)

    def lost(self, code: StatusCode, reason: str) -> None:
        """The stream of whoever answers is over before its end."""
        self._end(code, reason, ())

    def unreachable(self, messages: list[Data], *, ended: bool) -> None:
        """No backend was asked; this was said. A connector that comes back may answer it."""
        self._may_dial = False
        registry, wanted = self._calls.shared.registry, self._wanted
        if wanted is None or not (registry.serves(wanted) or registry.expects(wanted)):
            self.lost(StatusCode.UNAVAILABLE, UNREACHABLE)
            return
        self._far = None
        self._end_trial()
        self._early, self._has_ended = messages, ended
        if registry.serves(wanted):
            self.find()
            return
        try:
            self._calls.hold(self)
        except Refused as refused:
            self.turn_away(refused)

    def _end(self, code: StatusCode, message: str, trailing: Metadata) -> None:
        self._forget()
        self.finish(code, message, trailing)
        if self.stream.unsent_bytes:
            # Nobody waits for ever for a caller that does not read.
            shared = self._calls.shared
            deadline = asyncio.get_running_loop().time() + shared.request_timeout
            shared.answers.add(self.stream, deadline)


class _Answer(Listener):
    """Hears what comes on the tunnel's stream of a call."""

    __slots__ = ("_call",)

    def __init__(self, call: StreamingCall) -> None:
        self._call = call

    def take_initial(self, metadata: Metadata) -> None:
        """The answer's initial metadata has come."""
        self._call.take_initial(metadata)

    def take(self, messages: list[Received], *, ended: bool) -> None:
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
            self._call.note(reason)
        self._call.lost(code, reason)

    def resume(self) -> None:
        """There is room for what the caller says."""
        self._call.go_on()


class _BackendAnswer(_Answer, BackendListener):
    """The same, on the stream of a backend's."""

    __slots__ = ()

    def break_off(self, code: StatusCode, reason: str) -> None:
        """It is over before its end."""
        self._call.lost(code, reason)

    def unreachable(self, messages: list[Data], *, ended: bool) -> None:
        """Nobody was asked."""
        self._call.unreachable(messages, ended=ended)


# Callers call the same methods again and again. Bounded, because it is they who name them.
@lru_cache(maxsize=256)
def wanted_of(path: bytes) -> Wanted:
    """Which service an outside caller's path names. Raises :class:`Refused`."""
    try:
        service, _ = split_method_path(path.decode("utf-8", "replace"))
    except ValueError as error:
        raise Refused(StatusCode.UNIMPLEMENTED, str(error)) from None
    return Wanted.by_outsider(service)
