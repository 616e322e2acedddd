"""A service whose last connector has just left: calls of it wait for whoever comes first."""

from __future__ import annotations

import asyncio
import threading
import time

import grpc
import pytest

from revconn import Connector
from revconn._proto.registry_pb2 import CancelRequest
from revconn.core.routing import Wanted
from revconn.gateway import backends, routes
from revconn.gateway.routes import Registry
from tests.gateway.conftest import counted
from tests.gateway.test_backends import register
from tests.gateway.test_calls import Scene
from tests.gateway.test_limits import EXHAUSTED
from tests.support.backend import Backend
from tests.support.waiting import eventually

SAY = "/echo.Echo/Say"
LONG = 30.0  # for the grace where it must not run out


@pytest.fixture
def leave(connect):
    """A connector of the service comes, and leaves."""

    def leave(gateway, service: str = "echo.Echo", *, politely: bool = True) -> None:
        connector = connect(gateway, service)
        if politely:
            connector.disconnect()
            connector.ended()
        else:
            connector.cancel()
        eventually(lambda: not any(service in each.services for each in gateway.connections()))

    return leave


def held(gateway, count: int = 1) -> None:
    """Wait until so many calls wait for their service."""
    eventually(lambda: counted(gateway, "calls_held") == count)


# The absence


def test_no_call_is_lost_while_the_only_connector_is_replaced(run_gateway) -> None:
    gateway = run_gateway(reconnect_grace=LONG)
    failed, answered = [], []

    def serving() -> Connector:
        connector = Connector(gateway.address, api_key="key")
        connector.add_method(SAY, lambda request: request.payload)
        connector.start(block=False)
        return connector

    def replace(connector: Connector) -> Connector:
        connector.stop()
        time.sleep(0.2)  # as long as a process takes to start
        return serving()

    def call_again_and_again(channel: grpc.Channel) -> None:
        method = channel.unary_unary(SAY)
        calls = []
        while not over.is_set():
            calls.append(method.future(b"x", timeout=60))
            time.sleep(0.025)
        for each in calls:
            (failed if each.exception() else answered).append(each)

    over = threading.Event()
    connector = serving()
    connector.wait_ready(timeout=60)
    with grpc.insecure_channel(gateway.address) as channel:
        caller = threading.Thread(target=call_again_and_again, args=(channel,))
        caller.start()
        try:
            for _ in range(3):
                connector = replace(connector)
                connector.wait_ready(timeout=60)
                time.sleep(0.1)
        finally:
            over.set()
            caller.join(60)
            connector.stop()
    assert [each.details() for each in failed] == []
    assert len(answered) > 10
    assert counted(gateway, "calls_held") > 0


@pytest.mark.parametrize("politely", [True, False])
def test_a_call_waits_for_the_next_connector(run_gateway, connect, call, leave, politely) -> None:
    gateway = run_gateway(reconnect_grace=LONG)
    leave(gateway, politely=politely)
    pending = [call(gateway, SAY, payload) for payload in (b"\x0a1", b"\x0a2")]
    held(gateway, 2)
    assert gateway.stats()["pending"] == 2
    assert counted(gateway, "calls") == 0
    other = connect(gateway, "echo.Other")
    following = connect(gateway, "echo.Echo")
    for _ in pending:
        request = following.receive_request()
        following.respond(request.request_id, request.payload)
    assert [each.result() for each in pending] == [b"\x0a1", b"\x0a2"]
    assert gateway.stats()["pending"] == 0
    assert counted(gateway, "calls") == 2
    other.disconnect()
    assert other.ended()[0] is grpc.StatusCode.OK


def test_it_is_refused_when_nobody_comes(run_gateway, call, leave) -> None:
    gateway = run_gateway(reconnect_grace=0.3)
    leave(gateway)
    first = call(gateway, SAY)
    assert first.code() is grpc.StatusCode.UNAVAILABLE
    assert first.details() == "no connector serves echo.Echo"
    assert call(gateway, SAY).code() is grpc.StatusCode.UNAVAILABLE
    assert counted(gateway, "calls_held") == 1
    assert counted(gateway, "calls_unserved") == 2


def test_a_service_that_was_never_there_and_one_without_grace_are_refused_at_once(
    run_gateway, call, leave
) -> None:
    gateway = run_gateway(reconnect_grace=LONG)
    leave(gateway)
    assert call(gateway, "/other.Other/Say").code() is grpc.StatusCode.UNAVAILABLE
    gateway = run_gateway(reconnect_grace=0)
    leave(gateway)
    assert call(gateway, SAY).code() is grpc.StatusCode.UNAVAILABLE


