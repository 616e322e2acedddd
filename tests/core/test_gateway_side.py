"""A gateway's side of a connection: what it hears, what it may say, and when."""

from __future__ import annotations

import logging
from typing import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from revconn._proto.registry_pb2 import (
    CancelRequest,
    ConnectionMessage,
    ConnectionRegister,
    ConnectionStatus,
    EventMessage,
    ForwardRequest,
    ForwardResponse,
    Heartbeat,
    ResponseStreamInfo,
    StreamFrame,
    SubscriptionRequest,
)
from revconn.core.connection import CANCEL, STREAMS, Phase
from revconn.core.gateway_side import (
    End,
    FromConnector,
    GatewayConnection,
    GatewayLiveness,
    Goodbye,
)
from revconn.core.requests import LargeAlone
from revconn.core.rope import Rope
from revconn.core.status import ProtocolError, StatusCode
from tests.support.connections import DISCONNECTED, ERROR, cancel, request, status

LIMIT = 1000
REGISTER = ConnectionMessage(register=ConnectionRegister(api_key="key", services=["a.B"]))


def opened(*features: str) -> GatewayConnection:
    liveness = GatewayLiveness(0.0, 10.0, 120.0)
    return GatewayConnection(liveness, features=frozenset(features), max_message_bytes=LIMIT)


def registering(*features: str) -> GatewayConnection:
    connection = opened(*features)
    connection.receive([REGISTER.SerializeToString()], 0.0)
    return connection


def ready(*features: str) -> GatewayConnection:
    connection = registering(*features)
    connection.accept("id-1", 0.0)
    return connection


def leaving(*features: str) -> GatewayConnection:
    connection = ready(*features)
    connection.receive([status(DISCONNECTED)], 0.0)
    return connection


def ended() -> GatewayConnection:
    connection = ready()
    connection.end()
    return connection


EVERY_PHASE: list[Callable[[], GatewayConnection]] = [opened, registering, ready, leaving, ended]


def but(*allowed: Callable[..., GatewayConnection]) -> list[Callable[[], GatewayConnection]]:
    return [made for made in EVERY_PHASE if made not in allowed]


def response(request_id: str = "r1", payload: bytes = b"") -> bytes:
    fields = ForwardResponse(request_id=request_id, status_code=200, payload=payload)
    return ConnectionMessage(response=fields).SerializeToString()


def heartbeat(connection_id: str = "id-1") -> bytes:
    return ConnectionMessage(heartbeat=Heartbeat(connection_id=connection_id)).SerializeToString()


def answered(inbound: FromConnector) -> list[str]:
    return [each.request_id for each, *_ in inbound.responses]


def nothing(inbound: FromConnector) -> bool:
    return not any(getattr(inbound, name) for name in FromConnector.__slots__)


# The handshake


def test_the_first_message_says_who_registers_what() -> None:
    connection = opened()
    inbound = connection.receive([REGISTER.SerializeToString()], 1.0)
    assert inbound.registration == REGISTER.register
    assert inbound.end is None
    assert connection.phase is Phase.REGISTERING


def test_who_is_accepted_is_told_its_id() -> None:
    connection = registering()
    said = ConnectionMessage.FromString(connection.accept("id-1", 5.0))
    assert said == ConnectionMessage(status=ConnectionStatus(connection_id="id-1"))
    assert connection.phase is Phase.READY
    assert connection.connection_id == "id-1"
    assert connection.last_heartbeat == 5.0


@pytest.mark.parametrize(
    ("first", "said"),
    [
        (heartbeat(), "the first message must be register, not heartbeat"),
        (b"", "the first message must be register, not an unset one"),
        (b"\xfa\x7f\x00", "the first message must be register, not an unset one"),
        (b"\xff\xff", "bytes that are no ConnectionMessage (received 2 bytes)"),
    ],
)
def test_any_other_first_message_ends_the_connection(first: bytes, said: str) -> None:
    connection = opened()
    assert connection.receive([first], 0.0).end == End(StatusCode.INVALID_ARGUMENT, said)
    assert connection.phase is Phase.ENDED


