"""A connector that does not read what it is sent."""

from __future__ import annotations

import grpc
import pytest

from revconn._proto.registry_pb2 import ConnectionRegister, ConnectionStatus, ForwardRequest
from revconn.gateway import stream
from tests.support.waiting import eventually

# More than a stream takes before its reader reads: the gateway's write waits.
LARGE = b"x" * 1_000_000


@pytest.fixture
def stall(dial):
    def stall(gateway, *services):
        connector = dial(gateway, reads=False)
        connector.send(register=ConnectionRegister(api_key="key", services=services))
        eventually(gateway.connections)
        return connector

    return stall


def test_its_expiry_does_not_wait_for_it(clock, gateway, stall, call) -> None:
    connector = stall(gateway, "echo.Echo")
    pending = [call(gateway, "/echo.Echo/Say", LARGE) for _ in range(5)]
    eventually(lambda: gateway.connections()[0].pending == 5)
    clock.advance(120.0)
    for one in pending:
        assert one.code() is grpc.StatusCode.UNAVAILABLE
        assert "no heartbeat" in one.details()
    assert gateway.connections() == ()
    connector.start_reading()
    assert connector.ended()[0] is grpc.StatusCode.UNAVAILABLE


def test_its_breaking_once_it_has_expired_is_no_error(clock, gateway, stall, call) -> None:
    connector = stall(gateway, "echo.Echo")
    pending = [call(gateway, "/echo.Echo/Say", LARGE) for _ in range(5)]
    eventually(lambda: gateway.connections()[0].pending == 5)
    clock.advance(120.0)
    for one in pending:
        assert "no heartbeat" in one.details()
    connector.cancel()
    gateway.stop()  # which waits for the stream; an error would be in the log by now


def test_a_leaving_one_gets_what_is_queued_for_it_once_it_reads(gateway, stall) -> None:
    connector = stall(gateway)
    ids = [f"{number}" + "x" * 1_000_000 for number in range(10)]
    for request_id in ids:
        connector.send(request=ForwardRequest(request_id=request_id))
    connector.disconnect()
    eventually(lambda: not gateway.connections())
    connector.start_reading()
    connector.receive()
    assert [connector.receive().response.request_id for _ in ids] == ids
    assert connector.ended() == (grpc.StatusCode.OK, "")


def test_a_leaving_one_that_does_not_read_is_given_up(gateway, stall, monkeypatch) -> None:
    monkeypatch.setattr(stream, "FLUSH_TIMEOUT", 0.0)
    connector = stall(gateway)
    for number in range(10):
        connector.send(request=ForwardRequest(request_id=f"{number}" + "x" * 1_000_000))
    connector.disconnect()
    eventually(lambda: not gateway.connections())
    connector.cancel()


def test_its_breaking_fails_what_is_being_written_to_it(gateway, stall, call) -> None:
    connector = stall(gateway, "echo.Echo")
    pending = [call(gateway, "/echo.Echo/Say", LARGE) for _ in range(5)]
    eventually(lambda: gateway.connections()[0].pending == 5)
    connector.cancel()
    for one in pending:
        assert one.code() is grpc.StatusCode.UNAVAILABLE
        assert "the stream broke" in one.details()
    assert gateway.connections() == ()


def test_stopping_the_gateway_does_not_wait_for_it(run_gateway, stall, call) -> None:
    gateway = run_gateway()
    stall(gateway, "echo.Echo")
    pending = call(gateway, "/echo.Echo/Say", LARGE)
    eventually(lambda: gateway.connections()[0].pending)
    gateway.stop(grace=0.1)
    assert pending.code() is grpc.StatusCode.UNAVAILABLE


def test_what_waits_for_it_is_bounded_and_what_was_given_up_is_not_sent(
    run_gateway, stall, call
) -> None:
    gateway = run_gateway(max_pending=2)
    connector = stall(gateway, "echo.Echo")
    # Some are on their way, three wait in the queue; their callers give up, but they wait still.
    given_up = 0
    for number in range(50):
        attempt = call(gateway, f"/echo.Echo/{number}", LARGE, timeout=0.3)
        if attempt.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
            break
        assert attempt.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        given_up += 1
    assert "does not keep up" in attempt.details()
    eventually(lambda: gateway.connections()[0].pending == 0)

    connector.start_reading()
    assert connector.receive().status.status == ConnectionStatus.CONNECTED
    connector.send(request=ForwardRequest(request_id="behind them"))
    on_their_way = 0
    while (message := connector.receive()).WhichOneof("message_type") == "request":
        on_their_way += 1
    assert message.response.request_id == "behind them"
    assert on_their_way == given_up - 3


def test_it_is_not_read_either_while_its_own_calls_wait_to_be_answered(
    run_gateway, stall, call
) -> None:
    gateway = run_gateway(max_pending=1)
    connector = stall(gateway, "echo.Echo")
    call(gateway, "/echo.Echo/Say", LARGE)
    eventually(lambda: gateway.connections()[0].pending)
    for number in range(10):
        connector.send(request=ForwardRequest(request_id=str(number)))
    connector.respond("after them")
    assert gateway.connections()[0].unmatched == 0
    connector.start_reading()
    received = [connector.receive() for _ in range(12)]
    assert [message.response.request_id for message in received[2:]] == [
        str(number) for number in range(10)
    ]
    eventually(lambda: gateway.connections()[0].unmatched == 1)
