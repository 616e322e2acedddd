"""Any gRPC call from outside, as a call that a connector or a backend answers.

A unary one is a call of the table; what is not, or is no longer, :mod:`revconn.gateway.streaming`
takes.

Everything here belongs to the gateway's thread.
"""

from __future__ import annotations

import asyncio
import logging
import math
import uuid
from collections.abc import Hashable

from revconn._proto.registry_pb2 import ForwardRequest, ForwardResponse
from revconn.core.deadline import format_grpc_timeout
from revconn.core.framing import is_framed, pack, unframe
from revconn.core.metadata import (
    Metadata,
    application_metadata,
    bounded,
    encode_header,
    metadata_from_entries,
    metadata_from_headers,
)
from revconn.core.requests import encode_request
from revconn.core.rope import Data, Rope
from revconn.core.routing import Wanted
from revconn.core.status import ProtocolError, StatusCode, decode_message, response_code
from revconn.gateway.backend_streams import BackendStream
from revconn.gateway.backends import BackendRequest, Reply
from revconn.gateway.budgets import Budget, Owners
from revconn.gateway.call import Call
from revconn.gateway.refusals import STOPPING, Refused, over_limit
from revconn.gateway.rpcs import COST_OF_RESET, NO_HASTE, Rpc, UnaryRpc, code_of
from revconn.gateway.shared import Shared
from revconn.gateway.streaming import StreamingCalls, wanted_of
from revconn.gateway.wires import Turn
from revconn.http2.grpc import MessageTooLong
from revconn.http2.requests import RequestHead
from revconn.http2.streams import Sendable, Stream
from revconn.logger import get_logger, level_check

__all__ = ["Callers", "OutsideCall"]

# Its name is what applications configure: it stays, whatever the file is called.
logger = get_logger("revconn.gateway.proxy")
_OK = StatusCode.OK
_would_log = level_check("revconn.gateway.proxy")  # asked for every call

# Looks from the first message of a call to its end, one in a quarter of a second. A unary call
# sends them together: for it this is no limit. Looks, and not seconds: after a stall of the process
# what has come meanwhile is seen to first. A starved gateway took unary calls for streaming ones.
_MOST_LOOKS = 5
_NOTHING = Wanted.by_outsider("")
_WORTH_OF_ANSWER = 2  # frames, beside those that bring it: what callers say about it
_SOON = 0.001  # seconds: what a request takes that comes at once
# Seconds that the rest of a unary request may be behind its beginning. Where a backend answers,
# which may stream, the call is taken for one that does from then on.
_PATIENCE = 0.02


