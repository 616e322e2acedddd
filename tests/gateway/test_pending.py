from __future__ import annotations

import pytest

from revconn._proto.registry_pb2 import ForwardResponse, ResponseStreamInfo
from revconn.core.status import StatusCode, response_code
from revconn.exceptions import Overloaded
from revconn.gateway.pending import PendingRequests
from revconn.gateway.registry import Connection
from tests.gateway.test_registry import make


@pytest.fixture
def pending() -> PendingRequests:
    return PendingRequests(limit=2)


@pytest.fixture
def connection() -> Connection:
    return make("a")


@pytest.fixture
def settled() -> list[ForwardResponse]:
    return []


def test_an_answer_settles_its_request_and_no_other(pending, connection, settled) -> None:
    pending.add("1", connection, settled.append)
    pending.add("2", connection, pytest.fail)
    answer = ForwardResponse(request_id="1", payload=b"x")
    pending.answer(answer, connection)
    assert settled == [answer]
    assert "1" not in pending
    assert connection.pending == {"2"}


def test_an_answer_to_nothing_is_counted(pending, connection) -> None:
    pending.answer(ForwardResponse(request_id="1"), connection)
    assert connection.unmatched == 1


def test_a_second_answer_is_counted_and_settles_nothing(pending, connection, settled) -> None:
    pending.add("1", connection, settled.append)
    for payload in (b"first", b"second"):
        pending.answer(ForwardResponse(request_id="1", payload=payload), connection)
    assert [answer.payload for answer in settled] == [b"first"]
    assert connection.unmatched == 1


def test_another_connection_with_the_same_key_may_answer(pending, connection, settled) -> None:
    pending.add("1", connection, settled.append)
    pending.answer(ForwardResponse(request_id="1"), make("b"))
    assert len(settled) == 1
    assert connection.pending == set()


def test_a_connection_with_another_key_may_not(pending, connection) -> None:
    pending.add("1", connection, pytest.fail)
    stranger = make("b")
    stranger.key = 1
    pending.answer(ForwardResponse(request_id="1"), stranger)
    assert "1" in pending
    assert stranger.unmatched == 1


def test_a_chunked_answer_fails_its_request(pending, connection, settled) -> None:
    pending.add("1", connection, settled.append)
    chunk = ForwardResponse(
        request_id="1", status_code=200, response_stream_info=ResponseStreamInfo(is_streamed=True)
    )
    pending.answer(chunk, connection)
    assert response_code(settled[0].status_code, settled[0].headers) is StatusCode.INTERNAL
    assert "chunks" in settled[0].error_message
    assert len(pending) == 0


def test_more_than_the_limit_is_refused(pending, connection) -> None:
    pending.add("1", connection, pytest.fail)
    pending.add("2", connection, pytest.fail)
    with pytest.raises(Overloaded, match="2 requests"):
        pending.add("3", connection, pytest.fail)
    assert connection.pending == {"1", "2"}


def test_a_lost_connection_fails_what_waits_for_it_and_nothing_else(
    pending, connection, settled
) -> None:
    pending.add("1", connection, settled.append)
    pending.add("2", make("b"), pytest.fail)
    pending.fail_connection(connection, "gone")
    assert [answer.error_message for answer in settled] == ["gone"]
    assert response_code(settled[0].status_code, settled[0].headers) is StatusCode.UNAVAILABLE
    assert len(pending) == 1


def test_failing_a_settled_request_changes_nothing(pending, connection) -> None:
    pending.fail("1", StatusCode.DEADLINE_EXCEEDED, "late")
    assert len(pending) == 0


def test_a_discarded_request_is_settled_by_nobody(pending, connection) -> None:
    pending.add("1", connection, pytest.fail)
    pending.discard("1")
    pending.discard("1")
    pending.answer(ForwardResponse(request_id="1"), connection)
    assert connection.unmatched == 1


def test_a_draining_connection_ends_with_its_last_request(pending, connection, settled) -> None:
    pending.add("1", connection, settled.append)
    pending.add("2", connection, settled.append)
    connection.departure = "it left"
    pending.discard("1")
    assert connection.end == []
    pending.answer(ForwardResponse(request_id="2"), connection)
    assert connection.end == [StatusCode.OK]
