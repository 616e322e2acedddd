"""How many threads run requests, and what becomes of those that none can run."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any, Callable

import pytest

from revconn import Request
from revconn._proto.registry_pb2 import ForwardRequest
from revconn.core.sending import Answer, answer
from revconn.core.status import StatusCode
from revconn.exceptions import RevconnError
from revconn.runtime.threads import DaemonExecutor
from revconn.serving import workers as workers_module
from revconn.serving.handlers import Runs
from revconn.serving.workers import Workers
from tests.support.calls import send_home
from tests.support.requests import request_of, settle
from tests.support.threads import TIMEOUT
from tests.support.waiting import eventually


class Executor:
    """Runs what it was given when the test says so."""

    def __init__(self, problem: str = "") -> None:
        self.tasks: list[tuple[Future[None], Callable[[], None]]] = []
        self.problem = problem

    def submit(self, function: Callable[..., None], *args: Any) -> Future[None]:
        future: Future[None] = Future()
        self.tasks.append((future, lambda: function(*args)))
        if self.problem:
            raise RuntimeError(self.problem)
        return future

    def run(self) -> None:
        for _, task in self.tasks:
            task()


class Scene:
    """Workers, and all that they say of the requests that they are given."""

    def __init__(
        self,
        executor: Any,
        most: int = 3,
        *,
        handler: Callable[[str], object] = lambda request_id: None,
        kind: type[Workers] = Workers,
    ) -> None:
        self.executor = executor
        self.handler = handler
        self.runs = Runs()
        self.served: list[str] = []
        self.settled: list[str] = []
        self.failed: list[tuple[str, StatusCode, str]] = []
        self.broken: list[BaseException] = []
        self.lock = threading.Lock()
        self.workers = kind(
            self.lock,
            executor,
            most,
            self.runs,
            answer=self._answer,
            run_stream=lambda request: pytest.fail("no request here is a stream"),
            strand_stream=lambda request: pytest.fail("no request here is a stream"),
            settle=self._settle,
            expire=lambda request: pytest.fail("no request here has a deadline"),
            fail=self._fail,
            on_broken=self.broken.append,
            callbacks=executor,
        )

    def _answer(self, request: Request) -> Answer:
        assert self.runs.running[threading.get_ident()][0] is request
        self.served.append(request.request_id)
        self.handler(request.request_id)
        return answer(request.request_id.encode(), None)

    def _settle(self, served: deque[tuple[Request, Any]]) -> list[Request]:
        settled = []
        with self.lock:
            while served:
                request, answer = served.popleft()
                assert answer[0] == request.request_id.encode()
                settled.append(request)
        self.settled += [request.request_id for request in settled]
        return [request for request in settled if request._callbacks]

    def _fail(self, request: Request, code: StatusCode, reason: str) -> None:
        self.failed.append((request.request_id, code, reason))

    def put(self, *request_ids: str, callback: Callable[[], object] | None = None) -> list[Request]:
        messages = [ForwardRequest(request_id=each) for each in request_ids]
        requests = [request_of(message, arrived=1.0) for message in messages]
        if callback is not None:
            for request in requests:
                assert request.add_callback(callback)
        with self.lock:
            hire = self.workers.put(requests)
        if hire:
            self.workers.hire()
        return requests


class Gate:
    """A handler that holds every request until the end."""

    def __init__(self) -> None:
        self.entered: list[str] = []
        self.let_go = threading.Event()

    def __call__(self, request_id: str) -> None:
        self.entered.append(request_id)
        assert self.let_go.wait(TIMEOUT)

    def holds(self, *request_ids: str) -> None:
        eventually(lambda: sorted(self.entered) == sorted(request_ids))


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.let_go.set()


@pytest.fixture
def scene() -> Iterator[Callable[..., Scene]]:
    """``scene(handler, most)``: workers in threads of their own."""
    made: list[Scene] = []

    def make(handler: Callable[[str], object], most: int = 3, **options: Any) -> Scene:
        executor = DaemonExecutor(most, "revconn-test")
        made.append(Scene(executor, most, handler=handler, **options))
        return made[-1]

    yield make
    for each in made:
        each.executor.shutdown(wait=False)


def test_one_worker_is_hired_at_a_time_which_hires_the_next_when_it_is_busy() -> None:
    scene = Scene(Executor(), most=2)
    hired = []
    scene.handler = lambda request_id: hired.append(len(scene.executor.tasks))
    for request_id in "abc":
        scene.put(request_id)
    assert len(scene.executor.tasks) == 1
    scene.executor.tasks[0][1]()
    assert hired == [2, 2, 2], "before its first handler, and no more than there may be"


def test_a_worker_serves_what_waits_in_its_order() -> None:
    scene = Scene(Executor(), most=2)
    scene.put(*"abc")
    assert len(scene.workers.waiting) == 3
    scene.executor.run()
    assert scene.served == ["a", "b", "c"]
    assert scene.settled == ["a", "b", "c"]
    assert len(scene.workers.waiting) == 0


def test_what_was_settled_while_it_waited_is_not_run_though_its_id_came_again() -> None:
    scene = Scene(Executor())
    settled, _ = scene.put("again", "b")
    settled._in_flight[settled.request_id] = request_of(ForwardRequest(request_id="again"))
    scene.executor.run()
    assert scene.served == scene.settled == ["b"]
    assert scene.failed == []


def test_an_executor_that_takes_no_workers_strands_what_waits(
    caplog: pytest.LogCaptureFixture,
) -> None:
    scene = Scene(Executor("cannot schedule new futures after shutdown"))
    scene.put(*"ab")
    reason = "the service has no thread to run it in"
    assert scene.failed == [(each, StatusCode.UNAVAILABLE, reason) for each in "ab"]
    (record,) = caplog.records
    assert record.getMessage() == (
        "refused 2 requests: no worker to run them: cannot schedule new futures after shutdown"
    )
    (broken,) = scene.broken
    assert isinstance(broken, RevconnError)
    scene.executor.run()
    assert scene.served == [], "the task that was queued all the same came too late"


def test_a_worker_that_is_cancelled_before_it_began_strands_what_waits() -> None:
    scene = Scene(Executor())
    scene.put("a")
    scene.executor.tasks[0][0].cancel()
    assert [request_id for request_id, _, _ in scene.failed] == ["a"]


def test_while_there_is_another_worker_nothing_is_stranded() -> None:
    scene = Scene(Executor())
    scene.put("a", "b")
    scene.executor.problem = "can't start new thread"
    scene.executor.tasks[0][1]()
    assert len(scene.executor.tasks) > 1
    assert scene.failed == []
    assert scene.served == ["a", "b"]


def test_a_backlog_is_counted_from_the_first_that_is_still_wanted() -> None:
    scene = Scene(Executor())
    assert scene.workers.backlog(5.0) is None
    cancelled, waiting = scene.put(*"ab")
    settle(cancelled)
    waiting._arrived = 2.0
    assert scene.workers.backlog(5.0) == (2, 3.0, 0, 1)
    scene.workers.forget_settled()
    assert scene.workers.backlog(5.0) == (1, 3.0, 0, 1)
    settle(waiting)
    assert scene.workers.backlog(5.0) is None


def served(request_id: str) -> tuple[Request, Answer]:
    """By another worker, which went on."""
    request = request_of(ForwardRequest(request_id=request_id))
    return request, answer(request_id.encode(), None)


def test_a_request_need_not_suffer_because_those_before_it_cannot_be_settled(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers_module, "_LINGER", 0.0)
    scene = Scene(Executor(), most=1)
    settle = scene.workers._settle

    def run_out_of_memory(served: deque[Any]) -> list[Request]:
        monkeypatch.setattr(scene.workers, "_settle", settle)
        served.popleft()
        raise MemoryError

    monkeypatch.setattr(scene.workers, "_settle", run_out_of_memory)
    scene.put("a", "b")
    scene.workers.served += [served("lost"), served("left")]
    scene.executor.tasks[0][1]()
    assert scene.settled == ["left", "a", "b"]
    assert scene.failed == []
    assert "settling requests failed" in caplog.text
    assert scene.workers._count == 0, "it has gone, for want of work"


def test_answers_of_a_worker_that_goes_on_are_settled_together_but_not_too_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(workers_module, "_LINGER", 0.0)
    monkeypatch.setattr(workers_module, "_MOST_SERVED", 2)
    scene = Scene(Executor(), most=1)
    at_once: list[int] = []
    settle = scene.workers._settle

    def count(served: deque[Any]) -> list[Request]:
        at_once.append(len(served))
        return settle(served)

    monkeypatch.setattr(scene.workers, "_settle", count)
    # One more is parked, or those would be settled before the next handler is entered.
    scene.workers._called = True
    scene.put(*"abcde")
    scene.workers.hire()
    scene.executor.tasks[0][1]()
    assert at_once == [2, 2, 1]
    assert scene.settled == ["a", "b", "c", "d", "e"]


class LeftMore(Workers):
    """Another worker, that saw this one awake, leaves to it what it has served, and goes on."""

    def _park(self) -> bool:
        self.served.extend(self.left)
        self.left = ()
        return super()._park()

    left: tuple[Any, ...] = ()


def test_a_worker_that_would_park_settles_what_another_has_left_to_it_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(workers_module, "_LINGER", 0.0)
    scene = Scene(Executor(), most=1, kind=LeftMore)
    assert isinstance(scene.workers, LeftMore)
    scene.workers.left = (served("left"),)
    scene.put("a")
    scene.executor.tasks[0][1]()
    assert scene.settled == ["a", "left"]
    assert scene.workers._parked == 0


def test_a_worker_that_goes_into_a_callback_settles_what_another_has_left_to_it_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(workers_module, "_LINGER", 0.0)
    scene = Scene(Executor(), most=1)
    settle = scene.workers._settle

    def settle_and_be_left_more(served_now: deque[Any]) -> list[Request]:
        monkeypatch.setattr(scene.workers, "_settle", settle)
        scene.workers.served.append(served("left"))
        return settle(served_now)

    monkeypatch.setattr(scene.workers, "_settle", settle_and_be_left_more)
    settled_before: list[str] = []
    scene.put("a", callback=lambda: settled_before.extend(scene.settled))
    scene.executor.tasks[0][1]()
    assert settled_before == ["a", "left"]


def test_a_worker_that_makes_way_settles_what_another_has_left_to_it_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(workers_module, "_SHIFT", 0.0)
    scene = Scene(Executor(), most=1)
    scene.put("a")
    hire = scene.workers.hire

    def be_left_more_and_hire() -> None:
        scene.workers.served.append(served("left"))
        hire()

    monkeypatch.setattr(scene.workers, "hire", be_left_more_and_hire)
    scene.executor.tasks[0][1]()
    assert len(scene.executor.tasks) == 2, "a successor"
    assert scene.settled == ["left"]


# While somebody is in a handler, another worker is awake or called


def test_a_batch_calls_one_worker_and_each_calls_the_next_before_it_enters_a_handler(
    scene, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers_module, "_LINGER", TIMEOUT)
    made: Scene = scene(gate)
    made.put(*"abc")
    gate.holds(*"abc")
    gate.let_go.set()
    eventually(lambda: made.workers._parked == 3)
    gate.let_go.clear()
    gate.entered.clear()
    made.put(*"def")
    gate.holds(*"def")
    assert made.workers._count == 3, "those that were parked, and no new ones"


def test_a_request_that_comes_while_the_others_are_in_handlers_calls_one_that_is_parked(
    scene, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers_module, "_LINGER", TIMEOUT)
    made: Scene = scene(lambda request_id: request_id == "free" or gate(request_id))
    made.put("a", "b", "free")
    gate.holds("a", "b")
    eventually(lambda: made.workers._parked == 1)
    made.put("c")
    gate.holds("a", "b", "c")


def test_a_worker_that_is_in_a_callback_is_not_counted_on(
    scene, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers_module, "_LINGER", TIMEOUT)
    hanging = threading.Event()
    made: Scene = scene(lambda request_id: None, most=2)
    made.put("a", callback=lambda: hanging.set() or gate("callback"))
    assert hanging.wait(TIMEOUT)
    assert made.settled == ["a"], "nor does the answer wait for it"
    made.put("b")
    eventually(lambda: made.settled == ["a", "b"])
    eventually(lambda: made.workers._parked == 1)
    made.put("c")
    eventually(lambda: made.settled == ["a", "b", "c"])
    send_home(made.workers, monkeypatch)


class Leaving(Workers):
    """A parked worker goes, because nothing came, just when another one counts those awake."""

    leaves = False

    @property
    def _count(self) -> int:
        count = self._number
        if self.leaves:
            self.leaves = False
            with self._lock:
                self._number -= 1
                self._parked -= 1
        return count

    @_count.setter
    def _count(self, count: int) -> None:
        self._number = count


def test_one_that_leaves_just_now_is_not_counted_on() -> None:
    scene = Scene(Executor(), kind=Leaving)
    workers = scene.workers
    assert isinstance(workers, Leaving)
    scene.put("a", "b")
    workers._count += 1
    workers._parked += 1
    hired = []

    def handler(request_id: str) -> None:
        hired.append(len(scene.executor.tasks))

    scene.handler = handler
    contract = next(iter(workers._hired))
    workers._hired.remove(contract)
    now = threading.get_ident()
    request = workers.waiting.popleft()
    scene.runs.running[now] = (request, 0.0)
    workers.leaves = True
    assert workers._awake() <= 0
    workers._look_after_waiting()
    assert len(scene.executor.tasks) == 2


def test_what_is_forgotten_leaves_the_others_in_their_order() -> None:
    scene = Scene(Executor(), most=1)
    requests = scene.put(*"abcde")
    for number in (1, 3):
        settle(requests[number])
    scene.workers.forget_settled()
    assert [each.request_id for each in scene.workers.waiting] == ["a", "c", "e"]
