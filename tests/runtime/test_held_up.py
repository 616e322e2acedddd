"""Users' code that holds up a thread of ours, and an executor that has none to give."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Callable

import grpc
import pytest

from revconn import Connector, Request, State, supervisor
from revconn._proto.registry_pb2 import ForwardRequest
from revconn.runtime import clock
from tests.support.requests import arrival
from tests.support.scripted_gateway import Peer
from tests.support.threads import in_thread
from tests.support.waiting import eventually

TIMEOUT = 60.0


def test_a_blocking_api_key_callable_does_not_keep_a_connector_from_ending(
    new_connector, gateway, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(supervisor, "_ABORT_WAIT", 0.1)
    asked, released = threading.Event(), threading.Event()

    def api_key() -> str:
        asked.set()
        released.wait(TIMEOUT)
        return "key"

    connector = new_connector(gateway.address, api_key=api_key)
    connector.add_method("/echo.Echo/Say", lambda request: b"")
    connector.start(block=False)
    assert asked.wait(TIMEOUT)
    connector.abort()
    assert connector.state is State.CLOSED
    connector.wait(timeout=0)
    assert f"left {gateway.address} behind" in caplog.text
    released.set()


def test_no_thread_waits_on_for_the_answers_of_a_link_that_was_left_behind(
    new_connector, gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "_ABORT_WAIT", 0.1)
    keys = iter(["key"])
    asked_again, entered, let_go, released = (threading.Event() for _ in range(4))

    def api_key() -> str:
        for key in keys:
            return key
        asked_again.set()
        released.wait(TIMEOUT)
        return "key"

    def handler(request: Request) -> bytes:
        entered.set()
        let_go.wait(TIMEOUT)
        return b""

    connector = new_connector(gateway.address, api_key=api_key)
    connector.add_method("/echo.Echo/Say", handler)
    connector.start(block=False)
    peer = gateway.accept_ready()
    peer.request()
    assert entered.wait(TIMEOUT)
    peer.end(grpc.StatusCode.UNAVAILABLE, "the network is to blame")
    assert asked_again.wait(TIMEOUT)
    let_go.set()  # its answer is kept for a connection that never comes
    eventually(lambda: connector.stats()["in_flight"] == 0)
    (drain,) = threads_begun(lambda: in_thread(connector.stop, 10 * TIMEOUT), "revconn-drain")
    connector.abort()
    assert connector.state is State.CLOSED
    drain.join(TIMEOUT / 2)
    assert not drain.is_alive()
    released.set()


def threads_begun(begin: Callable[[], object], name: str) -> list[threading.Thread]:
    """The threads of that name, once what ``begin`` does has led to one."""
    begin()
    return eventually(lambda: [each for each in threading.enumerate() if each.name == name])


@pytest.fixture
def holding() -> threading.Event:
    """Set once the connector is held up."""
    return threading.Event()


@pytest.fixture
def held_up(new_connector, gateway, holding, monkeypatch: pytest.MonkeyPatch):
    """A connector that ``hold_up`` holds up; ``add_method`` before ``start``."""
    monkeypatch.setattr(supervisor, "_ABORT_WAIT", 0.1)
    released = threading.Event()

    def handler(request: Request) -> bytes:
        holding.set()
        released.wait(TIMEOUT)
        return b""

    connector = new_connector(gateway.address)
    connector.add_method("/echo.Echo/Hold", handler, inline=True)
    yield connector
    released.set()


def hold_up(peer: Peer, holding: threading.Event) -> None:
    peer.request("held", method="/echo.Echo/Hold")
    assert holding.wait(TIMEOUT)


def test_a_handler_can_abort_a_connector_that_is_held_up(held_up, gateway, holding) -> None:
    entered, released = threading.Event(), threading.Event()

    def handler(request: Request) -> bytes:
        entered.set()
        released.wait(TIMEOUT)
        held_up.abort()
        return b""

    held_up.add_method("/echo.Echo/Say", handler)
    held_up.start(block=False)
    peer = gateway.accept_ready()
    peer.request()
    assert entered.wait(TIMEOUT)
    hold_up(peer, holding)
    released.set()
    held_up.wait(timeout=TIMEOUT / 2)
    assert held_up.state is State.CLOSED


def test_a_callback_can_stop_a_connector_that_was_held_up_when_it_is_told_of_the_end(
    held_up, gateway, holding
) -> None:
    took: list[float] = []

    def tell(state: State) -> None:
        if state is State.CLOSED:
            began = time.monotonic()
            held_up.stop(TIMEOUT)
            took.append(time.monotonic() - began)

    held_up.on_state_change(tell)
    held_up.start(block=False)
    hold_up(gateway.accept_ready(), holding)
    held_up.abort()
    assert took[0] < TIMEOUT / 2


def test_requests_for_the_pool_do_not_wait_for_an_inline_handler_that_came_before_them(
    held_up, gateway
) -> None:
    held_up.add_method("/echo.Echo/Say", lambda request: b"said")
    held_up.start(block=False)
    peer = gateway.accept_ready()
    held_up.wait_ready(TIMEOUT)
    batch = [
        arrival(ForwardRequest(request_id="held", method_path="/echo.Echo/Hold")),
        arrival(ForwardRequest(request_id="pooled", method_path="/echo.Echo/Say")),
    ]
    (link,) = held_up._supervisor.links
    now = time.monotonic(), clock.with_suspend()
    arriving = in_thread(held_up._supervisor.calls.arrived, link._replies, batch, *now)
    assert peer.answer("pooled").payload == b"said"
    assert not arriving.done()


class Reluctant(ThreadPoolExecutor):
    """Queues a task and then cannot start a thread, as ThreadPoolExecutor does at a limit."""

    def __init__(self) -> None:
        super().__init__(4)
        self.reluctant = False

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future = super().submit(fn, *args, **kwargs)
        if self.reluctant:
            raise RuntimeError("can't start new thread")
        return future


def test_a_thread_that_could_not_be_started_does_not_raise_the_number_of_workers(
    new_connector, gateway
) -> None:
    executor = Reluctant()
    running: list[str] = []
    released = threading.Event()

    def handler(request: Request) -> bytes:
        running.append(request.request_id)
        released.wait(TIMEOUT)
        return b""

    connector: Connector = new_connector(gateway.address, executor=executor, max_workers=1)
    connector.add_method("/echo.Echo/Say", handler)
    connector.start(block=False)
    peer = gateway.accept_ready()
    executor.reluctant = True
    for number in range(3):
        peer.request(f"lost{number}", method="/echo.Echo/Nobody")
        assert peer.answer(f"lost{number}").status_code in (404, 503)
    executor.reluctant = False
    peer.request("a")
    peer.request("b")
    eventually(lambda: running)
    eventually(lambda: connector.stats()["in_flight"] == 2)
    assert len(running) == 1
    released.set()
    assert {peer.hears("response").request_id for _ in range(2)} == {"a", "b"}
    connector.stop(1)
    executor.shutdown()
