from __future__ import annotations

import logging

import pytest

from revconn._proto.registry_pb2 import (
    ConnectionMessage,
    ConnectionRegister,
    ConnectionStatus,
    ForwardRequest,
    ForwardResponse,
    Heartbeat,
)
from revconn.core.errors import ProtocolError
from revconn.core.protocol import Conversation, Inbound, Phase
from revconn.core.terms import Terms
from tests.support.conversations import (
    CONNECTED,
    DISCONNECTED,
    ERROR,
    agreed,
    cancel,
    ended,
    ids,
    leaving,
    ready,
    registering,
    request,
    status,
)

# The way it should go


def test_the_first_message_registers_the_services_with_the_key_and_asks_for_no_id() -> None:
    conversation = Conversation(liveness_timeout=None)
    data = conversation.register("key", ["echo.Echo", "chat.Chat"])
    assert ConnectionMessage.FromString(data) == ConnectionMessage(
        register=ConnectionRegister(api_key="key", services=["echo.Echo", "chat.Chat"])
    )
    assert conversation.phase is Phase.REGISTERING


def test_connected_brings_the_id_and_makes_the_conversation_ready() -> None:
    conversation = registering()
    inbound = conversation.receive([status(CONNECTED, "id-1", "welcome")])
    assert inbound == Inbound(connection_id="id-1")
    assert conversation.connection_id == "id-1"
    assert conversation.phase is Phase.READY
    assert conversation.established


def test_a_heartbeat_carries_the_gateways_id_and_whole_unix_seconds() -> None:
    data = ready().heartbeat(1_700_000_000.9)
    assert ConnectionMessage.FromString(data) == ConnectionMessage(
        heartbeat=Heartbeat(timestamp=1_700_000_000, connection_id="id-1")
    )


def test_the_goodbye_is_disconnected_with_the_id() -> None:
    conversation = ready()
    data = conversation.disconnect()
    assert ConnectionMessage.FromString(data) == ConnectionMessage(
        status=ConnectionStatus(status=DISCONNECTED, connection_id="id-1")
    )
    assert conversation.phase is Phase.LEAVING


def test_requests_come_out_in_the_order_they_arrived() -> None:
    inbound = ready().receive([request("r1"), request("r2"), request("r3")])
    assert ids(inbound) == ["r1", "r2", "r3"]
    assert inbound.end is None


def test_requests_still_arrive_and_heartbeats_still_leave_after_the_goodbye() -> None:
    conversation = leaving()
    assert conversation.established
    assert ids(conversation.receive([request("r1")])) == ["r1"]
    assert b"id-1" in conversation.heartbeat(0)


# Requests of our own


def response(request_id: str) -> bytes:
    fields = ForwardResponse(request_id=request_id, status_code=200)
    return ConnectionMessage(response=fields).SerializeToString()


def test_a_request_of_our_own_is_answered_once() -> None:
    conversation = ready()
    fields = ForwardRequest(request_id="r1", method_path="/a.B/C", timeout_seconds=5)
    data = conversation.request(fields)
    assert ConnectionMessage.FromString(data) == ConnectionMessage(request=fields)
    inbound = conversation.receive([request("r1"), response("r1"), response("r1")])
    assert ids(inbound) == ["r1"]
    assert [each.request_id for each in inbound.responses] == ["r1"]


def test_an_answer_to_what_nobody_asked_is_logged_and_ignored(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO, "revconn"):
        assert ready().receive([response("r1")]) == Inbound()
    assert "ignored a response" in caplog.text


@pytest.mark.parametrize("made", [registering, leaving, ended])
def test_a_request_of_our_own_leaves_while_the_connection_serves_and_at_no_other_time(made) -> None:
    with pytest.raises(ProtocolError, match="request cannot be sent while"):
        made().request(ForwardRequest(request_id="r1"))


# What both sides announced


