"""Whatever users' code raises, wherever it is reached: a connector serves on, or says why not."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterator
from typing import Any, Callable

import pytest

from revconn import Connector, Request, State
from revconn.core.status import StatusCode
from revconn.link.session import Session
from revconn.observing.watchdog import Watchdog
from revconn.serving.deadlines import Deadlines
from revconn.serving.handlers import Runs
from revconn.serving.line import Line
from tests.support.calls import CallsLink, arrival, handlers_of, open_calls
from tests.support.scripted_gateway import Peer
from tests.support.threads import in_thread
from tests.support.waiting import eventually

TIMEOUT = 30.0
WORKERS = 16


class Peculiar(BaseException):
    """No Exception, and no exit either."""


def raising(error: BaseException) -> Callable[..., Any]:
    def fail(*args: Any, **kwargs: Any) -> Any:
        # Each time with a traceback of its own: one that grows takes longer to look at every time.
        raise error.with_traceback(None)

    return fail


def fails_to_filter(handler: logging.Handler) -> None:
    handler.addFilter(raising(RuntimeError("working outside of request context")))


def fails_to_emit(handler: logging.Handler) -> None:
    handler.emit = raising(ConnectionRefusedError("log shipper"))  # type: ignore[method-assign]


def exits(handler: logging.Handler) -> None:
    handler.addFilter(raising(SystemExit("not this thread's to say")))


def makes_no_records(handler: logging.Handler) -> None:
    logging.setLogRecordFactory(raising(Peculiar("no records")))


@pytest.fixture(params=[fails_to_filter, fails_to_emit, exits, makes_no_records])
def broken_logging(request: pytest.FixtureRequest) -> Iterator[None]:
    """From the debug level on, no line of the library's gets through."""
    logger, handler = logging.getLogger("revconn"), logging.Handler()
    level, factory = logger.level, logging.getLogRecordFactory()
    request.param(handler)
    logger.setLevel(logging.DEBUG)
    logger.addHandler(handler)
    yield
    logger.removeHandler(handler)
    logger.setLevel(level)
    logging.setLogRecordFactory(factory)


@pytest.fixture
def connect(new_connector, gateway) -> Callable[..., tuple[Connector, Peer]]:
    """``connect(handler, inline=…)``: a connector that serves, and its peer."""

    def connect(
        handler: Callable[[Request], Any], *, inline: bool = False, **options: Any
    ) -> tuple[Connector, Peer]:
        connector = new_connector(gateway.address, **options)
        connector.add_method("/echo.Echo/Say", handler, inline=inline)
        connector.start(block=False)
        return connector, gateway.accept_ready()

    return connect


def fails_until_told(request: Request) -> bytes:
    if request.payload:
        return b"served"
    raise ValueError("a handler that fails is logged")


# Logging


@pytest.mark.usefixtures("broken_logging")
def test_as_many_failures_as_there_are_workers_leave_all_of_them_serving(connect) -> None:
    _, peer = connect(fails_until_told, max_workers=WORKERS)
    ids = [f"r{number}" for number in range(WORKERS)]
    peer.requests(*ids)
    assert {answer.status_code for answer in peer.answers(WORKERS).values()} == {500}
    peer.request("last", payload=b"\n\0")
    assert peer.answer("last").payload == b"served"


@pytest.mark.usefixtures("broken_logging")
def test_an_inline_handlers_failure_leaves_the_connection_serving(connect) -> None:
    _, peer = connect(fails_until_told, inline=True)
    peer.request("r1")
    assert peer.answer("r1").status_code == 500
    peer.request("r2", payload=b"\n\0")
    assert peer.answer("r2").payload == b"served"


@pytest.mark.usefixtures("broken_logging")
def test_a_lost_connection_comes_back_and_ends_as_any_other(connect, gateway) -> None:
    connector, peer = connect(lambda request: b"served")
    peer.end()
    peer = gateway.accept_ready("id-2")
    peer.request()
    assert peer.answer().payload == b"served"
    stopping = in_thread(connector.stop)
    peer.hears_goodbye()
    stopping.result(TIMEOUT)
    connector.wait(TIMEOUT)


# Callbacks


@pytest.mark.parametrize("inline", [False, True], ids=["pool", "inline"])
def test_a_request_callback_costs_a_line_whatever_it_raises(connect, caplog, inline) -> None:
    def answer(request: Request) -> bytes:
        request.add_callback(lambda: sys.exit(1))
        request.add_callback(raising(Peculiar()))
        request.add_callback(lambda: called.append(request.request_id))
        return b"served"

    called: list[str] = []
    _, peer = connect(answer, inline=inline, max_workers=1)
    for request_id in "ab":
        peer.request(request_id)
        assert peer.answer(request_id).payload == b"served"
    eventually(lambda: called == ["a", "b"])
    assert caplog.text.count("a callback failed") == 4


def test_one_of_a_request_whose_handler_is_busy_leaves_others_their_turn(connect) -> None:
    called: list[str] = []
    hold = threading.Event()

    def answer(request: Request) -> bytes:
        request.add_callback(raising(Peculiar()))
        request.add_callback(lambda: called.append(request.request_id))
        hold.wait(TIMEOUT)
        return b""

    _, peer = connect(answer)
    peer.requests("a", "b", timeout_seconds=3)
    eventually(lambda: sorted(called) == ["a", "b"])
    hold.set()


