"""EstablishConnection, from its first message to its end, over real sockets."""

from __future__ import annotations

import logging
import uuid

import grpc
import pytest

from revconn._proto.registry_pb2 import (
    CancelRequest,
    ConnectionMessage,
    ConnectionRegister,
    ConnectionStatus,
    ForwardRequest,
    ForwardResponse,
    SubscriptionRequest,
)
from tests.support.waiting import eventually

GATEWAY_LOG = "revconn.gateway"


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


# Registration


def test_a_registered_connector_is_told_its_id_and_is_listed(gateway, connect) -> None:
    connector = connect(gateway, "echo.Echo", "other.Service")
    (info,) = gateway.connections()
    assert info.connection_id == connector.connection_id == str(uuid.UUID(info.connection_id))
    assert info.services == ("echo.Echo", "other.Service")
    assert info.peer.startswith("ipv4:127.0.0.1:")
    assert 0 <= info.age < 60
    assert (info.pending, info.draining, info.unmatched) == (0, False, 0)


def test_an_offered_id_is_ignored(gateway, dial) -> None:
    assert dial(gateway).register("echo.Echo", connection_id="mine") != "mine"


def test_every_connection_gets_an_id_of_its_own(gateway, connect) -> None:
    ids = [connect(gateway, "echo.Echo").connection_id for _ in range(3)]
    assert len(set(ids)) == 3
    assert [info.connection_id for info in gateway.connections()] == ids


def test_a_connector_may_register_no_service(gateway, connect) -> None:
    connect(gateway)
    assert gateway.connections()[0].services == ()


def test_a_wrong_key_is_refused_and_never_logged(gateway, dial, caplog) -> None:
    stranger = dial(gateway)
    stranger.send(register=ConnectionRegister(api_key="hunter2", services=["echo.Echo"]))
    assert stranger.ended() == (grpc.StatusCode.UNAUTHENTICATED, "Invalid token")
    assert gateway.connections() == ()
    assert "refused a connector at ipv4:127.0.0.1" in caplog.text
    assert "hunter2" not in caplog.text


def test_another_first_message_is_refused(gateway, dial) -> None:
    connector = dial(gateway)
    connector.heartbeat("id")
    code, details = connector.ended()
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert details == "the first message must be register, not heartbeat"


def test_a_stream_that_ends_before_it_registers_is_refused(gateway, dial) -> None:
    connector = dial(gateway)
    connector.half_close()
    code, details = connector.ended()
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "before a register message" in details


def test_a_stream_that_says_nothing_is_refused_in_time(run_gateway, dial) -> None:
    gateway = run_gateway(handshake_timeout=0.05)
    code, details = dial(gateway).ended()
    assert code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert "0.05 seconds" in details


def test_registering_leaves_one_log_line_with_id_peer_and_services(
    gateway, connect, caplog
) -> None:
    with caplog.at_level(logging.INFO, GATEWAY_LOG):
        connector = connect(gateway, "echo.Echo", "other.Service")
    (line,) = [text for text in messages(caplog) if "registered" in text]
    assert connector.connection_id in line
    assert "ipv4:127.0.0.1" in line
    assert "echo.Echo, other.Service" in line


# What a registered connector says


def test_a_heartbeat_keeps_a_connection_and_silence_ends_it(
    clock, gateway, connect, call, caplog
) -> None:
    alive, silent = connect(gateway, "alive.Alive"), connect(gateway, "silent.Silent")
    clock.advance(119.0)
    alive.heartbeat()
    eventually(lambda: gateway.connections()[0].heartbeat_age == 0.0)
    assert gateway.connections()[1].heartbeat_age == 119.0
    with caplog.at_level(logging.INFO, GATEWAY_LOG):
        clock.advance(1.0)
        assert silent.ended() == (grpc.StatusCode.UNAVAILABLE, "no heartbeat for 120 seconds")
    (info,) = gateway.connections()
    assert (info.connection_id, info.age, info.heartbeat_age) == (alive.connection_id, 120.0, 1.0)
    assert "ended: no heartbeat for 120 seconds" in caplog.text
    assert call(gateway, "/silent.Silent/Say").code() is grpc.StatusCode.UNAVAILABLE


def test_a_heartbeat_with_a_foreign_id_is_logged_and_refreshes_nothing(
    clock, gateway, connect, caplog
) -> None:
    connector, other = connect(gateway), connect(gateway)
    clock.advance(60.0)
    for wrong in ("echo.Echo", other.connection_id):
        connector.heartbeat(wrong)
    connector.respond("they have arrived")
    eventually(lambda: gateway.connections()[0].unmatched)
    assert [info.heartbeat_age for info in gateway.connections()] == [60.0, 60.0]
    assert caplog.text.count("ignored a heartbeat whose id is not its own") == 1


