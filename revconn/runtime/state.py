"""What a connector is doing, and telling others when that changes."""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Callable

from revconn.runtime.threads import shielded

__all__ = ["LinkStatus", "State", "StateBoard", "combine"]


class State(Enum):
    """What a connector (or one of its links) is doing now."""

    IDLE = "idle"
    CONNECTING = "connecting"
    READY = "ready"
    BACKING_OFF = "backing off"
    DRAINING = "draining"
    CLOSED = "closed"


def combine(states: Iterable[State]) -> State:
    """A connector's state by its links': one that is ready makes it ready."""
    present = set(states)
    for state in (State.READY, State.CONNECTING, State.BACKING_OFF, State.IDLE):
        if state in present:
            return state
    return State.CLOSED


@dataclass(frozen=True)
class LinkStatus:
    """What one link is doing: its gateway's address, its state, its id while it has one.

    ``last_error`` says why there is no connection, in the log's words: of the last attempt, of the
    loss, or of what ended the link. It is ``None`` while there is a connection, and before the
    first failure. ``next_attempt_in`` is in how many seconds (counted when ``links`` was read) the
    next attempt is due, ``None`` while none is waited for.
    """

    target: str
    state: State
    connection_id: str | None
    last_error: str | None = None
    next_attempt_in: float | None = None

    def _trouble(self) -> str:
        """Such as ``; a:1: Connection refused; next attempt in 0.7 s``; nothing if all is well."""
        if self.last_error is None:
            return ""
        due = self.next_attempt_in
        following = "" if due is None else f"; next attempt in {due:.1f} s"
        return f"; {self.target}: {self.last_error}{following}"


class StateBoard:
    """The current state; waits for one; tells callbacks each change once, in order.

    ``_lock`` is held for changes. Reading the state and waiting for one take no lock: they are
    what a main thread does while a signal handler in it calls ``stop()``. Callbacks run without
    it, in whichever thread made the change or is just telling an earlier one. Thread-safe.
    """

    def __init__(self, state: State = State.IDLE) -> None:
        self._lock = threading.Lock()
        self._state = state
        self._waiting: list[queue.SimpleQueue[State]] = []
        self._callbacks: list[Callable[[State], object]] = []
        self._untold: deque[State] = deque()
        self._telling = False

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
        news: queue.SimpleQueue[State] = queue.SimpleQueue()
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