def test_a_registration_that_comes_too_late_ends_the_connection() -> None:
    connection = opened()
    end = connection.receive([REGISTER.SerializeToString()], 10.1).end
    said = "no register message came within 10 seconds"
    assert end == End(StatusCode.DEADLINE_EXCEEDED, said)
    assert connection.phase is Phase.ENDED


def test_what_comes_behind_the_registration_is_heard_once_it_was_accepted() -> None:
    connection = opened()
    inbound = connection.receive([REGISTER.SerializeToString(), response("r1")], 0.0)
    assert inbound.registration is not None
    assert answered(inbound) == []
    assert nothing(connection.receive([response("r2")], 0.0))
    connection.accept("id-1", 0.0)
    assert answered(connection.receive([response("r3")], 0.0)) == ["r1", "r2", "r3"]
    assert nothing(connection.receive([], 0.0))


def test_nothing_that_came_behind_a_refused_registration_is_ever_heard() -> None:
    connection = opened()
    connection.receive([REGISTER.SerializeToString(), response("r1")], 0.0)
    connection.end()
    assert nothing(connection.receive([response("r2")], 0.0))


# What a connector says


def test_responses_come_out_in_the_order_in_which_they_came() -> None:
    inbound = ready().receive([response("r1"), heartbeat(), response("r2"), response("r1")], 0.0)
    assert answered(inbound) == ["r1", "r2", "r1"]
    assert inbound.ignored == []


def test_what_others_act_on_keeps_its_order() -> None:
    said = [
        ("request", ConnectionMessage(request=ForwardRequest(request_id="r1"))),
        ("cancel", ConnectionMessage(cancel=CancelRequest(request_id="r1"))),
        ("subscription", ConnectionMessage(subscription=SubscriptionRequest())),
        ("event", ConnectionMessage(event=EventMessage(event_type="e"))),
    ]
    inbound = ready(CANCEL).receive([each.SerializeToString() for _, each in said], 0.0)
    assert [(kind, message) for kind, message, _ in inbound.rest] == said


def test_frames_of_streams_are_heard_of_who_knows_streams_in_their_order_with_the_rest() -> None:
    frame = ConnectionMessage(stream=StreamFrame(stream_id=1, messages=[b"x"]))
    call = ConnectionMessage(request=ForwardRequest(request_id="r1"))
    batch = [each.SerializeToString() for each in (frame, call, frame)]
    inbound = ready(STREAMS).receive(batch, 0.0)
    assert [message for _, message, _ in inbound.rest] == [frame.stream, call, frame.stream]
    inbound = ready().receive(batch, 0.0)
    assert [message for _, message, _ in inbound.rest] == [call]
    assert len(inbound.ignored) == 2


def test_a_message_may_come_in_pieces() -> None:
    frame = ConnectionMessage(stream=StreamFrame(stream_id=1, messages=[b"x"]))
    data = frame.SerializeToString()
    inbound = ready(STREAMS).receive([Rope([data[:3], data[3:]])], 0.0)
    assert [message for _, message, _ in inbound.rest] == [frame.stream]


def test_before_the_first_heartbeat_nothing_is_like_the_last_one() -> None:
    opened = GatewayConnection(
        GatewayLiveness(0.0, 10.0, 120.0), features=frozenset(), max_message_bytes=LIMIT
    )
    assert not opened.beat(b"", 1.0)
    assert not ready().beat(b"", 1.0)


def test_a_heartbeat_with_its_id_is_a_sign_of_life() -> None:
    connection = ready()
    assert nothing(connection.receive([heartbeat()], 60.0))
    assert connection.last_heartbeat == 60.0
    assert connection.due() == 180.0


def timed(timestamp: int, connection_id: str = "id-1") -> bytes:
    beat = Heartbeat(timestamp=timestamp, connection_id=connection_id)
    return ConnectionMessage(heartbeat=beat).SerializeToString()


