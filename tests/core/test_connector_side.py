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
    StreamFrame,
)
from revconn.core.connection import STREAMS, Phase, Terms
from revconn.core.connector_side import ConnectorConnection, Due
from revconn.core.liveness import Prober, Verdict
from revconn.core.requests import LargeAlone
from revconn.core.status import ProtocolError
from tests.support.connections import (
    CONNECTED,
    DISCONNECTED,
    ERROR,
    TOKEN,
    Connector,
    agreed,
    cancel,
    ended,
    ids,
    leaving,
    opened,
    ready,
    registering,
    request,
    said,
    status,
)

# The way it should go


def test_the_first_message_registers_the_services_with_the_key_and_asks_for_no_id() -> None:
    connection = opened(None)
    data = connection.register("key", ["echo.Echo", "chat.Chat"], 0.0)
    assert ConnectionMessage.FromString(data) == ConnectionMessage(
        register=ConnectionRegister(api_key="key", services=["echo.Echo", "chat.Chat"])
    )
    assert connection.phase is Phase.REGISTERING


def test_connected_brings_the_id_and_makes_the_connection_ready() -> None:
    connection = registering()
    inbound = connection.receive([status(CONNECTED, "id-1", "welcome")])
    assert said(inbound) == {"connection_id": "id-1"}
    assert connection.connection_id == "id-1"
    assert connection.phase is Phase.READY
    assert connection.established


def test_a_heartbeat_carries_the_gateways_id_and_whole_unix_seconds() -> None:
    data = ready().heartbeat(1_700_000_000.9)
    assert ConnectionMessage.FromString(data) == ConnectionMessage(
        heartbeat=Heartbeat(timestamp=1_700_000_000, connection_id="id-1")
    )


def test_the_goodbye_is_disconnected_with_the_id() -> None:
    connection = ready()
    data = connection.disconnect()
    assert ConnectionMessage.FromString(data) == ConnectionMessage(
        status=ConnectionStatus(status=DISCONNECTED, connection_id="id-1")
    )
    assert connection.phase is Phase.LEAVING


def test_requests_come_out_in_the_order_they_arrived() -> None:
    inbound = ready().receive([request("r1"), request("r2"), request("r3")])
    assert ids(inbound) == ["r1", "r2", "r3"]
    assert inbound.end is None


def test_of_a_message_that_holds_two_kinds_the_last_one_counts_as_protobuf_has_it() -> None:
    connection = agreed(ready(), "cancel")
    inbound = connection.receive([cancel("r0") + request("r1"), request("r2") + cancel("r1")])
    assert ids(inbound) == []
    assert list(inbound.cancelled) == ["r1"]
    assert ids(connection.receive([status(CONNECTED, "id-1") + request("r3")])) == ["r3"]
    assert ids(connection.receive([cancel("r0") + request("x" * 257)])) == []


def test_requests_still_arrive_and_heartbeats_still_leave_after_the_goodbye() -> None:
    connection = leaving()
    assert connection.established
    assert ids(connection.receive([request("r1")])) == ["r1"]
    assert b"id-1" in connection.heartbeat(0)


# Requests of our own


def response(request_id: str) -> bytes:
    fields = ForwardResponse(request_id=request_id, status_code=200)
    return ConnectionMessage(response=fields).SerializeToString()


def test_a_request_of_our_own_is_answered_once() -> None:
    connection = ready()
    fields = ForwardRequest(request_id="r1", method_path="/a.B/C", timeout_seconds=5)
    data = connection.request(fields)
    assert ConnectionMessage.FromString(data) == ConnectionMessage(request=fields)
    inbound = connection.receive([request("r1"), response("r1"), response("r1")])
    assert ids(inbound) == ["r1"]
    assert [each.request_id for each in inbound.responses] == ["r1"]


def test_an_answer_to_what_nobody_asked_is_logged_and_ignored(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO, "revconn"):
        assert said(ready().receive([response("r1")])) == {}
    assert "ignored a response" in caplog.text


@pytest.mark.parametrize("made", [registering, leaving, ended])
def test_a_request_of_our_own_leaves_while_the_connection_serves_and_at_no_other_time(made) -> None:
    with pytest.raises(ProtocolError, match="request cannot be sent while"):
        made().request(ForwardRequest(request_id="r1"))


# What both sides announced


