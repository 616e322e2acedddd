"""The threads that run requests: how many there are, and when each goes back to the executor."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, ThreadPoolExecutor
from typing import Any, Callable, NamedTuple

from revconn.core.chunks import LargeAnswer
from revconn.core.sending import Answer
from revconn.core.status import StatusCode
from revconn.exceptions import RevconnError
from revconn.logger import Reminder, get_logger
from revconn.messages import Request
from revconn.runtime import clock
from revconn.runtime.threads import BinarySemaphore, own_thread
from revconn.serving.handlers import LONG, Runs
from revconn.serving.replies import Replies

__all__ = ["Backlog", "Served", "Workers", "may_block"]

logger = get_logger(__name__)

_LINGER = 0.1  # seconds that a worker waits for another request before it goes
_SHIFT = 0.5  # seconds after which it makes way for a successor
_BRIEF = 0.01  # seconds: two turns of the interpreter, which other workers wait for anyway
_MOST_LENGTHY = 1000  # methods, and of so many characters each: some are the callers' choice
_LONGEST_METHOD = 200
_MOST_SERVED = 64  # requests that are settled at a time, at most: about so many
_PORTION = 256 << 10  # bytes of answers that are settled at a time: about so many

Served = tuple[Request, "Answer | LargeAnswer"]
"""A request, and the answer that it is to be settled with."""

_monotonic = time.monotonic
_with_suspend = clock.with_suspend


class Backlog(NamedTuple):
    """Requests that wait for a worker: how many, and how long the first has waited, in seconds.

    So many ``workers`` are there; the executor has found no thread yet for ``wanted`` others.
    """

    waiting: int
    longest: float
    workers: int
    wanted: int


class Workers:
    """Feeds requests to at most ``most`` workers.

    Each is answered by ``answer``, which runs its handler; from just before until that has returned
    ``runs.running`` has an entry for the worker's thread. Then it is in ``served`` until a worker,
    the same one or another, has ``settle`` take all out that is there: one lock and one write for
    many. That returns those whose callbacks are due. A request that has no answer is for ``expire``
    or ``fail``, as are those that nobody can serve, because the executor took no worker.
    ``on_broken`` is told why when the executor will never take another one.

    For a handler that took long the last time no answer waits, whoever is awake: one that keeps the
    interpreter to itself (a long call in C, a green thread's loop) lets nobody else settle either.

    While the answers of a link pile up its requests are held, until :meth:`resume`.

    While requests wait, or are served and not settled, and somebody is in a handler or a callback,
    which may take long, another worker is awake and in neither, or has been called and will be; or
    nothing is left in ``served``. One, not as many as there are: a
    worker that was called and waits for the interpreter's lock only takes time from those that
    work, and 50 connectors with 16 workers each came to a standstill by that.

    A worker is a task in the executor that takes requests until none came for a while: one task per
    request would cost a future, a queue and a wake-up each. While requests never end it makes way
    for a successor now and then: others may want the executor's threads, or their end. One that
    fails has a successor too.

    An executor whose ``submit`` may block, for want of room say, is asked for workers in the
    ``recruiter``: whoever puts requests has a connection to keep alive, and a worker may be the
    very one whose end that waits for. Callbacks of requests whose handlers may be busy yet are
    called in ``callbacks``: one that hangs there delays only others. None of the three is ended
    here; workers go by themselves when nothing is left to do.

    What is ``_is_streaming`` is for ``run_stream``, which takes as long as it likes, and leaves no
    answer to settle; or for ``strand_stream``, where nobody can.

    ``lock``, the owner's, guards all state. But requests are taken from ``waiting``, and appended
    to ``served``, without it: that is atomic, and a lock for each, which 16 workers and a receiving
    thread want, would be dear. Parked workers wait for a semaphore and not on a condition, which
    is Python code. Thread-safe.
    """

    def __init__(
        self,
        lock: threading.Lock,
        executor: Executor,
        most: int,
        runs: Runs,
        *,
        answer: Callable[[Request], Answer | LargeAnswer],
        run_stream: Callable[[Any], object],
        strand_stream: Callable[[Any], object],
        settle: Callable[[deque[Served]], list[Request]],
        expire: Callable[[Request], object],
        fail: Callable[[Request, StatusCode, str], object],
        on_broken: Callable[[BaseException], object],
        callbacks: Executor,
        recruiter: Executor | None = None,
    ) -> None:
        self._executor = executor
        self._most = most
        self._runs = runs
        self._running = runs.running
        self._answer = answer
        self._run_stream = run_stream
        self._strand_stream = strand_stream
        self._settle = settle
        self._expire = expire
        self._fail = fail
        self._stranding = Reminder()
        self._on_broken = on_broken
        self._callbacks = callbacks
        self._recruiter = recruiter
        self._lock = lock
        self.waiting: deque[Request] = deque()
        self.served: deque[Served] = deque()
        # Methods whose handler took more than _BRIEF the last time. Each worker adds and discards
        # as it has seen it, which is atomic; who did so last counts.
        self._lengthy: set[str] = set()
        self.held: deque[Request] = deque()  # of congested links
        self._count = 0
        self._hired: set[object] = set()
        self._parked = 0  # without the one that was called
        self._in_callbacks = 0
        self._called = False  # a parked worker was, and has not woken yet
        self._calls = BinarySemaphore()  # to be had from a call until a worker has heard it

    def put(self, requests: Sequence[Request]) -> bool:
        """Have them served, in this order; whether to :meth:`hire` a worker for that.

        Does not block. Requires holding the lock.
        """
        assert self._lock.locked()
        self.waiting.extend(requests)
        return self._call()

    def backlog(self, now: float) -> Backlog | None:
        """What waits for a worker; ``None`` when nothing does."""
        with self._lock:
            waiting = tuple(self.waiting)
            first = next((request for request in waiting if request._is_unsettled()), None)
            if first is None:
                return None
            wanted = len(self._hired)
            return Backlog(len(waiting), now - first._waiting_since, self._count - wanted, wanted)

    def forget_settled(self) -> None:
        """While every worker is busy nobody else would drop them, and the payloads they hold.

        In place and one by one, since workers take from the same deque meanwhile.
        """
        with self._lock:
            self.held = deque(request for request in self.held if request._is_unsettled())
            # A stream that is over has a worker's place, and something to close, perhaps.
            waiting = [each for each in tuple(self.waiting) if not each._is_streaming]
            for request in [each for each in waiting if not each._is_unsettled()]:
                with contextlib.suppress(ValueError):  # a worker was faster
                    self.waiting.remove(request)

    def resume(self, replies: Replies) -> None:
        """Its answers pile up no longer: have its requests run that were held."""
        with self._lock:
            resumed = [request for request in self.held if request._replies is replies]
            self.held = deque(request for request in self.held if request._replies is not replies)
            hire = bool(resumed) and self.put(resumed)
        if hire:
            self.hire()

    def abandon(self) -> list[Request]:
        """Serve nothing of what waits; what that was.

        Takes no lock: in a forked child its owner may be gone.
        """
        abandoned = list(self.held)
        self.held.clear()
        with contextlib.suppress(IndexError):  # one by one: workers take from the same deque
            while True:
                abandoned.append(self.waiting.popleft())
        return abandoned

    # Callbacks, in their own thread

    def call_back(self, ended: Iterable[Request]) -> None:
        """These are over, and nobody else calls their callbacks. Does not wait."""
        self.call_aside(request._call_back for request in ended if request._callbacks)

    def call_aside(self, functions: Iterable[Callable[[], object]]) -> None:
        """Call what may take long. Does not wait, unless there is no thread to be had."""
        for function in functions:
            try:
                self._callbacks.submit(function)
            except RuntimeError:  # shut down, or the interpreter exits
                function()

    # Hiring

    def _call(self) -> bool:
        """See to it that a worker comes for what waits; true when one is to be hired for that.

        Called for each batch, and by each worker that enters a handler and leaves more behind.
        Requires holding the lock.
        """
        assert self._lock.locked()
        if self._called or not self.waiting or self._awake() > 0:
            return False
        return self._call_another()

    def _awake(self) -> int:
        """How many workers are between two requests, and will look for another one.

        Too few rather than too many, for one who asks without the lock: what is taken away is read
        before ``_count``, which whoever leaves changes first.
        """
        elsewhere = self._parked + len(self._hired) + len(self._running) + self._in_callbacks
        return self._count - elsewhere

    def _call_another(self) -> bool:
        """Wake a parked worker; true when one is to be hired instead."""
        if self._parked:
            self._parked -= 1
            self._called = True
            self._calls.release()
            return False
        hire = self._count < self._most and not self._hired
        self._count += hire
        return hire

    def hire(self) -> None:
        """Ask the executor for a worker, as :meth:`put` said. Without the lock."""
        contract = object()
        # Before it is submitted: an executor may run it at once, in this very thread.
        with self._lock:
            self._hired.add(contract)
            if self.waiting and self._parked and not self._called:  # the executor may be busy
                self._call_another()
        if self._recruiter is None:
            self._submit(contract)
            return
        try:
            self._recruiter.submit(self._submit, contract)
        except RuntimeError as error:  # shut down
            self._dismiss(contract, error)

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
        stranded: list[Request] = []
        with self._lock:
            if contract not in self._hired:  # it began after all, or was dismissed already
                return
            self._count -= 1
            self._hired.remove(contract)
            if not self._count:  # else those that there are come to it
                stranded += self.waiting
                self.waiting.clear()
        if _is_for_good(error):
            broken = RevconnError(f"executor: it takes no tasks any more: {error}")
            broken.__cause__ = error
            self._on_broken(broken)
        if stranded:
            self._strand(stranded, str(error) or type(error).__name__)

    def _strand(self, requests: list[Request], reason: str) -> None:
        for request in requests:
            self._fail(request, StatusCode.UNAVAILABLE, "the service has no thread to run it in")
            if request._is_streaming:
                self._strand_stream(request)
        with self._lock:
            worth_a_line = self._stranding.is_due(_monotonic())
        logger.log(
            logging.WARNING if worth_a_line else logging.DEBUG,
            "refused %d requests: no worker to run them: %s",
            len(requests),
            reason,
        )

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
        self._running.pop(threading.get_ident(), None)
        # The place is not given back: the successor has it, or whoever finds that there is none.
        self.hire()
        # After that: nobody counts on this worker any more, but somebody may have just before.
        self._settle_all()

    def _work_a_shift(self) -> bool:
        """Serve; whether there has to be a successor. Otherwise the place is given back."""
        thread = threading.get_ident()
        running, waiting = self._running, self.waiting
        now = _monotonic()
        shift_ends = now + _SHIFT
        request: Request | None
        while now < shift_ends:
            try:
                request = waiting.popleft()
            except IndexError:
                request = None  # a thread that waits keeps nothing alive
                self._settle_all()
                if not self._park():
                    return False
                now = _monotonic()
                continue
            # Before the look at the others: of two workers that enter a handler at the same time
            # one at least sees that the other does.
            running[thread] = (request, now)
            now = self._serve(request, thread, now)
        return True

    def _look_after_waiting(self) -> None:
        with self._lock:
            hire = self._call()
        if hire:
            self.hire()

    def _serve(self, request: Request, thread: int, start: float) -> float:
        """Run a request in this worker's thread; when it was done (monotonic)."""
        running = self._running
        try:
            served = self.served
            if request._is_streaming:  # which may hold this worker for long
                self._run_streaming(request)
                del running[thread]
                return _monotonic()
            lengthy = self._lengthy
            if served and request.method in lengthy:
                self._settle_all()
            if (self.waiting or served) and not self._called and self._awake() <= 0:
                if self.waiting:
                    self._look_after_waiting()
                if served and not self._called:
                    self._settle_all()  # what has an answer must not wait for this handler
            # The deadlines' thread may not have come to it yet, and a handler must not run late.
            if request._due is not None and request._due <= _with_suspend():
                self._expire(request)
            elif request._in_flight.get(request.request_id) is request and not (
                request._replies.congested and self._hold(request)
            ):
                answer = self._answer(request)
                end = _monotonic()
                if end - start > _BRIEF:
                    self._took_long(request, start, end)
                elif request.method in lengthy:  # it waited for the interpreter then, say
                    lengthy.discard(request.method)
                del running[thread]
                if request._callbacks:
                    self._settle_all()  # first: answers leave in the order they were made in
                    for each in self._settle(deque([(request, answer)])):
                        self._busy_with(each._call_back)
                    return _monotonic()
                served.append((request, answer))
                if self.waiting and (
                    len(served) >= _MOST_SERVED
                    or type(answer) is not tuple
                    or len(served) * len(answer[0]) > _PORTION  # as if all were like this one
                ):
                    self._settle_all()
                    end = _monotonic()
                return end
            del running[thread]
        except BaseException:  # the worker, and whoever waits for the answer, need not suffer
            running.pop(thread, None)
            logger.exception("%r: serving it failed", request)
            self._fail(request, StatusCode.INTERNAL, "internal error")
        return _monotonic()

    def _run_streaming(self, request: Request) -> None:
        self._settle_all()
        if self.waiting and not self._called and self._awake() <= 0:
            self._look_after_waiting()
        self._run_stream(request)

    def _took_long(self, request: Request, start: float, end: float) -> None:
        method = request.method
        if len(self._lengthy) < _MOST_LENGTHY and len(method) <= _LONGEST_METHOD:
            self._lengthy.add(method)
        if end - start > LONG:
            self._runs.remember(request, start, end)

    def _settle_all(self) -> None:
        """Settle what was served, whatever that runs into: all of it, or who is to do the rest?"""
        while self.served:
            try:
                called_back = self._settle(self.served)
                # Their own workers have gone on, and this one has a request in hand, maybe: that
                # need not wait for what a callback does.
                if called_back:
                    self.call_back(called_back)
            except BaseException:
                logger.exception("settling requests failed")

    def _busy_with(self, function: Callable[[], object]) -> None:
        """Call what may take as long as a handler does."""
        with self._lock:
            self._in_callbacks += 1
            hire = self._call()
        if hire:
            self.hire()
        # After that, as in _work(): nobody counts on this worker while it is in there.
        self._settle_all()
        try:
            function()
        finally:
            with self._lock:
                self._in_callbacks -= 1

    def _hold(self, request: Request) -> bool:
        """Leave a request until its link takes answers again; whether that is necessary."""
        with self._lock:
            is_congested: bool = request._replies.congested  # resume() comes after it was relieved
            if is_congested:
                self.held.append(request)
        return is_congested

    def _park(self) -> bool:
        """Wait until there is work, or false: the worker was not needed for a while, and goes."""
        with self._lock:
            if self.waiting:
                return True
            self._parked += 1
            # After that: another worker, which appends without the lock and looks who is awake
            # then, has counted on this one, or sees that it is not.
            if self.served:
                self._parked -= 1
                return True
        while not self._calls.acquire(timeout=_LINGER):
            with self._lock:
                if self._parked:  # else it was called in the last moment
                    self._count -= 1
                    self._parked -= 1
                    return False
        with self._lock:
            self._called = False
        return True


def may_block(executor: Executor) -> bool:
    """Whether ``submit`` is not the standard one, which never does."""
    return getattr(executor.submit, "__func__", None) is not ThreadPoolExecutor.submit


def _is_for_good(error: BaseException) -> bool:
    """Whether an executor that refused a worker will never take another one.

    At the end of the interpreter whoever is there will see to an orderly end.
    """
    if isinstance(error, BrokenExecutor):
        return True
    words = str(error)
    return isinstance(error, RuntimeError) and "shut" in words and "interpreter" not in words
