"""A gateway's side of one tunnel connection: what a connector says, and what it is told."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

from revconn._proto.registry_pb2 import (
    CancelRequest,
    ConnectionMessage,
    ConnectionRegister,
    ConnectionStatus,
    ForwardResponse,
    Heartbeat,
)
from revconn.core.connection import (
    CANCEL,
    EITHER_SIDE,
    STREAMS,
    Connection,
    Phase,
    Step,
    Transitions,
    is_possible_id,
    no_message,
)
from revconn.core.requests import STREAM_TAG, split_frame, split_response
from revconn.core.rope import Data, Rope
from revconn.core.status import StatusCode
from revconn.logger import get_logger, level_check

__all__ = ["End", "FromConnector", "GatewayConnection", "GatewayLiveness", "Goodbye"]

logger = get_logger(__name__)
_would_log = level_check(__name__)

_LARGE = 32 << 10  # bytes: of such messages it is worth to take them apart by hand
_LONGEST_QUOTE = 200  # characters of a connector's words in one line of the log
_STATUSES = {number: name for name, number in ConnectionStatus.StatusType.items()}
_HEARTBEAT_TAG = 0x22  # of registry.proto
_FOR_OTHERS = frozenset({"event", "subscription"})

# Compared by identity, as on the other side.
_OPENED, _REGISTERING, _ENDED = Phase.OPENED, Phase.REGISTERING, Phase.ENDED


class End(NamedTuple):
    """How a gateway ends a stream."""

    code: StatusCode
    reason: str


class Goodbye(NamedTuple):
    """A connector is leaving.

    :ivar departure: how it said so.
    :ivar reason: for a log: its words, quoted; none if it had none.
    """

    departure: str
    reason: str


class FromConnector:
    """What one batch of messages meant to a gateway.

    :ivar registration: who wants to register what, in the batch that begins a stream. What came
        behind it is heard once it was accepted, with the next :meth:`GatewayConnection.receive`.
    :ivar responses: to requests, or chunks of them, in the order in which they came; each with the
        message that it came in, and, if it is large, its payload: then it is not in the response.
    :ivar rest: all else that is for others to act on, in order: each with its kind, which is
        ``stream`` (then the frame follows, and its large message or piece, if that is apart), or
        ``request``, ``cancel``, ``event`` or ``subscription`` (the message, and as it came).
    :ivar ignored: what was said in vain, for a log; what a peer can vary as it likes is the second.
    :ivar goodbye: it is leaving; heard once.
    :ivar too_large: the message over the limit that has ended the connection.
    :ivar end: why the connection has ended, in the batch in which it did, and how to end the
        stream. All the rest holds even then: it came first.
    """

    __slots__ = ("end", "goodbye", "ignored", "registration", "responses", "rest", "too_large")

    registration: ConnectionRegister | None
    responses: list[tuple[ForwardResponse, Data, memoryview | Rope | None]]
    rest: list[tuple[str, Any, Any]]
    ignored: list[tuple[str, str]]
    goodbye: Goodbye | None
    too_large: Data | None
    end: End | None


class GatewayLiveness:
    """Whether a connector is alive: it registers in time, and then beats.

    :param now: when the stream was opened.
    :param handshake_timeout: seconds from then to the registration.
    :param heartbeat_timeout: seconds without a heartbeat after which a connection is ended.
    """

    def __init__(self, now: float, handshake_timeout: float, heartbeat_timeout: float) -> None:
        self._handshake_timeout = handshake_timeout
        self._heartbeat_timeout = heartbeat_timeout
        self._handshake_by: float | None = now + handshake_timeout
        self._end_by: float | None = None
        self.last_heartbeat = now

    def registered(self, now: float) -> str:
        """The registration has come; if it came too late, why it is not taken."""
        if self._handshake_by is not None and now > self._handshake_by:
            return self._overdue()
        self._handshake_by = None
        return ""

    def heard(self, now: float) -> None:
        """A heartbeat has come, or the connector was accepted, which counts as one."""
        self.last_heartbeat = now
        self._end_by = now + self._heartbeat_timeout

    def due(self) -> float | None:
        """When to call :meth:`tick`; ``None``: not before something happens."""
        return self._end_by if self._handshake_by is None else self._handshake_by

    def tick(self, now: float) -> str:
        """Why the connector is to be ended, if it has been silent for too long."""
        due = self.due()
        if due is None or now < due:
            return ""
        handshake = self._handshake_by is not None
        self._handshake_by = self._end_by = None  # told once
        return self._overdue() if handshake else self._silent()

    def _overdue(self) -> str:
        return f"no register message came within {self._handshake_timeout:g} seconds"

    def _silent(self) -> str:
        return f"no heartbeat for {self._heartbeat_timeout:g} seconds"


class GatewayConnection(Connection):
    """A gateway's side.

    Wishes (:meth:`accept`, :meth:`respond`, :meth:`cancel`, :meth:`report_error`, :meth:`dismiss`)
    return the message to send and raise :class:`ProtocolError` when this is not the moment for
    them. A request is none: it may wait for a connector, or move on to another, and is bytes by
    then. Whoever routes it gives none to a connector that leaves.

    :param features: those in force.
    :param max_message_bytes: the largest message that is taken.
    :ivar foreign_heartbeat: the id in the last heartbeat that did not name this connection.
    """

    transitions: ClassVar[Transitions] = {
        **EITHER_SIDE,
        # A gateway hears nothing while it looks at the key, and refuses it by failing the stream.
        (Phase.OPENED, Step.EXPIRE): Phase.ENDED,
    }

    def __init__(
        self,
        liveness: GatewayLiveness,
        *,
        features: frozenset[str],
        max_message_bytes: int,
    ) -> None:
        super().__init__(features)
        self._liveness = liveness
        self._limit = max_message_bytes
        self._behind: list[Data] = []  # what came behind the registration
        self._beat_size = -1  # of the last heartbeat, in bytes; and how it begins and ends
        self._beat_start = self._beat_end = b""
        self.foreign_heartbeat: str | None = None

    @property
    def last_heartbeat(self) -> float:
        """When the last heartbeat came, or the connector was accepted."""
        return self._liveness.last_heartbeat

    # Wishes

    def accept(self, connection_id: str, now: float) -> bytes:
        """CONNECTED: the connector may be sent requests from now on."""
        self._take(Step.ACCEPT)
        # The gateway gives the id, whatever the registration offered: with one that is still known
        # the routes of another connection would go when either of the two ends.
        self.connection_id = self.shown_id = connection_id
        self._liveness.heard(now)
        self._beat_end = Heartbeat(connection_id=connection_id).SerializeToString()
        connected = ConnectionStatus(connection_id=connection_id)
        return ConnectionMessage(status=connected).SerializeToString()

    def respond(self, response: ForwardResponse) -> bytes:
        """Answer, or a chunk of the answer, to a request of the connector's own."""
        self._require(self.established, "response")
        return ConnectionMessage(response=response).SerializeToString()

    def cancel(self, request_id: str, reason: str) -> bytes | None:
        """Say that a request need not be answered; ``None`` to a connector that cannot be told.

        That is one that does not know what a cancel is, or that is gone.
        """
        # What the published schema does not have is sent to those alone that announced it.
        if CANCEL not in self.features or not self.established:
            return None
        cancel = CancelRequest(request_id=request_id, reason=reason)
        return ConnectionMessage(cancel=cancel).SerializeToString()

    def report_error(self, problem: str) -> bytes:
        """Status ERROR: what no response can say."""
        self._require(self.established, "ERROR")
        return self._status(ConnectionStatus.ERROR, problem)

    def dismiss(self, reason: str) -> bytes:
        """DISCONNECTED, the last message: the connector is sent away.

        Only once nothing that it was sent waits for an answer: that is what it takes it to say.
        """
        self._take(Step.DISMISS)
        return self._status(ConnectionStatus.DISCONNECTED, reason)

    def _status(self, kind: ConnectionStatus.StatusType, text: str) -> bytes:
        status = ConnectionStatus(connection_id=self.connection_id, status=kind, message=text)
        return ConnectionMessage(status=status).SerializeToString()

    # Time

    def due(self) -> float | None:
        """When to call :meth:`tick`; ``None``: not before something happens.

        It only ever goes further away, but for :meth:`accept`.
        """
        return None if self.phase is _ENDED else self._liveness.due()

    def tick(self, now: float) -> End | None:
        """How the stream is to be ended, if the connector has been silent for too long.

        What arrives until that is done still counts.
        """
        reason = "" if self.phase is _ENDED else self._liveness.tick(now)
        if not reason:
            return None
        silent = self.established
        return End(StatusCode.UNAVAILABLE if silent else StatusCode.DEADLINE_EXCEEDED, reason)

    # What the connector says

    def beat(self, data: Data, now: float) -> bool:
        """Whether a message is a heartbeat just like the last one, the time in it apart.

        If so it counts. To take it apart anew would be most of what thousands of connectors cost
        that have nothing to do.
        """
        if len(data) != self._beat_size or isinstance(data, Rope) or self.phase is _ENDED:
            return False
        if not (data.startswith(self._beat_start) and data.endswith(self._beat_end)):
            return False
        self._heard_heartbeat(now)
        return True

    def receive(self, batch: Sequence[Data], now: float) -> FromConnector:
        """Take in what arrived, in order. Never raises: ``end`` names a rule that was broken."""
        inbound = FromConnector()  # filled here: a method of its own would be another call
        responses = inbound.responses = []
        rest = inbound.rest = []
        inbound.ignored = []
        inbound.registration = inbound.goodbye = inbound.too_large = inbound.end = None
        if self.phase is _ENDED:
            return inbound
        if self.phase is _REGISTERING:
            # There is no id yet that a heartbeat could name, and nobody yet who may call anything.
            self._behind += batch
            return inbound
        if self._behind:
            batch, self._behind = [*self._behind, *batch], []
        limit = self._limit
        # As on the other side: for each response nothing is called but what is written in C.
        for number, data in enumerate(batch):
            # It ends the connection, and its caller is to hear of it: the gateway looks for whom
            # it was.
            size = len(data)
            if size > limit:
                inbound.too_large = data
                self._take(Step.VIOLATE)
                break
            if size > _LARGE and self.established:
                if data[0] == STREAM_TAG[0] and STREAMS in self.features:
                    frame = split_frame(data)
                    if frame is not None:
                        rest.append(("stream", *frame))
                        continue
                parts = split_response(data)
                if parts is not None:
                    responses.append((parts[0], data, parts[1]))
                    continue
            if isinstance(data, Rope):
                data = bytes(data)
            try:
                message = ConnectionMessage.FromString(data)
            except Exception:  # noqa: BLE001 - as on the other side
                self._end(inbound, Step.VIOLATE, no_message(data).args[0])
                break
            kind = message.WhichOneof("message_type")
            if self.phase is _OPENED:
                # The gateway looks at the key next, and may have to wait for that: what the
                # connector sent meanwhile keeps its order.
                self._receive_first(kind, message, inbound, now)
                self._behind += batch[number + 1 :]
                break
            if kind == "response":
                responses.append((message.response, data, None))
            elif kind == "stream" and STREAMS in self.features and self.established:
                rest.append((kind, message.stream, None))
            elif kind == "request" and is_possible_id(message.request.request_id):
                rest.append((kind, message, data))
            else:
                self._receive_rare(kind, message, data, inbound, now)
        return inbound

    def half_close(self, now: float) -> FromConnector:
        """The connector has ended its half of the stream, which is a goodbye too.

        A registration that came before has to be accepted first.
        """
        inbound = self.receive((), now)
        if self.phase is Phase.OPENED:
            problem = "the stream ended before a register message"
            self._end(inbound, Step.VIOLATE, problem)
        elif self.phase is Phase.READY:
            self._take(Step.DISCONNECT)
            departure = "it closed its side of the stream"
            inbound.goodbye = Goodbye(departure, departure)
        return inbound

    def _receive_first(
        self, kind: str | None, message: ConnectionMessage, inbound: FromConnector, now: float
    ) -> None:
        if kind != "register":
            problem = f"the first message must be register, not {kind or 'an unset one'}"
            self._end(inbound, Step.VIOLATE, problem)
            return
        # Once more, though the gateway waited no longer than that: its loop has a clock of its own.
        overdue = self._liveness.registered(now)
        if overdue:
            self._end(inbound, Step.EXPIRE, overdue, StatusCode.DEADLINE_EXCEEDED)
            return
        self._take(Step.REGISTER)
        inbound.registration = message.register

    def _receive_rare(
        self,
        kind: str | None,
        message: ConnectionMessage,
        data: bytes,
        inbound: FromConnector,
        now: float,
    ) -> None:
        """Take in what is no response."""
        # What breaks no rule is ignored, and named: a newer connector must not lose its stream for
        # a message that this gateway does not know.
        if kind == "heartbeat":
            self._receive_heartbeat(message.heartbeat, data, inbound, now)
        elif kind == "request":
            inbound.ignored.append(("a request with no id or an endless one", ""))
        elif kind == "cancel" and CANCEL in self.features:
            self._receive_cancel(message, inbound)
        elif kind == "status":
            self._receive_status(message.status, inbound)
        elif kind in _FOR_OTHERS:
            inbound.rest.append((kind, message, data))
        else:
            inbound.ignored.append((kind or "a message of unknown type", ""))

    def _receive_heartbeat(
        self, heartbeat: Heartbeat, data: bytes, inbound: FromConnector, now: float
    ) -> None:
        # Some connectors send a service's name, or an id of their own making. The protocol cannot
        # tell them, so the last such heartbeat is named in the log when silence ends them.
        if heartbeat.connection_id == self.connection_id:
            self._heard_heartbeat(now)
            # Nothing else in the message, and the id last, as all libraries write it.
            is_usual = data[0] == _HEARTBEAT_TAG and data[1] == len(data) - 2
            if is_usual and data.endswith(self._beat_end):
                self._beat_size, self._beat_start = len(data), data[:2]
        else:
            foreign = self.foreign_heartbeat = heartbeat.connection_id[:64]
            inbound.ignored.append(("a heartbeat whose id is not its own", f" but {foreign!r}"))

    def _heard_heartbeat(self, now: float) -> None:
        self._liveness.heard(now)
        if _would_log(logging.DEBUG):
            logger.debug("connection %s: heartbeat", self.connection_id)

    def _receive_cancel(self, message: ConnectionMessage, inbound: FromConnector) -> None:
        if is_possible_id(message.cancel.request_id):
            inbound.rest.append(("cancel", message, b""))
        else:
            inbound.ignored.append(("a cancel with no id or an endless one", ""))

    def _receive_status(self, status: ConnectionStatus, inbound: FromConnector) -> None:
        if status.status != ConnectionStatus.DISCONNECTED:
            name = _STATUSES.get(status.status, "of unknown type")
            said = f": {status.message[:_LONGEST_QUOTE]!r}"
            inbound.ignored.append((f"status {name}", said))
        elif self.phase is Phase.READY:  # else it has said so before, which changes nothing
            self._take(Step.DISCONNECT)
            reason = repr(status.message[:_LONGEST_QUOTE]) if status.message else ""
            inbound.goodbye = Goodbye("it left", reason)

    def _end(
        self,
        inbound: FromConnector,
        step: Step,
        why: str,
        code: StatusCode = StatusCode.INVALID_ARGUMENT,
    ) -> None:
        inbound.end = End(code, why)
        self._take(step)
