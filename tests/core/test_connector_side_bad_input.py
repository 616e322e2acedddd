"""Whatever a gateway gets wrong has an outcome, and loses nothing that came before it."""

from __future__ import annotations

import logging
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from revconn._proto.registry_pb2 import (
    ConnectionMessage,
    ConnectionRegister,
    EventMessage,
    ForwardRequest,
    ForwardResponse,
    Heartbeat,
    SubscriptionRequest,
)
from revconn.core.connection import Phase
from revconn.core.status import ProtocolError
from tests.support.connections import (
    CONNECTED,
    DISCONNECTED,
    ERROR,
    ids,
    leaving,
    opened,
    ready,
    registering,
    request,
    said,
    status,
)

LONGEST_ID = "x" * 256
ENDLESS_ID = "x" * 257
NOT_UTF8 = {
    "in a request's id": bytes.fromhex("12030a01ff"),
    "in a header": bytes.fromhex("12071a050a01ff1200"),
    "in a connection's id": bytes.fromhex("2a030a01ff"),
}


def test_a_gateway_that_speaks_first_ends_the_connection() -> None:
    connection = opened(None)
    inbound = connection.receive([status(CONNECTED, "id-1")])
    assert isinstance(inbound.end, ProtocolError)
    assert "before it was spoken to" in str(inbound.end)
    assert inbound.connection_id is None
    assert connection.phase is Phase.ENDED


@pytest.mark.parametrize("garbage", [b"\xff", b"\x12\x7f", b"GET / HTTP/1.1\r\n\r\n"])
def test_garbage_ends_the_connection_and_says_how_much_of_it_came(garbage: bytes) -> None:
    connection = ready()
    inbound = connection.receive([garbage])
    assert isinstance(inbound.end, ProtocolError)
    assert f"no ConnectionMessage (received {len(garbage)} bytes)" in str(inbound.end)
    assert connection.phase is Phase.ENDED


@pytest.mark.parametrize("data", NOT_UTF8.values(), ids=NOT_UTF8.keys())
def test_text_that_is_not_utf8_is_garbage(data: bytes) -> None:
    inbound = ready().receive([data])
    assert "no ConnectionMessage" in str(inbound.end)
    assert inbound.requests == []


def test_requests_before_the_garbage_in_the_same_batch_are_kept_and_those_behind_are_not() -> None:
    inbound = ready().receive([request("r1"), request("r2"), b"\xff", request("r3")])
    assert ids(inbound) == ["r1", "r2"]
    assert isinstance(inbound.end, ProtocolError)


@pytest.mark.parametrize("made", [registering, ready])
def test_connected_without_an_id_ends_the_connection(made) -> None:
    connection = made()
    inbound = connection.receive([request("r1"), status(CONNECTED)])
    assert "CONNECTED without a connection_id" in str(inbound.end)
    assert ids(inbound) == ["r1"]
    assert not connection.established


@pytest.mark.parametrize("given_id", ["a\nb", "\x1b[2J", "\x00", ENDLESS_ID])
def test_an_unusable_id_ends_the_connection_and_is_quoted_short_and_escaped(
    given_id: str,
) -> None:
    connection = registering()
    inbound = connection.receive([status(CONNECTED, given_id)])
    assert "unusable connection_id" in str(inbound.end)
    assert str(inbound.end).isprintable()
    assert len(str(inbound.end)) < 300
    assert connection.connection_id == ""
    assert connection.phase is Phase.ENDED


@pytest.mark.parametrize("given_id", ["0", "connection 7", "naïve", LONGEST_ID])
def test_any_other_id_is_used_as_it_is(given_id: str) -> None:
    connection = registering()
    assert connection.receive([status(CONNECTED, given_id)]).connection_id == given_id
    heartbeat = ConnectionMessage.FromString(connection.heartbeat(0)).heartbeat
    assert heartbeat.connection_id == given_id


@pytest.mark.parametrize("made", [ready, leaving])
def test_a_second_connected_with_the_same_id_changes_nothing(made) -> None:
    connection = made()
    phase = connection.phase
    assert said(connection.receive([status(CONNECTED, "id-1")])) == {}
    assert connection.phase is phase


