"""Callers that gave up, over real sockets, with a gateway that passes that on."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Callable

import pytest

from revconn import Connector, Request
from tests.support.calls import CallsLink, arrival, handlers_of, open_calls
from tests.support.scripted_gateway import Peer
from tests.support.waiting import eventually

TIMEOUT = 60.0


class Handler:
    """Holds each request until it is let go or, with ``heeds``, until nobody waits for it."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.let_go = threading.Event()
        self.called_back: list[tuple[str, str, bool]] = []
        self.heeds = False

    def __call__(self, request: Request) -> bytes:
        over = threading.Event()

        def call_back() -> None:
            thread = threading.current_thread().name.rstrip("_0123456789")
            self.called_back.append((request.request_id, thread, request.is_active()))
            over.set()

        assert request.add_callback(call_back)
        self.requests.append(request)
        assert (over if self.heeds else self.let_go).wait(TIMEOUT)
        return request.request_id.encode()

    def holds(self, count: int) -> None:
        eventually(lambda: len(self.requests) == count)


@pytest.fixture
def handler():
    handler = Handler()
    yield handler
    handler.let_go.set()


@pytest.fixture
def connect(new_connector, gateway, handler) -> Callable[..., tuple[Connector, Peer]]:
    """``connect(**options)``: a connector that serves ``handler``, and its peer."""
    gateway.announces = {"revconn-features": "cancel"}

    def connect(**options) -> tuple[Connector, Peer]:
        connector = new_connector(gateway.address, **options)
        connector.add_method("/echo.Echo/Say", handler)
        connector.start(block=False)
        return connector, gateway.accept_ready()

    return connect


def test_a_cancelled_request_is_active_no_more_and_not_answered(connect, handler) -> None:
    connector, peer = connect()
    peer.requests("a", "b")
    handler.holds(2)
    peer.cancel("a", reason="the caller hung up")
    eventually(lambda: handler.called_back)
    active = {request.request_id: request.is_active() for request in handler.requests}
    assert active == {"a": False, "b": True}
    handler.let_go.set()
    peer.answer("b")
    peer.request("c")
    peer.answer("c")
    stats = connector.stats()
    assert (stats["cancelled"], stats["answered"], stats["in_flight"]) == (1, 2, 0)
    eventually(lambda: connector.stats()["late"] == 1)


def test_a_handler_learns_of_it_while_it_keeps_every_worker_busy(connect, handler) -> None:
    handler.heeds = True
    connector, peer = connect(max_workers=1)
    peer.request("a")
    handler.holds(1)
    peer.cancel("a")
    eventually(lambda: connector.stats()["late"] == 1)
    assert handler.called_back == [("a", "revconn-callbacks", False)]


def test_a_request_that_waits_for_a_worker_never_runs_when_it_is_cancelled(
    connect, handler
) -> None:
    connector, peer = connect(max_workers=1)
    peer.request("busy")
    handler.holds(1)
    peer.requests("waits", "waits too")
    eventually(lambda: connector.stats()["waiting"] == 2)
    peer.cancel("waits")
    eventually(lambda: connector.stats()["waiting"] == 1)
    handler.let_go.set()
    assert set(peer.answers(2)) == {"busy", "waits too"}
    assert [request.request_id for request in handler.requests] == ["busy", "waits too"]


def test_a_cancel_for_a_request_that_is_answered_or_never_was_changes_nothing(
    connect, handler, caplog: pytest.LogCaptureFixture
) -> None:
    handler.let_go.set()
    connector, peer = connect()
    peer.request("a")
    peer.answer("a")
    with caplog.at_level(logging.INFO, "revconn"):
        peer.cancel("a", "never was", "")
        peer.request("b")
        peer.answer("b")
    assert connector.stats()["cancelled"] == 0
    assert caplog.text == ""


def test_a_cancelled_id_may_come_again(connect, handler) -> None:
    connector, peer = connect()
    peer.request("a")
    handler.holds(1)
    peer.cancel("a")
    peer.request("a")
    handler.holds(2)
    handler.let_go.set()
    assert peer.answer("a").payload == b"a"
    assert connector.stats()["repeated"] == 0


def test_what_is_cancelled_makes_room(connect, handler) -> None:
    connector, peer = connect(max_in_flight=1)
    peer.request("a")
    handler.holds(1)
    peer.cancel("a")
    peer.request("b")
    handler.holds(2)
    handler.let_go.set()
    assert peer.answer("b").status_code == 200
    assert connector.stats()["overloaded"] == 0


