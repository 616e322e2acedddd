"""A connector that does not read what it is sent."""

from __future__ import annotations

import grpc
import pytest
from hyperframe.frame import DataFrame, HeadersFrame, SettingsFrame, WindowUpdateFrame

from revconn._proto.registry_pb2 import (
    ConnectionMessage,
    ConnectionRegister,
    ConnectionStatus,
    ForwardRequest,
)
from revconn.gateway import connectors
from tests.gateway.conftest import LARGE, stuck, unwritten
from tests.support.http2_caller import Http2Caller
from tests.support.scripted_http2 import message
from tests.support.waiting import eventually

SAY = "/echo.Echo/Say"


@pytest.fixture
def gateway(run_gateway):
    """One that says at once that nobody serves, and gives a slow machine time."""
    return run_gateway(reconnect_grace=0, request_timeout=300.0)


@pytest.fixture
def ask(connect):
    """Have a connector call another one, which answers with as much; the ids of the calls."""

    def ask(gateway, connector, count) -> list[str]:
        other = connect(gateway, "other.Other")
        ids = [f"call {number}" for number in range(count)]
        for request_id in ids:
            connector.send(
                request=ForwardRequest(request_id=request_id, method_path="/other.Other/Get")
            )
            other.respond(other.receive_request().request_id, LARGE)
        eventually(lambda: gateway.connections()[1].pending == 0)
        return ids

    return ask


def pending_at(gateway, count):
    eventually(lambda: gateway.connections()[0].pending == count)


def failures(calls) -> list[grpc.Future]:
    """Wait for all to fail but the one that the connector may have seen; those that did."""
    eventually(lambda: sum(one.done() for one in calls) == len(calls) - 1)
    return [one for one in calls if one.done()]


def test_its_expiry_does_not_wait_for_it(clock, gateway, stall, call) -> None:
    connector = stall(gateway, "echo.Echo")
    pending = [call(gateway, SAY, LARGE) for _ in range(8)]
    stuck(gateway, 8)
    clock.advance(120.0)
    for one in failures(pending):
        assert one.code() is grpc.StatusCode.UNAVAILABLE
        assert "no heartbeat" in one.details()
    assert gateway.connections() == ()
    connector.start_reading()
    assert connector.ended()[0] is grpc.StatusCode.UNAVAILABLE


def test_its_breaking_once_it_has_expired_is_no_error(clock, gateway, stall, call) -> None:
    connector = stall(gateway, "echo.Echo")
    pending = [call(gateway, SAY, LARGE) for _ in range(5)]
    stuck(gateway, 5)
    clock.advance(120.0)
    eventually(lambda: not gateway.connections())
    connector.cancel()
    gateway.stop(grace=0.0)  # which waits for the stream; an error would be in the log by now
    assert {one.code() for one in pending} == {grpc.StatusCode.UNAVAILABLE}


def test_a_leaving_one_gets_what_is_queued_for_it_once_it_reads(
    gateway, stall, ask, monkeypatch
) -> None:
    monkeypatch.setattr(connectors, "FLUSH_TIMEOUT", 60.0)
    connector = stall(gateway)
    ids = ask(gateway, connector, 10)
    connector.disconnect()
    eventually(lambda: len(gateway.connections()) == 1)
    connector.start_reading()
    connector.receive()
    assert [connector.receive().response.request_id for _ in ids] == ids
    assert connector.ended() == (grpc.StatusCode.OK, "")


def test_a_leaving_one_that_does_not_read_is_given_up(gateway, stall, ask, monkeypatch) -> None:
    monkeypatch.setattr(connectors, "FLUSH_TIMEOUT", 0.0)
    connector = stall(gateway)
    ask(gateway, connector, 10)
    connector.disconnect()
    eventually(lambda: len(gateway.connections()) == 1)
    connector.cancel()


def test_its_breaking_fails_what_was_not_written_to_it(gateway, stall, call) -> None:
    connector = stall(gateway, "echo.Echo")
    pending = [call(gateway, SAY, LARGE) for _ in range(8)]
    stuck(gateway, 8)
    connector.cancel()
    for one in failures(pending):
        assert one.code() is grpc.StatusCode.UNAVAILABLE
        assert "the stream broke; no other connector serves echo.Echo" in one.details()
    assert gateway.connections() == ()


def test_stopping_the_gateway_does_not_wait_for_it(run_gateway, stall, call) -> None:
    gateway = run_gateway()
    stall(gateway, "echo.Echo")
    pending = call(gateway, SAY, LARGE)
    stuck(gateway, 1)
    gateway.stop(grace=0.1)
    assert pending.code() is grpc.StatusCode.UNAVAILABLE


