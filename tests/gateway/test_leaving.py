"""A gateway that is told to stop finishes what it has and takes nothing new."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Callable

import grpc
import pytest

from revconn._proto.registry_pb2 import ConnectionRegister, ConnectionStatus, ForwardRequest
from revconn.gateway import Gateway
from tests.support.scripted_connector import ScriptedConnector
from tests.support.threads import in_thread
from tests.support.waiting import eventually

STOPPING = (grpc.StatusCode.UNAVAILABLE, "the gateway is stopping")


@pytest.fixture
def stop(gateway, call, resources) -> Callable[..., Future]:
    """Begin to stop the gateway; when this returns it takes nothing new."""

    def stop(grace: float = 20.0) -> Future:
        stopped = in_thread(gateway.stop, grace)
        resources.callback(stopped.result, 10)
        eventually(lambda: status(call(gateway, "/any.Service/Method")) == STOPPING)
        return stopped

    return stop


def status(ended: grpc.Future) -> tuple[grpc.StatusCode, str]:
    return ended.code(), ended.details()


def is_sent_away(connector: ScriptedConnector) -> bool:
    farewell = connector.receive().status
    assert farewell.connection_id == connector.connection_id
    assert (farewell.status, farewell.message) == (ConnectionStatus.DISCONNECTED, STOPPING[1])
    return connector.ended() == STOPPING


def test_a_connector_is_told_disconnected_when_its_last_request_is_settled(
    gateway, connect, call, stop
) -> None:
    connector = connect(gateway, "echo.Echo")
    pending = [call(gateway, "/echo.Echo/Say") for _ in range(3)]
    requests = [connector.receive_request() for _ in pending]
    stopped = stop()
    for request in requests:
        connector.heartbeat()
        connector.respond(request.request_id, b"\x0a")
    assert [each.result() for each in pending] == [b"\x0a"] * 3
    assert is_sent_away(connector)
    stopped.result(30)


def test_a_connector_that_is_idle_need_not_wait_for_those_that_are_not(
    gateway, connect, call, stop
) -> None:
    busy, idle = connect(gateway, "busy.Busy"), connect(gateway, "idle.Idle")
    pending = call(gateway, "/busy.Busy/Work")
    request = busy.receive_request()
    stopped = stop()
    assert is_sent_away(idle)
    assert not stopped.done()
    busy.respond(request.request_id, b"\x0a")
    assert pending.result() == b"\x0a"
    assert is_sent_away(busy)


def test_a_call_that_is_still_being_received_is_accepted(gateway, connect, stop, resources) -> None:
    connector = connect(gateway, "echo.Echo")
    channel = resources.enter_context(grpc.insecure_channel(gateway.address))
    rest_may_come = threading.Event()

    def messages() -> Iterator[bytes]:
        yield b"\x0a"
        rest_may_come.wait(10)

    pending = channel.stream_unary("/echo.Echo/Say").future(messages(), timeout=60)
    eventually(lambda: gateway._thread._serving._callers.receiving == 1)
    stop()
    rest_may_come.set()
    connector.respond(connector.receive_request().request_id, b"\x0b")
    assert pending.result() == b"\x0b"
    assert is_sent_away(connector)


def test_callers_and_connectors_that_come_too_late_are_told_why(
    gateway, connect, call, stop, dial
) -> None:
    connector = connect(gateway, "echo.Echo")
    pending = call(gateway, "/echo.Echo/Say")
    request = connector.receive_request()
    stop()
    assert status(call(gateway, "/echo.Echo/Say")) == STOPPING
    with pytest.raises(EOFError, match="StatusCode.UNAVAILABLE: the gateway is stopping"):
        dial(gateway).register("echo.Echo")
    connector.send(request=ForwardRequest(request_id="late", method_path="/echo.Echo/Say"))
    refused = connector.receive().response
    assert (refused.request_id, refused.status_code) == ("late", 503)
    assert refused.error_message == STOPPING[1]
    connector.respond(request.request_id, b"\x0a")
    assert pending.result() == b"\x0a"


def test_a_connectors_own_call_is_answered_first(gateway, connect, stop) -> None:
    asking, answering = connect(gateway, "a.A"), connect(gateway, "b.B")
    asking.send(request=ForwardRequest(request_id="own", method_path="/b.B/Do"))
    answering.receive_request()
    stop()
    answering.respond("own", b"\x0a")
    assert asking.receive().response.payload == b"\x0a"
    assert is_sent_away(asking)
    assert is_sent_away(answering)


def test_what_is_not_answered_in_time_fails_and_its_connector_is_told(
    gateway, connect, call, stop
) -> None:
    connector = connect(gateway, "echo.Echo")
    pending = call(gateway, "/echo.Echo/Say")
    connector.receive_request()
    began = time.monotonic()
    stopped = stop(grace=0.2)
    assert status(pending) == STOPPING
    assert is_sent_away(connector)
    stopped.result(30)
    assert time.monotonic() - began < 30


def test_a_second_stop_may_be_in_more_of_a_hurry(gateway, connect, call, stop) -> None:
    connector = connect(gateway, "echo.Echo")
    pending = call(gateway, "/echo.Echo/Say")
    connector.receive_request()
    stopped = stop(grace=60.0)
    gateway.stop(grace=0.0)
    stopped.result(30)
    assert status(pending) == STOPPING


def test_a_connector_that_does_not_read_holds_nobody_up(gateway, connect, dial, call) -> None:
    other = connect(gateway, "echo.Echo")
    deaf = dial(gateway, reads=False)
    deaf.send(register=ConnectionRegister(api_key="key", services=["deaf.Deaf"]))
    eventually(lambda: len(gateway.connections()) == 2)
    lost = call(gateway, "/deaf.Deaf/Hear", bytes(4_000_000))
    eventually(lambda: gateway.connections()[1].pending)
    began = time.monotonic()
    gateway.stop(grace=0.1)
    assert time.monotonic() - began < 30
    assert status(lost) == STOPPING
    assert is_sent_away(other)


def test_a_gateway_without_anything_to_finish_is_gone_at_once() -> None:
    gateway = Gateway(api_keys="key").start()
    began = time.monotonic()
    gateway.stop(grace=20.0)
    assert time.monotonic() - began < 10