def test_a_cancelled_request_is_told_with_the_requests_around_it() -> None:
    conversation = agreed(ready(), "cancel")
    inbound = conversation.receive([request("r1"), cancel("r0", "gave up"), request("r2")])
    assert ids(inbound) == ["r1", "r2"]
    assert list(inbound.cancelled) == ["r0"]


def test_a_request_that_is_cancelled_in_the_same_breath_is_not_heard_of() -> None:
    conversation = agreed(ready(), "cancel")
    inbound = conversation.receive([request("r1"), request("r2"), cancel("r1")])
    assert ids(inbound) == ["r2"]


def test_an_id_that_comes_again_after_its_cancel_is_another_request() -> None:
    conversation = agreed(ready(), "cancel")
    inbound = conversation.receive([cancel("r1"), request("r1")])
    assert list(inbound.cancelled) == ["r1"]
    assert ids(inbound) == ["r1"]
    inbound = conversation.receive([request("r1"), cancel("r1"), request("r1")])
    assert ids(inbound) == ["r1"]


@pytest.mark.parametrize("made", [registering, leaving])
def test_a_cancel_may_come_as_soon_and_as_late_as_a_request(made) -> None:
    assert agreed(made(), "cancel").receive([cancel()]).cancelled == {"r1": 0}


def test_a_cancel_after_the_end_is_not_heard() -> None:
    conversation = agreed(ready(), "cancel")
    assert conversation.receive([status(DISCONNECTED), cancel()]).cancelled == {}


@pytest.mark.parametrize("features", [(), ("chunks", "drain"), ("cancellation",)])
def test_a_cancel_that_was_not_announced_is_ignored_and_logged(
    features, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "revconn"):
        inbound = agreed(ready(), *features).receive([cancel(), request("r2")])
    assert inbound.cancelled == {}
    assert ids(inbound) == ["r2"]
    assert "ignored a cancel" in caplog.text


@pytest.mark.parametrize("request_id", ["", "x" * 257])
def test_a_cancel_of_no_possible_request_is_ignored(request_id) -> None:
    assert agreed(ready(), "cancel").receive([cancel(request_id)]) == Inbound()


def test_a_cancels_reason_is_no_second_log_line(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "revconn"):
        agreed(ready(), "cancel").receive([cancel("r1", "gave up\nERROR all is lost")])
    assert "gave up ERROR all is lost" in caplog.text


def test_a_gateways_patience_shortens_ours() -> None:
    conversation = ready(liveness_timeout=90.0)
    conversation.agree(Terms(30.0, 90.0, 4 << 20).met_with([("revconn-heartbeat-timeout", "40")]))
    conversation.heartbeat_left(1000.0)
    assert not conversation.may_be_forgotten(1030.0)
    assert conversation.may_be_forgotten(1030.1)


# What may not be sent


@pytest.mark.parametrize("made", [registering, ready, leaving, ended])
def test_a_second_registration_is_refused(made) -> None:
    with pytest.raises(ProtocolError, match="register cannot be sent while"):
        made().register("key", ["echo.Echo"])


@pytest.mark.parametrize("made", [lambda: Conversation(liveness_timeout=None), registering, ended])
def test_a_heartbeat_outside_an_established_connection_is_refused(made) -> None:
    with pytest.raises(ProtocolError, match="heartbeat cannot be sent while"):
        made().heartbeat(0)


@pytest.mark.parametrize("made", [registering, leaving, ended])
def test_a_goodbye_is_said_once_and_only_by_a_ready_connection(made) -> None:
    with pytest.raises(ProtocolError, match="disconnect cannot be sent while"):
        made().disconnect()


def test_a_registration_that_cannot_be_encoded_leaves_the_conversation_unopened() -> None:
    conversation = Conversation(liveness_timeout=None)
    with pytest.raises(ValueError, match="."):
        conversation.register("key \udcff", [])
    assert conversation.phase is Phase.OPENED


def test_nothing_is_heard_after_the_end() -> None:
    conversation = ended()
    assert conversation.receive([request(), status(CONNECTED, "id-2"), b"\xff"]) == Inbound()
    conversation.end()
    assert conversation.phase is Phase.ENDED


