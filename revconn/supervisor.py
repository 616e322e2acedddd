"""A connector's life: its links and its calls, from the start to the last goodbye; its state."""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Executor
from typing import Any, Callable, Optional

from revconn.exceptions import RevconnError
from revconn.link.every_address import EveryAddress
from revconn.link.link import Link, combine
from revconn.logger import get_logger
from revconn.observing.watchdog import FullPool, SlowHandlers, SlowReader, Watchdog
from revconn.runtime.state import State
from revconn.runtime.threads import (
    DaemonExecutor,
    Mailbox,
    guarded_thread,
    in_background,
    is_own_thread,
    own_thread,
    shielded,
)
from revconn.serving.calls import Calls
from revconn.serving.handlers import Handlers, Runs
from revconn.serving.workers import may_block
from revconn.settings.options import Options
from revconn.settings.target import Target
from revconn.transport import transport_for

__all__ = ["Claims", "StateBoard", "Supervisor"]

# Their names are what applications configure: they stay, whatever the file is called.
logger = get_logger("revconn.runtime.supervisor")
_claims_logger = get_logger("revconn.runtime.claims")

# In seconds, like all times here.
_LINGER = 5.0  # for a gateway that does not end its stream, once all is answered
_FLUSH_WAIT = 1.0  # for the last answers to arrive: an abort could overtake them
_ABORT_WAIT = 5.0  # for links' threads to end, unless users' code holds one up
_WATCH_INTERVAL = 1.0


