"""The library's threads: none ends unnoticed, none waits for itself; mailbox, pool, spare ones."""

from __future__ import annotations

import contextlib
import itertools
import os
import queue
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Callable, Generic, NamedTuple, TypeVar

from revconn.logger import get_logger, is_interrupt

__all__ = [
    "BinarySemaphore",
    "Condition",
    "DaemonExecutor",
    "Mailbox",
    "Thread",
    "aside",
    "drop_spares",
    "guarded_thread",
    "in_background",
    "is_own_thread",
    "keep_spares",
    "own_thread",
    "shielded",
]

logger = get_logger("revconn.guard")  # as users have it in their logging's configuration

T = TypeVar("T")


def guarded_thread(
    name: str,
    body: Callable[[], object],
    on_failure: Callable[[BaseException], object] | None = None,
) -> threading.Thread:
    """A daemon thread, not started, of which somebody hears when ``body`` raises anything.

    The log does, and whoever depends on the thread: ``on_failure`` is called in it, last of all.
    """

    def run() -> None:
        try:
            body()
        except BaseException as error:  # SystemExit too, which threading swallows without a word
            logger.exception("the thread %s failed", name)
            if on_failure is not None:
                shielded("telling of it", on_failure, error)

    return Thread(target=run, name=name, daemon=True)


def shielded(what: str, call: Callable[..., object], *arguments: object) -> bool:
    """Call somebody else's code; whatever it raises costs a line in the log.

    Whether it returned. Only Ctrl-C in the main thread gets out.
    """
    try:
        call(*arguments)
    except BaseException as error:
        if is_interrupt(error):
            raise
        logger.exception("%s failed", what)
        return False
    return True


# The identifiers of the threads that are the library's own just now. No threading.local: one made
# before gevent patched threading would take all its green threads for one thread. No lock: adding
# to a set, and looking into it, is atomic, and each thread adds and removes only itself.
_own: set[int] = set()


class Condition(threading.Condition):
    """A condition of ``lock`` whose :meth:`notify_all` costs next to nothing while nobody waits."""

    def __init__(self, lock: threading.Lock) -> None:
        super().__init__(lock)
        # Guarded by the lock. The table of calls notifies with every request that is settled, most
        # often with nobody there; who is in a hurry looks here first and saves the call, too.
        self.sleepers = 0

    def wait(self, timeout: float | None = None) -> bool:
        """Wait to be notified, at most ``timeout`` seconds. Requires the lock."""
        # wait_for() of the standard class comes here too, so every sleeper is counted.
        self.sleepers += 1
        try:
            return super().wait(timeout)
        finally:
            self.sleepers -= 1

    def notify_all(self) -> None:
        """Wake all that wait. Requires the lock."""
        if self.sleepers:
            super().notify_all()


class BinarySemaphore:
    """A lock that guards nothing: one thread releases it and wakes another, which acquires it.

    ``release`` raises :class:`RuntimeError` if that was done already. Both are the lock's own
    methods, so that no Python code runs in them. Not to be had at first.
    """

    def __init__(self) -> None:
        self.acquire, self.release = (lock := threading.Lock()).acquire, lock.release
        lock.acquire()