def test_what_is_cancelled_ends_a_backlog_of_payloads() -> None:
    busy = threading.Event()
    with ThreadPoolExecutor(1) as nobody:
        nobody.submit(busy.wait, TIMEOUT)
        with open_calls(handlers_of(bytes), nobody, max_in_flight_bytes=1000) as calls:
            link = CallsLink(calls)
            link.brings(arrival("a", payload=bytes(1001)))
            assert calls.saturated
            assert link.line.blocked
            link.cancels("a")
            assert not calls.saturated
            assert not link.line.blocked
            link.brings(arrival("b"))
            assert not calls.saturated
        busy.set()


@pytest.mark.parametrize("announced", [{}, {"revconn-features": "chunks,drain"}])
def test_a_cancel_that_was_never_announced_is_ignored(
    connect, handler, gateway, announced, caplog: pytest.LogCaptureFixture
) -> None:
    _, peer = connect()
    gateway.announces = announced
    peer.end()
    peer = gateway.accept_ready()
    peer.request("a")
    handler.holds(1)
    with caplog.at_level(logging.INFO, "revconn"):
        peer.cancel("a")
        eventually(lambda: "ignored a cancel" in caplog.text)
    handler.let_go.set()
    assert peer.answer("a").payload == b"a"


# Callbacks


def test_a_callback_runs_when_the_request_is_answered_in_its_handlers_thread(
    connect, handler
) -> None:
    handler.let_go.set()
    _, peer = connect()
    peer.request("a")
    peer.answer("a")
    eventually(lambda: handler.called_back == [("a", "revconn-handler", False)])


def test_a_callback_runs_at_the_deadline(connect, handler) -> None:
    _, peer = connect()
    peer.request("a", grpc_timeout="2S")
    assert peer.answer("a").status_code == 504
    eventually(lambda: handler.called_back == [("a", "revconn-callbacks", False)])


@pytest.mark.parametrize("end", ["abort", "stop"])
def test_a_callback_runs_when_the_connector_ends_first(connect, handler, end) -> None:
    connector, peer = connect()
    peer.request("a", timeout_seconds=0)
    handler.holds(1)
    connector.abort() if end == "abort" else connector.stop(timeout=0.1)
    eventually(lambda: [entry[0] for entry in handler.called_back] == ["a"])
    handler.let_go.set()


def test_callbacks_run_once_whoever_comes_first(connect, handler) -> None:
    connector, peer = connect()
    peer.requests(*(f"r{number}" for number in range(16)), grpc_timeout="1S")
    handler.holds(16)
    eventually(lambda: handler.requests[0].time_remaining() < 0.01)
    peer.cancel(*(f"r{number}" for number in range(16)))
    handler.let_go.set()
    eventually(lambda: connector.stats()["in_flight"] == 0)
    connector.abort()
    eventually(lambda: len(handler.called_back) >= 16)
    assert sorted(entry[0] for entry in handler.called_back) == sorted(
        f"r{number}" for number in range(16)
    )


def test_a_callback_that_fails_is_logged_and_the_next_one_runs(
    connect, handler, caplog: pytest.LogCaptureFixture
) -> None:
    _, peer = connect()
    peer.request("a")
    handler.holds(1)
    (request,) = handler.requests
    called = threading.Event()
    request.add_callback(lambda: 1 / 0)
    request.add_callback(called.set)
    peer.cancel("a")
    assert called.wait(TIMEOUT)
    assert "request_id='a'): a callback failed" in caplog.text
    assert "ZeroDivisionError" in caplog.text


def test_a_callback_may_stop_the_connector(connect, handler) -> None:
    connector, peer = connect()
    peer.requests("a", "b")
    handler.holds(2)
    handler.requests[0].add_callback(connector.stop)
    peer.cancel(handler.requests[0].request_id)
    handler.let_go.set()
    while peer.hears_any().WhichOneof("message_type") != "status":
        pass
    peer.end()
    connector.wait(TIMEOUT)


def test_a_callback_that_hangs_delays_no_request_and_no_deadline(connect, handler) -> None:
    _, peer = connect()
    peer.request("a")
    handler.holds(1)
    hanging, let_go = threading.Event(), threading.Event()
    handler.requests[0].add_callback(lambda: hanging.set() or let_go.wait(TIMEOUT))
    peer.cancel("a")
    assert hanging.wait(TIMEOUT)
    peer.request("late", grpc_timeout="50m")
    assert peer.answer("late").status_code == 504
    handler.let_go.set()
    peer.request("b")
    assert peer.answer("b").payload == b"b"
    let_go.set()


def test_an_inline_handlers_callback_runs_when_it_is_done(new_connector, gateway) -> None:
    connector = new_connector(gateway.address)
    called: list[bool] = []

    @connector.method("/echo.Echo/Say", inline=True)
    def say(request: Request) -> bytes:
        request.add_callback(lambda: called.append(request.is_active()))
        return b"said"

    connector.start(block=False)
    peer = gateway.accept_ready()
    peer.request("a")
    peer.answer("a")
    assert called == [False]
