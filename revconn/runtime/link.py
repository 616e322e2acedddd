"""The lasting tie to one gateway: its sessions, and what comes and goes by them."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import Protocol

from revconn import spares
from revconn.config import Options
from revconn.core.addresses import patience
from revconn.core.large import LargeAnswer
from revconn.core.outbound import Answer
from revconn.core.protocol import Arrival
from revconn.guard import guarded_thread
from revconn.runtime import journal
from revconn.runtime.keys import ApiKey
from revconn.runtime.outbox import Outbox
from revconn.runtime.reconnection import Reconnection
from revconn.runtime.roster import Loss, Roster, reason
from revconn.runtime.session import Session
from revconn.runtime.state import State
from revconn.runtime.threads import own_thread
from revconn.runtime.unanswered import Unanswered
from revconn.target import Target
from revconn.transport.base import Transport

__all__ = ["Link", "LinkOwner"]

_JOIN_TIMEOUT = 5.0
_THREADS_TO_LEAVE = 6  # close, drain; a resolver, receiver, heartbeat, sender


class LinkOwner(Protocol):
    """Whom a link tells, from its own thread."""

    services: tuple[str, ...]
    """The names to register."""
    unanswered: Unanswered
    """What came by any link."""

    @property
    def saturated(self) -> bool:
        """Whether so much is in flight that gateways should send no more for now."""

    def requests_arrived(self, link: Link, requests: list[Arrival]) -> None:
        """A batch of requests arrived."""

    def link_relieved(self, link: Link) -> None:
        """Its answers have piled up no longer."""

    def requests_cancelled(self, link: Link, request_ids: Collection[str]) -> None:
        """Nobody waits for these any more."""

    def link_changed(self, link: Link) -> None:
        """The link's state is another."""

    def link_ended(self, link: Link, error: BaseException | None) -> None:
        """The link's thread is about to end: with an error, or because it was told to."""