class Mailbox(Generic[T]):
    """What any thread puts, and one takes, as a :class:`queue.SimpleQueue`; but it keeps time.

    Before Python 3.13 that one waits for ever if the time runs out while it looks for the second
    time: once in some thousand calls with no time at all, and whenever the process was stopped, or
    had no core, for so long. :meth:`put` may interrupt :meth:`get`, as signal handlers do.
    """

    def __init__(self) -> None:
        self._items: deque[T] = deque()
        self._filled = BinarySemaphore()  # to be had while there may be an item

    def put(self, item: T) -> None:
        """Have it taken. Does not block."""
        self._items.append(item)
        with contextlib.suppress(RuntimeError):  # it is to be had already
            self._filled.release()

    def get(self, timeout: float | None = None) -> T:
        """Wait for the next item, at most so many seconds (``None``: for ever).

        Raises :class:`queue.Empty` when none came in time.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            with contextlib.suppress(IndexError):
                return self._items.popleft()
            rest = -1.0
            if timeout is not None and deadline is not None:  # rounding may give it more than that
                rest = min(timeout, max(0.0, deadline - time.monotonic()))
            if not self._filled.acquire(timeout=rest):
                raise queue.Empty


@contextmanager
def own_thread() -> Iterator[None]:
    """While inside, this thread is one that a stop may have to wait for."""
    ident = threading.get_ident()
    nested = ident in _own  # in a link's thread, say, which is the last one and ends everything
    _own.add(ident)
    try:
        yield
    finally:
        if not nested:
            _own.discard(ident)


def is_own_thread() -> bool:
    """Whether the current thread is one that a stop may have to wait for."""
    return threading.get_ident() in _own


def aside(function: Callable[[], object], timeout: float) -> None:
    """Call ``function`` outside of the main thread, and wait for it at most ``timeout`` seconds.

    A signal handler interrupts the main thread wherever it is, and whatever lock it holds: what
    waited for that lock in there would wait for ever.
    """
    # Any other thread does it itself: Python runs signal handlers in the main thread alone. So does
    # the main thread where it calls a state callback: a stop waits for that, in another thread too.
    if threading.current_thread() is not threading.main_thread() or is_own_thread():
        function()
        return
    done = threading.Event()

    def run() -> None:
        try:
            function()
        finally:
            done.set()

    # With a limit: what the main thread holds, having been interrupted, may be what `function`
    # waits for in the other thread. The handler has to return for it to go on.
    if in_background(run):
        done.wait(timeout)
    else:
        function()


def in_background(function: Callable[[], object]) -> bool:
    """Have ``function`` called by a thread of its own; false if there is none to be had.

    That is as the interpreter exits, most often.
    """
    try:
        guarded_thread("revconn-close", function).start()
    except RuntimeError:
        return False
    return True


class _Task(NamedTuple):
    future: Future[Any]
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]


class DaemonExecutor(ThreadPoolExecutor):
    """A :class:`ThreadPoolExecutor` that works until it is shut down, and holds nobody up.

    When the main thread ends Python closes the standard ones, before it calls any ``atexit``
    function, and waits for their threads: whoever drains there could serve nobody, and a task that
    hangs would keep the process alive for ever. This one is ended by :meth:`shutdown` alone, and
    its threads are daemons.

    Python 3.12 starts no threads by then. What is submitted is left to those that there are;
    :meth:`start` sees to it that there is one.

    ``_lock`` guards all state; ``_submitted`` is its condition. Thread-safe.
    """

    def __init__(self, max_workers: int, thread_name_prefix: str) -> None:
        super().__init__(max_workers, thread_name_prefix)
        self._most = max_workers
        self._names = (f"{thread_name_prefix}_{number}" for number in itertools.count())
        self._lock = threading.Lock()
        self._submitted = threading.Condition(self._lock)
        self._tasks: deque[_Task] = deque()
        self._members: set[threading.Thread] = set()
        self._idle = 0
        self._closed = False

    def start(self) -> None:
        """Start the first thread. Raises :class:`RuntimeError` when there is none to be had."""
        with self._lock:
            member = self._add_member()
        self._start(member)

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Have a function called, as the standard one does.

        Raises :class:`RuntimeError` once it is shut down, and when there is no thread to be had.
        """
        task = _Task(Future(), fn, args, kwargs)
        member = None
        with self._lock:
            if self._closed:
                raise RuntimeError("cannot schedule new futures after shutdown")
            self._tasks.append(task)
            # A thread that was woken for a task and has not come to take it yet counts as idle, its
            # task as waiting: those who will come are compared with what will be there.
            if self._idle >= len(self._tasks):
                self._submitted.notify()
            elif len(self._members) < self._most:
                member = self._add_member()
        # With all members at work the task waits for the first that is done.
        if member is not None:
            try:
                self._start(member)
            except RuntimeError:  # an error to the caller only if no member will come to the task
                if self._take_back(task):
                    raise
        return task.future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more tasks; the threads end when none is left. As the standard one's."""
        cancelled: list[_Task] = []
        with self._lock:
            self._closed = True
            if cancel_futures:
                cancelled += self._tasks
                self._tasks.clear()
            members = list(self._members)
            self._submitted.notify_all()
        for task in cancelled:
            task.future.cancel()
        if wait:
            for member in members:
                member.join()

    def _add_member(self) -> threading.Thread:
        """Requires holding ``_lock``."""
        # A member from here on, so that two who submit at a time do not start one too many.
        member = threading.Thread(target=self._work, name=next(self._names), daemon=True)
        self._members.add(member)
        return member

    def _start(self, member: threading.Thread) -> None:
        try:
            member.start()  # without the lock: it waits until the thread runs
        except RuntimeError:
            with self._lock:
                self._members.discard(member)
            raise

    def _take_back(self, task: _Task) -> bool:
        """No thread was to be had for a task: true if there are none that it could wait for."""
        with self._lock:
            lost = not self._members and task in self._tasks
            if lost:
                self._tasks.remove(task)
        return lost

    def _work(self) -> None:
        try:
            while True:
                task = self._next_task()
                if task is None:
                    return
                _run(task)
                del task  # a thread that waits keeps nothing alive
        finally:
            with self._lock:
                self._members.discard(threading.current_thread())

    def _next_task(self) -> _Task | None:
        with self._lock:
            while not self._tasks:
                if self._closed:
                    return None
                self._idle += 1
                self._submitted.wait()
                self._idle -= 1
            return self._tasks.popleft()


