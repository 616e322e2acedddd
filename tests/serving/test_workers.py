"""How many threads run requests, and what becomes of those that none can run."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from typing import Any, Callable

import pytest

from revconn import Request
from revconn._proto.registry_pb2 import ForwardRequest
from revconn.serving.workers import Workers
from tests.support.requests import request_of
from tests.support.threads import TIMEOUT, in_thread


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
    def __init__(self, executor: Executor, most: int = 3) -> None:
        self.executor = executor
        self.served: list[str] = []
        self.stranded: list[tuple[list[str], str]] = []
        self.broken: list[BaseException] = []
        self.lock = threading.Lock()
        self.workers = Workers(
            self.lock, executor, most, self._serve, self._strand, self.broken.append
        )

    def _serve(self, request: Request, thread: int, now: float) -> float:
        assert thread == threading.get_ident()
        assert not self.lock.locked()
        self.served.append(request.request_id)
        return now

    def _strand(self, requests: list[Request], reason: str) -> None:
        assert not self.lock.locked()
        self.stranded.append(([request.request_id for request in requests], reason))

    def put(self, *request_ids: str) -> list[Request]:
        messages = [ForwardRequest(request_id=each) for each in request_ids]
        requests = [request_of(message, arrived=1.0) for message in messages]
        with self.lock:
            hire = self.workers.put(requests)
        if hire:
            self.workers.hire()
        return requests


def test_one_worker_is_hired_for_a_batch_and_at_most_as_many_as_there_may_be() -> None:
    scene = Scene(Executor(), most=2)
    hired = []
    for request_id in "abc":
        scene.put(request_id)
        hired.append(len(scene.executor.tasks))
    assert hired == [1, 2, 2]


def test_a_worker_serves_what_waits_in_its_order_and_calls_others_for_the_rest() -> None:
    scene = Scene(Executor(), most=2)
    scene.put(*"abc")
    assert scene.workers.waiting == 3
    scene.executor.run()
    assert scene.served == ["a", "b", "c"]
    assert scene.workers.waiting == 0
    assert len(scene.executor.tasks) == 2


def test_an_executor_that_takes_no_workers_strands_what_waits() -> None:
    scene = Scene(Executor("cannot schedule new futures after shutdown"))
    scene.put(*"ab")
    assert scene.stranded == [(["a", "b"], "cannot schedule new futures after shutdown")]
    scene.executor.run()
    assert scene.served == [], "the task that was queued all the same came too late"


def test_a_worker_that_is_cancelled_before_it_began_strands_what_waits() -> None:
    scene = Scene(Executor())
    scene.put("a")
    scene.executor.tasks[0][0].cancel()
    assert scene.stranded == [(["a"], "the executor was shut down")]


def test_while_there_is_another_worker_nothing_is_stranded() -> None:
    scene = Scene(Executor())
    scene.put("a")
    scene.executor.problem = "can't start new thread"
    scene.put("b")
    assert scene.stranded == []
    scene.executor.run()
    assert scene.served == ["a", "b"]


def test_a_backlog_is_counted_from_the_first_that_is_still_wanted() -> None:
    scene = Scene(Executor())
    assert scene.workers.backlog(5.0) is None
    cancelled, waiting = scene.put(*"ab")
    cancelled._active = False
    waiting._arrived = 2.0
    assert scene.workers.backlog(5.0) == (2, 3.0, 0, 1)
    with scene.lock:
        scene.workers.forget_settled()
    assert scene.workers.backlog(5.0) == (1, 3.0, 0, 1)
    waiting._active = False
    assert scene.workers.backlog(5.0) is None


def close(scene: Scene) -> None:
    with scene.lock:
        scene.workers.close()


def forsake(scene: Scene) -> None:
    with scene.lock:  # as a thread that did not come along may hold it
        in_thread(scene.workers.forsake).result(TIMEOUT)


@pytest.mark.parametrize("end", [close, forsake])
def test_after_the_end_nothing_is_taken_any_more(end: Callable[[Scene], None]) -> None:
    scene = Scene(Executor())
    scene.put("a")
    end(scene)
    scene.put("b")
    assert scene.workers.waiting == 0
    assert len(scene.executor.tasks) == 1
