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

TIMEOUT = 10.0


class Origin:
    """Looks, whenever it is given answers, at what is said to be unanswered."""

    def __init__(self) -> None:
        self.dispatcher: Dispatcher | None = None
        self.answered = threading.Event()
        self.was_idle: list[bool] = []
        self.was_alone: list[bool] = []

    def answer(self, answers: Iterable[Answer], *, alone: bool = False) -> None:
        assert list(answers)
        assert self.dispatcher is not None
        awaited = self.dispatcher.unanswered(self)
        self.was_alone.append(alone)
        self.was_idle += [
            self.dispatcher.wait_idle(0.0),
            self.dispatcher.wait_idle(0.0, self),
            self.dispatcher.wait_answered(awaited, 0.0),
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
            origin.dispatcher = Dispatcher(
                handler,
                executor,
                Runs(),
                max_workers=4,
                max_in_flight=max_in_flight,
                max_in_flight_bytes=1000,
                on_relief=lambda: None,
            )
            dispatchers.append(origin.dispatcher)
            return origin.dispatcher

        yield dispatch
        for dispatcher in dispatchers:
            dispatcher.close()


def request(request_id: str) -> ForwardRequest:
    return ForwardRequest(request_id=request_id)


def test_a_request_is_unanswered_until_its_answer_is_queued(dispatch, origin) -> None:
    dispatcher = dispatch()
    dispatcher.accept(origin, [request("a")])
    assert origin.answered.wait(TIMEOUT)
    assert origin.was_idle == [False, False, False]
    assert origin.was_alone == [True], "it makes room, and is alone, as soon as it is settled"
    assert dispatcher.wait_idle(TIMEOUT)
    assert not dispatcher.unanswered(origin)


def test_one_that_is_refused_is_unanswered_until_that_is_queued(dispatch, origin) -> None:
    dispatcher = dispatch(max_in_flight=0)
    with dispatcher.taking_in(origin):
        dispatcher.accept(origin, [request("a")])
    assert origin.was_idle == [False, False, False]
    assert dispatcher.wait_idle(0.0)


def test_a_delivery_that_fails_is_not_waited_for(dispatch, origin) -> None:
    dispatcher = dispatch()
    with pytest.raises(ZeroDivisionError), dispatcher.taking_in(origin):
        raise ZeroDivisionError
    assert dispatcher.wait_idle(0.0)


def test_what_another_gateway_sent_and_what_came_later_is_not_waited_for(dispatch, origin) -> None:
    let_go = threading.Event()
    entered: list[str] = []

    def handler(request: Request) -> Answer:
        entered.append(request.request_id)
        assert request.request_id == "first" or let_go.wait(TIMEOUT)
        return Answer(b"", None)

    dispatcher = dispatch(handler)
    dispatcher.accept(origin, [request("first")])
    awaited = dispatcher.unanswered(origin)
    dispatcher.accept(origin, [request("later")])
    try:
        assert dispatcher.wait_answered(awaited, TIMEOUT)
        assert dispatcher.wait_idle(0.0, Origin())
        assert not dispatcher.wait_idle(0.0, origin)
        assert not dispatcher.wait_idle(0.0)
    finally:
        let_go.set()
    assert dispatcher.wait_idle(TIMEOUT)


def test_what_is_cancelled_and_what_is_abandoned_is_not_waited_for(dispatch, origin) -> None:
    let_go = threading.Event()

    def handler(request: Request) -> Answer:
        assert let_go.wait(TIMEOUT)
        return Answer(b"", None)

    dispatcher = dispatch(handler)
    try:
        dispatcher.accept(origin, [request("a"), request("b")])
        dispatcher.cancel(origin, ["a"])
        assert {each.request_id for each in dispatcher.unanswered(origin)} == {"b"}
        dispatcher.close()
        assert dispatcher.wait_idle(0.0)
    finally:
        let_go.set()
    assert not origin.answered.is_set()