def _run(task: _Task) -> None:
    future, function, arguments, keywords = task
    if not future.set_running_or_notify_cancel():
        return
    # Suppressed: what logging raises where a callback of the future failed. It has its result.
    with contextlib.suppress(BaseException):
        try:
            result = function(*arguments, **keywords)
        except BaseException as error:  # noqa: BLE001 - the future has it
            future.set_exception(error)
        else:
            future.set_result(result)


SPARES_NEEDED = sys.version_info[:2] == (3, 12)
"""Python 3.12 refuses a new thread once its main thread has ended; others do not."""


class Thread(threading.Thread):
    """A thread that runs in a spare one where none can be started."""

    # To leave a gateway that does not drain takes a second connection there, and its threads, as
    # the interpreter ends too. Without spare ones five restarts lost 20 of 6,734 calls, and took
    # 30 s each.

    # None as long as it runs, or is to run, in the thread of its own.
    _loan: _Loan | None = None

    def start(self) -> None:
        """Begin to run: in a thread of its own, or, where none can be started, in a spare one.

        Raises :class:`RuntimeError` where there is no spare one either, and if it was started.
        """
        try:
            super().start()
        except RuntimeError:
            # One that has been started raises for that, and is not to run twice.
            self._loan = None if self.ident is not None else _lend(self)
            if self._loan is None:
                raise

    def join(self, timeout: float | None = None) -> None:
        """Wait, at most ``timeout`` seconds (``None``: no limit), until what it runs is over."""
        # The spare thread itself may take a moment more to end; nobody is to wait for that.
        if self._loan is None:
            super().join(timeout)
        else:
            self._loan.over.wait(timeout)

    def is_alive(self) -> bool:
        """Whether what it runs has begun and is not over."""
        return super().is_alive() if self._loan is None else not self._loan.over.is_set()

    @property
    def ident(self) -> int | None:
        """The identifier of the thread that it runs in; ``None`` before the start."""
        return super().ident if self._loan is None else self._loan.ident


class _Loan:
    """What a spare thread runs in the place of one that could not start."""

    def __init__(self, thread: Thread) -> None:
        self.ident: int | None = None
        self.begun = threading.Event()
        self.over = threading.Event()
        self._name = thread.name
        self._body: Callable[[], object] = thread.run

    def run(self) -> None:
        """Called in the spare thread: under the name of the other, for logs and stack dumps."""
        self.ident = threading.get_ident()
        threading.current_thread().name = self._name
        self.begun.set()
        try:
            self._body()
        finally:
            self.over.set()


_spares_lock = threading.Lock()  # guards _spares_parked
_spares_parked = 0
_loans: queue.SimpleQueue[_Loan | None] = queue.SimpleQueue()  # None: one of them is to end


def keep_spares(count: int) -> int:
    """Start so many more spare threads. Returns how many: none where Python needs none."""
    global _spares_parked
    if not SPARES_NEEDED:
        return 0
    started = 0
    with contextlib.suppress(RuntimeError):  # no thread to be had
        for _ in range(count):
            # Python's own, as a Thread of ours would be lent one of those that it adds to.
            threading.Thread(target=_wait_for_loan, name="revconn-spare", daemon=True).start()
            started += 1
    with _spares_lock:
        _spares_parked += started
    return started


def drop_spares(count: int) -> None:
    """Let so many spare threads end. Those that are lent end with what they run."""
    global _spares_parked
    with _spares_lock:
        count = min(count, _spares_parked)
        _spares_parked -= count
    for _ in range(count):
        _loans.put(None)


def _lend(thread: Thread) -> _Loan | None:
    """Have a spare thread run what ``thread`` was to run; ``None`` if there is none left."""
    global _spares_parked
    with _spares_lock:
        if not _spares_parked:
            return None
        _spares_parked -= 1
    loan = _Loan(thread)
    _loans.put(loan)
    loan.begun.wait()  # soon: as many threads as are counted wait for a loan, or are about to
    return loan


def _wait_for_loan() -> None:
    """A spare thread's body."""
    loan = _loans.get()
    if loan is not None:
        loan.run()


def _disown() -> None:
    """In a forked child: the thread that forked, maybe a handler's, is its main thread now."""
    _own.clear()


def _forsake_spares() -> None:
    """In a forked child: no other thread is there, and the lock may be held for ever."""
    global _spares_lock, _spares_parked, _loans
    _spares_lock = threading.Lock()
    _spares_parked = 0
    # What the parent had put there and no spare thread had taken yet was for one of the parent's.
    _loans = queue.SimpleQueue()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_disown)
    os.register_at_fork(after_in_child=_forsake_spares)
