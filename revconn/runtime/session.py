"""One stream's life: handshake, receive loop, heartbeats, teardown."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Collection
from typing import Callable, NoReturn, Protocol

from revconn import clock
from revconn._proto.registry_pb2 import ForwardRequest
from revconn.config import Options
from revconn.core.answers import encode_response
from revconn.core.features import CHUNKS, DRAIN
from revconn.core.outbound import Answer
from revconn.core.protocol import Arrival, Conversation, Phase
from revconn.core.refusals import Speaker
from revconn.core.status import StatusCode
from revconn.core.terms import Terms
from revconn.core.text import Mask, presentable
from revconn.exceptions import (
    AuthenticationError,
    ConfigurationError,
    ConnectionLost,
    HandshakeError,
)
from revconn.guard import guarded_thread
from revconn.logger import get_logger
from revconn.runtime.failures import remedy
from revconn.runtime.heartbeat import HeartbeatTimer
from revconn.runtime.outbox import Line
from revconn.runtime.probe import Probe, take_probes
from revconn.runtime.threads import own_thread
from revconn.transport.base import Stream, StreamEnded

__all__ = ["Session", "SessionOwner"]

logger = get_logger(__name__)

_LONGEST_CHECK = 5.0
_JOIN_TIMEOUT = 5.0


class SessionOwner(Protocol):
    """Whom a session tells, from its own thread."""

    def session_ready(self, session: Session) -> None:
        """CONNECTED arrived."""

    def session_going_away(self, session: Session) -> None:
        """The gateway wants it replaced; it serves on."""

    def session_over(self, session: Session) -> None:
        """It has ended; ``session.error`` says why."""

    def requests_arrived(self, requests: list[Arrival]) -> None:
        """A batch of requests arrived."""

    def requests_cancelled(self, request_ids: Collection[str]) -> None:
        """Nobody waits for these any more; some may be answered already, or unknown."""

    def answer_probe(self, answer: Answer) -> None:
        """Queue an answer, for this stream or another that takes its place."""

    def probe_returned(self, service: str, round_trip: float) -> None:
        """A call to itself came back after so many seconds."""

    def probe_astray(self, service: str, reason: str | None) -> None:
        """The gateway has no route of a service: on a new connection either, if not ``None``."""

    def probe_refused(self, service: str, reason: str) -> None:
        """The gateway does not route a connector's calls of a service."""