def test_a_heartbeat_like_the_last_one_counts_without_being_taken_apart() -> None:
    connection = ready()
    assert not connection.beat(timed(1_700_000_000), 20.0)  # the first is not like any
    connection.receive([timed(1_700_000_000)], 20.0)
    assert connection.beat(timed(1_700_000_005), 40.0)
    assert connection.last_heartbeat == 40.0


@pytest.mark.parametrize(
    "other",
    [
        timed(1_700_000_005, "id-2"),
        timed(5),
        heartbeat(),
        b"",
        b"\x1a" + timed(1_700_000_005)[1:],
    ],
    ids=["of another", "shorter", "without the time", "nothing", "no heartbeat"],
)
def test_what_is_no_heartbeat_like_the_last_one_is_none(other: bytes) -> None:
    connection = ready()
    connection.receive([timed(1_700_000_000)], 20.0)
    assert not connection.beat(other, 40.0)
    assert connection.last_heartbeat == 20.0


def test_after_the_end_no_heartbeat_counts() -> None:
    connection = ready()
    connection.receive([timed(1_700_000_000)], 20.0)
    connection.end()
    assert not connection.beat(timed(1_700_000_005), 40.0)


def test_a_heartbeat_behind_something_else_is_always_taken_apart() -> None:
    connection = ready()
    strange = timed(1_700_000_000)
    strange = bytes((0x78, len(strange))) + strange  # a field that nobody knows
    assert nothing(connection.receive([strange], 20.0))
    assert connection.last_heartbeat == 20.0
    assert not connection.beat(strange, 40.0)


@pytest.mark.parametrize("foreign", ["", "echo.Echo", "x" * 100])
def test_a_heartbeat_with_a_foreign_id_is_none(foreign: str) -> None:
    connection = ready()
    inbound = connection.receive([heartbeat(foreign)], 60.0)
    said = ("a heartbeat whose id is not its own", f" but {foreign[:64]!r}")
    assert inbound.ignored == [said]
    assert connection.foreign_heartbeat == foreign[:64]
    assert connection.last_heartbeat == 0.0


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (REGISTER.SerializeToString(), ("register", "")),
        (status(ERROR, message="oh\n"), ("status ERROR", r": 'oh\n'")),
        (status(77), ("status of unknown type", ": ''")),
        (status(0), ("status CONNECTED", ": ''")),
        (cancel(), ("cancel", "")),
        (request(""), ("a request with no id or an endless one", "")),
        (request("x" * 257), ("a request with no id or an endless one", "")),
        (b"\xfa\x7f\x00", ("a message of unknown type", "")),
        (b"", ("a message of unknown type", "")),
    ],
)
def test_what_is_said_in_vain_is_named(data: bytes, what: tuple[str, str]) -> None:
    inbound = ready().receive([data, response()], 0.0)
    assert inbound.ignored == [what]
    assert inbound.rest == []
    assert answered(inbound) == ["r1"]


@pytest.mark.parametrize("request_id", ["", "x" * 257])
def test_a_cancel_of_no_possible_request_is_named_too(request_id: str) -> None:
    inbound = ready(CANCEL).receive([cancel(request_id)], 0.0)
    assert inbound.rest == []
    assert inbound.ignored == [("a cancel with no id or an endless one", "")]


@pytest.mark.parametrize(
    ("words", "reason"), [("", ""), ("restarting\n", r"'restarting\n'"), ("x" * 900, None)]
)
def test_a_goodbye_is_heard_once_with_its_words(words: str, reason: str | None) -> None:
    connection = ready()
    goodbye = [status(DISCONNECTED, message=words)]
    inbound = connection.receive(goodbye, 0.0)
    assert inbound.goodbye == Goodbye("it left", repr("x" * 200) if reason is None else reason)
    assert connection.phase is Phase.LEAVING
    assert nothing(connection.receive(goodbye, 0.0))