def test_a_call_that_was_not_written_when_its_connection_broke_waits_too() -> None:
    async def scenario() -> None:
        scene = Scene(grace=LONG, max_message_bytes=3)
        scene.registry.remove(scene.b)
        scene.end_a()
        assert (scene.settled, scene.counters.calls_held) == ([], 2)
        following = scene.add("c")
        assert following.pending == {"1", "2"}
        assert scene.counters.calls_rerouted == 2
        assert len(scene.calls) == 2

    asyncio.run(scenario())


def test_what_was_not_written_is_lost_when_nobody_comes() -> None:
    scene = Scene(grace=5.0)
    scene.registry.remove(scene.b)
    scene.end_a()
    scene.loop.advance(4.9)
    assert scene.settled == []
    scene.loop.advance(0.2)
    said = {response.error_message for response in scene.settled}
    assert said == {
        "its connection ended: the stream broke; no other connector serves echo.Echo now"
    }
    assert scene.counters.calls_lost == 2


# Who asks, and who comes


def test_a_call_of_a_connector_waits_too(run_gateway, connect, leave) -> None:
    gateway = run_gateway(reconnect_grace=LONG)
    leave(gateway)
    asker = connect(gateway)
    asker.ask("1", SAY, b"\x0a", timeout_seconds=9, headers={"grpc-timeout": "9S"})
    held(gateway)
    following = connect(gateway, "echo.Echo")
    request = following.receive_request()
    assert request.request_id == "1"
    assert 1 <= request.timeout_seconds <= 9
    assert request.headers["grpc-timeout"] != "9S"  # some of it has passed
    following.respond("1", b"\x0b")
    assert asker.receive_response().payload == b"\x0b"


def test_a_connector_whose_call_waited_in_vain_gets_a_404(run_gateway, connect, leave) -> None:
    gateway = run_gateway(reconnect_grace=0.2)
    asker = connect(gateway)
    leave(gateway)
    asker.ask("1", SAY)
    response = asker.receive_response()
    assert (response.status_code, response.error_message) == (404, "no connector serves echo.Echo")
    assert counted(gateway, "calls_held") == 1


def test_a_backend_that_comes_first_gets_it(run_gateway, call, connect, leave, resources) -> None:
    gateway = run_gateway(reconnect_grace=LONG)
    asker = connect(gateway)
    leave(gateway)
    pending = call(gateway, SAY, b"\x00\x00\x00\x00\x01A")
    asker.ask("1", SAY, b"\x0a")
    held(gateway, 2)
    register(gateway, resources.enter_context(Backend()).address)
    assert pending.result() == b"\x00\x00\x00\x00\x01A"
    assert asker.receive_response().payload == b"\x0a"
    assert gateway.stats()["pending"] == 0
    asker.ask("1", SAY, b"\x0b")  # the id is free again
    assert asker.receive_response().payload == b"\x0b"


def test_a_call_waits_for_the_connector_whose_backend_cannot_be_reached(
    run_gateway, call, connect, leave, resources
) -> None:
    gateway = run_gateway(reconnect_grace=LONG)
    with Backend() as backend:
        register(gateway, backend.address)
    asker = connect(gateway)
    leave(gateway)
    pending = call(gateway, SAY, b"\x0a")
    asker.ask("1", SAY, b"\x0b")
    held(gateway, 2)
    following = connect(gateway, "echo.Echo")
    for _ in range(2):
        request = following.receive_request()
        following.respond(request.request_id, request.payload)
    assert pending.result() == b"\x0a"
    assert asker.receive_response().payload == b"\x0b"


def test_what_a_backend_may_have_seen_goes_to_nobody_else(
    run_gateway, call, leave, resources, monkeypatch
) -> None:
    # However soon it is noticed that the backend is gone:
    monkeypatch.setattr(backends._Backend, "is_ready", False)
    gateway, over = run_gateway(reconnect_grace=LONG), threading.Event()
    backend = Backend(lambda *_: over.wait(LONG) and b"")
    resources.callback(backend.stop)
    resources.callback(over.set)
    register(gateway, backend.address)
    leave(gateway)
    pending = call(gateway, SAY, b"\x0a")
    backend.calls.get(timeout=LONG)
    backend.stop()
    assert pending.code() is grpc.StatusCode.UNAVAILABLE
    assert counted(gateway, "calls_held") == 0


