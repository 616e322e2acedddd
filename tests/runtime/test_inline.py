"""Handlers that promised not to block, and what becomes of those that do."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable
from typing import Any, Callable

import pytest

from revconn import Request
from revconn._proto.registry_pb2 import ConnectionMessage, ForwardRequest, ForwardResponse
from revconn.core.outbound import Answer
from revconn.core.routing import Routes
from revconn.runtime import inline
from revconn.runtime.handlers import Answering, Handler
from revconn.runtime.inline import InlineRunner
from revconn.runtime.runs import Runs


class Clock:
    """Stands still until a handler moves it."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    with_suspend = monotonic

    def at(self, instant: float) -> float:
        return instant


class Origin:
    congested = False

    def __init__(self) -> None:
        self.batches: list[list[ForwardResponse]] = []

    def answer(self, answers: Iterable[Answer], *, alone: bool = False) -> None:
        decoded = [ConnectionMessage.FromString(answer.message).response for answer in answers]
        self.batches.append(decoded)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(inline, "time", clock)
    monkeypatch.setattr(inline, "clock", clock)
    return clock


def runner_for(handler: Callable[[Request], bytes]) -> InlineRunner:
    routes: Routes[Handler] = Routes()
    routes.add_method("/echo.Echo/Say", handler)
    return InlineRunner(routes, Answering(routes, 4 << 20), Runs())


def request(
    number: int, method: str = "/echo.Echo/Say", timeout: int = 30
) -> tuple[ForwardRequest, int]:
    message = ForwardRequest(
        request_id=f"r{number}", method_path=method, payload=b"\n\0", timeout_seconds=timeout
    )
    return message, message.ByteSize()


def test_a_batch_is_answered_as_one_in_the_thread_that_brings_it() -> None:
    threads = []
    runner = runner_for(lambda request: threads.append(threading.current_thread()) or b"said")
    origin = Origin()
    runner.serve(origin, [request(1), request(2)], time.monotonic())
    assert [[response.request_id for response in batch] for batch in origin.batches] == [
        ["r1", "r2"]
    ]
    assert origin.batches[0][0].payload == b"said"
    assert set(threads) == {threading.current_thread()}
    assert runner.stats() == {"accepted": 2, "answered": 2, "expired": 0, "repeated": 0}


def test_requests_for_other_handlers_are_told_apart_and_keep_their_order() -> None:
    runner = runner_for(lambda request: b"")
    other, own, another = request(1, "/echo.Echo/Other"), request(2), request(3, "/a.B/C")
    split = runner.split([other, own, another])
    assert split == ([own], [other, another])


def test_without_inline_handlers_all_requests_are_for_others() -> None:
    routes: Routes[Handler] = Routes()
    runner = InlineRunner(routes, Answering(routes, 1000), Runs())
    assert runner.split([request(1)]) == ([], [request(1)])


def test_time_in_the_queue_counts_and_an_expired_request_never_runs(clock: Clock) -> None:
    ran: list[str] = []

    def handler(request: Request) -> bytes:
        ran.append(request.request_id)
        clock.now += 0.6
        return b""

    runner, origin = runner_for(handler), Origin()
    runner.serve(origin, [request(number, timeout=1) for number in (1, 2, 3)], clock.now)
    assert ran == ["r1", "r2"]
    assert [response.status_code for response in origin.batches[0]] == [200, 504, 504]
    assert runner.stats() == {"accepted": 3, "answered": 1, "expired": 2, "repeated": 0}


def test_a_handler_that_blocked_is_named_once(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    def handler(request: Request) -> bytes:
        clock.now += 0.2
        return b""

    runner = runner_for(handler)
    with caplog.at_level(logging.WARNING, "revconn"):
        runner.serve(Origin(), [request(1), request(2)], clock.now)
    assert [record.getMessage() for record in caplog.records] == [
        "the inline handler of /echo.Echo/Say blocked for 0.2 s, and the whole connection with it:"
        " register it without inline=True"
    ]


def test_a_handler_that_is_stuck_is_named_while_it_is(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    begun, released = threading.Event(), threading.Event()

    def handler(request: Request) -> bytes:
        begun.set()
        released.wait(10.0)
        return b""

    runner = runner_for(handler)
    serving = threading.Thread(target=runner.serve, args=(Origin(), [request(1)], clock.now))
    serving.start()
    assert begun.wait(10.0)
    with caplog.at_level(logging.WARNING, "revconn"):
        runner.watch(clock.now + 0.05)
        assert not caplog.records
        runner.watch(clock.now + 7.0)
    released.set()
    serving.join(10.0)
    assert "/echo.Echo/Say blocked for 7.0 s" in caplog.text
    assert "released.wait(10.0)" in caplog.text


def test_a_repeated_id_runs_once_until_its_answer_is_queued() -> None:
    ran: list[str] = []
    runner, origin = runner_for(lambda request: ran.append(request.request_id) or b""), Origin()
    runner.serve(origin, [request(1), request(2), request(1)], time.monotonic())
    assert ran == ["r1", "r2"]
    assert [[response.request_id for response in batch] for batch in origin.batches] == [
        ["r1", "r2"]
    ]
    assert runner.stats()["repeated"] == 1
    runner.serve(origin, [request(1)], time.monotonic())
    assert ran == ["r1", "r2", "r1"], "answered long since: a new request, as in the pool"


def test_one_that_comes_by_two_connections_at_once_runs_once() -> None:
    runner, origin = runner_for(lambda _: origin_hears_it_again()), Origin()
    ran: list[str] = []

    def origin_hears_it_again() -> bytes:
        """As another session of the same link would, in its own thread."""
        ran.append("r1")
        runner.serve(origin, [request(1)], time.monotonic())
        return b"said"

    runner.serve(origin, [request(1)], time.monotonic())
    assert ran == ["r1"]
    assert [len(batch) for batch in origin.batches] == [1]


def test_a_request_that_runs_into_a_bug_is_answered_and_the_rest_of_its_batch_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runner, origin = runner_for(lambda request: b"said"), Origin()

    def answerer(asked: Request) -> Answer:
        if asked.request_id == "r1":
            raise SystemExit("a bug")
        return good(asked)

    good = runner._answerer
    monkeypatch.setattr(runner, "_answerer", answerer)
    runner.serve(origin, [request(1), request(2)], time.monotonic())
    assert [response.status_code for response in origin.batches[0]] == [500, 200]
    runner.serve(origin, [request(1)], time.monotonic())
    assert [response.status_code for response in origin.batches[1]] == [500]


def test_so_is_one_that_there_is_no_memory_for(monkeypatch: pytest.MonkeyPatch) -> None:
    runner, origin = runner_for(lambda request: b"said"), Origin()

    def make(message: ForwardRequest, *rest: Any) -> Request:
        if message.request_id == "r1":
            raise MemoryError
        return Request(message, *rest)

    monkeypatch.setattr(inline, "Request", make)
    runner.serve(origin, [request(1), request(2)], time.monotonic())
    assert [response.status_code for response in origin.batches[0]] == [500, 200]
