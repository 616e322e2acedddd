"""Streaming calls to backends: which those are, who answers them, and how many there may be."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator

import grpc
import pytest

from revconn import Request
from revconn.gateway import Gateway, callers
from tests.gateway.conftest import counted
from tests.gateway.streaming_backends import (
    PATIENCE,
    TIMEOUT,
    Ask,
    Serve,
    ask,
    channel,
    connect_one,
    echo,
    in_flight,
    released,
    serve,
    streaming,
    talk,
)
from tests.gateway.test_backends import register
from tests.support.streaming_backend import KINDS, Asked
from tests.support.waiting import eventually

__all__ = ["ask", "channel", "connect_one", "released", "serve", "talk"]  # fixtures

every_kind = pytest.mark.parametrize("kind", KINDS)
of_many_requests = pytest.mark.parametrize("kind", ["stream_unary", "stream_stream"])
of_many_answers = pytest.mark.parametrize("kind", ["unary_stream", "stream_stream"])


# What may be unary


@pytest.mark.parametrize("said", [[], [b"x"]])
def test_a_call_that_says_no_more_for_a_moment_reaches_the_backend(
    gateway: Gateway, serve: Serve, ask: Ask, talk, monkeypatch, said
) -> None:
    # What comes by now and then would find it, too, and later.
    monkeypatch.setattr(callers._Incoming, "look", lambda _incoming, _now: None)
    serve(gateway, lambda _messages, _context: iter([b"welcome"]))
    assert ask(gateway, "stream_stream", talk(*said)).wait() == [b"welcome"]


@every_kind
def test_a_silent_backend_is_given_up_like_that_of_a_unary_call_if_the_call_may_be_one(
    run_gateway, serve: Serve, ask: Ask, released, kind
) -> None:
    def behave(messages: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        released.wait(PATIENCE)
        yield b""

    gateway = run_gateway(request_timeout=0.5)
    serve(gateway, behave)
    code, details = ask(gateway, kind, [b"x"]).end
    assert code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert details.endswith("in time")
    assert in_flight(gateway) == 0


@of_many_answers
def test_what_has_begun_to_stream_has_only_the_callers_own_deadline(
    run_gateway, serve: Serve, ask: Ask, kind
) -> None:
    def behave(messages: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        yield b"1"
        assert not may_end.wait(3.5)
        yield b"2"

    may_end = threading.Event()
    gateway = run_gateway(request_timeout=3.0)
    serve(gateway, behave)
    assert ask(gateway, kind, [b"x"]).wait() == [b"1", b"2"]


@pytest.mark.parametrize("count", [0, 2])
def test_a_request_that_is_not_one_message_has_only_the_callers_own_deadline(
    run_gateway, serve: Serve, ask: Ask, count
) -> None:
    def behave(messages: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        said = [*messages]
        assert not may_end.wait(3.5)
        yield b"%d" % len(said)

    may_end = threading.Event()
    gateway = run_gateway(request_timeout=3.0)
    serve(gateway, behave)
    assert ask(gateway, "stream_unary", [b"x"] * count).wait() == [b"%d" % count]


def test_a_unary_call_is_pending_and_no_streaming_one(
    gateway: Gateway, serve: Serve, ask: Ask, released
) -> None:
    def behave(messages: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        released.wait(PATIENCE)
        yield b""

    backend = serve(gateway, behave)
    asked = ask(gateway, "unary_unary", [b"x"])
    backend.calls.get(timeout=PATIENCE)
    assert in_flight(gateway) == 1
    assert gateway.stats()["pending"] == 1
    released.set()
    assert asked.wait() == [b""]


# Who answers


def test_backends_of_a_service_take_turns(gateway: Gateway, serve: Serve, channel) -> None:
    for name in (b"one", b"two"):
        serve(gateway, lambda _messages, _context, name=name: iter([name, name]))
    caller = channel(gateway)
    answers = [Asked(caller, "stream_stream", [b"", b""]).wait()[0] for _ in range(4)]
    assert sorted(answers) == [b"one", b"one", b"two", b"two"]
    assert answers[0] != answers[1]


@of_many_requests
def test_a_backend_out_of_reach_is_passed_over(
    gateway: Gateway, serve: Serve, ask: Ask, kind
) -> None:
    serve(gateway, echo).stop()
    refused = ask(gateway, kind, [b"x", b"y"])
    assert refused.end == (
        grpc.StatusCode.UNAVAILABLE,
        "the backend of the service cannot be reached",
    )
    serve(gateway, lambda messages, _context: iter([b"".join(messages)]))
    for _ in range(3):
        assert ask(gateway, kind, [b"x", b"y"]).wait() == [b"xy"]


def test_connectors_come_first(gateway: Gateway, serve: Serve, ask: Ask, connect_one) -> None:
    def answer(request: Request) -> Iterator[bytes]:
        for _ in request.messages():
            yield b"from the connector"

    serve(gateway, echo)
    assert ask(gateway, "stream_stream", [b"x"]).wait() == [b"x"]
    connector = connect_one(gateway, answer)
    assert ask(gateway, "stream_stream", [b"x"]).wait() == [b"from the connector"]
    connector.stop()
    eventually(lambda: not gateway.connections())
    assert ask(gateway, "stream_stream", [b"x"]).wait() == [b"x"]


def test_a_call_that_waits_for_a_connector_is_answered_by_a_backend_that_comes_before(
    run_gateway, serve: Serve, ask: Ask, connect_one
) -> None:
    gateway = run_gateway(reconnect_grace=PATIENCE)
    connect_one(gateway).stop()
    eventually(lambda: not gateway.connections())
    asked = ask(gateway, "stream_stream", [b"x", b"y"])
    eventually(lambda: gateway.stats()["calls_held"] == 1)
    serve(gateway, echo)
    assert asked.wait() == [b"x", b"y"]


def test_a_call_whose_backend_is_out_of_reach_waits_for_a_connector_that_comes_back(
    run_gateway, serve: Serve, ask: Ask, connect_one
) -> None:
    gateway = run_gateway(reconnect_grace=PATIENCE)
    serve(gateway, echo).stop()
    connect_one(gateway).stop()
    eventually(lambda: not gateway.connections())
    asked = ask(gateway, "stream_stream", [b"x", b"y"])
    eventually(lambda: gateway.stats()["calls_held"] == 1)
    serve(gateway, echo, "another.One")
    connect_one(gateway)
    assert asked.wait() == [b"x", b"y"]
    assert gateway.stats()["calls_held"] == 1  # the backend was not tried again


def test_a_backend_that_leads_back_to_the_gateway_is_found_out(gateway: Gateway, ask: Ask) -> None:
    register(gateway, gateway.address)
    assert ask(gateway, "stream_stream", [b"x", b"y"]).end == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "a backend of echo.Echo leads back to this gateway",
    )


def test_a_stream_goes_through_several_gateways(run_gateway, serve: Serve, ask: Ask) -> None:
    first, second = run_gateway(), run_gateway()
    serve(second, echo)
    register(first, second.address)
    said = [b"%d" % number for number in range(1_000)]
    assert ask(first, "stream_stream", said).wait() == said


def test_a_forgotten_backend_goes_on_with_its_streams(
    gateway: Gateway, serve: Serve, ask: Ask
) -> None:
    may_end = threading.Event()

    def speak() -> Iterator[bytes]:
        yield b"1"
        assert may_end.wait(PATIENCE)
        yield b"2"

    serve(gateway, echo)
    asked = ask(gateway, "stream_stream", speak())
    assert asked.next() == b"1"
    gateway.replace_keys("another-key")
    eventually(lambda: not gateway._thread._serving.shared.backends._backends)
    may_end.set()
    assert asked.wait() == [b"1", b"2"]


# Limits


@pytest.mark.parametrize("kind", ["unary_stream", "stream_unary", "stream_stream"])
@pytest.mark.parametrize("limit", ["max_streaming_calls", "max_streaming_calls_per_connection"])
def test_streaming_calls_are_limited(
    run_gateway, serve: Serve, ask: Ask, talk, released, kind, limit
) -> None:
    def behave(messages: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        yield b"1"
        if kind != "stream_unary":
            yield b"2"
        released.wait(PATIENCE)

    gateway = run_gateway(**{limit: 1})
    serve(gateway, behave)
    first = ask(gateway, kind, talk(b"x", b"y"))
    eventually(lambda: streaming(gateway) == 1)
    code, details = ask(gateway, kind, talk(b"x", b"y")).end
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert details.endswith(f"(the gateway's {limit})")
    assert counted(gateway, f"refused_{limit}") == 1
    released.set()
    answers = [b"1"] if kind == "stream_unary" else [b"1", b"2"]
    assert first.wait() == answers
    eventually(lambda: in_flight(gateway) == 0)
    assert ask(gateway, kind, talk(b"x", b"y")).wait() == answers


def test_a_backend_that_has_as_many_streams_as_it_may_is_passed_over(
    run_gateway, serve: Serve, ask: Ask, talk
) -> None:
    gateway = run_gateway(max_streaming_calls_per_connection=1)
    for name in (b"one", b"two"):
        serve(gateway, lambda messages, _, name=name: (name for _ in messages))
    answers = {ask(gateway, "stream_stream", talk(b"x", b"y")).next() for _ in range(2)}
    assert answers == {b"one", b"two"}
    code, _ = ask(gateway, "stream_stream", talk(b"x", b"y")).end
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_callers_that_read_no_large_messages_share_what_may_be_unread(
    run_gateway, serve: Serve, ask: Ask
) -> None:
    size = 8_000_000

    def behave(messages: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        for _ in itertools.repeat(None, 4):
            yield bytes(size)

    gateway = run_gateway(max_unread_bytes=size)
    serve(gateway, behave)
    first = ask(gateway, "unary_stream")
    eventually(lambda: gateway._thread._serving.shared.answers._deadlines, TIMEOUT)
    second = ask(gateway, "unary_stream")
    code, details = second.end
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert details.endswith("(the gateway's max_unread_bytes)")
    assert [len(each) for each in first.wait()] == [size] * 4
    eventually(lambda: in_flight(gateway) == 0)