def test_the_end_of_its_half_is_a_goodbye_too_and_no_second_one() -> None:
    connection = ready()
    said = "it closed its side of the stream"
    assert connection.half_close(0.0).goodbye == Goodbye(said, said)
    assert connection.phase is Phase.LEAVING
    assert nothing(connection.half_close(0.0))
    assert nothing(leaving().half_close(0.0))


def test_the_end_of_its_half_before_it_registered_ends_the_connection() -> None:
    connection = opened()
    said = "the stream ended before a register message"
    assert connection.half_close(0.0).end == End(StatusCode.INVALID_ARGUMENT, said)
    assert connection.phase is Phase.ENDED


def test_who_leaves_is_still_heard() -> None:
    inbound = leaving().receive([response("r1"), request("r2")], 0.0)
    assert answered(inbound) == ["r1"]
    assert [kind for kind, *_ in inbound.rest] == ["request"]


# What ends it


def test_garbage_ends_the_connection_and_what_came_before_it_counts() -> None:
    connection = ready()
    inbound = connection.receive([response("r1"), b"\xff\xff", response("r2")], 0.0)
    assert answered(inbound) == ["r1"]
    said = "bytes that are no ConnectionMessage (received 2 bytes)"
    assert inbound.end == End(StatusCode.INVALID_ARGUMENT, said)
    assert connection.phase is Phase.ENDED
    assert connection.due() is None


@pytest.mark.parametrize("made", [opened, ready, leaving])
def test_a_message_over_the_limit_ends_the_connection_and_one_at_it_does_not(made) -> None:
    large = response("r2", bytes(LIMIT))
    connection = made()
    inbound = connection.receive([large], 0.0)
    assert inbound.too_large == large
    assert inbound.end is None
    assert connection.phase is Phase.ENDED
    size = LIMIT - len(response("r1", bytes(LIMIT - 100))) + LIMIT - 100
    fitting = response("r1", bytes(size))
    assert len(fitting) == LIMIT
    assert answered(ready().receive([fitting], 0.0)) == ["r1"]


def test_silence_ends_a_connection_but_what_arrives_until_that_is_done_counts() -> None:
    connection = ready()
    assert connection.tick(119.0) is None
    said = "no heartbeat for 120 seconds"
    assert connection.tick(120.0) == End(StatusCode.UNAVAILABLE, said)
    assert connection.due() is None
    assert answered(connection.receive([response("r1")], 120.0)) == ["r1"]


def test_silence_instead_of_a_registration_ends_a_connection() -> None:
    said = "no register message came within 10 seconds"
    assert opened().tick(10.0) == End(StatusCode.DEADLINE_EXCEEDED, said)


@given(st.lists(st.binary(max_size=40)))
@pytest.mark.filterwarnings("ignore:Unexpected end-group tag")  # old protobuf's word for garbage
def test_no_bytes_whatsoever_raise(batch: list[bytes]) -> None:
    for connection in (opened(), registering(), ready(), leaving(), ended()):
        ended_before = connection.phase is Phase.ENDED
        inbound = connection.receive(batch, 0.0)
        if not ended_before:
            assert (inbound.end is None) == (connection.phase is not Phase.ENDED)


# What a gateway says


@pytest.mark.parametrize("made", [ready, leaving])
def test_a_response_to_a_connectors_own_call_may_be_sent_until_the_end(made) -> None:
    fields = ForwardResponse(request_id="r1", status_code=200)
    assert ConnectionMessage.FromString(made().respond(fields)).response == fields


@pytest.mark.parametrize("made", [ready, leaving])
def test_a_cancel_is_for_connectors_that_know_it(made) -> None:
    said = made(CANCEL).cancel("r1", "gave up")
    assert said is not None
    fields = CancelRequest(request_id="r1", reason="gave up")
    assert ConnectionMessage.FromString(said).cancel == fields
    assert made().cancel("r1", "gave up") is None


def test_an_error_is_a_status_with_the_connections_id() -> None:
    fields = ConnectionStatus(connection_id="id-1", status=ERROR, message="too many")
    assert ConnectionMessage.FromString(ready().report_error("too many")).status == fields


