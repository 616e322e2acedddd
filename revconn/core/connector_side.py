"""A connector's side of one tunnel connection: what its gateway says, and what it says itself.

A session guards it with one lock of its own. The thread that receives calls ``receive`` with each
batch, and acts on what that meant outside the lock. The timer's thread waits until ``due``, calls
``tick``, and sends what that gives; it is woken when ``due`` comes nearer: by the registration, by
CONNECTED, and by what came of a probe. Any thread may say something. What is worth a line in the
log is kept until :meth:`ConnectorConnection.log` is called, without the lock.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Sequence
from typing import ClassVar, NamedTuple, Optional

from revconn._proto.registry_pb2 import (
    CancelRequest,
    ConnectionMessage,
    ConnectionRegister,
    ConnectionStatus,
    ForwardRequest,
    ForwardResponse,
    Heartbeat,
    StreamFrame,
)
from revconn.core.connection import (
    CANCEL,
    EITHER_SIDE,
    LONGEST_ID,
    STREAMS,
    Connection,
    Phase,
    Step,
    Terms,
    Transitions,
    is_possible_id,
    no_message,
)
from revconn.core.liveness import PROBE_METHOD, ConnectorLiveness, Prober, Verdict
from revconn.core.requests import (
    REQUEST_TAG,
    STREAM_TAG,
    LargeAlone,
    split_frame,
    split_request,
)
from revconn.core.rope import ROPE_BYTES, Data
from revconn.core.status import ProtocolError, is_success
from revconn.core.stream import Large
from revconn.logger import Mask, Reminders, SafeLogger, get_logger, presentable

__all__ = ["Arrival", "ConnectorConnection", "Due", "FromGateway", "Probed", "Streaming"]

logger = get_logger(__name__)

_LONGEST_QUOTE = 200  # characters of a gateway's words in one line of the log
_MOST_ASKED = 10_000  # calls of its own that are remembered
_PROBE_END = -len(PROBE_METHOD)
_WORTH_SPLITTING = 1 << 16  # bytes: copying such a payload takes longer than finding it

# Compared by identity, which costs a batch no call: up to Python 3.10 it is one of Python's to look
# a member of an Enum up, and its hash is one everywhere.
_OPENED, _ENDED = Phase.OPENED, Phase.ENDED

Arrival = tuple[ForwardRequest, str, str, Optional[bytes], int]
"""A request, its id, its method, its payload unless it holds that, and how many bytes it came in.

