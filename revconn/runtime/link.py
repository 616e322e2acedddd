"""The lasting tie to one gateway: connect, serve, and connect again."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Collection, Iterable
from itertools import takewhile
from typing import Callable, Protocol

import tenacity

from revconn._proto.registry_pb2 import ForwardRequest
from revconn.config import Options
from revconn.core.large import LargeAnswer
from revconn.core.outages import Outage
from revconn.core.outbound import Answer
from revconn.exceptions import ConfigurationError, ConnectionLost, HandshakeError, RevconnError
from revconn.messages import Request
from revconn.runtime.farewell import Farewell
from revconn.runtime.outbox import Outbox
from revconn.runtime.session import Session
from revconn.runtime.state import State
from revconn.runtime.threads import own_thread
from revconn.target import Target
from revconn.transport.base import Transport
from revconn.validation import require_api_key

__all__ = ["Link", "LinkOwner"]

logger = logging.getLogger(__name__)

_JOIN_TIMEOUT = 5.0


class LinkOwner(Protocol):
    """Whom a link tells, from its own thread."""

    services: tuple[str, ...]
    """The names to register."""

    @property
    def saturated(self) -> bool:
        """Whether so much is in flight that gateways should send no more for now."""

    def requests_arrived(self, link: Link, requests: list[ForwardRequest]) -> None:
        """A batch of requests arrived."""

    def requests_cancelled(self, link: Link, request_ids: Collection[str]) -> None:
        """Nobody waits for these any more."""

    def wait_idle(self, link: Link, timeout: float) -> bool:
        """Wait, at most ``timeout`` seconds, until nothing that came by the link is in flight."""

    def in_flight(self, link: Link) -> list[Request]:
        """The requests that came by the link and are not settled yet."""

    def wait_settled(self, requests: list[Request], timeout: float) -> bool:
        """Wait, at most ``timeout`` seconds, until ``requests`` are settled."""

    def link_changed(self, link: Link) -> None:
        """The link's state is another."""

    def link_ended(self, link: Link, error: BaseException | None) -> None:
        """The link's thread is about to end: with an error, or because it was told to."""