@pytest.mark.parametrize("made", [ready, leaving])
def test_who_is_sent_away_is_told_why_and_not_heard_any_more(made) -> None:
    connection = made()
    fields = ConnectionStatus(connection_id="id-1", status=DISCONNECTED, message="stopping")
    assert ConnectionMessage.FromString(connection.dismiss("stopping")).status == fields
    assert connection.phase is Phase.ENDED
    assert nothing(connection.receive([response()], 0.0))
    assert connection.due() is None


@pytest.mark.parametrize("made", but(ready, leaving))
def test_nothing_else_is_said_before_the_handshake_or_after_the_end(made) -> None:
    connection = made()
    with pytest.raises(ProtocolError, match="response cannot be sent while"):
        connection.respond(ForwardResponse())
    assert connection.cancel("r1", "") is None
    with pytest.raises(ProtocolError, match="ERROR cannot be sent while"):
        connection.report_error("")
    with pytest.raises(ProtocolError, match="dismiss cannot be sent while"):
        connection.dismiss("")


@pytest.mark.parametrize("made", but(registering))
def test_nobody_is_accepted_but_who_has_just_registered(made) -> None:
    with pytest.raises(ProtocolError, match="accept cannot be sent while"):
        made().accept("id-2", 0.0)


def test_the_end_may_come_twice() -> None:
    connection = ended()
    connection.end()
    assert connection.phase is Phase.ENDED


def test_heartbeats_are_worth_a_line_for_whoever_debugs(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "revconn"):
        ready().receive([heartbeat()], 0.0)
    assert "connection id-1: heartbeat" in caplog.text


def test_the_end_of_its_half_comes_after_what_came_behind_the_registration() -> None:
    connection = opened()
    connection.receive([REGISTER.SerializeToString(), response("r1"), heartbeat()], 0.0)
    connection.accept("id-1", 1.0)
    inbound = connection.half_close(7.0)
    assert answered(inbound) == ["r1"]
    assert inbound.goodbye is not None
    assert connection.last_heartbeat == 7.0


def test_the_payload_of_a_large_response_stands_beside_it(monkeypatch) -> None:
    monkeypatch.setattr("revconn.core.gateway_side._LARGE", 10)
    payload = bytes(20)
    message = ConnectionMessage(response=ForwardResponse(request_id="r1", payload=payload))
    data = message.SerializeToString()
    ((response, came, large),) = ready().receive([data], 0.0).responses
    assert (response.request_id, response.payload) == ("r1", b"")
    assert (came, large) == (data, payload)


def test_a_large_chunk_is_left_as_it_is(monkeypatch) -> None:
    monkeypatch.setattr("revconn.core.gateway_side._LARGE", 10)
    info = ResponseStreamInfo(is_streamed=True)
    chunk = ForwardResponse(request_id="r1", payload=bytes(20), response_stream_info=info)
    data = ConnectionMessage(response=chunk).SerializeToString()
    ((response, _, large),) = ready().receive([data], 0.0).responses
    assert (response, large) == (chunk, None)


def test_a_large_message_of_a_stream_is_beside_its_frame() -> None:
    frame = ConnectionMessage(stream=StreamFrame(stream_id=1, messages=[b"x" * 100_000]))
    several = ConnectionMessage(stream=StreamFrame(stream_id=1, messages=[b"x" * 100_000] * 2))
    batch = [frame.SerializeToString(), several.SerializeToString()]
    liveness = GatewayLiveness(0.0, 10.0, 120.0)
    features = frozenset({STREAMS})
    connection = GatewayConnection(liveness, features=features, max_message_bytes=1 << 20)
    connection.receive([REGISTER.SerializeToString()], 0.0)
    connection.accept("id-1", 0.0)
    (kind, apart, large), (_, whole, nothing) = connection.receive(batch, 0.0).rest
    assert (kind, apart) == ("stream", LargeAlone(1, None))
    assert bytes(large) == b"x" * 100_000
    assert (whole, nothing) == (several.stream, None)
