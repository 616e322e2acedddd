"""The lasting tie to one gateway: the thread that carries out its plan, and what comes and goes."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Callable

import tenacity

from revconn.core.connector_side import Probed
from revconn.core.liveness import Verdict
from revconn.exceptions import ConnectionLost, HandshakeError
from revconn.link.plan import Plan
from revconn.link.records import (
    Connected,
    Decision,
    End,
    Judge,
    LookAtKey,
    News,
    Open,
    Phase,
    Retire,
    SayGoodbye,
    Shows,
    Wait,
    log_news,
    logger,
    reason,
    would_log,
)
from revconn.link.session import ApiKey, Session
from revconn.runtime.state import LinkStatus, State
from revconn.runtime.threads import drop_spares, guarded_thread, keep_spares, own_thread
from revconn.serving.calls import Calls
from revconn.serving.replies import Replies
from revconn.settings.options import Backoff, Options
from revconn.settings.target import Target
from revconn.transport.base import Transport

__all__ = ["Judging", "Link", "attempt_timeout", "combine", "waits"]

_JOIN_TIMEOUT = 5.0
_FIRST_ROUND = 5.0  # seconds: many times what a handshake takes across the world
_MOST_ROUNDS = 64  # of which each doubles it: then it is more than anybody waits
# close, drain; a resolver, receiver, heartbeat, sender. As the interpreter ends Python 3.12 starts
# no thread any more, and a connector that is still there then has to leave all the same.
_THREADS_TO_LEAVE = 6

_STATES = {
    Phase.IDLE: State.IDLE,
    Phase.CONNECTING: State.CONNECTING,
    Phase.SERVING: State.READY,
    Phase.BACKING_OFF: State.BACKING_OFF,
    Phase.CLOSED: State.CLOSED,
}


def attempt_timeout(most: float, failures: int, addresses: int) -> float:
    """How many seconds an attempt may take: with other addresses to try, not all at once.

    One that takes connections and says nothing would cost so much each time. In each further
    round it is twice as long, until it is ``most``: slow gateways are found too.

    :param failures: to connect, or to stay connected, in a row.
    :param addresses: how many the gateway's name has.
    """
    if addresses < 2:
        return most
    rounds = min(failures // addresses, _MOST_ROUNDS)
    return min(most, _FIRST_ROUND * 2.0**rounds)


class _Traffic:
    """What a link's plan asks of what came by it: whether it is answered, and the answers are gone.

    Each predicate requires the link's lock, which is that of the calls and of the replies: there is
    no moment between two of them.
    """

    def __init__(self, calls: Calls, replies: Replies) -> None:
        self._calls = calls
        self._replies = replies

    def is_quiet(self) -> bool:
        """Whether nothing is unanswered and every answer has left."""
        return self.is_answered(math.inf) and self.is_flushed()

    def is_answered(self, came_by: float) -> bool:
        """Whether all that had come by then (monotonic) is answered."""
        return self._calls.is_answered(self._replies, came_by)

    def is_flushed(self) -> bool:
        """Whether every answer that was queued has left."""
        return self._replies.is_flushed()


def waits(backoff: Backoff) -> Callable[[tenacity.RetryCallState], float]:
    """Tenacity's way to draw the waits of :meth:`Backoff.delay`, or that of a subclass itself."""
    if type(backoff) is not Backoff:
        # Tenacity 6.1 goes by the parameter's name.
        return lambda retry_state: backoff.delay(retry_state.attempt_number)
    return tenacity.wait_random_exponential(
        multiplier=float(backoff.initial),
        max=float(backoff.maximum),
        exp_base=float(backoff.multiplier),
    )


class Judging:
    """Tenacity's strategies, as the options have them. Its loop stays outside: plans say when."""

    def __init__(self, options: Options) -> None:
        self._is_fatal = options.is_fatal
        most = options.backoff.max_attempts
        self._retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(self._passes),
            stop=tenacity.stop_never if most is None else tenacity.stop_after_attempt(most),
            wait=waits(options.backoff),
        )

    def delay(self, error: BaseException | None, failures: int) -> float | None:
        """Seconds until the next attempt; ``None``: it would be useless, or one too many."""
        # There is no call that tenacity makes: what it is asked about is a session's whole life.
        state = tenacity.RetryCallState(self._retrying, None, (), {})
        state.attempt_number = failures
        if error is not None:
            state.set_exception((type(error), error, error.__traceback__))
            if not self._retrying.retry(state) or self._retrying.stop(state):
                return None
        return self._retrying.wait(state)

    def _passes(self, error: BaseException) -> bool:
        """Whether the failure is one of those that pass; the user has the last word."""
        if not isinstance(error, ConnectionLost):
            return False
        try:
            return not self._is_fatal(error)
        except SystemExit:
            raise
        except BaseException:  # noqa: BLE001 - it is the user's
            logger.exception("is_fatal failed; %s is taken for retryable", error)
            return True