def test_a_cancelled_request_is_told_with_the_requests_around_it() -> None:
    connection = agreed(ready(), "cancel")
    inbound = connection.receive([request("r1"), cancel("r0", "gave up"), request("r2")])
    assert ids(inbound) == ["r1", "r2"]
    assert list(inbound.cancelled) == ["r0"]


def test_a_request_that_is_cancelled_in_the_same_breath_is_not_heard_of() -> None:
    connection = agreed(ready(), "cancel")
    inbound = connection.receive([request("r1"), request("r2"), cancel("r1")])
    assert ids(inbound) == ["r2"]


def test_an_id_that_comes_again_after_its_cancel_is_another_request() -> None:
    connection = agreed(ready(), "cancel")
    inbound = connection.receive([cancel("r1"), request("r1")])
    assert list(inbound.cancelled) == ["r1"]
    assert ids(inbound) == ["r1"]
    inbound = connection.receive([request("r1"), cancel("r1"), request("r1")])
    assert ids(inbound) == ["r1"]


@pytest.mark.parametrize("made", [registering, leaving])
def test_a_cancel_may_come_as_soon_and_as_late_as_a_request(made) -> None:
    assert agreed(made(), "cancel").receive([cancel()]).cancelled == {"r1": 0}


def test_a_cancel_after_the_end_is_not_heard() -> None:
    connection = agreed(ready(), "cancel")
    assert connection.receive([status(DISCONNECTED), cancel()]).cancelled == {}


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
    assert said(agreed(ready(), "cancel").receive([cancel(request_id)])) == {}


def test_a_cancels_reason_is_no_second_log_line(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "revconn"):
        agreed(ready(), "cancel").receive([cancel("r1", "gave up\nERROR all is lost")])
    assert "gave up ERROR all is lost" in caplog.text


# What may not be sent


@pytest.mark.parametrize("made", [registering, ready, leaving, ended])
def test_a_second_registration_is_refused(made) -> None:
    with pytest.raises(ProtocolError, match="register cannot be sent while"):
        made().register("key", ["echo.Echo"], 0.0)


@pytest.mark.parametrize("made", [opened, registering, ended])
def test_a_heartbeat_outside_an_established_connection_is_refused(made) -> None:
    with pytest.raises(ProtocolError, match="heartbeat cannot be sent while"):
        made().heartbeat(0)


@pytest.mark.parametrize("made", [registering, leaving, ended])
def test_a_goodbye_is_said_once_and_only_by_a_ready_connection(made) -> None:
    with pytest.raises(ProtocolError, match="disconnect cannot be sent while"):
        made().disconnect()


def test_a_registration_that_cannot_be_encoded_leaves_the_connection_unopened() -> None:
    connection = opened(None)
    with pytest.raises(ValueError, match="."):
        connection.register("key \udcff", [], 0.0)
    assert connection.phase is Phase.OPENED


def test_nothing_is_heard_after_the_end() -> None:
    connection = ended()
    assert said(connection.receive([request(), status(CONNECTED, "id-2"), b"\xff"])) == {}
    connection.end()
    assert connection.phase is Phase.ENDED


def test_the_api_key_is_never_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "revconn"):
        connection = opened(None)
        connection.register("secret-key", ["echo.Echo"], 0.0)
        connection.receive([status(CONNECTED, "id-1"), status(DISCONNECTED)])
    assert caplog.records
    assert "secret-key" not in caplog.text


def test_what_a_gateway_echoes_of_the_api_key_is_hidden(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "revconn"):
        for kind in (DISCONNECTED, ERROR):
            connection = opened(None)
            connection.register("secret-key", ["echo.Echo"], 0.0)
            agreed(connection, "cancel")
            words = [cancel("r1", "with secret-key"), status(kind, message="no secret-key here")]
            assert "'no *** here'" in str(connection.receive(words).end)
        connection = opened(None)
        connection.register("secret-key", ["echo.Echo"], 0.0)
        connection.receive([status(CONNECTED, "id-1"), status(ERROR, message="secret-key")])
    assert "with ***" in caplog.text
    assert "reported an error: '***'" in caplog.text
    assert "secret-key" not in caplog.text


def test_what_a_gateway_repeats_is_not_logged_each_time(caplog: pytest.LogCaptureFixture) -> None:
    connection = agreed(ready(), "cancel")
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
            connection.receive(noise, float(now))
    assert len(caplog.records) <= 6 * 3
    assert "once more' (60 times since the last such line)" in caplog.text


