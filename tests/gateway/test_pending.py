from __future__ import annotations

import pytest

from revconn._proto.registry_pb2 import ForwardResponse
from revconn.core.routing import Wanted
from revconn.core.status import StatusCode
from revconn.gateway import pending as pending_module
from revconn.gateway.limits import Counters, Limits
from revconn.gateway.pending import PendingRequest, PendingRequests
from revconn.gateway.refusals import Refused
from revconn.gateway.routes import Connection
from tests.gateway.test_routes import make

ECHO = Wanted.by_connector("echo.Echo")


@pytest.fixture
def counters() -> Counters:
    return Counters()


@pytest.fixture
def pending(counters) -> PendingRequests:
    return PendingRequests(Limits(max_pending=2), counters)


@pytest.fixture
def connection() -> Connection:
    return make("a")


@pytest.fixture
def settled() -> list[ForwardResponse]:
    return []


@pytest.fixture
def add(pending, connection, settled):
    def add(request_id: str, **options) -> PendingRequest:
        arguments = {"connection": connection, "settle": settled.append, **options}
        request = PendingRequest(request_id, "/echo.Echo/Say", ECHO, **arguments)
        request.outgoing = request.connection.outbound.put(b"the request")
        pending.add(request)
        return request

    return add


def answer(request_id: str, payload: bytes = b"") -> ForwardResponse:
    return ForwardResponse(request_id=request_id, payload=payload)


def test_an_answer_matches_its_request_and_settles_it_alone(
    pending, connection, add, settled
) -> None:
    request = add("1")
    add("2")
    response = answer("1", b"x")
    assert pending.match(response, connection) is request
    pending.settle(request, response)
    assert settled == [response]
    assert "1" not in pending
    assert connection.pending == {"2"}


def test_a_request_outlives_its_connection_and_is_answered_on_the_next(
    pending, connection, add
) -> None:
    request = add("1")
    assert pending.match(answer("1"), make("b")) is request


def test_a_connection_with_another_key_may_not_answer(pending, counters, add, caplog) -> None:
    add("1")
    stranger = make("b", key=2)
    for _ in range(2):
        assert pending.match(answer("1"), stranger) is None
    assert stranger.unmatched == 2
    assert counters.answers_foreign == 2
    said = "connection b: ignored an answer to what another key was asked: '1'"
    assert caplog.messages == [said]


def test_a_second_answer_is_late_and_one_to_nothing_unknown(
    pending, connection, counters, add, caplog
) -> None:
    pending.settle(add("1"), answer("1"))
    pending.discard(add("2"))
    for request_id in ("1", "2", "never asked", "nor this"):
        assert pending.match(answer(request_id), connection) is None
    assert connection.unmatched == 4
    assert (counters.answers_late, counters.answers_unknown) == (2, 2)
    assert caplog.messages == [
        "connection a: ignored an answer to what nobody asked: 'never asked'"
    ]


def test_what_was_settled_is_not_remembered_for_ever(
    pending, connection, counters, add, monkeypatch
) -> None:
    monkeypatch.setattr(pending_module, "_REMEMBERED", 2)
    for number in range(3):
        pending.discard(add(str(number)))
    for number in range(3):
        pending.match(answer(str(number)), connection)
    assert (counters.answers_late, counters.answers_unknown) == (2, 1)


def test_more_than_the_limit_is_refused_by_name(pending, counters, add) -> None:
    add("1")
    pending.require_room()
    add("2")
    with pytest.raises(Refused, match="2 calls wait for an answer .*max_pending") as refused:
        pending.require_room()
    assert refused.value.code is StatusCode.RESOURCE_EXHAUSTED
    assert counters.refused["max_pending"] == 1


def test_a_request_that_moves_waits_for_the_other_connection(pending, connection, add) -> None:
    request = add("1")
    other = make("b", key=2)
    pending.move(request, other)
    assert (connection.pending, other.pending) == (set(), {"1"})
    assert pending.match(answer("1"), connection) is None
    assert pending.match(answer("1"), other) is request


def test_what_is_discarded_before_it_was_written_is_withdrawn(pending, connection, add) -> None:
    request = add("1")
    assert request.unsent == b"the request"
    pending.discard(request)
    assert request.unsent is None
    assert "1" not in pending


def test_a_draining_connection_ends_with_its_last_request(pending, connection, add) -> None:
    first, second = add("1"), add("2")
    connection.departure = "it left"
    pending.discard(first)
    assert connection.end == []
    pending.settle(second, answer("2"))
    assert connection.end == [StatusCode.OK]


def test_a_draining_asker_ends_when_its_last_call_is_settled(pending, add, settled) -> None:
    asker = make("b")
    request = add("1", asker=asker)
    assert asker.asked == {"1"}
    asker.departure = "it left"
    asker.end_if_drained()
    assert asker.end == []
    pending.settle(request, answer("1"))
    assert len(settled) == 1
    assert asker.end == [StatusCode.OK]