class Callers:
    """Takes every call of a method that the gateway itself does not have."""

    def __init__(self, shared: Shared, turn: Turn, streaming: StreamingCalls) -> None:
        self.shared = shared
        self.is_leaving = False
        self.streaming = streaming
        self._turn = turn
        self._loop = asyncio.get_running_loop()
        self._incoming: dict[_Incoming, None] = {}  # whose request has not come yet, oldest first
        self._budget = Budget(shared.limits.max_pending, self._turn_away, newest_first=True)
        self._fresh: list[_Incoming] = []  # of this turn; most have their request in it, too
        # With what follows it, a UUID that nobody else has.
        self._id_prefix = str(uuid.uuid4())[:-12]
        self._count = 0

    @property
    def receiving(self) -> int:
        """How many calls there are whose request has not come yet."""
        return len(self._incoming) + sum(each.is_receiving for each in self._fresh)

    def next_id(self) -> str:
        """The id of a request that is unique everywhere."""
        self._count += 1
        return f"{self._id_prefix}{self._count:012x}"

    def leave(self) -> None:
        """Refuse every call from now on. Those inside go on."""
        self.is_leaving = True
        self.streaming.leave()

    def now(self) -> float:
        """On the loop's clock."""
        return self._loop.time()

    def serve(self, stream: Stream, head: RequestHead, peer: str) -> Rpc:
        """Take a call."""
        registry = self.shared.registry
        if registry.knows_streams and registry.streams(head.method_path, _names(head.path)):
            return self.streaming.serve(stream, head, peer)
        return _Incoming(stream, head, peer, self)

    def add(self, incoming: _Incoming) -> None:
        """A call has come; its request may be right behind it."""
        if not self._fresh:
            self._turn.at_end(self._count_fresh)
        self._fresh.append(incoming)

    def _count_fresh(self) -> None:
        fresh, self._fresh = self._fresh, []
        budget = self._budget
        for incoming in fresh:
            if not incoming.is_receiving:
                continue
            owners = incoming.stream.owner.owners
            if budget.make_room(owners):
                budget.take(owners, incoming)
                self._incoming[incoming] = None
                self.watch(incoming)
            else:
                self._turn_away(incoming)

    def watch(self, incoming: _Incoming) -> None:
        """See in a moment whether the rest of a request has come, if its method may stream."""
        if self.may_stream(incoming.wanted):
            self._loop.call_later(_PATIENCE, incoming.consider)

    def may_stream(self, wanted: Wanted) -> bool:
        """Whether a backend answers that, which may stream: it has not said what does."""
        shared = self.shared
        return not shared.registry.serves(wanted) and shared.backends.serves(wanted)

    def _turn_away(self, incoming: _Incoming) -> None:
        problem = f"the requests of {self._budget.used:,} calls are still on their way"
        incoming.turn_away(over_limit(self.shared.counters, "max_pending", problem))

    def discard(self, incoming: _Incoming) -> None:
        """A call's request has come, or does not any more."""
        if self._incoming and self._incoming.pop(incoming, 0) is None:
            self._budget.give_back(incoming)
            if self.is_leaving and self.shared.calls.on_settled is not None:
                self.shared.calls.on_settled()

    def expire(self) -> None:
        """Refuse the calls whose request takes too long."""
        now = self._loop.time()
        for incoming in tuple(self._incoming):
            incoming.look(now)