class Supervisor:
    """Starts and ends what serves: links, calls, executor. It starts once, and ends once.

    It ends in one of three ways, and each leads to ``_finish``, which counts the first time only:
    every link's thread ended (they were told to, or gave up), an abort no longer waits for one
    that users' code holds up, or no thread could be started.

    ``_lock`` guards ``_living``, ``_ending``, ``_end_is_awaited``, ``_finished``, ``_failure`` and
    ``_fatal``; nothing is called under it.

    :param on_end: called once, last of all, in whichever thread ended it.
    """

    def __init__(
        self,
        options: Options,
        handlers: Handlers,
        services: tuple[str, ...],
        board: StateBoard,
        on_end: Callable[[], None],
    ) -> None:
        self.services = services
        self._board = board
        self._on_end = on_end
        callbacks = DaemonExecutor(1, "revconn-callbacks")
        self._own_executors = [callbacks]  # one of the user's is never shut down here
        executor: Executor | None = options.executor
        recruiter = None
        if executor is None:
            executor = DaemonExecutor(options.max_workers, "revconn-handler")
            self._own_executors.append(executor)
        elif may_block(executor):
            recruiter = DaemonExecutor(1, "revconn-recruiter")
            self._own_executors.append(recruiter)
        runs = Runs()
        self.calls = Calls(
            handlers,
            executor,
            runs,
            max_workers=options.max_workers,
            max_streams=options.most_streams,
            max_in_flight=options.max_in_flight,
            max_in_flight_bytes=options.max_in_flight_bytes,
            max_message_bytes=options.max_message_bytes,
            callbacks=callbacks,
            recruiter=recruiter,
            on_failure=self.fail,
        )
        self.links = tuple(self._tie_to(target, options) for target in options.targets)
        self._ended = threading.Event()
        self._watchdog = self._make_watchdog(runs, options.slow_handler_after)
        self._lock = threading.Lock()
        self._living = len(self.links)
        self._ending = False  # somebody asked for the end: drain or abort
        self._end_is_awaited = False  # by a thread in the place of a handler that called abort()
        self._finished = False
        self._failure: BaseException | None = None  # of the first link that gave up
        self._fatal: BaseException | None = None  # of what all links need
        self._drain_timeout = options.drain_timeout

    def _tie_to(self, target: Target, options: Options) -> Link | EveryAddress:
        def make_link(target: Target, **told: Any) -> Link:
            transport = transport_for(target, options)
            return Link(target, transport, options, self.services, self.calls, **told)

        told: Any = {"on_change": self._show_state, "on_end": self._link_ended}
        if options.every_address and target.is_name:
            return EveryAddress(target, options, make_link, **told)
        return make_link(target, **told)

    def _make_watchdog(self, runs: Runs, slow_handler_after: float | None) -> Watchdog:
        backlogs = self.calls.workers.backlog, self.calls.streams.backlog
        stuck: list[FullPool | SlowReader] = [FullPool(backlog) for backlog in backlogs]
        stuck += (SlowReader(link.unsent) for link in self.links)
        looks = [self.calls.inline.watch, *(each.look for each in stuck)]
        rests = [each.rest for each in stuck]
        interval = _WATCH_INTERVAL
        if slow_handler_after is not None:
            looks.append(SlowHandlers(runs, slow_handler_after).look)
            # So that a slow handler is named after one and a half times the limit at the latest.
            interval = min(interval, slow_handler_after / 2)
        waiting = self.calls.workers.waiting

        def is_idle() -> bool:
            return not (runs.running or waiting or any(link.unsent() for link in self.links))

        wait = self._ended.wait
        return Watchdog(runs, looks, interval=interval, wait=wait, is_idle=is_idle, rests=rests)

    def start(self) -> None:
        """Start every thread. Returns at once.

        Raises :class:`RuntimeError` where one cannot be had; then all has ended.
        """
        try:
            for executor in self._own_executors:
                executor.start()
            self.calls.start()
            self._watchdog.start()
            for link in self.links:
                link.start()
        except RuntimeError:  # some of the threads run already, and none is to be left behind
            for link in self.links:
                link.abort()
            self._finish()
            raise

    def stats(self) -> dict[str, float]:
        """The counters of everything that counts, added up, and the slowest link's round trip."""
        totals: dict[str, float] = {**self._counters()}
        round_trips = [link.probe_round_trip for link in self.links]
        known = [seconds for seconds in round_trips if seconds is not None]
        if known:
            totals["probe_round_trip"] = max(known)
        return totals

    def _counters(self) -> dict[str, int]:
        """What the table of calls and the links have counted, added up."""
        totals = self.calls.stats()
        for link in self.links:
            for name, count in link.stats().items():
                totals[name] = totals.get(name, 0) + count
        return totals

    @property
    def error(self) -> BaseException | None:
        """Why it ended, once it has, when nobody had asked it to."""
        with self._lock:
            # A link that gave up is no error of a connector whose other links serve on.
            return self._fatal or (None if self._living else self._failure)

    # The end

    def fail(self, error: BaseException) -> None:
        """What serves cannot go on: end, with this error. Any thread; the first one counts."""
        with self._lock:
            if self._fatal is not None or self._ending or not self._living:
                return
            self._fatal = error
        logger.error("the connector cannot go on, and leaves: %s", error)
        # No abort: answers that are ready can still leave.
        self.begin_drain(self._drain_timeout)

    def begin_drain(self, timeout: float) -> None:
        """Finish what was accepted, leave, and abort after ``timeout`` seconds. Returns at once.

        Only the first call counts. Where no thread can be had it is done in this one.
        """
        with self._lock:
            if self._ending or not self._living:
                return
            self._ending = True
        thread = guarded_thread(
            "revconn-drain", lambda: self._drain(timeout), on_failure=lambda _: self.abort()
        )
        try:
            thread.start()
        except RuntimeError:  # no thread to be had: the interpreter exits, most often
            self._drain(timeout)

    def stop(self, timeout: float) -> None:
        """Drain, and block until it ended, at most about ``timeout`` seconds.

        In a thread that the draining waits for (a handler's, a callback's) it returns at once.
        """
        self.begin_drain(timeout)
        # More than what the drain allows itself: it says 503 to what is left when the time is up,
        # and that has to leave. An earlier drain with more patience than this call ends here.
        if not is_own_thread() and not self._ended.wait(timeout + 2 * _FLUSH_WAIT):
            self.abort()

    def abort(self) -> None:
        """End at once: what is in flight is abandoned. Waits, bounded, for the links to end."""
        with self._lock:
            self._ending = True
        for link in self.links:
            link.abort()
        if not is_own_thread():
            self._await_end()
            return
        # This thread is one that the end waits for, so another one waits in its place: a single
        # one, however many handlers call abort(). Where none can be had the next call tries again.
        with self._lock:
            first, self._end_is_awaited = not self._end_is_awaited, True
        if first and not in_background(self._await_end):
            with self._lock:
                self._end_is_awaited = False

    def _await_end(self) -> None:
        """The links were told to end: wait for them, but not for users' code that holds one up."""
        if not self._ended.wait(_ABORT_WAIT):
            self._finish(self._leave_behind)

    def _leave_behind(self) -> None:
        for link in self.links:
            if link.is_running:
                logger.warning(
                    "left %s behind: its thread is held up (by the api_key callable, an inline"
                    " handler or a state callback?)",
                    link.target,
                )

    def _drain(self, timeout: float) -> None:
        # It tells callbacks that the state is DRAINING, and such a callback may call stop(), which
        # would wait for this very thread.
        with own_thread():
            self._finish_and_leave(time.monotonic() + timeout)

    def _finish_and_leave(self, deadline: float) -> None:
        self._board.update(lambda state: state if state is State.CLOSED else State.DRAINING)
        # Said earlier than the time is up: what is on its way to us as the goodbye is said, from a
        # gateway that does not drain, needs a while to arrive and to be answered.
        for link in self.links:
            link.leave(deadline - _LINGER)
        if not self._await_departure(deadline):
            self._settle_the_rest()
        for link in self.links:
            link.abort()
        self._await_end()

    def _settle_the_rest(self) -> None:
        """The time is up: answer 503 to what is left, and give that a moment to leave."""
        self.calls.give_up()
        if self._become_quiet(time.monotonic() + _FLUSH_WAIT):
            self._ended.wait(_FLUSH_WAIT)  # an abort could overtake the last answers

    def _await_departure(self, deadline: float) -> bool:
        """Wait until all links have ended, or nothing has come or gone for ``_LINGER`` seconds.

        Some gateways do not end a stream that was told goodbye. Whether all links have ended, or
        what left last had time to arrive.
        """
        # Woken by what is waited for: an answer that is settled or leaves, the last link that ends
        # (which closes the table of calls, so that nothing is unanswered there any more).
        while self._become_quiet(deadline):
            quiet_since, before = time.monotonic(), self._counters()
            if self._ended.wait(min(_LINGER, _clamp(deadline - quiet_since))):
                return True
            # A request that came meanwhile woke nobody: that would cost every request something.
            # The counters tell of it, and with its answer the wait for a quiet time begins anew.
            is_quiet = self._become_quiet(0.0) and self._counters() == before
            now = time.monotonic()
            if is_quiet or now >= deadline:
                return is_quiet and now - quiet_since >= _FLUSH_WAIT
        return self._ended.is_set()

    def _become_quiet(self, deadline: float) -> bool:
        """Wait until nothing is unanswered and every answer has left, or until ``deadline``."""
        # One after the other, under one deadline. While requests come, all need not have been quiet
        # at one instant; after the goodbye they come to an end.
        quiet = self.calls.wait_idle(_clamp(deadline - time.monotonic()))
        for link in self.links:
            quiet &= link.wait_flushed(_clamp(deadline - time.monotonic()))
        return quiet

    def forsake(self) -> None:
        """In a forked child: serve no more.

        The threads are not there, and any lock may be held for ever. Green threads are there, and
        go on until they notice.
        """
        self.calls.forsake()
        self._watchdog.forsake()
        for link in self.links:
            link.forsake()

    # The links, in their threads

    def _show_state(self) -> None:
        """A link's state is another."""
        self._board.update(self._combined)

    def _combined(self, state: State) -> State:
        """By the links' states now. Runs under the board's lock, and takes no other."""
        # Once it drains or is closed, no link's state shows any more: one may connect meanwhile, to
        # deliver what is left.
        if state in (State.DRAINING, State.CLOSED):
            return state
        combined = combine(link.state for link in self.links)
        return state if combined is State.CLOSED else combined  # _link_ended says when it is over

    def _link_ended(self, link: Link | EveryAddress, error: BaseException | None) -> None:
        """A link's thread is about to end; the last one ends everything."""
        if error is not None:
            unforeseen = not isinstance(error, RevconnError)
            logger.error(
                "gave up %s: %s", link.target, error, exc_info=error if unforeseen else None
            )
        with self._lock:
            # Counted, and not asked of the threads: this one is still alive as it says so.
            self._living -= 1
            self._failure = self._failure or error
            if self._living:
                return
            if self._ending:  # it was to end anyway: what fails on the way is no error of the end
                self._failure = None
        self._finish()

    def _finish(self, leave_behind: Callable[[], None] = lambda: None) -> None:
        """Everything has ended, or is left behind. Only the first call counts."""
        with self._lock:
            if self._finished:
                return
            self._finished = True
        try:
            leave_behind()
            self.calls.close()
            for executor in self._own_executors:
                executor.shutdown(wait=False)
        finally:  # stop(), wait() and a blocking start() wait for this, whatever failed above
            # Callbacks are told, and a callback may call stop(). The state is CLOSED before stop()
            # returns: who called it may look at once.
            with own_thread():
                self._board.update(lambda state: State.CLOSED)
            self._ended.set()
            self._on_end()