def test_a_heartbeat_timeout_of_less_than_the_usual_interval_is_kept(run_gateway, connect) -> None:
    gateway = run_gateway(heartbeat_timeout=0.1)
    code, details = connect(gateway).ended()
    assert (code, details) == (grpc.StatusCode.UNAVAILABLE, "no heartbeat for 0.1 seconds")


def test_messages_it_has_no_use_for_are_logged_once_each_and_ignored(
    gateway, connect, caplog
) -> None:
    connector = connect(gateway, "echo.Echo")
    for _ in range(2):
        connector.send(register=ConnectionRegister(api_key="key", services=["more"]))
        connector.send(status=ConnectionStatus(status=ConnectionStatus.ERROR, message="oh"))
        connector.send(status=ConnectionStatus(status=ConnectionStatus.ERROR, message="no"))
        connector.send(status=ConnectionStatus(status=77))
        connector.send(status=ConnectionStatus(status=78))
        for action in (5, 6):
            subscription = SubscriptionRequest(action=action, event_types=["x"])
            connector.send(subscription=subscription)
        connector.send(cancel=CancelRequest(request_id="x"))
        connector.send(request=ForwardRequest(method_path="/echo.Echo/Say"))
        connector.send_bytes(b"\xfa\x7f\x00")
    connector.send(request=ForwardRequest(request_id="last", method_path="/other.Other/Say"))
    assert connector.receive().response.request_id == "last"
    assert gateway.connections()[0].services == ("echo.Echo",)
    ignored = [line for line in messages(caplog) if "ignored" in line]
    assert len(ignored) == 7
    for what in (
        "register",
        "status ERROR: 'oh'",
        "status of unknown type",
        "a subscription of unknown action",
        "cancel",
        "a request with no id",
        "a message of unknown type",
    ):
        assert sum(what in line for line in ignored) == 1, what


def test_garbage_ends_the_stream(gateway, connect) -> None:
    connector = connect(gateway)
    connector.send_bytes(b"\xff\xff")
    code, details = connector.ended()
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "no ConnectionMessage" in details
    assert gateway.connections() == ()


def test_a_bug_in_the_gateway_ends_only_that_stream(gateway, connect, monkeypatch, caplog) -> None:
    broken, sound = connect(gateway), connect(gateway)
    monkeypatch.setattr("revconn.gateway.calls.Calls.answer", None)
    broken.respond("1")
    code, details = broken.ended()
    assert code is grpc.StatusCode.INTERNAL
    assert "TypeError" not in details
    assert "a bug in the gateway" in caplog.text
    caplog.clear()
    assert [info.connection_id for info in gateway.connections()] == [sound.connection_id]


def test_a_bug_while_it_is_sent_something_ends_only_that_stream(
    gateway, connect, call, monkeypatch, caplog
) -> None:
    broken, sound = connect(gateway, "echo.Echo"), connect(gateway)
    with monkeypatch.context() as patched:
        patched.setattr("revconn.http2.streams.Stream.send", None)
        call(gateway, "/echo.Echo/Say")
        assert broken.ended()[0] is grpc.StatusCode.INTERNAL
    assert "a bug in the gateway" in caplog.text
    caplog.clear()
    assert [info.connection_id for info in gateway.connections()] == [sound.connection_id]


# The end


def test_a_connector_that_leaves_with_nothing_pending_ends_with_ok(
    gateway, connect, caplog
) -> None:
    connector = connect(gateway, "echo.Echo")
    with caplog.at_level(logging.INFO, GATEWAY_LOG):
        connector.disconnect("restarting")
        assert connector.ended() == (grpc.StatusCode.OK, "")
    assert "is leaving: 'restarting'" in caplog.text
    assert "ended: it left, and all that was sent to it is settled" in caplog.text
    assert gateway.connections() == ()


def test_a_half_close_is_a_farewell_too(gateway, connect, caplog) -> None:
    connector = connect(gateway, "echo.Echo")
    with caplog.at_level(logging.INFO, GATEWAY_LOG):
        connector.half_close()
        assert connector.ended() == (grpc.StatusCode.OK, "")
    assert "ended: it closed its side of the stream, and all" in caplog.text


def test_what_is_queued_for_a_leaving_connector_still_reaches_it(gateway, connect) -> None:
    connector = connect(gateway)
    for number in range(100):
        connector.send(request=ForwardRequest(request_id=str(number)))
    connector.half_close()
    answered = [connector.receive().response.request_id for _ in range(100)]
    assert answered == [str(number) for number in range(100)]
    assert connector.ended() == (grpc.StatusCode.OK, "")


