"""EstablishConnection: one connector's stream, around a core connection.

Everything here belongs to the gateway's thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
import uuid

from revconn._proto.registry_pb2 import (
    ConnectionMessage,
    ForwardResponse,
    StreamFrame,
)
from revconn.core.connection import FEATURES_HEADER, STREAMS, SUPPORTED, Announcement, decode
from revconn.core.gateway_side import End, FromConnector, GatewayConnection, GatewayLiveness
from revconn.core.requests import LargeAlone
from revconn.core.rope import Data
from revconn.core.status import ProtocolError, StatusCode
from revconn.core.stream import Large
from revconn.core.streams import Streams
from revconn.gateway.deadlines import Timeouts
from revconn.gateway.keys import Registration, check_registration
from revconn.gateway.refusals import STOPPING, Refused, over_limit
from revconn.gateway.routes import Connection
from revconn.gateway.rpcs import Method, Rpc, code_of
from revconn.gateway.shared import Shared
from revconn.gateway.wires import Turn
from revconn.gateway.wishes import Wishes
from revconn.http2.grpc import MessageTooLong
from revconn.http2.requests import RequestHead
from revconn.http2.streams import ErrorCode, Stream
from revconn.logger import get_logger

__all__ = ["ConnectorStream", "ConnectorStreams"]

logger = get_logger(__name__)

FLUSH_TIMEOUT = 5.0  # seconds a leaving connector has to read what is still queued for it


METHOD = b"/registry.RegistryService/EstablishConnection"
_FEATURES = FEATURES_HEADER.encode()
# Bytes that a registered connector may send: in a frame, and before it is given more.
LONGEST_FRAME = 256 << 10
STREAM_WINDOW = 2 << 20


class ConnectorStreams:
    """Takes connectors' streams: registers each, serves it, and cleans up after it."""

    def __init__(self, shared: Shared, turn: Turn) -> None:
        self.shared = shared
        self.turn = turn
        self.loop = asyncio.get_running_loop()
        self.is_leaving = False
        self._open: dict[ConnectorStream, None] = {}
        timeout = shared.limits.handshake_timeout
        self.handshakes = Timeouts(self.loop, timeout, ConnectorStream.expire_handshake)
        self._all_gone: asyncio.Future[None] | None = None

    def methods(self) -> tuple[Method, ...]:
        """What they call."""
        return (Method(METHOD, self._serve),)

    def _serve(self, stream: Stream, head: RequestHead, peer: str) -> ConnectorStream:
        return ConnectorStream(stream, head, peer, self)

    def leave(self) -> None:
        """Let nobody in from now on. Those inside go on."""
        self.is_leaving = True

    async def end(self, timeout: float) -> None:
        """Wait for the streams to end, which have all been told to."""
        if self._open:
            self._all_gone = self.loop.create_future()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._all_gone, timeout)

    def add(self, stream: ConnectorStream) -> None:
        """A stream was opened. Raises :class:`Refused`."""
        if self.is_leaving:
            raise Refused(StatusCode.UNAVAILABLE, STOPPING)
        # Before anything is read: a stream costs memory as soon as it is open, long before its
        # first message shows a key.
        if not self.shared.handshakes.make_room(stream.stream.owner.owners):
            raise self.shared.too_many_handshakes()
        self._open[stream] = None

    def discard(self, stream: ConnectorStream) -> None:
        """A stream is over."""
        self._open.pop(stream, None)
        if self._all_gone is not None and not self._open and not self._all_gone.done():
            self._all_gone.set_result(None)