class StateBoard:
    """The current state; waits for one; tells callbacks each change once, in order.

    ``_lock`` is held for changes. Reading the state and waiting for one take no lock: they are
    what a main thread does while a signal handler in it calls ``stop()``. Callbacks run without
    it, in whichever thread made the change or is just telling an earlier one. Thread-safe.
    """

    def __init__(self, state: State = State.IDLE) -> None:
        self._lock = threading.Lock()
        self._state = state
        # No condition: that has a lock, and a signal handler that calls stop() in the main thread
        # may have interrupted that very thread while it waited, and held it.
        self._waiting: list[Mailbox[State]] = []
        self._callbacks: list[Callable[[State], object]] = []
        self._untold: deque[State] = deque()
        self._telling = False  # a thread is calling callbacks now, and tells later changes too

    @property
    def state(self) -> State:
        """The state now."""
        return self._state

    def renew_locks(self) -> None:
        """In a forked child: whoever held them is not there to release them."""
        self._lock = threading.Lock()
        self._telling = False

    def subscribe(self, callback: Callable[[State], object]) -> None:
        """Call ``callback`` with each new state from now on."""
        with self._lock:
            self._callbacks.append(callback)

    def update(self, choose: Callable[[State], State]) -> None:
        """Move to ``choose(current)``, which runs under the lock, unless it is where we are."""
        with self._lock:
            state = choose(self._state)
            if state is self._state:
                return
            self._state = state
            self._untold.append(state)
            for news in tuple(self._waiting):
                news.put(state)
        self._tell()

    def wait_for(self, states: Iterable[State], timeout: float | None) -> State | None:
        """The state once it is one of ``states``; ``None`` when ``timeout`` seconds ran out."""
        wanted = frozenset(states)
        deadline = time.monotonic() + (threading.TIMEOUT_MAX if timeout is None else timeout)
        news: Mailbox[State] = Mailbox()
        self._waiting.append(news)  # before the look: no change comes in between
        try:
            state = self._state
            while state not in wanted:
                rest = min(max(0.0, deadline - time.monotonic()), threading.TIMEOUT_MAX)
                state = news.get(timeout=rest)
        except queue.Empty:
            return None
        finally:
            self._waiting.remove(news)
        return state

    def _tell(self) -> None:
        # One change at a time, by one thread: two threads that told of two changes could tell them
        # in the other order, and a callback that changes the state is not called within itself.
        while True:
            with self._lock:
                if self._telling or not self._untold:
                    return
                self._telling = True
                state = self._untold.popleft()
                callbacks = list(self._callbacks)
            try:
                for callback in callbacks:
                    shielded("a state callback", callback, state)
            finally:
                with self._lock:
                    self._telling = False


