"""Every limit: whoever meets it is told which it was, it is counted, and others go on."""

from __future__ import annotations

import threading
import time

import grpc
import pytest
from hyperframe.frame import HeadersFrame

from revconn.gateway.connectors import ConnectorStreams
from tests.gateway.conftest import counted
from tests.support.http2_caller import Http2Caller
from tests.support.waiting import eventually

SAY = "/echo.Echo/Say"
EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
REFUSED_STREAM = 7


def refused(gateway, dial, **register) -> tuple[grpc.StatusCode, str]:
    connector = dial(gateway)
    with pytest.raises(EOFError):
        connector.register(**register)
    return connector.ended()


def test_max_connections(run_gateway, dial, connect, monkeypatch) -> None:
    made: list[ConnectorStreams] = []
    begin = ConnectorStreams.__init__

    def make(self, *args, **options) -> None:
        made.append(self)
        begin(self, *args, **options)

    monkeypatch.setattr(ConnectorStreams, "__init__", make)
    gateway = run_gateway(max_connections=2)
    first = connect(gateway, "echo.Echo")
    undecided = dial(gateway)  # it has not registered yet, and does not count yet
    eventually(lambda: len(made[-1]._open) == 2)  # the streams may come in another order
    connect(gateway)  # by whoever says nothing nobody is kept out
    with pytest.raises(EOFError, match=r"2 connections are open \(the gateway's max_connections\)"):
        undecided.register("echo.Echo")
    assert undecided.ended()[0] is EXHAUSTED
    assert counted(gateway, "refused_max_connections") == 1
    assert counted(gateway, "connections_refused") == 1
    first.disconnect()
    first.ended()
    connect(gateway)
    assert counted(gateway, "connections_opened") == 3


def test_max_connections_per_key(run_gateway, dial, connect) -> None:
    gateway = run_gateway(api_keys=["key", "other"], max_connections_per_key=1)
    first = connect(gateway)
    code, details = refused(gateway, dial)
    assert code is EXHAUSTED
    assert "1 connections with that API key" in details
    assert "max_connections_per_key" in details
    assert counted(gateway, "refused_max_connections_per_key") == 1
    connect(gateway, api_key="other")
    first.disconnect()
    first.ended()
    connect(gateway)


def test_max_pending_counts_calls_whose_request_does_not_come_too(
    run_gateway, connect, call, resources
) -> None:
    """Those that are whole when they come are none of them."""
    gateway = run_gateway(max_pending=2)
    connector = connect(gateway, "echo.Echo")
    channel = resources.enter_context(grpc.insecure_channel(gateway.address))
    over = threading.Event()
    resources.callback(over.set)
    say = channel.stream_unary(SAY)
    calls = [say.future(iter(over.wait, True)) for _ in range(2)]
    callers = gateway._thread._serving._callers
    eventually(lambda: callers.receiving == 2)
    attempt = say.future(iter(over.wait, True))
    assert attempt.code() is EXHAUSTED
    assert "2 calls are still on their way (the gateway's max_pending)" in attempt.details()
    assert counted(gateway, "refused_max_pending") == 1
    call(gateway, SAY)
    connector.receive_request()
    calls[0].cancel()
    eventually(lambda: callers.receiving == 1)
    calls.append(say.future(iter(over.wait, True)))  # gRPC cancels what nobody holds
    eventually(lambda: callers.receiving == 2)


def test_max_pending_per_connection(run_gateway, connect, call) -> None:
    gateway = run_gateway(max_pending_per_connection=1)
    full, other = connect(gateway, "echo.Echo"), connect(gateway, "echo.Echo", "more.More")
    for connector in (full, other):
        call(gateway, SAY)
        connector.receive_request()
    attempt = call(gateway, SAY)
    assert attempt.code() is EXHAUSTED
    assert "1 calls wait for each (the gateway's max_pending_per_connection)" in attempt.details()
    assert counted(gateway, "refused_max_pending_per_connection") == 1


def test_a_connector_may_have_as_many_calls_of_its_own(run_gateway, connect) -> None:
    gateway = run_gateway(max_pending_per_connection=2)
    for _ in range(2):
        connect(gateway, "echo.Echo")
    asker = connect(gateway)
    for number in range(3):
        asker.ask(str(number), SAY)
    response = asker.receive_response()
    assert (response.request_id, response.status_code) == ("2", 429)
    assert "has 2 calls of its own under way" in response.error_message
    assert counted(gateway, "refused_max_pending_per_connection") == 1


def test_max_message_bytes(run_gateway, connect, call) -> None:
    gateway = run_gateway(max_message_bytes=10_000)
    connector = connect(gateway, "echo.Echo")
    attempt = call(gateway, SAY, b"x" * 15_000)
    assert attempt.code() is EXHAUSTED
    assert "15,000 bytes exceeds 10,000 (the gateway's max_message_bytes)" in attempt.details()
    connector.respond("1", b"x" * 15_000)
    code, details = connector.ended()
    assert code is EXHAUSTED
    assert "the gateway's max_message_bytes" in details
    assert counted(gateway, "refused_max_message_bytes") == 2


