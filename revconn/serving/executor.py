"""The executor that handlers run in, unless users give one of their own."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Callable, NamedTuple, TypeVar

__all__ = ["DaemonExecutor"]

T = TypeVar("T")


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
            if self._idle >= len(self._tasks):
                self._submitted.notify()
            elif len(self._members) < self._most:
                member = self._add_member()
        if member is not None:
            try:
                self._start(member)
            except RuntimeError:
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
        member = threading.Thread(target=self._work, name=next(self._names), daemon=True)
        self._members.add(member)
        return member

    def _start(self, member: threading.Thread) -> None:
        try:
            member.start()
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