@pytest.mark.parametrize("made", [ready, leaving])
def test_a_second_connected_with_another_id_ends_the_connection(made) -> None:
    connection = made()
    inbound = connection.receive([request("r1"), status(CONNECTED, "id-2")])
    assert "a second CONNECTED with another connection_id (received 'id-2')" in str(inbound.end)
    assert inbound.connection_id is None
    assert ids(inbound) == ["r1"]
    assert connection.phase is Phase.ENDED


def test_a_request_that_overtakes_connected_is_kept() -> None:
    connection = registering()
    assert ids(connection.receive([request("r1")])) == ["r1"]
    assert connection.phase is Phase.REGISTERING
    inbound = connection.receive([request("r2"), status(CONNECTED, "id-1"), request("r3")])
    assert ids(inbound) == ["r2", "r3"]
    assert inbound.connection_id == "id-1"


@pytest.mark.parametrize("request_id", ["", ENDLESS_ID])
def test_a_request_that_cannot_be_answered_by_its_id_is_logged_and_ignored(
    request_id: str, caplog: pytest.LogCaptureFixture
) -> None:
    connection = ready()
    inbound = connection.receive([request("r1"), request(request_id), request("r2")])
    assert ids(inbound) == ["r1", "r2"]
    assert inbound.end is None
    [record] = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert "no id or an endless one" in record.getMessage()
    assert len(record.getMessage()) < 200


def test_a_repeated_request_id_is_handed_on_for_the_dispatcher_to_judge() -> None:
    assert ids(ready().receive([request("r1"), request("r1")])) == ["r1", "r1"]


def test_the_longest_request_id_that_is_accepted_is_256_characters() -> None:
    assert ids(ready().receive([request(LONGEST_ID)])) == [LONGEST_ID]


@pytest.mark.parametrize(
    "odd",
    [
        {"method_path": "no slash"},
        {"method_path": ""},
        {"timeout_seconds": -5},
        {"payload": bytes(5 << 20)},
        {"headers": {"": "no name"}},
    ],
    ids=lambda odd: next(iter(odd)),
)
def test_what_is_odd_about_one_request_is_not_the_connections_business(
    odd: dict[str, Any],
) -> None:
    made = ForwardRequest(request_id="r1", **odd)
    data = ConnectionMessage(request=made).SerializeToString()
    connection = ready()
    message, *named, payload, size = connection.receive([data, request("r2")]).requests[0]
    if payload is not None:  # of a large one
        message.payload = payload
    assert message == made
    assert [*named, size] == [made.request_id, made.method_path, len(data)]
    assert connection.established


@pytest.mark.parametrize("made", [registering, ready, leaving])
def test_silence_changes_nothing(made) -> None:
    connection = made()
    phase = connection.phase
    assert said(connection.receive([])) == {}
    assert connection.phase is phase


def test_error_instead_of_connected_ends_the_connection_with_the_gateways_reason() -> None:
    connection = registering()
    inbound = connection.receive([status(ERROR, message="no room")])
    assert inbound.end == "the gateway said ERROR: 'no room'"
    assert connection.phase is Phase.ENDED


@pytest.mark.parametrize("made", [ready, leaving])
def test_error_on_an_established_connection_is_a_log_line(
    made, caplog: pytest.LogCaptureFixture
) -> None:
    connection = made()
    inbound = connection.receive([status(ERROR, message="disk\nfull"), request("r1")])
    assert inbound.end is None
    assert ids(inbound) == ["r1"]
    assert connection.established
    assert r"the gateway reported an error: 'disk\nfull'" in caplog.text


@pytest.mark.parametrize("made", [registering, ready, leaving])
def test_disconnected_ends_the_connection_and_keeps_what_came_before(made) -> None:
    connection = made()
    inbound = connection.receive(
        [request("r1"), status(DISCONNECTED, message="maintenance"), request("r2")]
    )
    assert inbound.end == "the gateway said DISCONNECTED: 'maintenance'"
    assert ids(inbound) == ["r1"]
    assert connection.phase is Phase.ENDED