@pytest.mark.parametrize(
    ("options", "stated"), [({"max_sent_message_bytes": 5000}, None), ({}, 5000)]
)
def test_max_sent_message_bytes(run_gateway, connect, call, options, stated) -> None:
    gateway = run_gateway(**options)
    connector = connect(gateway, "echo.Echo", max_message_bytes=stated)
    attempt = call(gateway, SAY, b"x" * 6000)
    assert attempt.code() is EXHAUSTED
    assert "exceeds the connector's 5,000 (the gateway's max_sent_m" in attempt.details()
    assert counted(gateway, "refused_max_sent_message_bytes") == 1
    call(gateway, SAY, b"x" * 4000)
    connector.receive_request()


def test_a_response_larger_than_may_be_sent(run_gateway, connect, call) -> None:
    gateway = run_gateway(max_sent_message_bytes=5000)
    connector = connect(gateway, "echo.Echo")
    attempt = call(gateway, SAY)
    connector.respond(connector.receive_request().request_id, b"x" * 6000)
    assert attempt.code() is EXHAUSTED
    said = f"{SAY}: a response of 6,000 bytes exceeds the 5,000 that may be sent"
    assert said in attempt.details()


def test_max_metadata_bytes(run_gateway, connect, call) -> None:
    gateway = run_gateway(max_metadata_bytes=2000)
    connector = connect(gateway, "echo.Echo")
    attempt = call(gateway, SAY, metadata=[("a", "x" * 2000)])
    assert attempt.code() is EXHAUSTED
    assert "exceed 2,000 (the gateway's max_metadata_bytes)" in attempt.details()
    assert counted(gateway, "refused_max_metadata_bytes") == 1
    call(gateway, SAY, metadata=[("a", "x" * 1000)])
    connector.receive_request()


def test_metadata_far_over_the_limit_is_refused_too(gateway, connect, call) -> None:
    connect(gateway, "echo.Echo")
    attempt = call(gateway, SAY, metadata=[("a", "x" * 100_000)])
    assert attempt.code() is EXHAUSTED


def test_handshake_timeout(run_gateway, dial) -> None:
    gateway = run_gateway(handshake_timeout=0.05)
    assert dial(gateway).ended() == (
        grpc.StatusCode.DEADLINE_EXCEEDED,
        "no register message came within 0.05 seconds",
    )
    assert counted(gateway, "refused_handshake_timeout") == 1


def test_a_response_to_an_asker_that_does_not_read_becomes_a_short_one(
    run_gateway, dial, connect
) -> None:
    gateway = run_gateway(max_queued_bytes=500_000)
    answerer = connect(gateway, "echo.Echo")
    asker = dial(gateway, reads=False)
    asker.send_registration()
    eventually(lambda: len(gateway.connections()) == 2)
    for number in range(20):
        asker.ask(str(number), SAY)
        answerer.receive_request()
        answerer.respond(str(number), b"x" * 300_000)
    eventually(lambda: gateway.connections()[1].asked == 0)
    asker.start_reading()
    asker.receive()
    responses = [asker.receive_response() for _ in range(20)]
    assert [response.request_id for response in responses] == [str(n) for n in range(20)]
    refused = [response for response in responses if response.status_code == 429]
    assert 10 < len(refused) < 20
    assert "the gateway's max_queued_bytes" in refused[0].error_message
    assert counted(gateway, "refused_max_queued_bytes") == len(refused)


def test_calls_of_every_kind_on_one_connection_are_limited_together(
    run_gateway, connect, call
) -> None:
    gateway = run_gateway(max_streams=2)
    connector = connect(gateway, "echo.Echo")
    with Http2Caller(gateway.address) as caller:
        reflect = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
        caller.say(HeadersFrame(1, caller.request_block(reflect), flags=["END_HEADERS"]))
        caller.call(SAY, stream_id=3)
        request = connector.receive_request()
        caller.call(SAY, stream_id=5)
        assert caller.hears_answer(5).reset == REFUSED_STREAM
        assert counted(gateway, "refused_max_streams") == 1
        call(gateway, SAY)  # on a connection of its own
        connector.receive_request()
        connector.respond(request.request_id)
        assert caller.hears_answer(3).status == "0"
        caller.call(SAY, stream_id=7)  # in the place of the one that was answered
        connector.respond(connector.receive_request().request_id)
        assert caller.hears_answer(7).status == "0"


def test_a_client_that_heeds_max_streams_waits_for_a_place(run_gateway, connect, resources) -> None:
    gateway = run_gateway(max_streams=2)
    connector = connect(gateway, "echo.Echo")
    channel = resources.enter_context(grpc.insecure_channel(gateway.address))
    grpc.channel_ready_future(channel).result(60)  # it has heard of the limit
    say = channel.unary_unary(SAY)
    calls = [say.future(b"", timeout=60) for _ in range(5)]
    for _ in calls:
        connector.respond(connector.receive_request().request_id)
    assert [each.code() for each in calls] == [grpc.StatusCode.OK] * 5
    assert counted(gateway, "refused_max_streams") == 0


@pytest.mark.costly
def test_calls_that_come_while_the_gateway_is_busy_are_not_taken_for_cancelled(gateway) -> None:
    busy, let_go = threading.Event(), threading.Event()
    gateway._thread._loop.call_soon_threadsafe(lambda: busy.set() or let_go.wait(60.0))
    assert busy.wait(60.0)
    with grpc.insecure_channel(gateway.address) as channel:
        say = channel.unary_unary(SAY)
        calls = [say.future(b"x", timeout=60.0) for _ in range(1500)]
        time.sleep(0.3)  # until grpc has heard of them all: it would not say
        let_go.set()
        assert {call.code() for call in calls} == {grpc.StatusCode.UNAVAILABLE}