def test_a_name_ending_like_the_service_waits_for_it(run_gateway, call, connect, leave) -> None:
    gateway = run_gateway(reconnect_grace=LONG)
    leave(gateway, "Echo")
    pending = call(gateway, SAY)
    held(gateway)
    following = connect(gateway, "Echo")
    following.respond(following.receive_request().request_id, b"\x0a")
    assert pending.result() == b"\x0a"


# Whoever does not want it any more


def test_callers_that_give_up_are_dropped(run_gateway, connect, call, leave) -> None:
    gateway = run_gateway(reconnect_grace=LONG)
    leave(gateway)
    asker = connect(gateway, features="cancel")
    gone = connect(gateway)
    hung_up = call(gateway, SAY)
    late = call(gateway, SAY, timeout=5.0)
    asker.ask("1", SAY)
    gone.ask("2", SAY)
    held(gateway, 4)
    hung_up.cancel()
    asker.send(cancel=CancelRequest(request_id="1"))
    gone.cancel()
    assert late.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    eventually(lambda: gateway.stats()["pending"] == 0)
    following = connect(gateway, "echo.Echo")
    call(gateway, SAY, b"\x0afresh")
    assert following.receive_request().payload == b"\x0afresh"


def test_its_deadline_ends_the_wait(run_gateway, connect, leave) -> None:
    gateway = run_gateway(reconnect_grace=LONG, request_timeout=0.3)
    asker = connect(gateway)
    leave(gateway)
    asker.ask("1", SAY)
    response = asker.receive_response()
    assert response.status_code == 504
    assert response.error_message == "no connector of the service came back in time"


def test_a_stopping_gateway_waits_for_nobody_to_come(run_gateway, call, leave) -> None:
    gateway = run_gateway(reconnect_grace=LONG)
    leave(gateway)
    pending = call(gateway, SAY)
    held(gateway)
    started = time.monotonic()
    gateway.stop(grace=LONG)
    assert time.monotonic() - started < LONG / 2
    assert pending.code() is grpc.StatusCode.UNAVAILABLE
    assert pending.details() == "the gateway is stopping"


# Limits


def test_what_waits_is_limited_as_if_it_waited_for_one_connector(run_gateway, call, leave) -> None:
    gateway = run_gateway(reconnect_grace=LONG, max_pending_per_connection=1)
    leave(gateway)
    call(gateway, SAY)
    held(gateway)
    refused = call(gateway, SAY)
    assert refused.code() is EXHAUSTED
    problem = "too much waits for services to come back: 1 calls"
    assert refused.details() == f"{problem} (the gateway's max_pending_per_connection)"


def test_so_are_its_bytes(run_gateway, call, leave) -> None:
    gateway = run_gateway(reconnect_grace=LONG, max_queued_bytes=1000)
    leave(gateway)
    call(gateway, SAY, b"x" * 1000)
    held(gateway)
    refused = call(gateway, SAY)
    assert refused.code() is EXHAUSTED
    assert "(the gateway's max_queued_bytes)" in refused.details()


def test_what_is_too_large_for_whoever_comes_is_refused(run_gateway, call, connect, leave) -> None:
    gateway = run_gateway(reconnect_grace=LONG)
    leave(gateway)
    pending = call(gateway, SAY, b"x" * 1000)
    held(gateway)
    connect(gateway, "echo.Echo", max_message_bytes=500)
    assert pending.code() is EXHAUSTED


def test_only_so_many_names_are_expected_back(monkeypatch) -> None:
    monkeypatch.setattr(routes, "_MOST_EXPECTED", 2)

    async def scenario() -> list[bool]:
        registry = Registry(LONG)
        for name in ("a", "b", "a", "c"):
            registry.expect_back([name])
        return [registry.expects(Wanted.by_connector(name)) for name in "abc"]

    assert asyncio.run(scenario()) == [True, False, True]


def test_one_that_left_again_is_expected_for_as_long_again() -> None:
    async def scenario() -> None:
        over = asyncio.Event()
        registry = Registry(0.2)
        registry.on_absence_end.append(over.set)
        registry.expect_back(["a", "b"])
        await asyncio.sleep(0.1)
        registry.expect_back(["a"])
        await asyncio.wait_for(over.wait(), 10)
        assert not registry.expects(Wanted.by_connector("b"))
        over.clear()
        await asyncio.wait_for(over.wait(), 10)
        assert not registry.expects(Wanted.by_connector("a"))

    asyncio.run(scenario())