class Link:
    """Keeps one gateway connected, in a thread of its own; the only one that opens a stream.

    One session serves. While a gateway wants it replaced, or the link leaves, there is a second
    one: what is answered meanwhile goes out on both.

    ``_lock`` guards ``_serving``, ``_sessions``, ``_leaving``, ``_goodbye_by``, ``_phase``,
    ``_outage`` and ``state``; ``_changed`` is its condition. Nothing is called under it.
    ``_kept``, one that cannot be replaced and serves until it ends, is the link's thread's.
    """

    def __init__(
        self,
        target: Target,
        transport: Transport,
        owner: LinkOwner,
        options: Options,
    ) -> None:
        self.target = target
        self.state = State.IDLE
        self._phase = State.IDLE  # what the link's thread does; another session may serve meanwhile
        self._transport = transport
        self._owner = owner
        self._options = options
        self._backoff = options.backoff
        self._outbox = Outbox(
            lambda: owner.saturated,
            replay_bytes=options.replay_bytes,
            # By then a heartbeat would have followed, and not been acknowledged.
            doubt=options.heartbeat_interval + options.keepalive_timeout,
        )
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._serving: Session | None = None
        self._sessions: list[Session] = []
        self._kept: Session | None = None
        self._leaving = False
        self._goodbye_by = 0.0
        self._stopping = False
        self._failures = 0
        self._connections = 0
        self._probing = options.probe_interval is not None
        self._probe_round_trip: float | None = None
        self._notes: tuple[str, ...] = ()
        self._was_ready = False
        self._outage: Outage | None = Outage(time.monotonic())
        self._name = str(target)
        self._farewell = Farewell(self)
        self._thread = threading.Thread(
            target=self._run, name=f"revconn-link-{self._name}", daemon=True
        )

    @property
    def connection_id(self) -> str | None:
        """The id of the connection that serves now; ``None`` without one."""
        with self._lock:
            session = self._serving
        return session.connection_id if session is not None else None

    @property
    def probe_round_trip(self) -> float | None:
        """Seconds that the last probe took; ``None`` before the first came back."""
        return self._probe_round_trip

    def stats(self) -> dict[str, int]:
        """Counters since the start."""
        return {
            "connections": self._connections,
            "replayed": self._outbox.replayed,
            "undelivered": self._outbox.undelivered,
        }

    # Any thread

    def start(self) -> None:
        """Start the link's thread."""
        self._thread.start()

    def answer(self, answers: Iterable[Answer | LargeAnswer], *, alone: bool = False) -> None:
        """Queue answers for this gateway. Does not block."""
        self._outbox.put(answers, alone=alone)

    def relieve(self) -> None:
        """Nothing is saturated any more: the gateway may send again."""
        self._outbox.nudge()

    def wait_flushed(self, timeout: float) -> bool:
        """Wait, at most ``timeout`` seconds, until every queued answer has left."""
        return self._outbox.wait_flushed(timeout)

    def unsent(self) -> dict[object, int]:
        """The streams with something to send, each with how many batches have been begun."""
        return self._outbox.unsent()

    def leave(self, deadline: float) -> None:
        """Take leave of the gateway once all that it sent is answered; then the thread ends.

        Goodbye is said by ``deadline`` (monotonic). Without an established connection, and
        nothing left to deliver on the next one, it ends at once.
        """
        quiet = self.become_quiet(time.monotonic())
        with self._lock:
            self._leaving = True
            self._goodbye_by = deadline
            serving = self._serving
            self._changed.notify_all()
        if serving is None and quiet:
            self.abort()

    def abort(self) -> None:
        """End the streams, or the wait for the next one, at once. Idempotent."""
        with self._lock:
            self._stopping = True
            sessions = list(self._sessions)
            self._changed.notify_all()
        for session in sessions:
            session.retire("stopped")

    def forsake(self) -> None:
        """In a forked child: open no other stream. Takes no lock: its owner may be gone."""
        self._leaving = True
        self._stopping = True

    @property
    def is_leaving(self) -> bool:
        """Whether it is to leave its gateway for good."""
        return self._leaving

    @property
    def is_stopping(self) -> bool:
        """Whether it is to end at once."""
        return self._stopping

    @property
    def is_running(self) -> bool:
        """Whether the link's thread still runs."""
        return self._thread.is_alive()

    # The link's thread

    def _run(self) -> None:
        with own_thread():
            error: BaseException | None = None
            try:
                self._stay_connected()
                while not self._take_leave():
                    self._back_off(self._backoff.delay(self._failures))
                    self._stay_connected()
            except BaseException as failure:  # noqa: BLE001 - it is raised from start() and wait()
                error = failure
            if self._ended_on_request():
                error = None
            self._end_sessions()
            self._outbox.close()
            self._enter(State.CLOSED)
            self._owner.link_ended(self, error)

    def _stay_connected(self) -> None:
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(self._is_retryable),
            stop=self._gives_up,
            wait=lambda retry_state: self._backoff.delay(self._failures),
            sleep=self._back_off,
            before_sleep=self._log_failure,
            reraise=True,
        )
        while not self._ended_on_request():
            try:
                retrying(self._connect_and_serve)
            except Exception as error:
                if not (self._ended_on_request() or self._keeps_serving(error)):
                    raise

    def _keeps_serving(self, error: Exception) -> bool:
        """Whether it is only that another session could not be had in the place of one."""
        with self._lock:
            self._kept = self._serving
        if self._kept is None:
            return False
        logger.error(
            "%s: gave up replacing %s, which serves on until it ends: %s",
            self.target,
            self._kept.connection_id,
            error,
            exc_info=None if isinstance(error, RevconnError) else error,
        )
        return True

    def _connect_and_serve(self) -> None:
        """Serve until the session is to be replaced, or raise why it ended."""
        if self._ended_on_request():  # it may have been the sleep that was interrupted
            return
        with self._lock:
            if self._kept is not self._serving:
                self._kept = None
        kept = self._kept
        session = kept or self._connect()
        self.wait_for(
            lambda: (
                session.is_over
                or (session.ready_since and session.going_away and not kept)
                or (self._leaving and self._serving)
            )
        )
        if self._ended_on_request():
            return
        self._count_failure(session.ready_since)
        if session.error is not None:
            raise session.error
        if self._failures > 1:  # it did not last: a gateway may want the next one replaced too
            self._back_off(self._backoff.delay(self._failures))

    def _connect(self) -> Session:
        """A session that takes over from the one that serves, if there is one."""
        self._enter(State.CONNECTING)
        try:
            session = self.open_session(() if self._leaving else self._owner.services)
        except HandshakeError:  # no key to show
            self._count_failure(None)
            raise
        self._farewell.hand_over(session, self._options.drain_timeout)
        return session

    def open_session(self, services: tuple[str, ...]) -> Session:
        """Another session. Raises :class:`HandshakeError` when there is no key to show."""
        api_key = self._ask_api_key()
        session = Session(
            str(self.target),
            self._name,
            lambda line: self._transport.stream(line, self._name),
            self._outbox.open_line(),
            self._options,
            self,
        )
        with self._lock:
            over = [other for other in self._sessions if other.is_over]
            self._sessions = [other for other in self._sessions if not other.is_over]
            self._sessions.append(session)
        for other in over:
            other.join(_JOIN_TIMEOUT)
        if self._stopping:
            session.retire("stopped")
        session.start(api_key, services, probing=self._probing and bool(services))
        return session

    def _take_leave(self) -> bool:
        """Leave. False if all broke off and there is still something to be answered."""
        with self._lock:
            serving = self._serving
            sessions = list(self._sessions)
        if serving is None or self._stopping:
            return self._is_done()
        self._farewell.leave(serving, sessions, self._goodbye_by)
        if serving.ended_in_peace or self._is_done():
            return True
        self._count_failure(serving.ready_since)
        self._log_loss(serving.error)
        return False

    def _is_done(self) -> bool:
        return self._stopping or self.become_quiet(time.monotonic())

    def _end_sessions(self) -> None:
        with self._lock:
            sessions = list(self._sessions)
        for session in sessions:
            session.retire("stopped")
        for session in sessions:
            session.join(None)  # users' code may hold it up: whoever waits for us has a limit

    def established(self) -> list[Session]:
        """The sessions that were accepted and are not over, the newest last."""
        with self._lock:
            return [each for each in self._sessions if each.ready_since and not each.is_over]

    def become_quiet(self, deadline: float) -> bool:
        """Wait until nothing is in flight and every answer has left, or until ``deadline``."""
        idle = self._owner.wait_idle(self, max(0.0, deadline - time.monotonic()))
        return self.wait_flushed(max(0.0, deadline - time.monotonic())) and idle

    def in_flight(self) -> list[Request]:
        """What the gateway asked and nobody has settled yet."""
        return self._owner.in_flight(self)

    def wait_settled(self, requests: list[Request], timeout: float) -> bool:
        """Wait, at most ``timeout`` seconds, until ``requests`` are settled."""
        return self._owner.wait_settled(requests, timeout)

    def wait_for(self, condition: Callable[[], object], deadline: float | None = None) -> None:
        """Wait until ``condition``, the deadline, or the order to stop."""
        timeout = None if deadline is None else max(0.0, deadline - time.monotonic())
        with self._lock:
            self._changed.wait_for(lambda: condition() or self._stopping, timeout)

    def _ask_api_key(self) -> str:
        try:
            return require_api_key(self._options.api_key())
        except ConfigurationError as error:
            raise HandshakeError(str(self.target), f"no usable API key: {error}") from error
        except Exception as error:
            logger.exception("%s: the api_key callable failed", self.target)
            reason = f"the api_key callable raised {type(error).__name__}"
            raise HandshakeError(str(self.target), reason) from error

    def _count_failure(self, ready_since: float | None) -> None:
        self._was_ready = ready_since is not None
        lasted = 0.0 if ready_since is None else time.monotonic() - ready_since
        if self._was_ready and lasted >= self._backoff.stable_after:
            self._failures = 0
        self._failures += 1

    def _ended_on_request(self) -> bool:
        """Whether to open no other session: none is wanted, or one that is there is to be left."""
        with self._lock:
            leaving, serving = self._leaving, self._serving
        if self._stopping:
            return True
        return leaving and (serving is not None or self.become_quiet(time.monotonic()))

    def _is_retryable(self, error: BaseException) -> bool:
        if self._ended_on_request() or not isinstance(error, ConnectionLost):
            return False
        try:
            return not self._options.is_fatal(error)
        except Exception:
            logger.exception("is_fatal failed; %s is taken for retryable", error)
            return True

    def _gives_up(self, retry_state: tenacity.RetryCallState) -> bool:
        most = self._backoff.max_attempts
        return most is not None and self._failures >= most

    def _back_off(self, delay: float) -> None:
        self._enter(State.BACKING_OFF)
        leaving_already = self._leaving
        self.wait_for(lambda: self._leaving and not leaving_already, time.monotonic() + delay)

    def _log_failure(self, retry_state: tenacity.RetryCallState) -> None:
        assert retry_state.outcome is not None
        assert retry_state.next_action is not None
        error = retry_state.outcome.exception()
        assert isinstance(error, ConnectionLost)
        if self._was_ready:
            self._log_loss(error)
            return
        now = time.monotonic()
        with self._lock:
            outage = self._outage
            worth_a_line = outage is not None and outage.failed(error.reason, now)
            so_far = "" if outage is None else outage.so_far(now)
        logger.log(
            logging.WARNING if worth_a_line else logging.DEBUG,
            "no connection%s: %s; trying again in %.1f s",
            so_far,
            error,
            retry_state.next_action.sleep,
        )

    def _log_loss(self, error: BaseException | None) -> None:
        """The connection is gone, unless another has taken its place or it was said already."""
        reason = error.reason if isinstance(error, ConnectionLost) else str(error)
        with self._lock:
            if self._outage is not None or self._serving is not None:
                return
            self._outage = Outage(time.monotonic(), reason)
        logger.warning("lost the connection: %s; connecting again", error)

    def _enter(self, phase: State) -> None:
        with self._lock:
            self._phase = phase
        self._show_state()

    def _show_state(self) -> None:
        with self._lock:
            connecting = self._phase in (State.CONNECTING, State.BACKING_OFF)
            still_serving = connecting and self._serving is not None
            state = self.state = State.READY if still_serving else self._phase
        logger.debug("%s: %s", self.target, state.name)
        self._owner.link_changed(self)

    # The sessions, in their threads

    def session_ready(self, session: Session) -> None:
        """CONNECTED arrived."""
        with self._lock:
            predecessor = self._serving
            is_stand_in = self._leaving and predecessor is not None
            if not is_stand_in:
                self._serving = session
                outage, self._outage = self._outage, None
            self._changed.notify_all()
        if is_stand_in:
            return
        self._connections += 1
        if predecessor is not None:
            logger.info(
                "connected to %s as %s, in place of %s",
                self.target,
                session.connection_id,
                predecessor.connection_id,
            )
        else:
            logger.info(
                "connected to %s%s as %s%s",
                self.target,
                " again" if self._connections > 1 else "",
                session.connection_id,
                "" if outage is None else outage.over(time.monotonic()),
            )
        self._note(session.terms.notes)
        self._enter(State.READY)

    def session_going_away(self, session: Session) -> None:
        """The gateway wants another connection in the place of this one."""
        self._notify()

    def session_over(self, session: Session) -> None:
        """A session has ended."""
        with self._lock:
            served = self._serving is session
            if served:  # the one that it was to replace may be there yet
                older = takewhile(lambda other: other is not session, self._sessions)
                self._serving = next((other for other in older if other.serves), None)
            fallback = self._serving
            replacing = self._phase is not State.READY
            given_up = self._leaving or self._stopping
        if served and not given_up:
            if fallback is not None:
                logger.info(
                    "lost %s: %s; %s serves on",
                    session.connection_id,
                    session.error,
                    fallback.connection_id,
                )
            elif replacing:
                self._log_loss(session.error)
                self._show_state()
        self._notify()

    def _notify(self) -> None:
        with self._lock:
            self._changed.notify_all()

    def _note(self, notes: tuple[str, ...]) -> None:
        """Say what the gateway's limits changed; not again on every connection."""
        if notes != self._notes:
            self._notes = notes
            for note in notes:
                logger.info("%s: %s", self.target, note)

    def requests_arrived(self, requests: list[ForwardRequest]) -> None:
        """A batch of requests arrived."""
        self._owner.requests_arrived(self, requests)

    def answer_probe(self, answer: Answer) -> None:
        """Queue an answer, for the session that was asked or another that takes its place."""
        self.answer((answer,), alone=True)

    def probe_returned(self, round_trip: float) -> None:
        """A call to itself came back after so many seconds."""
        self._probe_round_trip = round_trip

    def probe_refused(self, reason: str) -> None:
        """The gateway does not route calls of a connector to itself: there will be no others."""
        self._probing = False
        logger.warning("%s: no probes any more: %s", self.target, reason)

    def requests_cancelled(self, request_ids: Collection[str]) -> None:
        """Nobody waits for these any more."""
        self._outbox.withdraw(request_ids)
        self._owner.requests_cancelled(self, request_ids)