A bare tuple, because there is one for each; with what was read already, because each look into a
message costs.
"""


class Streaming(NamedTuple):
    """What of the services streams: the paths of methods.

    Then the services of whose methods that is not known.
    """

    methods: tuple[str, ...] = ()
    services: tuple[str, ...] = ()


NOT_STREAMING = Streaming()


class Probed(NamedTuple):
    """What came of a probe: a call of this connector to itself.

    :ivar reason: why it proves that, in words for a log.
    :ivar round_trip: seconds until it came back, if it did.
    """

    verdict: Verdict
    service: str
    reason: str
    round_trip: float


class FromGateway:
    """What one batch of messages meant to a connector.

    :ivar requests: to be handled, in the order in which they came.
    :ivar cancelled: ids of earlier requests, or of none that ever was; each with how many requests
        of this batch came before it. Those of the batch that it meant are not in ``requests``.
    :ivar responses: to calls of this connector's own.
    :ivar answers: to calls that are for no handler, encoded: probes, its own or another's.
    :ivar probed: what came of its own probes. After ``LOST`` the stream is to be ended.
    :ivar probes: the next ones, to be sent ahead of all that waits. They are no signs of life.
    :ivar connection_id: of the batch that brought CONNECTED.
    :ivar streams: what was said of streams, in order.
    :ivar is_rare: whether there is anything at all but ``requests``, or a line for the log.
    :ivar end: why the connection has ended, in the batch in which it did: a :class:`ProtocolError`
        when the gateway broke the protocol. All the rest holds even then: it came first.
    """

    __slots__ = (
        "answers",
        "cancelled",
        "connection_id",
        "end",
        "is_rare",
        "probed",
        "probes",
        "requests",
        "responses",
        "streams",
    )

    requests: list[Arrival]
    cancelled: dict[str, int]
    responses: list[ForwardResponse]
    answers: list[bytes]
    probed: list[Probed]
    probes: list[bytes]
    streams: list[tuple[StreamFrame | LargeAlone, Large | None]]
    connection_id: str | None
    is_rare: bool
    end: ProtocolError | str | None


class Due(NamedTuple):
    """What has become due at a connector: messages to send, ahead of all that waits.

    :ivar heartbeat: a sign of life: :meth:`ConnectorConnection.heartbeat_left` is to be told when
        it was handed to the network.
    :ivar probe: a call of this connector to itself, which is none.
    :ivar end: why the stream is to be ended. What arrives until that is done still counts.
    """

    heartbeat: bytes | None = None
    probe: bytes | None = None
    end: str = ""


def _is_for_handler(request: ForwardRequest) -> bool:
    return is_possible_id(request.request_id) and not request.method_path.endswith(PROBE_METHOD)


def _arrival(request: ForwardRequest, payload: bytes | None, data: Data) -> Arrival:
    return request, request.request_id, request.method_path, payload, len(data)


class ConnectorConnection(Connection):
    """A connector's side.

    Wishes (:meth:`register`, :meth:`heartbeat`, :meth:`request`, :meth:`disconnect`) return the
    message to send and raise :class:`ProtocolError` when this is not the moment for them.

    :param token: what it answers probes with: 32 letters and digits, unique everywhere.
    :ivar is_dismissed: whether it ended with the gateway's DISCONNECTED.
    """

    transitions: ClassVar[Transitions] = {
        **EITHER_SIDE,
        # Only a connector hears anything while it registers: the gateway's answer, good or bad.
        (Phase.REGISTERING, Step.DISMISS): Phase.ENDED,
        (Phase.REGISTERING, Step.VIOLATE): Phase.ENDED,
        (Phase.REGISTERING, Step.EXPIRE): Phase.ENDED,
    }

    def __init__(self, liveness: ConnectorLiveness, *, token: str) -> None:
        super().__init__(frozenset())
        self._liveness = liveness
        self._token = token
        self._asked: dict[str, None] = {}  # calls of its own, the oldest first
        self._probes: dict[str, None] = {}  # of those, its probes
        self._mask = Mask("")
        self._ignored = Reminders()
        self._now = 0.0
        self.is_dismissed = False
        # Logging runs the application's handlers, which may write to a disk, or wait for a thread
        # that wants the session's lock. Any thread appends; whoever has the one turn takes.
        self._lines: deque[tuple[SafeLogger, int, str, tuple[object, ...]]] = deque()
        self._turns = deque(("to log",))

    # Wishes

    def register(
        self,
        api_key: str,
        services: Iterable[str],
        now: float,
        prober: Prober | None = None,
        *,
        streaming: Streaming = NOT_STREAMING,
    ) -> bytes:
        """The first message. Its ``connection_id`` stays empty: the gateway gives one.

        From now on the handshake's limit counts. ``prober`` says what to probe once it is over.
        What is ``streaming`` a gateway that does not know streams passes over.
        """
        self._require(self.phase is Phase.OPENED, Step.REGISTER.value)
        # From here on whatever the gateway says may be an echo of the key.
        self._mask = Mask(api_key)
        registration = ConnectionRegister(
            api_key=api_key,
            services=services,
            streaming_methods=streaming.methods,
            mixed_services=streaming.services,
        )
        # Before the step: a key that cannot be encoded (a lone surrogate) leaves all as it was.
        message = ConnectionMessage(register=registration).SerializeToString()
        self._take(Step.REGISTER)
        self._liveness.registered(now, prober)
        return message

    def heartbeat(self, unix_time: float) -> bytes:
        """A heartbeat with the id that the gateway gave."""
        # LEAVING too: a gateway that drains still waits for answers, and would forget a connector
        # that fell silent meanwhile.
        self._require(self.established, "heartbeat")
        heartbeat = Heartbeat(timestamp=int(unix_time), connection_id=self.connection_id)
        return ConnectionMessage(heartbeat=heartbeat).SerializeToString()

    def request(self, request: ForwardRequest) -> bytes:
        """A call of the connector's own, with an id that is unique everywhere.

        Its answer comes once, if it comes.
        """
        self._require(self.phase is Phase.READY, "request")
        self._asked[request.request_id] = None
        if len(self._asked) > _MOST_ASKED:  # a gateway that answers none of so many answers none
            oldest = next(iter(self._asked))
            del self._asked[oldest]
            self._probes.pop(oldest, None)
        return ConnectionMessage(request=request).SerializeToString()

    def disconnect(self) -> bytes:
        """Say goodbye. Requests already on their way are still to be answered."""
        self._take(Step.DISCONNECT)
        status = ConnectionStatus(
            connection_id=self.connection_id, status=ConnectionStatus.DISCONNECTED
        )
        return ConnectionMessage(status=status).SerializeToString()

    # The log

    def log(self) -> None:
        """Log what was worth a line, in its order. Not to be called with a lock held.

        Where another thread logs already, that one takes all there is; nobody waits for it here.
        """
        # One at a time: of two threads that each took a line, the second may be the faster one. Who
        # gives the turn back looks once more: whoever found it taken has left its lines.
        while self._lines:
            try:
                turn = self._turns.pop()
            except IndexError:
                return
            try:
                while self._lines:
                    log, level, line, arguments = self._lines.popleft()
                    log.log(level, line, *arguments)
            finally:
                self._turns.append(turn)

    def _log(self, log: SafeLogger, level: int, line: str, *arguments: object) -> None:
        self._lines.append((log, level, line, arguments))

    def _log_ignored(self, level: int, problem: str, detail: str = "") -> None:
        """Log what the gateway said in vain, unless it says that again and again."""
        count = self._ignored.count(problem, self._now)
        if count:
            times = f" ({count:,} times since the last such line)" if count > 1 else ""
            self._log(logger, level, "%s%s%s", problem, detail, times)

    # Time

    def agree(self, terms: Terms) -> None:
        """Go by the terms that hold with this gateway; without this, it announced nothing.

        Comes before the first message that is heard.
        """
        self.features = terms.features
        self._liveness.agree(terms.heartbeat_interval, terms.liveness_timeout)

    def heartbeat_left(self, at: float) -> None:
        """The last heartbeat was handed to the network at that instant. It may be told twice."""
        self._liveness.heartbeat_left(at)

    def due(self) -> float | None:
        """When to call :meth:`tick`; ``None``: not before something happens.

        It may come nearer with :meth:`register` and with what :meth:`receive` takes in: CONNECTED,
        and a response to a probe.
        """
        if self.phase is _ENDED:
            return None
        return self._liveness.due(probing=self.phase is Phase.READY)

    def tick(self, now: float, unix_time: float, *, reading: bool = True) -> Due:
        """What is due by ``now``. Sooner does no harm.

        ``reading`` says whether this side takes in what it is sent: no answer can come otherwise.
        """
        if self.phase is _ENDED:
            return Due()
        # A gateway that was told goodbye, and routes nothing here any more, routes no probe either.
        probing = self.phase is Phase.READY
        tick = self._liveness.tick(now, reading=reading, probing=probing)
        return Due(
            self.heartbeat(unix_time) if tick.heartbeat else None,
            None if tick.probe is None else self._probe(tick.probe),
            tick.end,
        )

    def _probe(self, probe: ForwardRequest) -> bytes:
        self._probes[probe.request_id] = None
        return self.request(probe)

    # What the gateway says

    def receive(self, batch: Sequence[Data], now: float) -> FromGateway:
        """Take in what arrived, in order. Never raises: ``end`` names a rule that was broken."""
        inbound = FromGateway()  # filled here: a method of its own would be another call
        requests = inbound.requests = []
        inbound.cancelled = {}
        inbound.responses = []
        inbound.answers = []
        inbound.probed = []
        inbound.probes = []
        streams = inbound.streams = []
        inbound.connection_id = inbound.end = None
        inbound.is_rare = False
        self._now = now
        if self.phase is _OPENED and batch:
            problem = "the gateway spoke before it was spoken to"
            self._end(inbound, Step.VIOLATE, ProtocolError(problem))
        if self.phase is _ENDED:
            return inbound
        # For each request nothing is called here but what is written in C: the rest of this loop
        # is for what is rare. (A call of Python's would cost as much as decoding does.)
        for arrived in batch:
            size = len(arrived)
            if size > _WORTH_SPLITTING and self._receive_large(arrived, inbound):
                continue
            # Below that none is a rope, and bytes() would be one more call.
            data: bytes = arrived if size < ROPE_BYTES else bytes(arrived)  # type: ignore[assignment]
            try:
                message = ConnectionMessage.FromString(data)
            except Exception:  # noqa: BLE001 - whatever garbage raises, as in decode()
                self._end(inbound, Step.VIOLATE, no_message(data))
                break
            # Also before CONNECTED: a route exists from the moment the gateway registers it,
            # and a caller's request may overtake the status.
            # Asking protobuf what it is costs a third of decoding it.
            if data and data[0] == REQUEST_TAG:
                request = message.request
                request_id = request.request_id  # empty if another kind has followed
                method = request.method_path
                if (
                    request_id
                    and len(request_id) <= LONGEST_ID
                    and method[_PROBE_END:] != PROBE_METHOD
                ):
                    requests.append((request, request_id, method, None, size))
                    continue
            elif data[:2] == STREAM_TAG and STREAMS in self.features:
                streams.append((message.stream, None))
                continue
            try:
                self._receive_rare(message, data, inbound)
            except ProtocolError as error:
                self._end(inbound, Step.VIOLATE, error)
            if self.phase is _ENDED:
                break
        if inbound.cancelled:
            inbound.requests = [
                arrival
                for number, arrival in enumerate(requests)
                if number >= inbound.cancelled.get(arrival[1], 0)
            ]
        if inbound.requests and self._liveness.prober is not None:
            self._liveness.prober.heard()
        return inbound

    def _receive_large(self, data: Data, inbound: FromGateway) -> bool:
        """Take in a large request for a handler, or a frame with a large message; or neither."""
        if data[0] == STREAM_TAG[0]:
            frame = split_frame(data) if STREAMS in self.features else None
            if frame is not None:
                inbound.streams.append(frame)
            return frame is not None
        requests = inbound.requests
        apart = split_request(data)
        if apart is None or not _is_for_handler(apart[0]):
            return False
        requests.append(_arrival(*apart, data))
        return True

    def _receive_rare(self, message: ConnectionMessage, data: bytes, inbound: FromGateway) -> None:
        """Take in what is no request for a handler, as a rule."""
        kind = message.WhichOneof("message_type")
        if kind == "request" and _is_for_handler(message.request):
            inbound.requests.append(_arrival(message.request, None, data))
            return
        inbound.is_rare = True
        if kind == "request":
            self._receive_odd_request(message.request, inbound)
        elif kind == "response" and message.response.request_id in self._asked:
            self._receive_response(message.response, inbound)
        elif kind == "status":
            self._receive_status(message.status, inbound)
        elif kind == "cancel" and CANCEL in self.features:
            self._receive_cancel(message.cancel, inbound)
        elif kind is None:
            self._log_ignored(logging.INFO, "ignored a message of a type newer than this schema")
        else:
            self._log_ignored(logging.INFO, f"ignored a {kind}: a gateway has no use for one here")

    def _receive_odd_request(self, request: ForwardRequest, inbound: FromGateway) -> None:
        """Answer a probe; ignore a request that nobody can answer."""
        if not is_possible_id(request.request_id):
            problem = "ignored a request with no id or an endless one: unanswerable"
            self._log_ignored(logging.WARNING, problem)
            return
        # Without a prober of its own too: another replica may be the one that asks, whose probes
        # are answered by whoever the gateway picks.
        if self._liveness.prober is not None:
            self._liveness.prober.arrived(request.request_id)
        response = ForwardResponse(
            request_id=request.request_id, status_code=200, payload=self._token.encode()
        )
        inbound.answers.append(ConnectionMessage(response=response).SerializeToString())

    def _receive_cancel(self, cancel: CancelRequest, inbound: FromGateway) -> None:
        # It counts for what came before it: an id may be used again behind its own cancel.
        if is_possible_id(cancel.request_id):
            inbound.cancelled[cancel.request_id] = len(inbound.requests)
            reason = presentable(self._mask(cancel.reason))
            line = "the gateway cancels %r: %s"
            self._log(logger, logging.DEBUG, line, cancel.request_id, reason)

    def _receive_response(self, response: ForwardResponse, inbound: FromGateway) -> None:
        request_id = response.request_id
        del self._asked[request_id]
        if request_id not in self._probes:
            inbound.responses.append(response)
            return
        del self._probes[request_id]
        prober = self._liveness.prober
        if prober is None or self.phase is not Phase.READY:  # this connection is being left
            return
        service = prober.service
        verdict = prober.answered(response, self._now)
        silent = "answered by others" if is_success(response.status_code) else "no reason given"
        error = presentable(self._mask(response.error_message)) or silent
        if verdict is Verdict.UNKNOWN:
            code = response.status_code
            line = "a probe of %s came to nothing: %d, %s"
            self._log(logger, logging.DEBUG, line, service, code, error)
        else:
            reason = f"{verdict.value} ({service}): {response.status_code}, {error}"
            inbound.probed.append(Probed(verdict, service, reason, prober.round_trip))
        if (probe := self._liveness.next_probe(self._now)) is not None:
            inbound.probes.append(self._probe(probe))

    def _receive_status(self, status: ConnectionStatus, inbound: FromGateway) -> None:
        if status.status == ConnectionStatus.CONNECTED:
            self._receive_connected(status, inbound)
        elif status.status == ConnectionStatus.DISCONNECTED:
            self.is_dismissed = True
            said = f"the gateway said DISCONNECTED: {self._quote(status.message)}"
            self._end(inbound, Step.DISMISS, said)
        elif status.status != ConnectionStatus.ERROR:
            problem = "ignored a connection status newer than this schema"
            self._log_ignored(logging.INFO, problem, f": {status.status}")
        elif self.phase is Phase.REGISTERING:
            said = f"the gateway said ERROR: {self._quote(status.message)}"
            self._end(inbound, Step.DISMISS, said)
        else:
            said = f": {self._quote(status.message)}"
            self._log_ignored(logging.WARNING, "the gateway reported an error", said)

    def _receive_connected(self, status: ConnectionStatus, inbound: FromGateway) -> None:
        given = status.connection_id
        # An id is needed, and kept as it is: heartbeats with any other id are only logged by the
        # gateway, which then forgets the connection.
        if not given:
            raise ProtocolError("CONNECTED without a connection_id")
        if not is_possible_id(given) or not given.isprintable():
            raise ProtocolError("CONNECTED with an unusable connection_id", self._quote(given))
        if self.phase is not Phase.REGISTERING:
            if given != self.connection_id:
                # Heartbeats must carry the one right id, and there is no telling which it is now.
                problem = "a second CONNECTED with another connection_id"
                raise ProtocolError(problem, self._quote(given))
            return
        # Too late though nobody looked meanwhile: after a sleep the gateway may have forgotten it.
        overdue = self._liveness.accept(self._now)
        if overdue:
            self._end(inbound, Step.EXPIRE, overdue)
            return
        self.connection_id = inbound.connection_id = given
        self.shown_id = self._mask(given)
        self._take(Step.ACCEPT)

    def _end(self, inbound: FromGateway, step: Step, why: ProtocolError | str) -> None:
        inbound.end = why
        inbound.is_rare = True
        self._take(step)

    def _quote(self, text: str) -> str:
        """The gateway's words for a log: shortened, and with no control characters."""
        return repr(self._mask(text)[:_LONGEST_QUOTE]) if text else "(no reason given)"