def test_probes_that_a_gateway_never_answers_are_not_either(monkeypatch) -> None:
    monkeypatch.setattr("revconn.core.connector_side._MOST_ASKED", 2)
    connection = probing()
    probes = all_copies(connection)
    assert said(connection.receive([answer(probes[0], TOKEN)], 15.0)) == {}
    assert connection.receive([answer(probes[1], TOKEN)], 15.0).probed


def test_calls_that_a_gateway_never_answers_are_not_remembered_for_ever(monkeypatch) -> None:
    monkeypatch.setattr("revconn.core.connector_side._MOST_ASKED", 2)
    connection = ready()
    for request_id in ("r1", "r2", "r3"):
        connection.request(ForwardRequest(request_id=request_id))
    answers = [response(each) for each in ("r1", "r3", "r3", "r2")]
    heard = [each.request_id for each in connection.receive(answers).responses]
    assert heard == ["r3", "r2"]


# Probes


def probing() -> Connector:
    return ready(prober=Prober(["a.A"], 60.0, 20.0, TOKEN.encode()))


def probe(request_id: str) -> bytes:
    fields = ForwardRequest(request_id=request_id, method_path="/a.A/RevconnProbe")
    return ConnectionMessage(request=fields).SerializeToString()


def answer(request_id: str, payload: str, status_code: int = 200, error: str = "") -> bytes:
    fields = ForwardResponse(
        request_id=request_id,
        status_code=status_code,
        payload=payload.encode(),
        error_message=error,
    )
    return ConnectionMessage(response=fields).SerializeToString()


def asked(data: bytes | None) -> str:
    assert data is not None
    return ConnectionMessage.FromString(data).request.request_id


def all_copies(connection: Connector) -> list[str]:
    """A probe and its copies, which stay unanswered for 14 seconds."""
    ticks = [connection.tick(float(now), 0.0) for now in range(15)]
    return [asked(tick.probe) for tick in ticks if tick.probe is not None]


@pytest.mark.parametrize("made", [registering, ready, leaving])
def test_any_connectors_probe_is_answered_with_the_token_and_is_for_no_handler(made) -> None:
    inbound = made().receive([request("r1"), probe("another's"), request("r2")])
    assert ids(inbound) == ["r1", "r2"]
    fields = ForwardResponse(request_id="another's", status_code=200, payload=TOKEN.encode())
    (data,) = inbound.answers
    assert ConnectionMessage.FromString(data).response == fields


def test_a_probe_that_nobody_can_answer_is_ignored() -> None:
    assert said(ready().receive([probe("")])) == {}


def test_a_probe_that_comes_back_proves_the_route_and_tells_how_long_it_took() -> None:
    connection = probing()
    request_id = asked(connection.tick(0.0, 0.0).probe)
    assert connection.receive([probe(request_id)], 0.1).answers
    (probed,) = connection.receive([answer(request_id, TOKEN)], 0.25).probed
    assert (probed.verdict, probed.service, probed.round_trip) == (Verdict.ALIVE, "a.A", 0.25)


def test_a_probe_that_another_replica_answered_is_sent_again_at_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    connection = probing()
    request_id = asked(connection.tick(0.0, 0.0).probe)
    with caplog.at_level(logging.DEBUG, "revconn"):
        inbound = connection.receive([answer(request_id, "1" * 32)], 0.1)
    assert inbound.probed == []
    (again,) = inbound.probes
    assert asked(again) != request_id
    assert "a probe of a.A came to nothing: 200, answered by others" in caplog.text


def test_a_route_that_is_gone_is_told_once_with_the_gateways_masked_words() -> None:
    connection = opened()
    prober = Prober(["a.A"], 60.0, 20.0, TOKEN.encode())
    connection.register("secret-key", ["a.A"], 0.0, prober)
    connection.receive([status(CONNECTED, "id-1")])
    words = "No reverse connection found for\nsecret-key"
    for now in (0.0, 1.0):
        request_id = asked(connection.tick(now, 0.0).probe)
        inbound = connection.receive([answer(request_id, "", 500, words)], now)
    (probed,) = inbound.probed
    assert probed.verdict is Verdict.LOST
    assert probed.reason == (
        "the gateway no longer routes requests to this connection (a.A): 500,"
        " No reverse connection found for ***"
    )
    assert inbound.probes == []
    assert connection.tick(1000.0, 0.0).probe is None


def test_requests_show_that_the_gateway_works_whatever_became_of_a_probe() -> None:
    connection = probing()
    all_copies(connection)
    connection.receive([request()], 15.0)
    for now in (17.0, 20.0, 21.5):
        assert connection.tick(now, 0.0).end == ""