def _clamp(seconds: float, most: float = threading.TIMEOUT_MAX) -> float:
    return max(0.0, min(seconds, most))


_Place = tuple[str, Optional[int]]  # one for every spelling of a target


class Claims:
    """Which services are registered at which gateways, and by which connectors each.

    ``_lock`` guards all state. Thread-safe.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._claims: dict[object, set[tuple[_Place, str]]] = {}  # by their owners

    def claim(self, owner: object, targets: Iterable[Target], services: Iterable[str]) -> None:
        """A connector starts to serve. Warns, a line for each gateway, of what another one serves.

        Most often that is the same program, run once more in one process: a notebook's cell, or an
        application that a reloader's parent process has imported too.
        """
        targets, services = tuple(targets), tuple(services)
        with self._lock:
            taken: set[tuple[_Place, str]] = set().union(*self._claims.values())
            self._claims[owner] = {(each.place, name) for each in targets for name in services}
        for target in targets:
            shared = [name for name in services if (target.place, name) in taken]
            if shared:
                _claims_logger.warning(
                    "another connector of this process serves %s at %s already, and the gateway"
                    " lets both take turns: stop() the older one first, or give it the new handlers"
                    " with add_method(..., replace=True)",
                    ", ".join(shared),
                    target,
                )

    def release(self, owner: object) -> None:
        """A connector serves no more, or is about to end. Idempotent."""
        with self._lock:
            self._claims.pop(owner, None)

    def forsake(self) -> None:
        """In a forked child: nothing is served here. Takes no lock: its owner may be gone."""
        self._lock = threading.Lock()
        self._claims = {}