def test_the_api_key_is_never_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "revconn"):
        conversation = Conversation(liveness_timeout=None)
        conversation.register("secret-key", ["echo.Echo"])
        conversation.receive([status(CONNECTED, "id-1"), status(DISCONNECTED)])
    assert caplog.records
    assert "secret-key" not in caplog.text


def test_what_a_gateway_echoes_of_the_api_key_is_hidden(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "revconn"):
        for kind in (DISCONNECTED, ERROR):
            conversation = Conversation(liveness_timeout=None)
            conversation.register("secret-key", ["echo.Echo"])
            agreed(conversation, "cancel")
            said = [cancel("r1", "with secret-key"), status(kind, message="no secret-key here")]
            assert "'no *** here'" in str(conversation.receive(said).end)
        conversation = Conversation(liveness_timeout=None)
        conversation.register("secret-key", ["echo.Echo"])
        conversation.receive([status(CONNECTED, "id-1"), status(ERROR, message="secret-key")])
    assert "with ***" in caplog.text
    assert "reported an error: '***'" in caplog.text
    assert "secret-key" not in caplog.text


def test_what_a_gateway_repeats_is_not_logged_each_time(caplog: pytest.LogCaptureFixture) -> None:
    conversation = agreed(ready(), "cancel")
    noise = [
        b"",
        ConnectionMessage(heartbeat=Heartbeat()).SerializeToString(),
        request(""),
        request("x" * 1000),
        response("nobody asked"),
        status(ERROR, message="once more"),
        status(77),
        status(CONNECTED, "id-1"),
        cancel(""),
    ]
    with caplog.at_level(logging.INFO, "revconn"):
        for now in range(200):
            conversation.receive(noise, float(now))
    assert len(caplog.records) <= 6 * 3
    assert "once more' (60 times since the last such line)" in caplog.text


# Time


def test_silence_is_counted_from_the_registration_and_then_from_each_heartbeat() -> None:
    conversation = ready(liveness_timeout=90.0)
    assert conversation.longest_silence(now=1e9) == 0.0, "nothing left yet"
    conversation.heartbeat_left(1000.0)
    assert conversation.longest_silence(now=1060.0) == 60.0
    conversation.heartbeat_left(1070.0)
    assert conversation.longest_silence(now=1075.0) == 70.0


def test_a_gap_longer_than_the_liveness_timeout_may_have_been_noticed() -> None:
    conversation = ready(liveness_timeout=90.0)
    conversation.heartbeat_left(1000.0)
    assert not conversation.may_be_forgotten(1090.0)
    assert conversation.may_be_forgotten(1090.1)


def test_a_late_heartbeat_does_not_undo_the_gap_that_it_ends() -> None:
    conversation = ready(liveness_timeout=90.0)
    conversation.heartbeat_left(1000.0)
    conversation.heartbeat_left(1600.0)
    assert conversation.may_be_forgotten(1601.0)


def test_without_a_liveness_timeout_nothing_counts_as_forgotten() -> None:
    conversation = ready(liveness_timeout=None)
    conversation.heartbeat_left(0.0)
    assert not conversation.may_be_forgotten(1e9)


@pytest.mark.parametrize("made", [registering, ended])
def test_only_an_established_connection_can_be_forgotten(made) -> None:
    conversation = made()
    conversation.heartbeat_left(0.0)
    assert not conversation.may_be_forgotten(1e9)


def test_calls_that_a_gateway_never_answers_are_not_remembered_for_ever(monkeypatch) -> None:
    monkeypatch.setattr("revconn.core.protocol._MOST_ASKED", 2)
    conversation = ready()
    for request_id in ("r1", "r2", "r3"):
        conversation.request(ForwardRequest(request_id=request_id))
    answers = [response(each) for each in ("r1", "r3", "r3", "r2")]
    heard = [each.request_id for each in conversation.receive(answers).responses]
    assert heard == ["r3", "r2"]