def test_what_comes_of_a_probe_after_the_goodbye_is_of_no_interest() -> None:
    connection = probing()
    request_id = asked(connection.tick(0.0, 0.0).probe)
    connection.disconnect()
    assert said(connection.receive([answer(request_id, TOKEN)], 1.0)) == {}
    assert connection.tick(61.0, 0.0).probe is None


# Time


def test_what_is_due_is_a_heartbeat_with_the_id() -> None:
    connection = ready()
    assert connection.tick(29.0, 7.0) == Due()
    assert connection.due() == 30.0
    heartbeat = connection.tick(30.0, 7.0).heartbeat
    assert heartbeat is not None
    fields = Heartbeat(timestamp=7, connection_id="id-1")
    assert ConnectionMessage.FromString(heartbeat).heartbeat == fields


def test_a_silence_is_an_end_that_is_due_but_what_arrives_until_then_counts() -> None:
    connection = ready()
    due = connection.tick(90.5, 0.0)
    assert "no heartbeat left this machine for 90 s" in due.end
    assert connection.due() is None
    assert ids(connection.receive([request()], 91.0)) == ["r1"]


def test_a_gateways_patience_shortens_ours() -> None:
    connection = registering()
    connection.agree(Terms(30.0, 90.0, 4 << 20).met_with([("revconn-heartbeat-timeout", "40")]))
    connection.receive([status(CONNECTED, "id-1")])
    assert connection.tick(30.0, 0.0).end == ""
    assert connection.tick(30.1, 0.0).end != ""


def test_connected_that_comes_too_late_ends_the_connection() -> None:
    connection = registering()
    inbound = connection.receive([request(), status(CONNECTED, "id-1")], 10.1)
    assert inbound.end == "no CONNECTED within 10 s"
    assert inbound.connection_id is None
    assert ids(inbound) == ["r1"]
    assert connection.phase is Phase.ENDED


def test_a_handshake_that_takes_too_long_is_an_end_that_is_due() -> None:
    connection = registering()
    assert connection.due() == 5.0
    assert connection.tick(5.0, 0.0) == Due()
    assert connection.tick(10.0, 0.0).end == "no CONNECTED within 10 s"


@pytest.mark.parametrize("made", [opened, ended])
def test_before_the_registration_and_after_the_end_nothing_is_due(made) -> None:
    connection = made()
    assert connection.due() is None
    assert connection.tick(1e9, 0.0) == Due()


# Streams


def test_frames_of_streams_are_heard_where_the_gateway_knows_streams() -> None:
    frames = [StreamFrame(stream_id=number, messages=[b"x"]) for number in (1, 2)]
    batch = [ConnectionMessage(stream=frame).SerializeToString() for frame in frames]
    inbound = agreed(ready(), STREAMS).receive([batch[0], request(), batch[1]])
    assert inbound.streams == [(frame, None) for frame in frames]
    assert ids(inbound) == ["r1"]
    assert said(ready().receive(batch)) == {}


# What is worth a line


def test_who_comes_to_log_while_another_does_leaves_the_lines_to_that_one(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = ready()
    caplog.set_level(logging.DEBUG)
    kinds = ConnectionMessage(register=ConnectionRegister()), ConnectionMessage()
    batch = [each.SerializeToString() for each in kinds]
    ConnectorConnection.receive(connection, batch, 0.0)
    waiting = len(connection._lines)
    assert waiting > 1
    emit = caplog.handler.emit
    emitted: list[logging.LogRecord] = []

    def emits(record: logging.LogRecord) -> None:
        connection.log()
        emitted.append(record)
        emit(record)

    monkeypatch.setattr(caplog.handler, "emit", emits)
    connection.log()
    assert len(emitted) == waiting
    assert not connection._lines


def test_a_large_message_of_a_stream_is_beside_its_frame() -> None:
    frame = StreamFrame(stream_id=1, messages=[b"x" * 100_000])
    several = StreamFrame(stream_id=1, messages=[b"x" * 100_000] * 2)
    batch = [ConnectionMessage(stream=each).SerializeToString() for each in (frame, several)]
    (apart, whole) = agreed(ready(), STREAMS).receive(batch).streams
    assert apart[0] == LargeAlone(1, None)
    assert apart[1] is not None
    assert bytes(apart[1]) == b"x" * 100_000
    assert whole == (several, None)
    assert said(ready().receive(batch)) == {}
