"""What came and is not answered yet: those who wait for it miss no instant of it."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Callable

import pytest

from revconn import Request
from revconn._proto.registry_pb2 import ForwardRequest
from revconn.core.outbound import Answer
from revconn.runtime.dispatch import Dispatcher
from revconn.runtime.runs import Runs
from revconn.runtime.unanswered import Unanswered
from tests.support.threads import in_thread
from tests.support.waiting import eventually

TIMEOUT = 60.0


class Origin:
    """Looks, whenever it is given answers, at what is said to be unanswered."""

    congested = False

    def __init__(self) -> None:
        self.unanswered = Unanswered()
        self.answered = threading.Event()
        self.was_idle: list[bool] = []
        self.was_alone: list[bool] = []

    def answer(self, answers: Iterable[Answer], *, alone: bool = False) -> None:
        assert list(answers)
        self.was_alone.append(alone)
        self.was_idle += [
            self.unanswered.wait_idle(0.0),
            self.unanswered.wait_answered(self, 0.0),
        ]
        self.answered.set()


@pytest.fixture
def origin() -> Origin:
    return Origin()


@pytest.fixture
def dispatch(origin):
    """``dispatch(handler, **limits)``: a dispatcher that has requests answered to ``origin``."""
    dispatchers: list[Dispatcher] = []
    with ThreadPoolExecutor(4) as executor:

        def dispatch(
            handler: Callable[[Request], Answer] = lambda request: Answer(b"", None),
            max_in_flight: int = 10,
        ) -> Dispatcher:
            dispatcher = Dispatcher(
                handler,
                executor,
                Runs(),
                origin.unanswered,
                max_workers=4,
                max_in_flight=max_in_flight,
                max_in_flight_bytes=1000,
                on_relief=lambda: None,
                executor_may_block=False,
                on_failure=lambda error: None,
            )
            dispatchers.append(dispatcher)
            return dispatcher

        dispatch.executor = executor
        yield dispatch
        for dispatcher in dispatchers:
            dispatcher.close()


def request(request_id: str) -> tuple[ForwardRequest, int]:
    return ForwardRequest(request_id=request_id), 10


def test_a_request_is_unanswered_until_its_answer_is_queued(dispatch, origin) -> None:
    dispatch().accept(origin, [request("a")], 100.0)
    assert origin.answered.wait(TIMEOUT)
    assert origin.was_idle == [False, False]
    assert origin.was_alone == [True], "it is alone, and makes room, as soon as it is settled"
    assert origin.unanswered.wait_idle(TIMEOUT)
    assert origin.unanswered.wait_answered(origin, 0.0)


def test_one_that_is_refused_is_unanswered_until_that_is_queued(dispatch, origin) -> None:
    with origin.unanswered.taking_in(origin):
        dispatch(max_in_flight=0).accept(origin, [request("a")], 100.0)
    assert origin.was_idle == [False, False]
    assert origin.unanswered.wait_idle(0.0)


def test_an_id_that_came_twice_is_waited_for_once(dispatch, origin) -> None:
    dispatch().accept(origin, [request("a"), request("a")], 100.0)
    assert origin.unanswered.wait_idle(TIMEOUT)


def test_a_delivery_that_fails_is_not_waited_for(origin) -> None:
    with pytest.raises(ZeroDivisionError), origin.unanswered.taking_in(origin):
        raise ZeroDivisionError
    assert origin.unanswered.wait_idle(0.0)


def test_what_another_gateway_sent_and_what_came_later_is_not_waited_for(origin) -> None:
    unanswered = origin.unanswered
    unanswered.add(origin, 100.0, ["first"])
    unanswered.add(Origin(), 100.0, ["another's"])
    unanswered.add(origin, 101.0, ["later"])
    waiting = in_thread(lambda: unanswered.wait_answered(origin, TIMEOUT, came_by=100.5))
    eventually(lambda: unanswered._fewer._sleepers)
    unanswered.discard("first")
    assert waiting.result(TIMEOUT)
    assert not unanswered.wait_answered(origin, 0.0)
    unanswered.discard("later")
    assert unanswered.wait_answered(origin, 0.0)
    assert not unanswered.wait_idle(0.0)


def test_what_is_cancelled_and_what_is_abandoned_is_not_waited_for(dispatch, origin) -> None:
    let_go = threading.Event()

    def handler(request: Request) -> Answer:
        assert let_go.wait(TIMEOUT)
        return Answer(b"", None)

    dispatcher = dispatch(handler)
    try:
        dispatcher.accept(origin, [request("a"), request("b")], 100.0)
        dispatcher.cancel(origin, ["a"])
        assert not origin.unanswered.wait_idle(0.0)
        dispatcher.close()
        assert origin.unanswered.wait_idle(0.0)
    finally:
        let_go.set()
    dispatch.executor.shutdown()
    assert not origin.answered.is_set()