class _Incoming(UnaryRpc):
    """A call whose request is on its way; from then on it is an :class:`OutsideCall`."""

    __slots__ = ("_call", "_callers", "_looks", "came_at", "is_receiving", "seconds", "wanted")

    def __init__(self, stream: Stream, head: RequestHead, peer: str, callers: Callers) -> None:
        super().__init__(stream, head, peer)
        self._callers = callers
        self.wanted = _NOTHING
        self._call: OutsideCall | None = None
        self._looks = 0
        self.is_receiving = False  # whether its request has yet to come
        self.came_at = callers.now()
        # How long the caller waits, and the gateway lets it.
        own, self.seconds = head.seconds, callers.shared.request_timeout
        if own is not None and own < self.seconds:
            self.seconds = own

    def start(self) -> None:
        """See whether somebody serves it. Raises :class:`Refused`."""
        super().start()
        if self._callers.is_leaving:
            raise Refused(StatusCode.UNAVAILABLE, STOPPING)
        self.wanted = wanted_of(self.head.path)
        self._callers.shared.calls.admit(self.wanted, self.head.size)
        self.is_receiving = True
        self._callers.add(self)

    @property
    def carries_calls(self) -> bool:
        """Whether the call has been sent on, or its answer is on the way."""
        return self._call is not None or self.stream.unsent_bytes > 0

    def now(self) -> float:
        """On the loop's clock."""
        return self._callers.now()

    def look(self, now: float) -> None:
        """See whether the request takes too long."""
        if now - self.came_at > _PATIENCE:
            self.consider()
        if not self.is_receiving:
            return
        if self.has_message:
            self._looks += 1
            if self._looks >= _MOST_LOOKS:  # a stream that is held open behind its first message
                self.turn_away(self.not_unary())
        elif now - self.came_at > self.seconds:
            problem = f"the request did not end within {self.seconds:g} seconds"
            self.end(StatusCode.DEADLINE_EXCEEDED, f"{problem}; only unary calls work")

    def await_end(self) -> None:
        """The message has come, and nothing behind it."""
        self._callers.watch(self)

    def consider(self) -> None:
        """What is not unary streams, if it may."""
        is_waiting = self.is_receiving and not (self.is_over or self.stream.is_mid_message)
        if is_waiting and self._callers.may_stream(self.wanted):
            self._stream(self.take_back(), ended=False)

    def receive_stream(self, messages: list[Data], *, ended: bool) -> None:
        """The call is not unary. Raises :class:`Refused` if it has to be."""
        if not self._callers.may_stream(self.wanted):
            super().receive_stream(messages, ended=ended)
        self._stream(messages, ended=ended)

    def _stream(self, messages: list[Data], *, ended: bool) -> None:
        self._leave()
        self._callers.streaming.take_over(self, self.came_at, messages, ended=ended)

    def _leave(self) -> None:
        """Somebody else takes what comes of the call."""
        self.is_over, self.is_receiving = True, False
        self._callers.discard(self)

    def stream_answer(self, answer: BackendStream) -> None:
        """The call is out of the table, and its answer streams."""
        self.settled()
        self._leave()
        self._callers.streaming.take_over_answer(self, self.came_at, answer)

    def end(self, code: StatusCode, problem: str) -> None:
        """Refuse it."""
        self.abandon()
        self.finish(code, problem)

    def receive(self, message: Data) -> None:
        """Send the call on. Raises :class:`Refused`."""
        callers = self._callers
        self.is_receiving = False
        callers.discard(self)
        shared = callers.shared
        call = OutsideCall(self, callers.next_id(), self.wanted, shared)
        # Not earlier: one that is refused is not in the table, and not to be given up.
        shared.calls.submit(call, call.encode(message))
        if not self.is_over:
            self._call = call

    def refuse(self, error: ProtocolError) -> None:
        """The message is too large, or broken."""
        problem = str(error)
        if isinstance(error, MessageTooLong):
            shared = self._callers.shared
            limit = shared.limits.max_message_bytes
            problem = f"a request of {error.size:,} bytes exceeds {limit:,}"
            problem = over_limit(shared.counters, "max_message_bytes", problem).message
        self.end(code_of(error), problem)

    def settled(self) -> None:
        """The call is out of the table, and about to be answered."""
        self._call = None

    def fail(
        self, code: StatusCode, problem: str, trailing: Metadata, initial: Metadata = ()
    ) -> None:
        """Tell the caller of a failure that it was answered with: it asked for no refusal."""
        self.stream.owner.endpoint.charge(-_WORTH_OF_ANSWER)
        self.finish(code, problem, trailing, initial)

    def break_off(self, reason: str) -> None:
        """The caller has gone."""
        if self._call is not None and self.now() - self.came_at >= NO_HASTE:
            # Nor did it call for nothing: there was no answer for that long.
            self.stream.owner.endpoint.charge(-COST_OF_RESET)
        super().break_off(reason)

    def abandon(self) -> None:
        """The caller gave up, or is refused."""
        self.is_receiving = False
        self._callers.discard(self)
        call, self._call = self._call, None
        if call is not None:
            self._callers.shared.calls.give_up(call, "the caller gave up")


