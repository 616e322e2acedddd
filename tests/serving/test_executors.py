"""Executors of users' own: each has a fate that somebody hears of."""

from __future__ import annotations

import threading
from concurrent.futures import BrokenExecutor, Executor, Future, ThreadPoolExecutor
from typing import Any, Callable

import pytest

from revconn import Connector, RevconnError, State
from revconn.serving import workers
from tests.support.scripted_gateway import Peer
from tests.support.waiting import eventually

TIMEOUT = 30.0


@pytest.fixture
def connect(new_connector, gateway) -> Callable[..., tuple[Connector, Peer]]:
    def connect(executor: Executor, **options) -> tuple[Connector, Peer]:
        connector = new_connector(gateway.address, executor=executor, **options)
        connector.add_method("/echo.Echo/Say", lambda request: b"served")
        connector.start(block=False)
        return connector, gateway.accept_ready()

    return connect


def ends_for_good(connector: Connector, peer: Peer, reason: str) -> None:
    """It refused what it had, took leave, and says why."""
    answer = peer.answer()
    assert (answer.status_code, answer.headers["grpc-status"]) == (503, "14")
    assert answer.error_message == "the service has no thread to run it in"
    peer.hears_goodbye()
    with pytest.raises(RevconnError, match=reason) as caught:
        connector.wait(TIMEOUT)
    assert caught.value.__cause__ is not None
    assert connector.state is State.CLOSED


def test_one_whose_initializer_fails_ends_the_connector(connect, caplog) -> None:
    def fail() -> None:
        raise LookupError("no database")

    with ThreadPoolExecutor(1, initializer=fail) as executor:
        connector, peer = connect(executor)
        peer.request()
        ends_for_good(connector, peer, "executor: it takes no tasks any more: .*initializer failed")
    lines = [r.getMessage() for r in caplog.records if r.name.startswith("revconn")]
    assert sum("the connector cannot go on" in line for line in lines) == 1


def test_one_that_was_shut_down_ends_the_connector(connect) -> None:
    executor = ThreadPoolExecutor(1)
    executor.shutdown()
    connector, peer = connect(executor)
    peer.request()
    ends_for_good(connector, peer, "cannot schedule new futures after shutdown")


class Bounded(ThreadPoolExecutor):
    """The usual recipe: ``submit`` waits until one of so many tasks has ended."""

    def __init__(self, most: int) -> None:
        super().__init__(most)
        self._room = threading.BoundedSemaphore(most)
        self.waiting = threading.Event()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        if not self._room.acquire(blocking=False):
            self.waiting.set()
            self._room.acquire()
        future = super().submit(fn, *args, **kwargs)
        future.add_done_callback(lambda _: self._room.release())
        return future


def test_one_whose_submit_waits_for_room_serves_shift_after_shift(connect, monkeypatch) -> None:
    monkeypatch.setattr(workers, "_SHIFT", 1e-6)  # every request is followed by another worker's
    with Bounded(1) as executor:
        connector, peer = connect(executor)
        for number in range(20):
            peer.request(f"r{number}")
            assert peer.answer(f"r{number}").payload == b"served"
        connector.abort()


def test_one_whose_submit_hangs_keeps_nobody_from_hearing_the_gateway(connect) -> None:
    with Bounded(1) as executor:
        busy = threading.Event()
        executor.submit(busy.wait, TIMEOUT)
        connector, peer = connect(executor, heartbeat_interval=0.2)
        peer.request("r1", timeout_seconds=1)
        peer.requests("r2", "r3")
        assert executor.waiting.wait(TIMEOUT)
        assert peer.answer("r1").status_code == 504  # which its deadline saw to
        peer.cancel("r2")
        peer.hears("heartbeat")
        busy.set()
        assert {"r3"} <= set(peer.answers(2)), "it was heard, and is served now"
        connector.abort()


class Refusing(ThreadPoolExecutor):
    """Has no room, now and then."""

    problem: BaseException | None = None

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        if self.problem is not None:
            raise self.problem
        return super().submit(fn, *args, **kwargs)


class Full(BaseException):
    """Not even an Exception."""


@pytest.mark.parametrize("problem", [RuntimeError("can't start new thread"), Full("no room")])
def test_one_that_refuses_for_now_costs_what_came_meanwhile_and_one_line(
    connect, caplog, problem: BaseException
) -> None:
    with Refusing(2) as executor:
        connector, peer = connect(executor)
        executor.problem = problem
        for request_id in "ab":
            peer.request(request_id)
            assert peer.answer(request_id).status_code == 503
        executor.problem = None
        peer.request("c")
        assert peer.answer("c").payload == b"served"
        connector.abort()
    lines = [r.getMessage() for r in caplog.records if "no worker to run them" in r.getMessage()]
    assert lines == [f"refused 1 requests: no worker to run them: {problem}"]


class Elsewhere(Executor):
    """Runs nothing: the future has an error, as of a task that cannot be pickled."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_exception(TypeError("cannot pickle"))
        return future


def test_one_whose_tasks_fail_before_they_begin_refuses_what_came(connect) -> None:
    _, peer = connect(Elsewhere())
    for request_id in "ab":
        peer.request(request_id)
        assert peer.answer(request_id).status_code == 503


def test_at_the_end_of_the_interpreter_an_executor_ends_no_connector() -> None:
    ended = RuntimeError("cannot schedule new futures after interpreter shutdown")
    assert not workers._is_for_good(ended)
    assert workers._is_for_good(BrokenExecutor())


def test_a_standard_executor_is_asked_by_whoever_needs_it(connect) -> None:
    with ThreadPoolExecutor(1) as executor:
        connector, peer = connect(executor)
        peer.request()
        assert peer.answer().payload == b"served"
        names = {thread.name for thread in threading.enumerate()}
        assert "revconn-recruiter_0" not in names
        connector.abort()


def test_the_thread_that_asks_ends_with_the_connector(connect) -> None:
    with Bounded(1) as executor:
        connector, peer = connect(executor)
        peer.request()
        assert peer.answer().payload == b"served"
        (asker,) = (t for t in threading.enumerate() if t.name == "revconn-recruiter_0")
        connector.abort()
        eventually(lambda: not asker.is_alive())