def test_a_leaving_connector_answers_what_it_has_and_gets_nothing_new(
    run_gateway, connect, call
) -> None:
    gateway = run_gateway(reconnect_grace=0)
    leaving = connect(gateway, "echo.Echo")
    first = call(gateway, "/echo.Echo/Say", b"1")
    request = leaving.receive_request()
    leaving.disconnect()
    eventually(lambda: gateway.connections()[0].draining)
    assert call(gateway, "/echo.Echo/Say").code() is grpc.StatusCode.UNAVAILABLE
    leaving.respond(request.request_id, b"one")
    assert first.result() == b"one"
    assert leaving.ended() == (grpc.StatusCode.OK, "")


def test_the_next_connection_may_answer_for_the_one_that_leaves(gateway, connect, call) -> None:
    leaving, following = connect(gateway, "echo.Echo"), connect(gateway)
    pending = call(gateway, "/echo.Echo/Say")
    request = leaving.receive_request()
    leaving.half_close()
    following.respond(request.request_id, b"from the next one")
    assert pending.result() == b"from the next one"
    assert leaving.ended() == (grpc.StatusCode.OK, "")


def test_a_connection_with_another_key_may_not_answer(run_gateway, connect, call) -> None:
    gateway = run_gateway(api_keys=["key", "other"])
    connector = connect(gateway, "echo.Echo")
    stranger = connect(gateway, api_key="other")
    pending = call(gateway, "/echo.Echo/Say")
    request = connector.receive_request()
    stranger.respond(request.request_id, b"forged")
    eventually(lambda: gateway.connections()[1].unmatched == 1)
    connector.respond(request.request_id, b"genuine")
    assert pending.result() == b"genuine"


def test_a_request_given_up_lets_a_leaving_connector_go(gateway, connect, call) -> None:
    connector = connect(gateway, "echo.Echo")
    pending = call(gateway, "/echo.Echo/Say")
    connector.receive_request()
    connector.disconnect()
    eventually(lambda: gateway.connections()[0].draining)
    pending.cancel()
    assert connector.ended() == (grpc.StatusCode.OK, "")


def test_a_broken_stream_is_forgotten(gateway, connect, call, caplog) -> None:
    connector = connect(gateway, "echo.Echo")
    call(gateway, "/echo.Echo/Say")  # left unanswered, so that nothing but the break ends it
    connector.receive_request()
    with caplog.at_level(logging.INFO, GATEWAY_LOG):
        connector.cancel()
        eventually(lambda: "ended: the stream broke" in caplog.text)
    assert gateway.connections() == ()


def test_an_answer_over_the_limit_fails_its_call_by_name(run_gateway, connect, call) -> None:
    gateway = run_gateway(max_message_bytes=10_000)
    connector = connect(gateway, "echo.Echo")
    pending = call(gateway, "/echo.Echo/Say")
    connector.respond(connector.receive_request().request_id, b"x" * 11_000)
    assert pending.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert pending.details().startswith("/echo.Echo/Say: a message of 11,")
    assert connector.ended() == (pending.code(), pending.details())


@pytest.mark.parametrize("size", [11_000, 30_000])
def test_a_message_over_the_limit_ends_the_stream(run_gateway, connect, size) -> None:
    gateway = run_gateway(max_message_bytes=10_000)
    connector = connect(gateway)
    connector.respond("1", b"x" * size)
    code, details = connector.ended()
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert details.endswith("exceeds 10,000 (the gateway's max_message_bytes)")
    assert gateway.stats()["refused_max_message_bytes"] == 1
    eventually(lambda: not gateway.connections())


def test_a_registration_over_the_limit_is_refused_and_the_limit_named(run_gateway, dial) -> None:
    gateway = run_gateway(max_message_bytes=10_000)
    stranger = dial(gateway)
    services = [f"echo.Echo{number:1000}" for number in range(11)]
    stranger.send(register=ConnectionRegister(api_key="key", services=services))
    code, details = stranger.ended()
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert details.endswith("exceeds 10,000 (the gateway's max_message_bytes)")
    assert gateway.connections() == ()
    assert gateway.stats()["refused_max_message_bytes"] == 1


def test_a_response_to_who_was_sent_away_just_now_is_dropped(gateway, connect) -> None:
    connector = connect(gateway)
    (stream,) = gateway._thread._serving._connectors._open

    def send_away() -> None:
        stream._connection.dismiss("stopping")
        stream._connection.dismiss("stopping")
        response = ForwardResponse(request_id="r1")
        data = ConnectionMessage(response=response).SerializeToString()
        stream._wishes.respond(response, "/a.B/C", None)
        stream._wishes.respond(response, "/a.B/C", data)

    gateway._thread._loop.call_soon_threadsafe(send_away)
    assert connector.receive().status.message == "stopping"
    assert connector.ended() == (grpc.StatusCode.UNAVAILABLE, "stopping")
