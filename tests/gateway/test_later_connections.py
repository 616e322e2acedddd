"""Requests outlive the connection that they were sent on."""

from __future__ import annotations

import grpc
import pytest

from tests.gateway.conftest import LARGE, counted, stuck
from tests.support.waiting import eventually

SAY = "/echo.Echo/Say"


@pytest.fixture
def gateway(run_gateway):
    """One that says at once that nobody serves."""
    return run_gateway(reconnect_grace=0)


@pytest.fixture
def broken(gateway, connect, call):
    """A call, and its id, whose connector's stream broke before it answered."""

    def broken(gateway=gateway, **options):
        connector = connect(gateway, "echo.Echo")
        pending = call(gateway, SAY, **options)
        request = connector.receive_request()
        connector.cancel()
        eventually(lambda: not gateway.connections())
        return pending, request.request_id

    return broken


def test_the_next_connection_brings_the_answer(gateway, broken, connect) -> None:
    pending, request_id = broken()
    following = connect(gateway, "echo.Echo")
    following.respond(request_id, b"\x0a")
    assert pending.result() == b"\x0a"
    assert counted(gateway, "calls_answered") == 1


def test_it_is_answered_once_and_later_answers_are_counted(gateway, broken, connect) -> None:
    pending, request_id = broken()
    first, second = connect(gateway), connect(gateway)
    first.respond(request_id, b"\x0a")
    assert pending.result() == b"\x0a"
    second.respond(request_id, b"\x0b")
    eventually(lambda: counted(gateway, "answers_late") == 1)
    assert [info.unmatched for info in gateway.connections()] == [0, 1]


def test_an_answer_from_another_key_is_refused(run_gateway, broken, connect) -> None:
    gateway = run_gateway(api_keys=["key", "other"])
    pending, request_id = broken(gateway)
    connect(gateway, api_key="other").respond(request_id, b"forged")
    eventually(lambda: counted(gateway, "answers_foreign") == 1)
    connect(gateway).respond(request_id, b"genuine")
    assert pending.result() == b"genuine"


def test_without_an_answer_its_deadline_ends_it_and_says_what_happened(run_gateway, broken) -> None:
    pending, _ = broken(run_gateway(request_timeout=2.0), timeout=None)
    assert pending.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert "in time; its connection ended: the stream broke" in pending.details()


def test_it_still_counts_as_pending(run_gateway, broken, connect, call) -> None:
    gateway = run_gateway(max_pending=1)
    pending, request_id = broken(gateway)
    following = connect(gateway, "echo.Echo")
    assert call(gateway, SAY).code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    following.respond(request_id)
    assert pending.result() == b""
    call(gateway, SAY)
    following.receive_request()


def test_a_caller_that_gives_up_leaves_nothing_of_it(gateway, broken, connect) -> None:
    pending, request_id = broken()
    pending.cancel()
    eventually(lambda: counted(gateway, "calls_given_up") == 1)
    connect(gateway).respond(request_id)
    eventually(lambda: counted(gateway, "answers_late") == 1)


def test_a_gateway_that_stops_does_not_wait_for_it(run_gateway, broken) -> None:
    gateway = run_gateway()
    pending, _ = broken(gateway)
    gateway.stop(grace=0.0)
    assert pending.code() is grpc.StatusCode.UNAVAILABLE
    assert pending.details() == "the gateway is stopping"


# What was not written when the connection ended, or left


@pytest.fixture
def stalled(gateway, stall, call):
    """A connector that does not read, and six calls for it; one of them it may have seen."""
    connector = stall(gateway, "echo.Echo")
    calls = [call(gateway, SAY, LARGE) for _ in range(6)]
    stuck(gateway, 6)
    return connector, calls


@pytest.mark.parametrize("farewell", ["cancel", "disconnect", "half_close"])
def test_what_nobody_has_seen_goes_to_another_connector(
    gateway, stalled, connect, farewell
) -> None:
    connector, calls = stalled
    healthy = connect(gateway, "echo.Echo")
    getattr(connector, farewell)()
    for _ in range(5):
        healthy.respond(healthy.receive_request().request_id, b"\x0a")
    eventually(lambda: sum(one.done() for one in calls) == 5)
    assert {one.result() for one in calls if one.done()} == {b"\x0a"}
    assert counted(gateway, "calls_rerouted") == 5


def test_what_nobody_else_serves_stays_with_a_connector_that_leaves(gateway, stalled) -> None:
    connector, calls = stalled
    connector.half_close()
    eventually(lambda: gateway.connections()[0].draining)
    connector.start_reading()
    connector.receive()
    ids = {connector.receive_request().request_id for _ in calls}
    assert len(ids) == 6
    assert not any(one.done() for one in calls)


def test_what_nobody_else_serves_is_unavailable_when_the_connection_ends(gateway, stalled) -> None:
    connector, calls = stalled
    connector.cancel()
    eventually(lambda: sum(one.done() for one in calls) == 5)
    failed = [one for one in calls if one.done()]
    assert {one.code() for one in failed} == {grpc.StatusCode.UNAVAILABLE}
    assert "no other connector serves echo.Echo" in failed[0].details()
    assert counted(gateway, "calls_lost") == 5