class Session:
    """One stream from its opening to its end, in a thread of its own.

    ``terms`` are the connector's own until the gateway's first message has come. ``error`` says why
    it ended, ``ended_in_peace`` that the gateway, told goodbye, ended it with nothing unsettled.

    ``_lock`` guards the conversation, ``_retired`` and ``_says_last``; no I/O happens under it.
    """

    def __init__(
        self,
        target: str,
        name: str,
        open_stream: Callable[[Line], Stream],
        line: Line,
        options: Options,
        owner: SessionOwner,
    ) -> None:
        self._target = target
        self._name = name
        self._line = line
        self._options = options
        self._owner = owner
        self._stream = open_stream(line)
        self._lock = threading.Lock()
        self._conversation = Conversation(liveness_timeout=options.liveness_timeout)
        self._introduced = False
        self.terms = Terms(
            options.heartbeat_interval, options.liveness_timeout, options.max_message_bytes
        )
        self._mask = Mask("")
        self._retired: ConnectionLost | None = None
        self._failure: BaseException | None = None  # of the timer's thread, which sets it
        self.going_away = False
        self.services: tuple[str, ...] = ()
        self._token = uuid.uuid4().hex  # what it answers probes with
        self._probe: Probe | None = None
        self.error: BaseException | None = None
        self.ended_in_peace = False
        self._says_last = False
        self._timer = HeartbeatTimer(
            self,
            handshake_timeout=options.connect_timeout,
            interval=options.heartbeat_interval,
            check_interval=min(_LONGEST_CHECK, options.heartbeat_interval),
        )
        self._timer_thread = guarded_thread(
            f"revconn-heartbeat-{name}", self._timer.run, on_failure=self._fail
        )
        self._thread: threading.Thread | None = None
        self.ready_since: float | None = None
        self._began = self._accepted = 0.0  # clock.with_suspend()

    @property
    def connection_id(self) -> str:
        """The id that the gateway gave, to be shown; empty before CONNECTED."""
        return self._mask(self._conversation.connection_id)

    @property
    def drains(self) -> bool:
        """Whether the gateway, told goodbye, sends nothing new and still reads answers."""
        return DRAIN in self.terms.features

    @property
    def serves(self) -> bool:
        """Whether it is there for requests to come: accepted, and not told goodbye."""
        return bool(self.services) and self._conversation.phase is Phase.READY

    @property
    def is_over(self) -> bool:
        """Whether it has ended."""
        return self.error is not None

    def start(
        self,
        api_key: str,
        services: tuple[str, ...],
        *,
        probed: tuple[str, ...] = (),
        astray: Collection[str] = (),
    ) -> None:
        """Register and serve until the stream ends. Returns at once; the owner is told.

        The session calls the ``probed`` ones of its services through the gateway now and then. For
        the sake of those that are ``astray`` the last one was given up.
        """
        self.services = services
        self._mask = self._stream.mask = Mask(api_key)
        interval = self._options.probe_interval
        if probed and interval is not None:
            patience = self._options.keepalive_timeout
            self._probe = Probe(self, probed, interval, patience, self._token, self._mask, astray)
        self._thread = guarded_thread(f"revconn-receiver-{self._name}", lambda: self._run(api_key))
        try:
            self._thread.start()
        except RuntimeError as error:  # no thread to be had: for now, or as the interpreter exits
            self._line.close()
            self._end(self._loss(str(error)))

    def join(self, timeout: float | None) -> None:
        """Wait, at most ``timeout`` seconds (``None``: no limit), for its thread to end."""
        if self._thread is not None and self._thread.ident is not None:
            self._thread.join(timeout)

    # Its own thread

    def _run(self, api_key: str) -> None:
        error: BaseException
        with own_thread():
            try:
                self._serve(api_key)
            except StreamEnded as ended:
                error = self._loss_by(ended)
                self.ended_in_peace = self._left_in_peace(ended)
            except ConfigurationError as problem:  # a certificate's file is being replaced, say
                error = self._loss(str(problem))
            except BaseException as failure:  # noqa: BLE001 - it is raised from start() and wait()
                error = failure
            error = self._failure or error
            try:
                if not self.ended_in_peace:
                    self._stream.blame()
                self._tear_down(settled=self.ended_in_peace and self._says_last)
            finally:  # the link waits for that
                self._end(error)

    def _serve(self, api_key: str) -> NoReturn:
        self._began = clock.with_suspend()
        try:
            self._timer_thread.start()
            with self._lock:
                registration = self._conversation.register(api_key, self.services)
            self._line.put_control(registration)
            self._stream.open()
        except RuntimeError as error:  # no thread to be had
            raise self._loss(str(error)) from None
        while True:
            self._take_in(self._stream.receive())
            if self._stream.going_away and not self.going_away:
                self.going_away = True
                self._owner.session_going_away(self)

    def _left_in_peace(self, ended: StreamEnded) -> bool:
        """Whether the gateway ended the stream because all it had sent there is settled."""
        with self._lock:
            if self._conversation.phase is not Phase.LEAVING or self._retired is not None:
                return False
        return ended.code is StatusCode.OK or (ended.status_lost and self._line.is_flushed)

    def _end(self, error: BaseException) -> None:
        self.error = error
        self._owner.session_over(self)

    def _take_in(self, batch: list[bytes]) -> None:
        if not self._introduced:
            self._introduced = True
            self.terms = self.terms.met_with(
                (name, self._mask(value) if isinstance(value, str) else value)
                for name, value in self._stream.metadata()
            )
            with self._lock:
                self._conversation.agree(self.terms)
        with self._lock:
            inbound = self._conversation.receive(batch, time.monotonic())
        if inbound.connection_id is not None:
            self._become_ready()
        if inbound.cancelled:
            self._owner.requests_cancelled(inbound.cancelled)
        requests, probes = take_probes(inbound.requests)
        if probes:
            self._answer(probes)
        if self._probe is not None:
            self._probe.take_in(requests, probes)
            self._probe.take_responses(inbound.responses)
        if requests:
            self._owner.requests_arrived(requests)
        if inbound.end is not None:
            raise self._loss(str(inbound.end))

    def _answer(self, probes: list[ForwardRequest]) -> None:
        """Answer calls that are for no handler, this connector's own or another's."""
        for probe in probes:
            deadline = clock.with_suspend() + self._options.keepalive_timeout
            answer = encode_response(probe.request_id, self._token.encode())
            self._owner.answer_probe(Answer(answer, deadline))

    def _become_ready(self) -> None:
        self._accepted = clock.with_suspend()
        if self._accepted - self._began > self._options.connect_timeout:
            raise self._loss(self._overdue)  # the timer's clock stood still for a while
        self.ready_since = time.monotonic()
        self._line.let_answers_through(
            self.terms.max_message_bytes,
            chunks=CHUNKS in self.terms.features,
            send_now=self._stream.send_now,
        )
        if self._probe is not None:
            self._probe.start()
        self._timer.established(self.terms.heartbeat_interval)
        self._owner.session_ready(self)

    def _loss_by(self, ended: StreamEnded) -> ConnectionLost:
        if self._retired is None:
            return self._loss(ended.details, ended.code, ended.speaker)
        if ended.code is StatusCode.CANCELLED:  # it only says that we closed it
            return self._retired
        return self._loss(f"{self._retired.reason}: {ended.details}")

    def _loss(
        self,
        reason: str,
        code: StatusCode | None = None,
        speaker: Speaker = Speaker.STRANGER,
    ) -> ConnectionLost:
        reason = presentable(self._mask(reason))
        if self.ready_since is not None:
            return ConnectionLost(self._target, reason, code)
        if code is not None:
            reason = ": ".join(part for part in (code.name, reason) if part)
        advice = remedy(code, speaker)
        if advice is not None:
            reason = f"{reason}; {advice}"
        refused = code in (StatusCode.UNAUTHENTICATED, StatusCode.PERMISSION_DENIED)
        by_gateway = speaker is not Speaker.STRANGER
        kind = AuthenticationError if refused and by_gateway else HandshakeError
        return kind(self._target, reason, code, speaker=speaker)

    def _tear_down(self, *, settled: bool) -> None:
        with self._lock:
            self._conversation.end()
        self._timer.stop()
        self._line.close(settled=settled)
        self._stream.close()
        self._stream.join(_JOIN_TIMEOUT)
        if self._timer_thread.ident is not None:
            self._timer_thread.join(_JOIN_TIMEOUT)

    def probe_returned(self, service: str, round_trip: float) -> None:
        """A probe came back after so many seconds."""
        self._owner.probe_returned(service, round_trip)

    def probe_astray(self, service: str, reason: str | None) -> None:
        """The gateway has no route of a service."""
        self._owner.probe_astray(service, reason)

    def probe_refused(self, service: str, reason: str) -> None:
        """The gateway does not route such calls."""
        self._owner.probe_refused(service, reason)

    # Any thread

    def say_goodbye(self, *, last: bool = True) -> bool:
        """Send DISCONNECTED and go on serving until the gateway ends the stream.

        A gateway that knows no draining reads no answers from then on: they go out elsewhere.
        Not ``last``: there are answers to what came on other streams, which the gateway does not
        wait for; those that it may have missed go out elsewhere too.
        False when there is no established connection to take leave of.
        """
        with self._lock:
            if self._conversation.phase is not Phase.READY:
                return False
            self._says_last = last
            goodbye = self._conversation.disconnect()
        if not self.drains:
            self._line.withhold_answers()
        self._line.put_control(goodbye)
        return True

    def retire(self, reason: str) -> None:
        """End the stream at once, for this reason. The first one counts."""
        with self._lock:
            if self._retired is None:
                self._retired = self._loss(reason)
        self._line.close()
        self._stream.close()

    # The timer's thread

    def _fail(self, error: BaseException) -> None:
        """The timer cannot go on; nor can a session that sends no heartbeats."""
        self._failure = error
        self._line.close()
        self._stream.close()

    def handshake_overdue(self) -> None:
        """The gateway took the connection and never said CONNECTED."""
        self.retire(self._overdue)

    @property
    def _overdue(self) -> str:
        return f"no CONNECTED within {self._options.connect_timeout:g} s"

    def beat(self) -> None:
        """Send a heartbeat, ahead of all answers that wait."""
        with self._lock:
            if not self._conversation.established:
                return
            heartbeat = self._conversation.heartbeat(time.time())
        self._line.put_control(heartbeat)

    def check_liveness(self) -> float | None:
        """Retire the stream after a silence that the gateway may not have waited out."""
        now = clock.with_suspend()
        look_by = self._look_at_peer(time.monotonic())
        # Before it was accepted there was nothing to forget: connect_timeout bounds that.
        left_at = max(self._accepted, self._line.control_left_at or 0.0)
        with self._lock:
            self._conversation.heartbeat_left(left_at)
            forgotten = self._conversation.may_be_forgotten(now)
            silence = self._conversation.longest_silence(now)
        if forgotten:
            self.retire(
                f"no heartbeat left this machine for {silence:.0f} s: the gateway may have"
                " forgotten the connection"
            )
        return None if look_by is None else clock.at(look_by)

    def _look_at_peer(self, now: float) -> float | None:
        """Whether the gateway answers pings, and calls; by when to look again."""
        look_by = self._stream.check(now)
        with self._lock:
            serves = self._conversation.phase is Phase.READY
        if self._probe is None or not serves:
            return look_by
        probe_by = self._probe.check(now, reading=self._line.has_room())
        return min((each for each in (look_by, probe_by) if each is not None), default=None)

    def send_probe(self, request: ForwardRequest) -> None:
        """Send a request of our own, unless the connection is being left."""
        with self._lock:
            if self._conversation.phase is not Phase.READY:
                return
            message = self._conversation.request(request)
        self._line.put_control(message, is_sign_of_life=False)