def combine(states: Iterable[State]) -> State:
    """What several links are doing together: one that is ready makes all of them ready."""
    present = set(states)
    for state in (State.READY, State.CONNECTING, State.BACKING_OFF, State.IDLE):
        if state in present:
            return state
    return State.CLOSED


class Link:
    """Keeps one gateway connected, in a thread of its own, which alone opens streams to it.

    The :class:`~revconn.link.plan.Plan` decides; the link's thread carries out. Sessions' threads
    and whoever ends the link tell the plan what happens, which wakes that thread, and tell in turn
    what the plan has to tell: a state does not wait for a user's ``api_key`` or ``is_fatal``, which
    the link's thread may be calling.

    ``_lock``, which is that of the table of calls, guards the plan, ``_sessions`` and ``_over``; on
    its condition, that of the replies, the link's thread sleeps. Nothing is called under it but the
    plan, and what that asks of :class:`_Traffic`.

    :param services: the names to register.
    :param on_change: called without the lock, in any thread: the state may be another.
    :param on_end: called as the link's thread is about to end: with an error, or because it was
        told to.
    """

    def __init__(
        self,
        target: Target,
        transport: Transport,
        options: Options,
        services: tuple[str, ...],
        calls: Calls,
        *,
        on_change: Callable[[], object],
        on_end: Callable[[Link, BaseException | None], object],
    ) -> None:
        self.target = target
        self._name = str(target)
        self._transport = transport
        self._options = options
        self._services = services
        self._calls = calls
        self._on_change = on_change
        self._on_end = on_end
        self._replies = calls.replies(
            replay_bytes=options.replay_bytes,
            # By then a heartbeat would have followed, and not been acknowledged.
            doubt=options.heartbeat_interval + options.keepalive_timeout,
        )
        self._traffic = _Traffic(calls, self._replies)
        self._api_key = ApiKey(options.api_key, target)
        self._plan = Plan(
            time.monotonic(),
            stable_after=options.backoff.stable_after,
            patience=options.drain_timeout,
            look_at_key_every=options.heartbeat_interval if self._api_key.is_watched else math.inf,
        )
        self._judging = Judging(options)
        self._lock = self._replies.lock
        self._sessions: dict[Session, int] = {}  # with the numbers that the plan knows them by
        self._over: list[Session] = []  # whose threads are about to end
        self._unprobed: set[str] = set()  # services that the gateway does not route our calls of
        self._astray: dict[str, bool] = {}  # without a route, and whether that was said
        self._probe_round_trip: float | None = None
        self._notes: tuple[str, ...] = ()
        self._gave_up: str | None = None
        self._spares = 0  # set as sessions become ready, one at a time
        self._thread = guarded_thread(f"revconn-link-{self._name}", self._run)

    # Read without the lock, in any thread: each reads an attribute of the plan's once, and goes by
    # what was there.

    @property
    def state(self) -> State:
        """What the link is doing now."""
        return _STATES[self._plan.shown]

    @property
    def statuses(self) -> tuple[LinkStatus]:
        """What the link is doing now, as an application sees it: one, to whatever address."""
        # Without the lock, which a thread that a signal handler interrupted may hold: each of the
        # plan's attributes is read once, and another may change in between.
        plan = self._plan
        serving, outage, due = plan.serving, plan.outage, plan.next_attempt
        status = LinkStatus(
            target=self._name,
            state=self.state,
            connection_id=None if serving is None else serving.connection_id,
            last_error=self._gave_up or (None if outage is None else outage.last_error),
            next_attempt_in=None if due is None else max(0.0, due - time.monotonic()),
        )
        return (status,)

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
            "connections": self._plan.connections,
            "replayed": self._replies.replayed,
            "undelivered": self._replies.undelivered,
        }

    # Any thread

    def start(self) -> None:
        """Start the link's thread."""
        self._thread.start()

    def unsent(self) -> dict[tuple[str, object], int]:
        """The streams with something to send, by target, with how many batches have been begun."""
        return {(self._name, line): begun for line, begun in self._replies.unsent().items()}

    def wait_flushed(self, timeout: float) -> bool:
        """Wait, at most ``timeout`` seconds, until every queued answer has left."""
        return self._replies.wait_flushed(timeout)

    def leave(self, deadline: float) -> None:
        """Take leave of the gateway once all that it sent is answered; then the thread ends.

        Goodbye is said by ``deadline`` (monotonic). Without an established connection, and
        nothing left to deliver on the next one, it ends at once.
        """
        with self._happening() as plan:
            plan.leave(deadline, time.monotonic())

    def abort(self) -> None:
        """End the streams, or the wait for the next one, at once. Idempotent."""
        with self._happening() as plan:
            plan.stop()
            sessions = list(self._sessions)
        for session in sessions:  # here and now: the link's thread may be in a user's function
            session.retire("stopped")
        # For the same reason: whoever waits for answers to leave would wait for that function too.
        self._replies.close()

    def give_up(self) -> None:
        """Answer 503 to what came by this link and is unanswered."""
        self._calls.give_up(self._replies)

    def forget(self) -> None:
        """It is over, or never began, and there are others: it leaves no trace with the calls."""
        self._calls.forget(self._replies)

    def forsake(self) -> None:
        """In a forked child: open no other stream. Takes no lock: its owner may be gone."""
        self._plan.stop()

    @contextmanager
    def _happening(self) -> Iterator[Plan]:
        """Hold the lock while the plan is told of what happens; then have it acted on, and told.

        The link's thread wakes before anything else: it must not miss it, whatever telling the
        rest runs into.
        """
        with self._lock:
            try:
                yield self._plan
            finally:  # news go with whoever brought their cause: none is told twice, or too early
                news = self._plan.take_news()
                self._replies.notify()
        # Without the lock: logging runs the application's handlers, the supervisor its callbacks.
        self._tell(news)

    def _tell(self, all_news: list[News]) -> None:
        for news in all_news:
            if isinstance(news, Shows):
                if would_log(logging.DEBUG):
                    logger.debug("%s: %s", self.target, self.state.name)
                self._on_change()
                continue
            log_news(self.target, news)
            if isinstance(news, Connected):
                self._note_terms(news)

    def _note_terms(self, news: Connected) -> None:
        """Say what the gateway's limits changed; not again on every connection."""
        (session,) = self._by_number((news.session,))
        notes = session.terms.notes
        if notes != self._notes:
            self._notes = notes
            for note in notes:
                logger.info("%s: %s", self.target, note)

    def _by_number(self, numbers: Collection[int]) -> list[Session]:
        with self._lock:
            return [each for each, number in self._sessions.items() if number in numbers]

    # The link's thread

    def _run(self) -> None:
        with own_thread():
            error = None
            try:
                error = self._carry_out_plan()
                self._gave_up = None if error is None else reason(error)
                self._end_sessions()
                # Not before, unless abort() came: sessions put back what they could not deliver.
                self._replies.close()
                with self._happening() as plan:
                    plan.closed()
            except BaseException as failure:  # noqa: BLE001 - it is raised from start() and wait()
                error = error or failure
            finally:  # whatever failed: the supervisor counts the links that have not ended
                drop_spares(self._spares)
                self._on_end(self, error)

    def _carry_out_plan(self) -> BaseException | None:
        """Do what the plan decides, to its end; the error that it ended with, if there is one."""
        try:
            while True:
                decision = self._decide()
                if isinstance(decision, End):
                    return decision.error
                self._carry_out(decision)
        except BaseException as error:  # noqa: BLE001 - it is raised from start() and wait()
            # After abort() a user's function may fail because its process is about to end.
            return None if self._plan.is_stopping else error

    def _decide(self) -> Decision:
        """What the link's thread is to do next; sleeps until there is something to do."""
        while True:
            with self._lock, self._replies.awaiting():
                now = time.monotonic()
                decision = self._plan.decide(now, self._traffic)
                news = self._plan.take_news()
                # Decided and asleep under one lock: what happens in between wakes this thread. News
                # are told first: they are of the state in which it is going to wait.
                if not news and isinstance(decision, Wait):
                    # A plan that waits for something to happen waits until infinity.
                    timeout = min(decision.until - now, threading.TIMEOUT_MAX)
                    self._replies.sleep(timeout, for_traffic=decision.for_traffic)
                    continue
            self._tell(news)
            if not isinstance(decision, Wait):
                return decision

    def _carry_out(self, decision: Decision) -> None:
        if isinstance(decision, Open):
            self._open(decision)
        elif isinstance(decision, SayGoodbye):
            for session in self._by_number(decision.sessions):
                session.say_goodbye(last=decision.last)
        elif isinstance(decision, Retire):
            for session in self._by_number(decision.sessions):
                session.retire(decision.why)
        elif isinstance(decision, Judge):
            delay = self._judging.delay(decision.error, decision.failures)
            with self._happening() as plan:
                plan.judged(delay)
        # The key is looked at here, without the lock: it is in a file.
        elif isinstance(decision, LookAtKey) and self._api_key.is_another():
            with self._happening() as plan:
                plan.another_key()

    def _open(self, decision: Open) -> None:
        """Open a session, which registers the services or only takes answers along."""
        try:  # the key first: a stream that is open while a user's function takes its time is late
            api_key = self._api_key.show()
        except HandshakeError as error:
            with self._happening() as plan:
                plan.ended(decision.session, error, time.monotonic())
            return
        self._join_sessions_that_are_over()
        most, addresses = self._options.connect_timeout, self._transport.addresses
        session = Session(
            self._name,
            lambda line: self._transport.stream(line, self._name),
            self._calls,
            self._replies,
            self._options,
            connect_timeout=attempt_timeout(most, decision.failures, addresses),
            on_ready=self._session_ready,
            on_going_away=self._session_going_away,
            on_probed=self._probed,
            on_end=self._session_over,
        )
        # abort() may have come while the key was asked for, or come now: either it finds the
        # session, or it is found here to have come.
        with self._lock:
            self._sessions[session] = decision.session
            is_stopping = self._plan.is_stopping
        if is_stopping:
            session.retire("stopped")
        services = self._services if decision.registers else ()
        # What one session found out of the gateway's routes holds for the next one too.
        probed = tuple(service for service in services if service not in self._unprobed)
        session.start(api_key, services, probed=probed, astray=tuple(self._astray))

    def _join_sessions_that_are_over(self) -> None:
        # They have told of their end, and do nothing more. Joined all the same: a connector that
        # reconnects for weeks leaves no thread behind.
        with self._lock:
            over, self._over = self._over, []
        for session in over:
            session.join(_JOIN_TIMEOUT)

    def _end_sessions(self) -> None:
        with self._lock:
            sessions, over = list(self._sessions), self._over
        for session in sessions:
            session.retire("stopped")
        for session in sessions + over:
            session.join(None)  # users' code may hold it up: whoever waits for us has a limit

    # The sessions, in their threads

    def _session_ready(self, session: Session) -> None:
        if session.services and not session.drains and not self._spares:
            # To leave without losing anything takes a second connection there. Before the state is
            # READY: whoever waits for that may end the interpreter next.
            self._spares = keep_spares(_THREADS_TO_LEAVE)
        now, connection_id, drains = time.monotonic(), session.connection_id, session.drains
        with self._happening() as plan:
            plan.accepted(self._sessions[session], now, connection_id=connection_id, drains=drains)
            session.let_answers_through()

    def _session_going_away(self, session: Session) -> None:
        with self._happening() as plan:
            plan.going_away(self._sessions[session])

    def _session_over(self, session: Session) -> None:
        with self._happening() as plan:  # which wakes the link's thread, whatever telling does
            self._over.append(session)
            plan.ended(self._sessions.pop(session), session.error, time.monotonic())

    def _probed(self, probed: Probed) -> None:
        verdict, service, why, round_trip = probed
        if verdict is Verdict.ALIVE:
            self._astray.pop(service, None)
            self._probe_round_trip = round_trip
        elif verdict is Verdict.UNABLE:  # there will be no others of this service
            self._unprobed.add(service)
            logger.warning("%s: no probes any more: %s", self.target, why)
        else:
            # LOST: the next connection is told of it. ASTRAY: it was, and is of no help either.
            said = self._astray.setdefault(service, False)
            if verdict is Verdict.ASTRAY and not said:
                self._astray[service] = True
                logger.warning("%s: %s", self.target, why)