class OutsideCall(Call):
    """A call of a gRPC client's."""

    def __init__(self, rpc: _Incoming, request_id: str, wanted: Wanted, shared: Shared) -> None:
        self._rpc = rpc
        self._shared = shared
        self.path = rpc.head.method_path
        super().__init__(request_id, self.path, wanted, rpc.came_at + rpc.seconds)

    @property
    def origin(self) -> Hashable:
        """Its caller's network."""
        owners: Owners = self._rpc.stream.owner.owners
        return owners[0]

    def encode(self, message: Data) -> Data:
        """The call as a message to a connector."""
        rpc = self._rpc
        head, remaining = rpc.head, self._remaining()
        headers, timeout = head.forwarded, head.timeout
        if timeout:
            # Whoever answers is to know the caller's time, less what the request took to come, if
            # that was long enough to count.
            taken = rpc.seconds - remaining
            if taken > _SOON and (own := head.seconds) is not None:
                timeout = format_grpc_timeout(max(0.0, own - taken)).encode()
            headers += encode_header(b"grpc-timeout", timeout)
        extension = head.extension(rpc.peer)
        self.extension = len(extension)
        return encode_request(
            self.id.encode(),
            self.path.encode(),
            headers,
            _packed(message),
            max(1, math.ceil(remaining)),
            extension,
        )

    def _remaining(self) -> float:
        return self.deadline - self._rpc.now()

    def for_backend(self, request: ForwardRequest) -> BackendRequest:
        """The caller's message and metadata as they came, and what is left of its time."""
        payload = unframe(request.payload) if is_framed(request.payload) else request.payload
        metadata = application_metadata(self._rpc.head.metadata())
        remaining, own = self._remaining(), self._rpc.head.seconds
        if own is not None:
            own += remaining - self._rpc.seconds
        return BackendRequest(payload, metadata, remaining, True, own)

    # What is answered

    def respond(
        self,
        response: ForwardResponse,
        data: Data | None = None,
        payload: memoryview | Rope | None = None,
    ) -> None:
        """Tell the caller what a connector, or the gateway itself, answered."""
        headers = response.headers
        # By far the most: asking a map of protobuf's for what it does not have takes long.
        code = _OK
        if headers or response.status_code != 200:
            code = response_code(response.status_code, headers)
        rpc = self._rpc
        rpc.settled()
        if _would_log(logging.DEBUG):
            logger.debug("%.200r from %s: %s", self.path, rpc.peer, code.name)
        initial: Metadata = ()
        metadata: Metadata = ()
        if headers or response.initial_metadata or response.trailing_metadata:
            initial, metadata = self._metadata(response)
        if code is not StatusCode.OK:
            rpc.fail(code, _problem(response), metadata, initial)
            return
        try:
            message = self._message(response, payload)
        except Refused as refused:
            rpc.finish(refused.code, refused.message)
        else:
            self._reply(message, metadata, initial)

    def _metadata(self, response: ForwardResponse) -> tuple[Metadata, Metadata]:
        """An answer's initial metadata, and the trailing one, as far as the caller takes it."""
        entries = response.initial_metadata, response.trailing_metadata
        header_list = self._rpc.header_list
        if any(entries):
            initial, trailing = map(metadata_from_entries, entries)
            return bounded(initial, header_list), bounded(trailing, header_list)
        return (), bounded(metadata_from_headers(response.headers), header_list)

    def _message(self, response: ForwardResponse, large: memoryview | Rope | None) -> Sendable:
        payload = response.payload if large is None else large
        limit = self._shared.limits.max_sent_message_bytes
        if len(payload) > limit:
            problem = f"{self.path[:200]}: a response of {len(payload):,} bytes exceeds"
            problem = f"{problem} the {limit:,} that may be sent"
            raise over_limit(self._shared.counters, "max_sent_message_bytes", problem)
        if payload and payload[0] < 2 and is_framed(whole := bytes(payload)):
            try:
                return unframe(whole, response.headers.get("grpc-encoding", ""), limit)
            except ProtocolError as error:
                problem = f"the connector's payload: {error}"
                raise Refused(StatusCode.INTERNAL, problem) from None
        return payload

    def relay(self, reply: Reply) -> None:
        """Tell the caller what a backend answered: all but the transport's own metadata."""
        rpc = self._rpc
        rpc.settled()
        logger.debug("%.200r from %s: %s, from a backend", self.path, rpc.peer, reply.code.name)
        initial = application_metadata(reply.initial)
        trailing = application_metadata(reply.trailing)
        if reply.code is StatusCode.OK:
            self._reply(reply.payload, trailing, initial)
        else:
            rpc.fail(reply.code, reply.message, trailing, initial)

    def stream(self, answer: BackendStream) -> None:
        """Tell the caller what a backend answers as it comes."""
        self._rpc.stream_answer(answer)

    def _reply(self, payload: Sendable, trailing: Metadata, initial: Metadata) -> None:
        rpc = self._rpc
        stream = rpc.stream
        rpc.reply(payload, trailing, initial)
        if stream.unsent_bytes:
            self._shared.answers.add(stream, self.deadline)


def _names(path: bytes) -> tuple[str, ...]:
    try:
        return wanted_of(path).names
    except Refused:  # it is refused where others are
        return ()


def _packed(message: Data) -> Data:
    # One that begins so might be taken for a prefixed one, and has to be looked at.
    is_plain = isinstance(message, Rope) and message[0] > 1
    return message if is_plain else pack(bytes(message))


def _problem(response: ForwardResponse) -> str:
    encoded = response.headers.get("grpc-message")
    if encoded is not None:
        return decode_message(encoded)
    return response.error_message or f"the connector answered with status {response.status_code}"