class ConnectorStream(Rpc):
    """One connector's stream, from its opening to its end.

    Until it is registered it waits for that; then what it says is acted upon as it comes, and what
    is queued for it is sent as there is room, all at once at the end of a turn of the loop.
    """

    __slots__ = (
        "_announced", "_behind", "_behind_is_end", "_connection", "_ending", "_has_flush",
        "_is_forgotten", "_is_registering", "_protocol", "_streams", "_timer", "_wishes",
    )  # fmt: skip

    def __init__(
        self, stream: Stream, head: RequestHead, peer: str, streams: ConnectorStreams
    ) -> None:
        super().__init__(stream, head, peer)
        self._streams = streams
        self._protocol: GatewayConnection
        self._wishes: Wishes
        self._connection: Connection = None  # type: ignore[assignment]  # until it is registered
        self._announced = Announcement()
        self._behind: list[Data] | None = None  # what is heard once what was asked is answered
        self._ending: End | None = None
        self._behind_is_end = False  # whether the end of what it says is among that
        self._has_flush = self._is_forgotten = self._is_registering = False
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """See whether there is room for it; who finds none is turned away."""
        try:
            super().start()
            self._streams.add(self)
        except Refused as refused:
            self.turn_away(refused)
            return
        shared = self._streams.shared
        shared.handshakes.take(self.stream.owner.owners, self)
        self._is_registering = True
        # A message over the limit, but not by far, is read: it says which call is to fail.
        self.stream.limit = min(2 * shared.limits.max_message_bytes, 2**31 - 1)
        self._announced = Announcement.from_metadata(self.head.metadata())
        timeout = shared.limits.handshake_timeout
        # The monotonic clock, not the one that goes on while this machine sleeps: a gateway that
        # slept heard nothing meanwhile, which is no fault of its connectors.
        self._protocol = GatewayConnection(
            GatewayLiveness(time.monotonic(), timeout, shared.heartbeat_timeout),
            features=SUPPORTED & self._announced.features,
            max_message_bytes=shared.limits.max_message_bytes,
        )
        self._streams.handshakes.add(self)

    @property
    def carries_calls(self) -> bool:
        """Whether it is registered: others' calls would be lost with it."""
        return self._connection is not None

    # Until it is registered

    def expire_handshake(self) -> None:
        """It has not registered in time."""
        self._streams.shared.counters.refused["handshake_timeout"] += 1
        # The loop's clock and time.monotonic() may differ by a moment: it is time by both.
        end = self._protocol.tick(math.inf)
        assert end is not None
        self.turn_away(Refused(*end))

    def turn_away(self, refused: Refused) -> None:
        """It may not register, or not now."""
        code, problem = refused.code, refused.message
        shared = self._streams.shared
        shared.counters.connections_refused += 1
        shared.journal.refused(self.peer, code, problem)
        self.stream.owner.endpoint.charge(5)
        self.abandon()
        # A connector takes the word of who announces itself for the gateway's, not for a proxy's.
        initial = Announcement(SUPPORTED).metadata() if self._announces else ()
        self.finish(code, problem, initial=initial)

    def _register(self, messages: list[Data]) -> None:
        shared = self._streams.shared
        inbound = self._protocol.receive(messages, time.monotonic())
        if inbound.too_large is not None:
            problem = f"a message of {len(inbound.too_large):,} bytes exceeds"
            limit = f"{shared.limits.max_message_bytes:,}"
            raise over_limit(shared.counters, "max_message_bytes", f"{problem} {limit}")
        if inbound.registration is None:
            assert inbound.end is not None
            raise Refused(*inbound.end)
        registration = check_registration(inbound.registration, shared.keys)
        self._require_room_for(registration.key)
        shared.hooks.admit()
        self._accept(registration)

    @property
    def _announces(self) -> bool:
        """Whether it said what it supports: only then is it told what the gateway does."""
        return any(each.name == _FEATURES for each in self.head.fields)

    def _require_room_for(self, key: int) -> None:
        shared = self._streams.shared
        limit = shared.limits.max_connections
        if len(shared.registry) >= limit:
            problem = f"{limit:,} connections are open"
            raise over_limit(shared.counters, "max_connections", problem)
        limit = shared.limits.max_connections_per_key
        if shared.registry.count(key) >= limit:
            problem = f"{limit:,} connections with that API key are open"
            raise over_limit(shared.counters, "max_connections_per_key", problem)

    def _accept(self, registration: Registration) -> None:
        self._leave_handshake()
        shared = self._streams.shared
        limit = shared.limits.max_sent_message_bytes
        stated = self._announced.max_message_bytes
        outbound = shared.hooks.new_outbound(shared.limits)
        now = time.monotonic()
        self._connection = connection = Connection(
            # A new one for every stream. The reference gateway takes the id that a connector
            # offers, and removes the routes of the wrong stream when two have the same.
            id=str(uuid.uuid4()),
            key=registration.key,
            services=registration.services,
            peer=self.peer,
            connected_at=now,
            protocol=self._protocol,
            outbound=outbound,
            end=self.end,
            max_pending=shared.limits.max_pending_per_connection,
            max_message_bytes=min(limit, stated or limit),
            journal=shared.journal,
        )
        if STREAMS in self._protocol.features:
            connection.streaming, connection.mixed = registration.streaming, registration.mixed
            connection.introspection = registration.introspection
            connection.streams = Streams(
                self._flush_later,
                message_limit=min(shared.limits.max_response_bytes, limit),
                most_streams=shared.limits.max_streaming_calls_per_connection,
                most_held=shared.limits.max_queued_bytes,
                held_option="the gateway's max_queued_bytes",
                frame_limit=connection.max_message_bytes,
            )
        self._wishes = Wishes(shared, connection, self._streams.loop)
        if self._announces:
            # Ahead of CONNECTED: the connector adapts its heartbeat to what is stated here. A
            # connector that said nothing of features is sent nothing, as the published protocol
            # has it.
            stated_here = Announcement(
                SUPPORTED, shared.heartbeat_timeout, shared.limits.max_message_bytes
            )
            self.begin(stated_here.metadata())
        else:
            self.begin()
        self.stream.widen(STREAM_WINDOW)
        self.stream.owner.endpoint.allow_frames(LONGEST_FRAME)
        outbound.on_put = self._flush_later
        # CONNECTED is queued before anybody can route a request to it, and so goes out first.
        outbound.put(self._protocol.accept(connection.id, now))
        shared.registry.add(connection)
        shared.counters.connections_opened += 1
        shared.journal.connected(connection)

    def _leave_handshake(self) -> None:
        if self._is_registering:
            self._is_registering = False
            self._streams.handshakes.discard(self)
            self._streams.shared.handshakes.give_back(self)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # What the connector says

    def take(self, messages: list[Data], *, ended: bool) -> None:
        """Act upon what has come."""
        if self._ending is not None or self.is_over:
            return
        if self.inflater is not None:
            self.inflater.renew()
        if self._behind is not None:
            self._behind += messages
            self._behind_is_end |= ended
            return
        is_lone = len(messages) == 1 and not ended
        if is_lone and self._protocol.beat(messages[0], time.monotonic()):
            return
        try:
            self._hear(messages, ended=ended)
        except Refused as refused:  # a registration
            self.turn_away(refused)
        except BaseException:  # noqa: BLE001 - whatever it is, it ends one stream, and is logged
            self._fail()

    def _hear(self, messages: list[Data], *, ended: bool) -> None:
        if self._is_registering:
            if messages:
                self._register(messages)
            elif ended:
                end = self._protocol.half_close(time.monotonic()).end
                assert end is not None
                raise Refused(*end)
            messages = []  # what came behind the registration is heard now
        now = time.monotonic()
        most = self._connection.outbound.slack
        self._act(self._protocol.receive(messages[:most], now))
        if len(messages) > most:  # hardly ever: it calls others, and does not read the answers
            self.take(messages[most:], ended=ended)
        elif ended and self._ending is None:
            self._act(self._protocol.half_close(now))

    def _fail(self) -> None:
        if self._is_registering:
            logger.exception("a connector at %s: a bug in the gateway", self.peer)
            self.turn_away(Refused(StatusCode.INTERNAL, "the gateway failed; its log says how"))
        else:
            self._streams.shared.journal.failed(self._connection)
            self.end(StatusCode.INTERNAL, "the gateway failed; its log says how")

    def _act(self, inbound: FromConnector) -> None:
        """Do what it asks for."""
        shared, connection = self._streams.shared, self._connection
        # By far the most of what comes.
        for response, data, payload in inbound.responses:
            shared.calls.answer(response, connection, data, payload)
        for kind, message, data in inbound.rest:
            if kind == "request":
                self._wishes.forward(message, data)
            elif kind == "stream":
                self._hear_stream(message, data)
            else:
                self._wishes.hear(kind, message)
        for what, detail in inbound.ignored:
            connection.note(what, detail)
        if inbound.goodbye is not None:
            departure, reason = inbound.goodbye
            shared.journal.draining(connection, reason)
            shared.rerouting.drain(connection, departure)
        if inbound.too_large is not None:
            self._refuse_large(inbound.too_large)
        if inbound.end is not None:
            self.end(*inbound.end)
        if connection.outbound.is_crowded:
            # Who calls and does not read the answers is not read either: its window stays shut.
            self._behind = []
            self.stream.hold()

    def _hear_stream(self, frame: StreamFrame | LargeAlone, large: Large | None) -> None:
        streams = self._connection.streams
        if streams is not None and (problem := streams.receive(frame, large)):
            self._connection.note(problem, f": {frame.stream_id}")

    def refuse(self, error: ProtocolError) -> None:
        """A message is far too large, or broken."""
        code, problem = code_of(error), str(error)
        if isinstance(error, MessageTooLong):
            shared = self._streams.shared
            problem = f"a message of {error.size:,} bytes exceeds"
            problem = f"{problem} {shared.limits.max_message_bytes:,}"
            problem = over_limit(shared.counters, "max_message_bytes", problem).message
        if self._is_registering:
            self.turn_away(Refused(code, problem))
        elif self._ending is None:
            self.end(code, problem)

    # What it is sent

    def _flush_later(self) -> None:
        if not self._has_flush:
            self._has_flush = True
            self._streams.turn.at_end(self._flush)

    def _flush(self) -> None:
        self._has_flush = False
        try:
            self._send_queued()
        except BaseException:  # noqa: BLE001 - as in take(): nobody would come for the rest
            self._fail()

    def _send_queued(self) -> None:
        outbound, stream = self._connection.outbound, self.stream
        moved = False
        streams = self._connection.streams
        while outbound.has_more and (room := stream.room) > 0:
            if taken := outbound.take(room):  # else all of it was withdrawn
                stream.send(taken)
                moved = True
        while streams is not None and streams.has_output and (room := stream.room) > 0:
            if taken := streams.take(room):
                stream.send(taken)
                moved = True
        outbound.note_progress(
            time.monotonic() if outbound.has_more or stream.unsent_bytes else None, moved=moved
        )
        if outbound.has_more or (streams is not None and streams.has_output):
            stream.await_room()
        if self._behind is not None and not outbound.is_crowded:
            behind, self._behind = self._behind, None
            stream.release()
            if behind or self._behind_is_end:
                self.take(behind, ended=self._behind_is_end)
        if self._ending is not None:
            self._finish_if_written()

    def resume(self) -> None:
        """There is room for more."""
        self._flush_later()

    # The end

    def end(self, code: StatusCode, reason: str) -> None:
        """End the stream; the first call counts."""
        if self._ending is None and not self.is_over:
            self._ending = End(code, reason)
            # Not at once: whoever ends it may be going through what this changes.
            self._streams.turn.at_end(self._wind_up)

    def _wind_up(self) -> None:
        ending = self._ending
        assert ending is not None
        # Nothing of a stream that is over is read: a request in it would be routed to others, and
        # its answer come back to nobody.
        self.stream.ignore()
        outbound = self._connection.outbound
        self._forget(ending)
        if ending.code is StatusCode.OK:
            # A connector that left in peace is still written its last answers, as one is that was
            # dismissed, whose queue is closed already. One that expired or broke is not.
            outbound.close()
        if not self.is_over:
            self._timer = self._streams.loop.call_later(FLUSH_TIMEOUT, self._write_no_more)
            self._flush()

    def _write_no_more(self) -> None:
        self._connection.outbound.discard()
        if self.is_over:
            self.stream.reset(ErrorCode.CANCEL)  # its end waits behind what is not being read
        else:
            self._finish_if_written()

    def _finish_if_written(self) -> None:
        outbound, ending = self._connection.outbound, self._ending
        assert ending is not None
        if outbound.is_discarded:
            self.stream.drop_unsent()
        elif outbound.has_more or not self._is_forgotten:
            return
        self.finish(ending.code, "" if ending.code is StatusCode.OK else ending.reason)
        if not self.stream.unsent_bytes:
            self.close()

    def close(self) -> None:
        """All that was sent has left."""
        self._cancel_timer()
        self._streams.discard(self)

    def _forget(self, ending: End) -> None:
        if self._is_forgotten:
            return
        self._is_forgotten = True
        shared, connection = self._streams.shared, self._connection
        # Out of the routes first: calls that have to find another place must not find this one.
        shared.registry.remove(connection)
        shared.events.forget(connection)
        if ending.code is not StatusCode.OK and not connection.outbound.is_closed:
            connection.outbound.discard()
        shared.rerouting.connection_ended(connection, ending.reason)
        if connection.streams is not None:
            connection.streams.lose(ending.reason)
        # Last: the calls that were failed just now are still answered, and sent if there is time.
        self._protocol.end()
        shared.journal.ended(connection, ending.reason)

    def abandon(self) -> None:
        """It was turned away, or the connector is gone, before or after it had registered."""
        was_registered = self._connection is not None
        self._leave_handshake()
        self._cancel_timer()
        self._streams.discard(self)
        if was_registered:
            if self._ending is None:
                self._ending = End(StatusCode.UNAVAILABLE, "the stream broke")
            self._connection.outbound.discard()
            self._forget(self._ending)

    def _refuse_large(self, received: Data) -> None:
        response = ForwardResponse()
        with contextlib.suppress(ProtocolError):
            response = decode(ConnectionMessage, received).response
        calls = self._streams.shared.calls
        refused = calls.refuse_too_large(response, self._connection, len(received))
        self.end(refused.code, refused.message)
