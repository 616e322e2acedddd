"""The lasting tie to one gateway: connect, serve, and connect again."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Collection, Iterable
from typing import Protocol

import tenacity

from revconn._proto.registry_pb2 import ForwardRequest
from revconn.config import Options
from revconn.core.features import DRAIN
from revconn.core.large import LargeAnswer
from revconn.core.outbound import Answer
from revconn.exceptions import ConfigurationError, ConnectionLost, HandshakeError
from revconn.runtime.outbox import Outbox
from revconn.runtime.session import Session
from revconn.runtime.state import State
from revconn.runtime.threads import own_thread
from revconn.target import Target
from revconn.transport.base import Transport
from revconn.validation import require_api_key

__all__ = ["Link", "LinkOwner"]

logger = logging.getLogger(__name__)


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

    def watch(self) -> None:
        """A few seconds have passed; called from a timer's thread."""

    def link_changed(self, link: Link) -> None:
        """The link's state is another."""

    def link_ended(self, link: Link, error: BaseException | None) -> None:
        """The link's thread is about to end: with an error, or because it was told to."""


class Link:
    """Keeps one gateway connected, in a thread of its own; the only one that opens a stream.

    ``_lock`` guards ``_session``, ``_leaving`` and ``state``; nothing is called under it.
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
        self._transport = transport
        self._owner = owner
        self._options = options
        self._backoff = options.backoff
        self._outbox = Outbox(lambda: owner.saturated)
        self._lock = threading.Lock()
        self._session: Session | None = None
        self._leaving = False
        self._stopping = threading.Event()
        self._failures = 0
        self._connections = 0
        self._notes: tuple[str, ...] = ()
        self._was_ready = False
        self._down_since = time.monotonic()
        self._name = str(target)
        self._thread = threading.Thread(
            target=self._run, name=f"revconn-link-{self._name}", daemon=True
        )

    @property
    def connection_id(self) -> str | None:
        """The id of the connection that serves now; ``None`` without one."""
        with self._lock:
            session = self._session
        return (session.connection_id or None) if session is not None else None

    def stats(self) -> dict[str, int]:
        """Counters since the start."""
        return {"connections": self._connections, "undelivered": self._outbox.undelivered}

    # Any thread

    def start(self) -> None:
        """Start the link's thread."""
        self._thread.start()

    def answer(self, answers: Iterable[Answer | LargeAnswer]) -> None:
        """Queue answers for this gateway. Does not block."""
        self._outbox.put(answers)

    def relieve(self) -> None:
        """Nothing is saturated any more: the gateway may send again."""
        self._outbox.nudge()

    def wait_flushed(self, timeout: float) -> bool:
        """Wait, at most ``timeout`` seconds, until every queued answer has left."""
        return self._outbox.wait_flushed(timeout)

    @property
    def drains(self) -> bool:
        """Whether its gateway, told goodbye, sends nothing new and loses nothing that it sent."""
        with self._lock:
            session = self._session
        return session is not None and DRAIN in session.terms.features

    def leave(self) -> None:
        """Say goodbye and serve on until the gateway ends the stream; then the thread ends.

        Without an established connection it ends at once.
        """
        with self._lock:
            self._leaving = True
            session = self._session
        if session is None or not session.say_goodbye():
            self.abort()

    def abort(self) -> None:
        """End the stream, or the wait for the next one, at once. Idempotent."""
        self._stopping.set()
        with self._lock:
            session = self._session
        if session is not None:
            session.retire("stopped")

    def forsake(self) -> None:
        """In a forked child: open no other stream. Takes no lock: its owner may be gone."""
        self._leaving = True

    @property
    def is_running(self) -> bool:
        """Whether the link's thread still runs."""
        return self._thread.is_alive()

    def join(self, timeout: float) -> None:
        """Wait, at most ``timeout`` seconds, for the thread to end. A no-op in that thread."""
        if self._thread.ident is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout)

    # The link's thread

    def _run(self) -> None:
        with own_thread():
            self._stay_connected()

    def _stay_connected(self) -> None:
        error: BaseException | None = None
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(self._is_retryable),
            stop=self._gives_up,
            wait=lambda retry_state: self._backoff.delay(self._failures),
            sleep=self._back_off,
            before_sleep=self._log_failure,
            reraise=True,
        )
        try:
            retrying(self._connect_and_serve)
        except BaseException as failure:  # noqa: BLE001 - it is raised from start() and wait()
            error = failure
        if self._ended_on_request():
            error = None
        self._outbox.close()
        self._enter(State.CLOSED)
        self._owner.link_ended(self, error)

    def _connect_and_serve(self) -> None:
        if self._ended_on_request():  # it may have been the sleep that was interrupted
            return
        self._enter(State.CONNECTING)
        session = Session(
            str(self.target),
            self._name,
            lambda line: self._transport.stream(line, self._name),
            self._outbox.open_line(),
            self._options,
            self,
        )
        with self._lock:
            self._session = session
        try:
            if not self._ended_on_request():
                session.run(self._ask_api_key(), self._owner.services)
        finally:
            with self._lock:
                self._session = None
            self._count_failure(session)

    def _ask_api_key(self) -> str:
        try:
            return require_api_key(self._options.api_key())
        except ConfigurationError as error:
            raise HandshakeError(str(self.target), f"no usable API key: {error}") from error
        except Exception as error:
            logger.exception("%s: the api_key callable failed", self.target)
            reason = f"the api_key callable raised {type(error).__name__}"
            raise HandshakeError(str(self.target), reason) from error

    def _count_failure(self, session: Session) -> None:
        ready_since = session.ready_since
        now = time.monotonic()
        self._was_ready = ready_since is not None
        if ready_since is not None:
            self._down_since = now
            if now - ready_since >= self._backoff.stable_after:
                self._failures = 0
        self._failures += 1

    def _ended_on_request(self) -> bool:
        with self._lock:
            return self._leaving or self._stopping.is_set()

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
        self._stopping.wait(delay)

    def _log_failure(self, retry_state: tenacity.RetryCallState) -> None:
        assert retry_state.outcome is not None
        assert retry_state.next_action is not None
        error = retry_state.outcome.exception()
        delay = retry_state.next_action.sleep
        if self._was_ready:
            logger.warning("lost the connection: %s; trying again in %.1f s", error, delay)
        elif self._failures & (self._failures - 1) == 0:  # 1, 2, 4, 8 …: ever rarer reminders
            logger.warning(
                "no connection: %s; trying again in %.1f s (failure %d in a row)",
                error,
                delay,
                self._failures,
            )
        else:
            logger.debug("no connection: %s (failure %d in a row)", error, self._failures)

    def _enter(self, state: State) -> None:
        with self._lock:
            self.state = state
        logger.debug("%s: %s", self.target, state.name)
        self._owner.link_changed(self)

    # The session, in the link's thread

    def session_ready(self, session: Session) -> None:
        """CONNECTED arrived."""
        self._connections += 1
        if self._connections == 1:
            logger.info("connected to %s as %s", self.target, session.connection_id)
        else:
            logger.info(
                "connected to %s again as %s, after %.1f s at attempt %d",
                self.target,
                session.connection_id,
                time.monotonic() - self._down_since,
                self._failures,
            )
        self._note(session.terms.notes)
        self._enter(State.READY)

    def _note(self, notes: tuple[str, ...]) -> None:
        """Say what the gateway's limits changed; not again on every connection."""
        if notes != self._notes:
            self._notes = notes
            for note in notes:
                logger.info("%s: %s", self.target, note)

    def requests_arrived(self, requests: list[ForwardRequest]) -> None:
        """A batch of requests arrived."""
        self._owner.requests_arrived(self, requests)

    def requests_cancelled(self, request_ids: Collection[str]) -> None:
        """Nobody waits for these any more."""
        self._outbox.withdraw(request_ids)
        self._owner.requests_cancelled(self, request_ids)

    def watch(self) -> None:
        """A few seconds have passed; called from the session's timer thread."""
        self._owner.watch()
