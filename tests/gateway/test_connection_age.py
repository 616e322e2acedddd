"""Connections that are old enough are told to go, so that callers look for gateways anew."""

from __future__ import annotations

import time
from typing import Any

import grpc
import pytest
from hyperframe.frame import GoAwayFrame

from revconn.exceptions import ConfigurationError
from revconn.gateway import Gateway
from tests.support.http2_caller import Http2Caller
from tests.support.scripted_http2 import HungUp, message

SAY = "/echo.Echo/Say"
AGE = 0.5  # seconds, in a test's own time: nothing else is waited for


def hears_to_the_end(caller: Http2Caller) -> list[GoAwayFrame]:
    """Every GOAWAY until the gateway hangs up."""
    goaways = []
    try:
        while True:
            goaways.append(caller.hears(GoAwayFrame))
    except HungUp:
        return goaways


def test_an_old_connection_is_told_to_go_and_its_calls_are_answered(
    run_gateway, connect, resources
) -> None:
    gateway = run_gateway(max_connection_age=AGE, max_connection_age_grace=60.0)
    connector = connect(gateway, "echo.Echo")
    began = time.monotonic()
    caller = resources.enter_context(Http2Caller(gateway.address))
    caller.call(SAY)
    request = connector.receive_request()
    goaway = caller.hears(GoAwayFrame)
    assert time.monotonic() - began > AGE * 0.8, "a tenth sooner or later, as gRPC has it"
    assert goaway.error_code == 0
    assert goaway.last_stream_id >= 1
    connector.respond(request.request_id, b"\x0aok")
    assert (caller.hears_answer().data, caller.answers[1].status) == (message(b"\x0aok"), "0")
    assert all(later.error_code == 0 for later in hears_to_the_end(caller))


def test_an_old_connection_without_calls_is_closed(run_gateway, resources) -> None:
    gateway = run_gateway(max_connection_age=AGE, max_connection_age_grace=60.0)
    caller = resources.enter_context(Http2Caller(gateway.address))
    caller.call("/no.Body/Home")
    caller.hears_answer()
    assert hears_to_the_end(caller)[0].error_code == 0


def test_a_call_that_outlasts_the_grace_is_ended_with_its_connection(
    run_gateway, connect, resources
) -> None:
    gateway = run_gateway(max_connection_age=AGE, max_connection_age_grace=AGE)
    connector = connect(gateway, "echo.Echo")
    began = time.monotonic()
    caller = resources.enter_context(Http2Caller(gateway.address))
    caller.call(SAY)
    connector.receive_request()
    assert hears_to_the_end(caller)
    assert time.monotonic() - began > AGE * 1.6
    answer = caller.answers.get(1)
    assert answer is None or answer.status != "0"


def test_a_channel_goes_on_calling_over_the_age_of_its_connections(run_gateway, resources) -> None:
    gateway = run_gateway(max_connection_age=0.2, max_connection_age_grace=60.0)
    channel = resources.enter_context(grpc.insecure_channel(gateway.address))
    check = channel.unary_unary("/grpc.health.v1.Health/Check")
    until = time.monotonic() + 1.5  # six connections
    while time.monotonic() < until:
        assert check(b"", timeout=60) == b"\x08\x01"


def test_without_an_age_no_connection_is_told_to_go(gateway, resources) -> None:
    caller = resources.enter_context(Http2Caller(gateway.address))
    for number in range(10):
        caller.ping(b"%8d" % number)
    caller.call("/no.Body/Home")
    assert caller.hears_answer().status == "14"


@pytest.mark.parametrize("name", ["max_connection_age", "max_connection_age_grace"])
@pytest.mark.parametrize("value", [-1, float("nan"), "soon", True])
def test_an_age_that_is_none_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=name):
        Gateway(**{"max_connection_age": 1.0, name: value})