def test_a_gateway_that_gives_no_reason_is_said_to_have_given_none() -> None:
    inbound = ready().receive([status(DISCONNECTED)])
    assert inbound.end == "the gateway said DISCONNECTED: (no reason given)"


def test_a_gateways_reason_is_shortened_and_cannot_forge_log_lines() -> None:
    inbound = registering().receive([status(ERROR, message="\r\n2026 ERROR forged" + "x" * 10_000)])
    assert str(inbound.end).isprintable()
    assert len(str(inbound.end)) < 300


def test_a_message_of_a_newer_type_is_logged_and_ignored(caplog: pytest.LogCaptureFixture) -> None:
    newer = bytes.fromhex("fa7f00")  # field 2031, which this schema does not know
    with caplog.at_level(logging.INFO, "revconn"):
        inbound = ready().receive([newer, request("r1")])
    assert ids(inbound) == ["r1"]
    assert inbound.end is None
    assert "a message of a type newer than this schema" in caplog.text


def test_an_empty_message_is_ignored_like_a_newer_one() -> None:
    assert said(ready().receive([b""])) == {}


def test_a_status_newer_than_the_schema_is_logged_and_ignored(
    caplog: pytest.LogCaptureFixture,
) -> None:
    connection = registering()
    with caplog.at_level(logging.INFO, "revconn"):
        assert said(connection.receive([status(77, "id-1")])) == {}
    assert "a connection status newer than this schema: 77" in caplog.text
    assert connection.phase is Phase.REGISTERING


@pytest.mark.parametrize(
    "message",
    [
        ConnectionMessage(register=ConnectionRegister(api_key="theirs")),
        ConnectionMessage(response=ForwardResponse(request_id="r1")),
        ConnectionMessage(heartbeat=Heartbeat(connection_id="id-2")),
        ConnectionMessage(event=EventMessage(event_type="e")),
        ConnectionMessage(subscription=SubscriptionRequest(subscriber_id="s")),
    ],
    ids=lambda message: message.WhichOneof("message_type"),
)
@pytest.mark.parametrize("made", [registering, ready, leaving])
def test_what_a_gateway_has_no_use_for_is_logged_and_ignored(
    made, message: ConnectionMessage, caplog: pytest.LogCaptureFixture
) -> None:
    connection = made()
    phase = connection.phase
    with caplog.at_level(logging.INFO, "revconn"):
        assert said(connection.receive([message.SerializeToString()])) == {}
    assert connection.phase is phase
    assert re.search(rf"ignored a {message.WhichOneof('message_type')}\b", caplog.text)


@pytest.mark.filterwarnings("ignore:Unexpected end-group tag")  # old protobuf's word for garbage
@given(st.lists(st.binary(max_size=40)))
def test_no_bytes_whatsoever_raise(batch: list[bytes]) -> None:
    for connection in (registering(), ready(), leaving()):
        inbound = connection.receive(batch)
        assert (inbound.end is None) == (connection.phase is not Phase.ENDED)


class Protobuf:
    """Protobuf of any release: each raises something else at garbage."""

    def __init__(self, error: type[BaseException]) -> None:
        self._error = error

    def FromString(self, received: bytes) -> None:
        raise self._error("returned a result with an exception set")


@pytest.mark.parametrize("error", [SystemError, RuntimeWarning, IndexError, RecursionError])
def test_whatever_protobuf_makes_of_garbage_is_a_protocol_error(
    monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    connection = ready()
    monkeypatch.setattr("revconn.core.connector_side.ConnectionMessage", Protobuf(error))
    assert isinstance(connection.receive([b"garbage"]).end, ProtocolError)


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x0c",  # SystemError in protobuf 3.20.0 where warnings are errors, as they are here
        b"\x0c\x03",
        b"\x03\x1c\x03\x02\xdd\x0c\x12",
        b"\x12\x03\x0a\x01\xaf\x02\x0b",
        b"\xa4",
    ],
    ids=bytes.hex,
)
def test_garbage_in_a_handshake_ends_the_connection_and_nothing_else(garbage: bytes) -> None:
    assert isinstance(registering().receive([garbage]).end, ProtocolError)
