"""The double does what the reference gateway was seen to do."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Callable

import grpc
import pytest

from revconn._proto.registry_pb2 import (
    ConnectionRegister,
    ConnectionStatus,
    EventMessage,
    ResponseStreamInfo,
    SubscriptionRequest,
)
from tests.support.reference_gateway import ReferenceGateway
from tests.support.scripted_connector import ScriptedConnector
from tests.support.waiting import eventually

PATIENCE = 60.0
SAY = "/echo.Echo/Say"
NOBODY = "No reverse connection found for service: echo.Echo"
OK = (grpc.StatusCode.OK, "")


@pytest.fixture
def resources() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def new_gateway(resources: ExitStack) -> Callable[..., ReferenceGateway]:
    return lambda **options: resources.enter_context(ReferenceGateway(**options))


@pytest.fixture
def gateway(new_gateway) -> ReferenceGateway:
    return new_gateway()


@pytest.fixture
def connect(resources: ExitStack) -> Callable[..., ScriptedConnector]:
    def connect(gateway: ReferenceGateway, *services: str, **options) -> ScriptedConnector:
        connector = resources.enter_context(ScriptedConnector(gateway.address))
        connector.register(*services, **options)
        return connector

    return connect


def problem(call) -> str:
    response = call.result(PATIENCE)
    assert response.status_code == 500
    assert response.payload == b""
    return response.error_message


def test_it_announces_nothing_and_gives_each_connection_an_id(gateway, connect) -> None:
    first, second = connect(gateway), connect(gateway)
    assert first.connection_id != second.connection_id
    assert not any(name.startswith("revconn-") for name in first.initial_metadata())


def test_it_refuses_a_bad_key_and_a_stream_that_begins_with_anything_else(
    gateway, resources
) -> None:
    bad_key, no_register = (
        resources.enter_context(ScriptedConnector(gateway.address)) for _ in range(2)
    )
    bad_key.send_registration("echo.Echo", api_key="wrong")
    assert bad_key.ended() == (grpc.StatusCode.UNAUTHENTICATED, "Invalid token")
    no_register.heartbeat()
    assert no_register.ended()[0] is grpc.StatusCode.INVALID_ARGUMENT


def test_what_a_connector_answers_comes_back_as_it_is(gateway, connect) -> None:
    connector = connect(gateway, "echo.Echo")
    call = gateway.call(SAY, b"question", headers={"grpc-timeout": "5S"})
    request = connector.receive_request()
    assert (request.method_path, request.payload) == (SAY, b"question")
    assert request.timeout_seconds == 30
    assert request.headers["grpc-timeout"] == "5S"
    connector.respond(request.request_id, b"x", status_code=404, error_message="no", headers={})
    response = call.result(PATIENCE)
    assert (response.status_code, response.error_message, response.payload) == (404, "no", b"x")


def test_callers_from_outside_are_not_served_as_grpc_has_it(gateway, connect) -> None:
    connect(gateway, "echo.Echo")
    with grpc.insecure_channel(gateway.address) as channel, pytest.raises(grpc.RpcError) as failed:
        channel.unary_unary(SAY)(b"question", timeout=PATIENCE)
    assert failed.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_connectors_call_one_another_under_ids_of_their_own(gateway, connect) -> None:
    server, client = connect(gateway, "echo.Echo"), connect(gateway)
    client.ask("mine", SAY, b"question", timeout_seconds=7)
    request = server.receive_request()
    assert (request.request_id, request.timeout_seconds) == ("mine", 30)
    server.respond("mine", b"answer")
    assert client.receive_response().payload == b"answer"


def test_services_are_found_by_dotted_parents_and_connections_take_turns(gateway, connect) -> None:
    connectors = [connect(gateway, "a.B") for _ in range(2)]
    for path in ("a.B.C/Say", "/a.B.C.D/Say/", "/a.B/Say", "/a.B/Say"):
        gateway.call(path)
    heard = [connector.receive_request().method_path for connector in connectors for _ in range(2)]
    assert heard == ["a.B.C/Say", "/a.B/Say", "/a.B.C.D/Say/", "/a.B/Say"]
    for path in ("/nodot/Say", "a.B", ""):
        assert problem(gateway.call(path)) == "Invalid service path format"
    assert problem(gateway.call(SAY)) == NOBODY


def test_it_forgets_a_silent_connection_and_leaves_its_stream_open(new_gateway, connect) -> None:
    gateway = new_gateway(heartbeat_timeout=0.05, sweep_interval=0.05)
    connector = connect(gateway, "echo.Echo")
    eventually(lambda: gateway.counts["forgotten"])
    assert problem(gateway.call(SAY)) == NOBODY
    connector.heartbeat()
    eventually(lambda: gateway.counts["unknown heartbeat"])
    assert gateway.routes("echo.Echo") == []


def test_it_half_forgets_a_connection_that_is_asked_for_while_it_is_silent(
    new_gateway, connect
) -> None:
    gateway = new_gateway(heartbeat_timeout=1.0, sweep_interval=1e6)
    connector = connect(gateway, "echo.Echo", "other.Other")
    silent_since = time.monotonic()
    eventually(lambda: time.monotonic() - silent_since > 1.1)
    assert problem(gateway.call(SAY)) == NOBODY
    connector.heartbeat()
    connector.ask("r", "/other.Other/Say")  # of this one's route nobody asked in time
    assert connector.receive_request().request_id == "r"
    assert gateway.counts["unknown heartbeat"] == 0
    assert problem(gateway.call(SAY)) == NOBODY


def test_it_forgets_service_by_service(new_gateway, connect) -> None:
    gateway = new_gateway(heartbeat_timeout=0.5, sweep_interval=0.01)
    connector = connect(gateway, "a.A", "b.B")

    def only_one_is_kept() -> bool:
        connector.heartbeat("a.A")  # a service's name where an id should be
        return not gateway.routes("b.B")

    eventually(only_one_is_kept)
    assert gateway.routes("a.A") == [connector.connection_id]
    assert gateway.counts["forgotten"] == 0


def test_a_heartbeat_in_time_keeps_a_connection(new_gateway, connect) -> None:
    gateway = new_gateway(heartbeat_timeout=2.0, sweep_interval=0.01)
    connector = connect(gateway, "echo.Echo")
    began = time.monotonic()
    while time.monotonic() - began < 2.5:
        connector.heartbeat()
        time.sleep(0.01)
    assert gateway.routes("echo.Echo") == [connector.connection_id]


def test_answers_are_taken_on_any_connection_and_unknown_ones_only_counted(
    gateway, connect
) -> None:
    first, second = connect(gateway, "echo.Echo"), connect(gateway)
    call = gateway.call(SAY)
    request_id = first.receive_request().request_id
    first.cancel()
    for _ in range(2):
        second.respond(request_id, b"late, not lost")
    assert call.result(PATIENCE).payload == b"late, not lost"
    eventually(lambda: gateway.counts["unknown response"] == 1)


def test_a_repeated_id_is_forwarded_and_fails_both(gateway, connect) -> None:
    connector = connect(gateway, "echo.Echo")
    calls = [gateway.call(SAY, request_id="same") for _ in range(2)]
    assert [problem(call) for call in calls] == ["Response channel closed"] * 2
    assert [connector.receive_request().request_id for _ in range(2)] == ["same"] * 2


def test_a_registration_with_an_id_still_known_has_no_routes(gateway, connect) -> None:
    connector = connect(gateway, "echo.Echo")
    again = connect(gateway, "echo.Echo", connection_id=connector.connection_id)
    assert again.connection_id == connector.connection_id
    assert problem(gateway.call(SAY)) == NOBODY


@pytest.mark.parametrize("goodbye", [ScriptedConnector.disconnect, ScriptedConnector.half_close])
def test_after_a_goodbye_it_reads_nothing_and_ends_the_stream_when_all_is_settled(
    gateway, connect, goodbye
) -> None:
    leaving, other = connect(gateway, "echo.Echo"), connect(gateway)
    call = gateway.call(SAY)
    request_id = leaving.receive_request().request_id
    goodbye(leaving)
    leaving.respond(request_id, b"in vain")
    eventually(lambda: not gateway.routes("echo.Echo"))
    with pytest.raises(TimeoutError):
        leaving.ended(0.1)
    other.respond(request_id, b"heard")
    assert call.result(PATIENCE).payload == b"heard"
    assert leaving.ended() == OK


def test_a_message_over_the_limit_ends_the_stream_with_ok_and_no_reason(gateway, connect) -> None:
    connector = connect(gateway, "echo.Echo")
    connector.respond("r", bytes(4 << 20))
    assert connector.ended() == OK
    assert gateway.routes("echo.Echo") == []


def test_it_sends_requests_that_are_larger_than_what_it_takes(gateway, connect) -> None:
    connector = connect(gateway, "echo.Echo")
    gateway.call(SAY, bytes(5 << 20))
    assert len(connector.receive_request().payload) == 5 << 20


def test_it_locks_up_for_good_when_it_joins_chunks(gateway, connect) -> None:
    connector, bystander = connect(gateway, "echo.Echo"), connect(gateway, "other.Other")
    gateway.call(SAY)
    request_id = connector.receive_request().request_id
    for index, final in enumerate((False, True)):
        info = ResponseStreamInfo(is_streamed=True, chunk_index=index, is_final_chunk=final)
        connector.respond(request_id, b"chunk", response_stream_info=info)
    eventually(lambda: gateway.is_locked_up)
    call = gateway.call("/other.Other/Say")
    with ScriptedConnector(gateway.address) as late:
        late.send_registration("late.Late")
        for deaf in (bystander, late):
            with pytest.raises(TimeoutError):
                deaf.ended(0.1)
        assert not call.done()
        assert gateway.routes("late.Late") == []


def test_pending_requests_are_limited_in_number_and_time(new_gateway, connect) -> None:
    gateway = new_gateway(max_pending=2, request_timeout=0.3)
    connect(gateway, "echo.Echo")
    first, second, third = (gateway.call(SAY) for _ in range(3))
    assert problem(third) == "Too many pending requests"
    assert [problem(call) for call in (first, second)] == ["Request timeout"] * 2
    assert problem(gateway.call(SAY)) == "Request timeout"


def test_it_delivers_no_events_and_ignores_what_it_has_no_use_for(gateway, connect) -> None:
    connector = connect(gateway, "echo.Echo")
    connector.send(subscription=SubscriptionRequest(event_types=["news"], subscriber_id="me"))
    connector.send(event=EventMessage(event_type="news", payload=b"nobody hears it"))
    connector.send(status=ConnectionStatus(status=ConnectionStatus.ERROR))
    connector.send(register=ConnectionRegister(api_key="key", services=["late.Late"]))
    connector.send_bytes(b"")
    connector.ask("r", "/late.Late/Say")
    assert connector.receive_response().error_message.startswith("No reverse connection found")
    assert sum(gateway.counts.values()) == 5