def test_what_waits_for_it_is_bounded_and_what_was_given_up_is_not_sent(
    run_gateway, stall, call
) -> None:
    gateway = run_gateway(max_queued_bytes=500_000)
    connector = stall(gateway, "echo.Echo")
    waiting = []
    for number in range(4):  # one on its way, three that wait
        waiting.append(call(gateway, f"/echo.Echo/{number}", LARGE))
        stuck(gateway, number + 1)
    attempt = call(gateway, SAY, LARGE)
    assert attempt.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "do not keep up (the gateway's max_queued_bytes)" in attempt.details()

    for one in waiting:
        one.cancel()
    pending_at(gateway, 0)
    call(gateway, "/echo.Echo/next", LARGE)
    pending_at(gateway, 1)
    connector.start_reading()
    assert connector.receive().status.status == ConnectionStatus.CONNECTED
    received = [connector.receive_request().method_path for _ in range(2)]
    assert received == ["/echo.Echo/0", "/echo.Echo/next"]


def test_others_are_sent_what_it_does_not_take(clock, gateway, stall, connect, call) -> None:
    stall(gateway, "echo.Echo")
    calls = [call(gateway, SAY, LARGE) for _ in range(6)]
    stuck(gateway, 6)
    healthy = connect(gateway, "echo.Echo")
    clock.advance(10.0)  # it is stalled from now on, in the gateway's eyes
    eventually(lambda: gateway.connections()[1].pending == 5)
    later = call(gateway, "/echo.Echo/Later")
    for _ in range(6):
        healthy.respond(healthy.receive_request().request_id, b"\x0b")
    assert later.result() == b"\x0b"
    eventually(lambda: sum(one.done() for one in calls) == 5)
    assert [info.pending for info in gateway.connections()] == [1, 0]


class Wire(Http2Caller):
    """A connector, frame by frame, whose window has room for its welcome and little more."""

    def __init__(self, address: str) -> None:
        super().__init__(address, settings={SettingsFrame.INITIAL_WINDOW_SIZE: 300})
        block = self.request_block("/registry.RegistryService/EstablishConnection")
        register = ConnectionMessage(register=ConnectionRegister(api_key="key", services=["a.A"]))
        self.say(HeadersFrame(1, block, flags=["END_HEADERS"]))
        self.tell(register)
        self.hears(DataFrame)

    def tell(self, *messages: ConnectionMessage) -> None:
        """Send messages, whatever the windows say."""
        for each in messages:
            data = message(each.SerializeToString())
            self.say(*(DataFrame(1, data[at : at + 16_384]) for at in range(0, len(data), 16_384)))

    def ask_in_vain(self, count: int, size: int = 0) -> None:
        """Call what nobody serves: every call is answered at once."""
        for number in range(count):
            request = ForwardRequest(request_id=str(number), method_path=SAY, payload=bytes(size))
            self.tell(ConnectionMessage(request=request))


def test_the_window_of_one_that_does_not_read_its_answers_stays_shut(run_gateway) -> None:
    gateway = run_gateway(max_pending_per_connection=2)
    with Wire(gateway.address) as wire:
        wire.ask_in_vain(10)
        wire.ping()
        wire.ping()  # by now the turn has ended in which the last of them came
        before = wire.stream_window
        wire.ask_in_vain(7, 100_000)
        wire.ping()
        assert wire.stream_window == before
        wire.say(WindowUpdateFrame(1, window_increment=1_000_000))
        wire.ping()
        while wire.stream_window == before:  # once its answers have left
            wire.hears_frame()


def test_one_that_ends_its_side_before_it_has_read_its_answers_is_heard_once_it_has(
    run_gateway,
) -> None:
    gateway = run_gateway(max_pending_per_connection=2)
    with Wire(gateway.address) as wire:
        wire.ask_in_vain(10)
        wire.say(DataFrame(1, b"", flags=["END_STREAM"]))
        wire.ping()
        assert not wire.answers[1].is_over
        wire.say(WindowUpdateFrame(1, window_increment=1_000_000))
        assert wire.hears_answer().status == "0"
        eventually(lambda: not gateway.connections())


def test_it_is_not_read_either_while_its_own_calls_wait_to_be_answered(
    run_gateway, stall, call
) -> None:
    gateway = run_gateway(max_pending_per_connection=1)
    connector = stall(gateway, "echo.Echo")
    call(gateway, SAY, LARGE)
    stuck(gateway, 1)
    for number in range(10):
        connector.send(
            request=ForwardRequest(request_id=str(number), method_path="/nobody.Serves/This")
        )
    connector.respond("after them")
    eventually(lambda: unwritten(gateway) == 3)  # more than its calls, and calls to it, account for
    assert gateway.connections()[0].unmatched == 0
    connector.start_reading()
    received = [connector.receive() for _ in range(12)]
    assert [message.response.request_id for message in received[2:]] == [
        str(number) for number in range(10)
    ]
    eventually(lambda: gateway.connections()[0].unmatched == 1)
