"""The threads that run requests: how many there are, and when each goes back to the executor."""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Iterable
from concurrent.futures import BrokenExecutor, Executor, Future
from typing import Callable

from revconn.exceptions import RevconnError
from revconn.guard import guarded_thread
from revconn.logger import get_logger
from revconn.runtime.origin import Entry
from revconn.runtime.threads import own_thread
from revconn.runtime.troubles import Backlog

__all__ = ["Workers"]

logger = get_logger(__name__)

_LINGER = 0.1
_SHIFT = 0.5


class Workers:
    """Feeds requests to at most ``most`` workers.

    ``serve`` gets each with the id of the worker's thread and the time (monotonic). ``strand``
    gets those that nobody can serve, and why: the executor took no worker. ``on_broken`` is told
    why when it will never take another one.

    A worker is a task in the executor that takes requests until none came for a while: one task per
    request would cost a future, a queue and a wake-up each. While requests never end it makes way
    for a successor now and then: others may want the executor's threads, or their end. One that
    fails has a successor too.

    An executor that ``may_block`` (whose ``submit`` waits for room, say) is asked for workers by a
    thread of its own: whoever puts requests has a connection to keep alive, and a worker may be the
    very one whose end that waits for.

    ``_lock`` guards all state; ``_work_arrived`` is its condition. Thread-safe.
    """

    def __init__(
        self,
        executor: Executor,
        most: int,
        serve: Callable[[Entry, int, float], None],
        strand: Callable[[list[Entry], str], None],
        on_broken: Callable[[BaseException], None],
        *,
        may_block: bool = False,
    ) -> None:
        self._executor = executor
        self._most = most
        self._serve = serve
        self._strand = strand
        self._on_broken = on_broken
        self._contracts: queue.SimpleQueue[object] | None = None
        self._recruiter: threading.Thread | None = None
        if may_block:
            self._contracts = queue.SimpleQueue()
            self._recruiter = guarded_thread("revconn-recruiter", self._recruit, on_broken)
        self._lock = threading.Lock()
        self._work_arrived = threading.Condition(self._lock)
        self._waiting: deque[Entry] = deque()
        self._count = 0
        self._hired: set[object] = set()
        self._parked = 0
        self._called = False  # a parked worker was, and has not woken yet
        self._closed = False

    def start(self) -> None:
        """Start the thread that asks for workers, if there has to be one."""
        if self._recruiter is not None:
            self._recruiter.start()

    def put(self, entries: Iterable[Entry]) -> None:
        """Have them served, in this order. Does not block."""
        with self._lock:
            if self._closed:
                return
            self._waiting.extend(entries)
            hire = self._call()
        if hire:
            self._hire()

    @property
    def waiting(self) -> int:
        """How many requests no worker has taken yet."""
        return len(self._waiting)

    def backlog(self, now: float) -> Backlog | None:
        """What waits for a worker; ``None`` when nothing does."""
        with self._lock:
            first = next((request for _, request in self._waiting if request._active), None)
            if first is None:
                return None
            wanted = len(self._hired)
            return Backlog(len(self._waiting), now - first._arrived, self._count - wanted, wanted)

    def forget_settled(self) -> None:
        """While every worker is busy nobody else would drop them, and the payloads they hold."""
        with self._lock:
            self._waiting = deque(entry for entry in self._waiting if entry[1]._active)

    def close(self) -> None:
        """Take no requests any more, and give the threads back. Idempotent."""
        with self._lock:
            self._closed = True
            self._waiting.clear()
            self._work_arrived.notify_all()
        if self._contracts is not None:
            self._contracts.put(None)

    def forsake(self) -> None:
        """In a forked child: serve nothing more. Takes no lock: its owner may be gone."""
        self._closed = True
        self._waiting.clear()

    # Hiring

    def _call(self) -> bool:
        """Wake a parked worker for what waits; true when one is to be hired instead.

        Called for each batch, and by each worker that leaves more behind: only as many threads
        wake as find something to do, one after the other. Requires holding ``_lock``.
        """
        if self._called or not self._waiting:
            return False
        if self._parked:
            self._called = True
            self._work_arrived.notify()
            return False
        hire = self._count < self._most
        self._count += hire
        return hire

    def _hire(self) -> None:
        contract = object()
        with self._lock:
            self._hired.add(contract)
        if self._contracts is None:
            self._submit(contract)
        else:
            self._contracts.put(contract)

    def _recruit(self) -> None:
        """The body of the thread that asks an executor which may block."""
        assert self._contracts is not None
        while (contract := self._contracts.get()) is not None and not self._closed:
            self._submit(contract)

    def _submit(self, contract: object) -> None:
        def ended(worker: Future[None]) -> None:
            if worker.cancelled():  # shut down before it could begin
                self._dismiss(contract, RuntimeError("the executor was shut down"))
            elif (error := worker.exception()) is not None:  # its initializer failed, say
                self._dismiss(contract, error)

        try:
            self._executor.submit(self._work, contract).add_done_callback(ended)
        except BaseException as error:  # noqa: BLE001 - shut down, no thread to be had, no room
            self._dismiss(contract, error)

    def _dismiss(self, contract: object, error: BaseException) -> None:
        """The executor took no more workers; without any, what waits cannot run.

        An executor that cannot start a thread has queued the task all the same: should some other
        thread come to it, before or after, the contract says which of the two counts.
        """
        stranded: list[Entry] = []
        with self._lock:
            if contract not in self._hired:
                return
            self._hired.remove(contract)
            self._count -= 1
            if not self._count:
                stranded += self._waiting
                self._waiting.clear()
        if _is_for_good(error) and not self._closed:
            broken = RevconnError(f"executor: it takes no tasks any more: {error}")
            broken.__cause__ = error
            self._on_broken(broken)
        if stranded:
            self._strand(stranded, str(error) or type(error).__name__)

    # A worker's thread

    def _work(self, contract: object) -> None:
        with self._lock:
            if contract not in self._hired:
                return
            self._hired.remove(contract)
        try:
            with own_thread():
                if not self._work_a_shift():
                    return
        except BaseException:
            logger.exception("a worker failed; another one takes its place")
        self._hire()

    def _work_a_shift(self) -> bool:
        """Serve; whether there has to be a successor. Otherwise the place is given back."""
        thread = threading.get_ident()
        now = time.monotonic()
        shift_ends = now + _SHIFT
        while now < shift_ends:
            entry = self._next_entry()
            if entry is None:
                return False
            now = time.monotonic()
            self._serve(entry, thread, now)
        return True

    def _next_entry(self) -> Entry | None:
        """The next request; ``None`` when none came for a while: the thread is given back."""
        with self._lock:
            while not self._waiting:
                self._parked += 1
                try:
                    called = self._work_arrived.wait(_LINGER)
                finally:
                    self._parked -= 1
                    self._called = False
                if self._closed or not (called or self._waiting):
                    self._count -= 1
                    return None
            entry = self._waiting.popleft()
            hire = self._call()
        if hire:
            self._hire()
        return entry


def _is_for_good(error: BaseException) -> bool:
    """Whether an executor that refused a worker will never take another one.

    At the end of the interpreter whoever is there will see to an orderly end.
    """
    if isinstance(error, BrokenExecutor):
        return True
    words = str(error)
    return isinstance(error, RuntimeError) and "shut" in words and "interpreter" not in words