def test_a_state_callback_that_raises_anything_ends_no_reconnect(
    new_connector, gateway, caplog
) -> None:
    connector = new_connector(gateway.address)
    connector.on_state_change(raising(Peculiar()))
    connector.start(block=False)
    gateway.accept_ready().end()
    peer = gateway.accept_ready("id-2")
    eventually(lambda: connector.connection_id == "id-2")
    stopping = in_thread(connector.stop)
    peer.hears_goodbye()
    stopping.result(TIMEOUT)
    connector.wait(TIMEOUT)
    assert connector.state is State.CLOSED
    assert "a state callback failed" in caplog.text


# What a thread cannot go on from


def cannot_go_on(connector: Connector) -> None:
    with pytest.raises(Peculiar, match="unforeseen"):
        connector.wait(TIMEOUT)
    assert connector.state is State.CLOSED


def test_a_timer_that_fails_ends_the_connector(new_connector, gateway, monkeypatch, caplog) -> None:
    connector = new_connector(gateway.address)
    connector.start(block=False)
    gateway.accept_ready()
    connector.wait_ready(TIMEOUT)
    monkeypatch.setattr(Session, "_wait", raising(Peculiar("unforeseen")))
    (session,) = connector._supervisor.links[0]._sessions
    session._alarms.put(False)
    cannot_go_on(connector)
    assert "the thread revconn-heartbeat-" in caplog.text


def test_a_link_that_fails_while_it_waits_ends_the_connector(
    new_connector, gateway, monkeypatch
) -> None:
    connector = new_connector(gateway.address)
    connector.start(block=False)
    peer = gateway.accept_ready()
    monkeypatch.setattr("revconn.link.link.Link._end_sessions", raising(Peculiar("unforeseen")))
    monkeypatch.setattr("revconn.link.link.Judging.delay", raising(Peculiar("unforeseen")))
    peer.end()
    cannot_go_on(connector)


def test_deadlines_that_nobody_keeps_end_the_connector(connect, monkeypatch) -> None:
    connector, peer = connect(lambda request: b"served")
    monkeypatch.setattr(Deadlines, "_take_stock", raising(Peculiar("unforeseen")))
    peer.request()
    assert peer.answer().payload == b"served", "what is in flight is still answered"
    peer.hears_goodbye()
    cannot_go_on(connector)


def test_a_sender_that_fails_costs_the_connection_and_no_more(
    connect, gateway, monkeypatch, caplog
) -> None:
    take = Line.take

    def fail_once(line: Line) -> Any:
        monkeypatch.setattr(Line, "take", take)
        raise Peculiar("unforeseen")

    def answer(request: Request) -> bytes:
        monkeypatch.setattr(Line, "take", fail_once)  # the request is here: nothing loses it
        return b"served"

    monkeypatch.setattr(Line, "reserve", lambda line, answers: False)
    _, peer = connect(answer)
    peer.request()
    peer.hears_hang_up()
    peer = gateway.accept_ready("id-2")
    assert peer.answer("r1").payload == b"served", "not even that is lost"
    assert "sending failed" in caplog.text


# Workers


def test_a_worker_outlives_whatever_its_request_runs_into(monkeypatch: pytest.MonkeyPatch) -> None:
    with open_calls(handlers_of(lambda request: b"served"), max_workers=1) as calls:
        link = CallsLink(calls)
        answer, put = calls.workers._answer, link.replies.put

        def fail_to_answer(request: Request) -> Any:
            monkeypatch.setattr(calls.workers, "_answer", answer)
            raise Peculiar("a bug")

        def fail_to_put(*args: Any, **kwargs: Any) -> Any:
            monkeypatch.setattr(link.replies, "put", put)
            raise Peculiar("no room")

        def statuses_of(*request_ids: str) -> dict[str, int]:
            for request_id in request_ids:
                link.brings(arrival(request_id))
            eventually(lambda: calls.stats()["in_flight"] == 0)
            return link.statuses()

        monkeypatch.setattr(calls.workers, "_answer", fail_to_answer)
        assert statuses_of("r1", "r2") == {"r1": 500, "r2": 200}
        monkeypatch.setattr(link.replies, "put", fail_to_put)
        assert statuses_of("r3", "r4") == {"r4": 200}


def test_a_worker_that_dies_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    with open_calls(handlers_of(lambda request: b"served"), max_workers=1) as calls:
        link = CallsLink(calls)

        died = threading.Event()

        def die(request: Request, code: StatusCode, reason: str) -> Any:
            died.set()
            raise Peculiar("a bug")

        with monkeypatch.context() as patch:
            patch.setattr(calls.workers, "_answer", raising(Peculiar("a bug")))
            patch.setattr(calls.workers, "_fail", die)
            link.brings(arrival("r1"))
            assert died.wait(TIMEOUT)
        link.brings(arrival("r2"))
        eventually(lambda: link.statuses() == {"r2": 200})


# The watchdog


def test_the_watchdog_outlives_a_look_that_fails_and_tells_of_it_once(caplog) -> None:
    looked: list[float] = []
    rounds = iter([False, False, False, True])
    now = iter(range(100))
    Watchdog(
        Runs(),
        [raising(Peculiar()), looked.append],
        interval=1.0,
        clock=lambda: float(next(now)),
        wait=lambda seconds: next(rounds),
    ).run()
    assert len(looked) == 3
    assert caplog.messages == ["looking for what is stuck failed"]