class Link:
    """Keeps one gateway connected, in a thread of its own; the only one that opens a stream.

    One session serves. While a gateway wants it replaced, or the link leaves, there is a second
    one: what is answered meanwhile goes out on both.
    """

    def __init__(
        self,
        target: Target,
        transport: Transport,
        owner: LinkOwner,
        options: Options,
    ) -> None:
        self.target = target
        self._name = str(target)
        self._transport = transport
        self._owner = owner
        self._options = options
        self._outbox = Outbox(
            lambda: owner.saturated,
            on_relief=lambda: owner.link_relieved(self),
            replay_bytes=options.replay_bytes,
            # By then a heartbeat would have followed, and not been acknowledged.
            doubt=options.heartbeat_interval + options.keepalive_timeout,
        )
        self._roster = Roster(time.monotonic())
        self._api_key = ApiKey(options.api_key, target)
        self._reconnection = Reconnection(self, self._roster, self._api_key, options)
        self._unprobed: set[str] = set()  # services that the gateway does not route our calls of
        self._astray: dict[str, bool] = {}  # without a route, and whether that was said
        self._probe_round_trip: float | None = None
        self._notes: tuple[str, ...] = ()
        self._gave_up: str | None = None
        self._spares = 0  # set as sessions become ready, one at a time
        self._thread = guarded_thread(f"revconn-link-{self._name}", self._run)

    @property
    def state(self) -> State:
        """What it is doing now."""
        return self._roster.state

    @property
    def congested(self) -> bool:
        """Whether so many answers wait to leave that there should be no more for now."""
        return self._outbox.congested

    @property
    def connection_id(self) -> str | None:
        """The id of the connection that serves now; ``None`` without one."""
        session = self._roster.serving
        return session.connection_id if session is not None else None

    @property
    def last_error(self) -> str | None:
        """Why there is no connection; ``None`` while there is one, and before the first failure."""
        return self._gave_up or self._roster.last_error

    @property
    def next_attempt_in(self) -> float | None:
        """Seconds until it tries again; ``None`` while it does not wait for that."""
        due = self._roster.next_attempt
        return None if due is None else max(0.0, due - time.monotonic())

    @property
    def probe_round_trip(self) -> float | None:
        """Seconds that the last probe took; ``None`` before the first came back."""
        return self._probe_round_trip

    @property
    def is_running(self) -> bool:
        """Whether the link's thread still runs."""
        return self._thread.is_alive()

    def stats(self) -> dict[str, int]:
        """Counters since the start."""
        return {
            "connections": self._roster.connections,
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

    def unsent(self) -> dict[object, int]:
        """The streams with something to send, each with how many batches have been begun."""
        return self._outbox.unsent()

    def wait_flushed(self, timeout: float) -> bool:
        """Wait, at most ``timeout`` seconds, until every queued answer has left."""
        return self._outbox.wait_flushed(timeout)

    def become_quiet(self, deadline: float) -> bool:
        """Wait until nothing is unanswered and every answer has left, or until ``deadline``."""
        idle = self.wait_answered(max(0.0, deadline - time.monotonic()))
        flushed = self.wait_flushed(max(0.0, deadline - time.monotonic()))
        return idle and flushed and self.wait_answered(0.0)  # meanwhile another may have come

    def wait_answered(self, timeout: float, came_by: float = math.inf) -> bool:
        """Wait, at most ``timeout`` seconds, until what came by then (monotonic) is answered."""
        return self._owner.unanswered.wait_answered(self, timeout, came_by)

    def leave(self, deadline: float) -> None:
        """Take leave of the gateway once all that it sent is answered; then the thread ends.

        Goodbye is said by ``deadline`` (monotonic). Without an established connection, and
        nothing left to deliver on the next one, it ends at once.
        """
        serving = self._roster.leave(deadline)
        if serving is None and self.become_quiet(time.monotonic()):
            self.abort()

    def abort(self) -> None:
        """End the streams, or the wait for the next one, at once. Idempotent."""
        for session in self._roster.stop():
            session.retire("stopped")

    def forsake(self) -> None:
        """In a forked child: open no other stream. Takes no lock: its owner may be gone."""
        self._roster.forsake()

    # The link's thread

    def _run(self) -> None:
        with own_thread():
            error = None
            try:
                error = self._reconnection.run()
                self._gave_up = None if error is None else reason(error)
                self._end_sessions()
                self._outbox.close()
                self.enter(State.CLOSED)
            except BaseException as failure:  # noqa: BLE001 - it is raised from start() and wait()
                error = error or failure
            finally:
                spares.drop(self._spares)
                self._owner.link_ended(self, error)

    def open_session(self, *, registers: bool, failures: int = 0) -> Session:
        """Another session, which registers the services or only takes answers along.

        So many ``failures`` in a row came before it. Raises :class:`HandshakeError` when there is
        no key to show.
        """
        api_key = self._api_key.show()
        most, addresses = self._options.connect_timeout, self._transport.addresses
        session = Session(
            str(self.target),
            self._name,
            lambda line: self._transport.stream(line, self._name),
            self._outbox.open_line(),
            replace(self._options, connect_timeout=patience(most, failures, addresses)),
            self,
        )
        for over in self._roster.add(session):
            over.join(_JOIN_TIMEOUT)
        if self._roster.stopping:
            session.retire("stopped")
        services = self._owner.services if registers else ()
        probed = tuple(service for service in services if service not in self._unprobed)
        session.start(api_key, services, probed=probed, astray=tuple(self._astray))
        return session

    def _end_sessions(self) -> None:
        sessions = self._roster.sessions()
        for session in sessions:
            session.retire("stopped")
        for session in sessions:
            session.join(None)  # users' code may hold it up: whoever waits for us has a limit

    def enter(self, phase: State) -> None:
        """The link's thread does something else now, or a session serves."""
        self._roster.enter(phase)
        self._show_state()

    def _show_state(self) -> None:
        journal.state(self.target, self.state)
        self._owner.link_changed(self)

    # The sessions, in their threads

    def session_ready(self, session: Session) -> None:
        """CONNECTED arrived."""
        succession = self._roster.accepted(session)
        if succession is None:
            return
        journal.connected(self.target, session, succession, time.monotonic())
        self._note(session.terms.notes)
        if session.services and not session.drains and not self._spares:
            # To leave without losing anything takes a second connection there.
            self._spares = spares.keep(_THREADS_TO_LEAVE)
        self.enter(State.READY)

    def _note(self, notes: tuple[str, ...]) -> None:
        """Say what the gateway's limits changed; not again on every connection."""
        if notes != self._notes:
            self._notes = notes
            for note in notes:
                journal.note(self.target, note)

    def session_going_away(self, session: Session) -> None:
        """The gateway wants another connection in the place of this one."""
        self._roster.notify()

    def session_over(self, session: Session) -> None:
        """A session has ended."""
        try:
            loss = self._roster.ended(session, time.monotonic())
            if loss is not None:
                self._tell_of(loss, session)
        finally:  # the link's thread waits for that, whatever becomes of this one
            self._roster.notify()

    def _tell_of(self, loss: Loss, session: Session) -> None:
        if loss.fallback is not None:
            journal.serves_on(session, loss.fallback)
        else:
            journal.lost(session.error)
            self._show_state()

    def requests_arrived(self, requests: list[Arrival]) -> None:
        """A batch of requests arrived."""
        self._owner.requests_arrived(self, requests)

    def requests_cancelled(self, request_ids: Collection[str]) -> None:
        """Nobody waits for these any more."""
        self._outbox.withdraw(request_ids)
        self._owner.requests_cancelled(self, request_ids)

    def answer_probe(self, answer: Answer) -> None:
        """Queue an answer, for the session that was asked or another that takes its place."""
        self.answer((answer,), alone=True)

    def probe_returned(self, service: str, round_trip: float) -> None:
        """A call to itself came back after so many seconds."""
        self._astray.pop(service, None)
        self._probe_round_trip = round_trip

    def probe_astray(self, service: str, reason: str | None) -> None:
        """The gateway has no route of a service: on a new connection either, if not ``None``."""
        said = self._astray.setdefault(service, False)
        if reason is not None and not said:
            self._astray[service] = True
            journal.astray(self.target, reason)

    def probe_refused(self, service: str, reason: str) -> None:
        """The gateway does not route our calls of a service: there will be no others."""
        self._unprobed.add(service)
        journal.no_probes(self.target, reason)
