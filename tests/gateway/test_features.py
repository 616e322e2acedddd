"""What a connector and this gateway can say beyond the published protocol, and when."""

from __future__ import annotations

import grpc

from revconn._proto.registry_pb2 import (
    CancelRequest,
    ConnectionMessage,
    ConnectionStatus,
    ForwardRequest,
    ForwardResponse,
)
from tests.gateway.conftest import counted
from tests.support.waiting import eventually

SAY = "/echo.Echo/Say"


# Announcements


def test_features_and_limits_are_announced_to_who_announces(run_gateway, connect) -> None:
    gateway = run_gateway(heartbeat_timeout=45.5, max_message_bytes=1_000_000)
    connector = connect(gateway, features="drain,telepathy")
    said = connector.initial_metadata()
    assert said["revconn-features"] == "cancel,chunks,drain,metadata,streams"
    assert said["revconn-heartbeat-timeout"] == "45.5"
    assert said["revconn-max-message-bytes"] == "1000000"
    assert gateway.connections()[0].features == {"drain"}


def test_an_empty_announcement_is_answered_too(gateway, connect) -> None:
    connector = connect(gateway, features="")
    assert "revconn-heartbeat-timeout" in connector.initial_metadata()
    assert gateway.connections()[0].features == frozenset()


def test_with_a_peer_that_announces_nothing_every_byte_is_the_published_protocols(
    gateway, connect, call
) -> None:
    connector = connect(gateway, "echo.Echo")
    answered, given_up = call(gateway, SAY, b"\x0a"), call(gateway, SAY, timeout=5.0)
    requests = [connector.receive_request() for _ in range(2)]
    assert given_up.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    eventually(lambda: gateway.connections()[0].pending == 1)
    for request in requests:
        connector.respond(request.request_id)
    answered.result()
    connector.ask("own call", "/nobody.Serves/This")
    response = connector.receive_response()
    connector.disconnect()
    assert connector.ended() == (grpc.StatusCode.OK, "")

    assert not any(name.startswith("revconn-") for name in connector.initial_metadata())
    status = ConnectionStatus(connection_id=connector.connection_id)
    said = [{"status": status}, *({"request": each} for each in requests), {"response": response}]
    assert [ConnectionMessage.FromString(each) for each in connector.received_bytes] == [
        ConnectionMessage(**each) for each in said
    ]
    for message in connector.received_bytes:
        assert_nothing_but_published_fields(message)


def assert_nothing_but_published_fields(encoded: bytes) -> None:
    """Fields 1 to 7 of the oneof, and in requests and responses those that have always been."""
    message = ConnectionMessage.FromString(encoded)
    ((field, value),) = message.ListFields()
    assert field.number <= 7
    if isinstance(value, ForwardRequest):
        names = {field.name for field, _ in value.ListFields()}
        published = {"request_id", "method_path", "headers", "payload", "timeout_seconds"}
        assert names <= published | {"streaming_info"}
    if isinstance(value, ForwardResponse):
        names = {field.name for field, _ in value.ListFields()}
        assert names <= {"request_id", "status_code", "headers", "payload", "error_message"}
    # A map may be written in any order; of everything else there is one encoding.
    assert len(message.SerializeToString()) == len(encoded)


# cancel


def test_a_caller_that_gives_up_is_a_cancel(gateway, connect, call) -> None:
    connector = connect(gateway, "echo.Echo", features="cancel")
    pending = call(gateway, SAY)
    request = connector.receive_request()
    pending.cancel()
    assert connector.receive().cancel == CancelRequest(
        request_id=request.request_id, reason="the caller gave up"
    )


def test_a_deadline_that_passes_is_a_cancel(run_gateway, connect, call) -> None:
    connector = connect(gateway := run_gateway(request_timeout=2.0), "echo.Echo", features="cancel")
    pending = call(gateway, SAY, timeout=None)
    request = connector.receive_request()
    assert connector.receive().cancel == CancelRequest(
        request_id=request.request_id, reason="the deadline has passed"
    )
    assert pending.code() is grpc.StatusCode.DEADLINE_EXCEEDED


def test_what_was_answered_is_not_cancelled(gateway, connect, call) -> None:
    connector = connect(gateway, "echo.Echo", features="cancel")
    pending = call(gateway, SAY)
    connector.respond(connector.receive_request().request_id)
    pending.result()
    pending.cancel()
    call(gateway, "/echo.Echo/Next")
    assert connector.receive_request().method_path == "/echo.Echo/Next"


def test_a_connector_cancels_its_own_call(gateway, connect) -> None:
    answerer = connect(gateway, "echo.Echo", features="cancel")
    asker = connect(gateway, features="cancel")
    asker.ask("1", SAY)
    answerer.receive_request()
    asker.send(cancel=CancelRequest(request_id="1", reason="changed my mind"))
    assert answerer.receive().cancel.request_id == "1"
    eventually(lambda: gateway.connections()[1].asked == 0)
    answerer.respond("1")
    eventually(lambda: counted(gateway, "answers_late") == 1)
    assert len(asker.received_bytes) == 1, "CONNECTED, and no answer"


def test_a_connector_cannot_cancel_the_calls_of_others(gateway, connect, call) -> None:
    connector = connect(gateway, "echo.Echo", features="cancel")
    stranger = connect(gateway, features="cancel")
    pending = call(gateway, SAY)
    request = connector.receive_request()
    for nosy in (stranger, connector):
        nosy.send(cancel=CancelRequest(request_id=request.request_id))
        nosy.respond("they have arrived")
    eventually(lambda: all(info.unmatched for info in gateway.connections()))
    connector.respond(request.request_id, b"\x0a")
    assert pending.result() == b"\x0a"


def test_a_cancel_that_was_not_announced_is_ignored(gateway, connect, caplog) -> None:
    answerer, asker = connect(gateway, "echo.Echo"), connect(gateway, features="chunks")
    asker.ask("1", SAY)
    answerer.receive_request()
    asker.send(cancel=CancelRequest(request_id="1"))
    answerer.respond("1", b"\x0a")
    assert asker.receive_response().payload == b"\x0a"
    eventually(lambda: "ignored cancel" in caplog.text)


def test_the_calls_of_a_connector_that_is_gone_are_cancelled(gateway, connect) -> None:
    answerer, asker = connect(gateway, "echo.Echo", features="cancel"), connect(gateway)
    asker.ask("1", SAY)
    answerer.receive_request()
    asker.cancel()
    cancel = answerer.receive().cancel
    assert (cancel.request_id, cancel.reason) == ("1", "the caller's connection ended")


# drain


def test_a_draining_stream_gets_nothing_new_is_read_and_ends_when_all_is_settled(
    run_gateway, connect, call
) -> None:
    gateway = run_gateway(reconnect_grace=0)
    connector = connect(gateway, "echo.Echo", features="drain")
    pending = [call(gateway, SAY) for _ in range(3)]
    requests = [connector.receive_request() for _ in pending]
    connector.disconnect()
    eventually(lambda: gateway.connections()[0].draining)
    assert call(gateway, SAY).code() is grpc.StatusCode.UNAVAILABLE
    for request in requests:
        connector.heartbeat()
        connector.respond(request.request_id, b"\x0a")
    assert {one.result() for one in pending} == {b"\x0a"}
    assert connector.ended() == (grpc.StatusCode.OK, "")
