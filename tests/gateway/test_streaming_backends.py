"""Streaming calls to backends: services that listen themselves, and that the gateway dials."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import grpc
import pytest

from revconn.gateway import Gateway
from tests.gateway.conftest import counted
from tests.gateway.streaming_backends import (
    PATIENCE,
    TIMEOUT,
    Ask,
    Serve,
    ask,
    channel,
    echo,
    in_flight,
    released,
    serve,
    talk,
)
from tests.gateway.test_backends import register
from tests.support.streaming_backend import KINDS, Asked
from tests.support.waiting import eventually

__all__ = ["ask", "channel", "released", "serve", "talk"]  # fixtures

every_kind = pytest.mark.parametrize("kind", KINDS)
of_many_requests = pytest.mark.parametrize("kind", ["stream_unary", "stream_stream"])
of_many_answers = pytest.mark.parametrize("kind", ["unary_stream", "stream_stream"])


# Each kind, in each case


@every_kind
def test_messages_pass_both_ways_as_they_are(
    gateway: Gateway, serve: Serve, ask: Ask, kind
) -> None:
    def behave(messages: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        came = [*messages]
        yield b"".join(came)
        if kind.endswith("_stream"):
            yield b""
            yield b"x" * 1_000_000
            yield b"%d" % len(came)

    serve(gateway, behave)
    said = [b"a", b"", b"b" * 1_000_000, b"c"] if kind.startswith("stream_") else [b"a"]
    asked = ask(gateway, kind, said)
    more = [b"", b"x" * 1_000_000, b"%d" % len(said)] if asked.streams else []
    assert asked.wait() == [b"".join(said), *more]
    assert asked.end == (grpc.StatusCode.OK, "")
    eventually(lambda: in_flight(gateway) == 0)
    assert counted(gateway, "calls") == counted(gateway, "calls_answered") == 1


def test_a_conversation_goes_to_and_fro(gateway: Gateway, serve: Serve, ask: Ask) -> None:
    serve(gateway, echo)
    may_speak = threading.Semaphore(0)

    def speak() -> Iterator[bytes]:
        for number in range(50):
            assert may_speak.acquire(timeout=PATIENCE)
            yield b"%d" % number

    asked = ask(gateway, "stream_stream", speak())
    for number in range(50):
        may_speak.release()
        assert asked.next() == b"%d" % number
    assert asked.end == (grpc.StatusCode.OK, "")


@every_kind
def test_a_caller_that_cancels_cancels_the_call_at_the_backend(
    gateway: Gateway, serve: Serve, ask: Ask, talk, released, kind
) -> None:
    def behave(messages: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        yield next(messages)
        released.wait(PATIENCE)

    backend = serve(gateway, behave)
    asked = ask(gateway, kind, talk(b"x"))
    context = backend.calls.get(timeout=PATIENCE)
    ended = threading.Event()
    context.add_callback(ended.set)
    if asked.streams:
        assert asked.next() == b"x"
    asked.call.cancel()
    assert ended.wait(TIMEOUT)
    eventually(lambda: in_flight(gateway) == 0)
    assert counted(gateway, "calls_given_up") == 1


@every_kind
def test_a_backend_that_cancels_ends_the_call(
    gateway: Gateway, serve: Serve, ask: Ask, talk, kind
) -> None:
    def behave(messages: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        yield next(messages)
        context.cancel()

    serve(gateway, behave)
    assert ask(gateway, kind, talk(b"x")).end[0] is grpc.StatusCode.CANCELLED
    eventually(lambda: in_flight(gateway) == 0)


@every_kind
def test_the_callers_deadline_reaches_the_backend(
    gateway: Gateway, serve: Serve, ask: Ask, kind
) -> None:
    backend = serve(gateway, echo)
    assert ask(gateway, kind, [b"x"], timeout=PATIENCE).wait() == [b"x"]
    remaining = backend.calls.get(timeout=PATIENCE).time_remaining()
    assert remaining < PATIENCE + 0.5  # rounded up


@every_kind
def test_the_callers_deadline_ends_the_call(
    gateway: Gateway, serve: Serve, ask: Ask, talk, released, kind
) -> None:
    ends = threading.Semaphore(0)

    def behave(messages: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        context.add_callback(ends.release)
        yield next(messages)
        released.wait(PATIENCE)

    backend = serve(gateway, behave)
    assert ask(gateway, kind, talk(b"x"), timeout=1.0).end[0] is grpc.StatusCode.DEADLINE_EXCEEDED
    eventually(lambda: in_flight(gateway) == 0)
    if not backend.calls.empty():  # unless the machine was so busy that it never came
        assert ends.acquire(timeout=TIMEOUT)


@every_kind
def test_a_backend_of_a_call_without_a_deadline_is_told_none(
    gateway: Gateway, serve: Serve, ask: Ask, kind
) -> None:
    backend = serve(gateway, echo)
    assert ask(gateway, kind, [b"x"], timeout=None).wait() == [b"x"]
    remaining = backend.calls.get(timeout=PATIENCE).time_remaining()
    assert remaining is None or remaining > 1e6


@every_kind
def test_a_backend_that_is_killed_ends_its_calls_at_once(
    gateway: Gateway, ask: Ask, talk, kind, caplog
) -> None:
    program = subprocess.Popen(
        [sys.executable, "-m", "tests.support.streaming_backend"], stdout=subprocess.PIPE, text=True
    )
    with program:
        try:
            assert program.stdout is not None
            register(gateway, program.stdout.readline().strip())
            asked = ask(gateway, kind, talk(b"x"), timeout=10 * PATIENCE)
            if asked.streams:
                assert asked.next() == b"first"
            assert program.stdout.readline()  # the call has come
        finally:
            program.kill()
    began = time.monotonic()
    code, details = asked.end
    assert code is grpc.StatusCode.UNAVAILABLE
    expected = "the backend's connection ended"
    if not asked.streams:
        expected = "the backend of the service cannot be reached"
    assert details == expected
    assert time.monotonic() - began < TIMEOUT
    assert "cannot be reached: the " in caplog.text
    assert in_flight(gateway) == 0


@of_many_requests
def test_a_backend_that_does_not_read_stops_its_own_caller_alone(
    gateway: Gateway, serve: Serve, ask: Ask, released, kind
) -> None:
    may_read = threading.Event()

    def behave(messages: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        if dict(context.invocation_metadata()).get("slow"):
            may_read.wait(PATIENCE)
        yield b"%d" % sum(map(len, messages))

    serve(gateway, behave)
    said = 0
    total, size = 3_000, 10_000

    def speak() -> Iterator[bytes]:
        nonlocal said
        for _ in range(total):
            said += 1
            yield bytes(size)

    slow = ask(gateway, kind, speak(), metadata=[("slow", "1")])
    eventually(lambda: said)
    before = -1
    while before != said:  # until no more is taken
        before = said
        time.sleep(0.3)
    assert said < total // 2
    assert ask(gateway, kind, [b"x"] * 100).wait() == [b"100"]
    may_read.set()
    assert slow.wait() == [b"%d" % (total * size)]


@of_many_answers
def test_a_caller_that_does_not_read_stops_its_own_stream_alone(
    gateway: Gateway, serve: Serve, ask: Ask, kind
) -> None:
    made: dict[str, int] = {}
    total, size = 3_000, 10_000

    def behave(messages: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        who = dict(context.invocation_metadata())["who"]
        for number in range(total):
            made[who] = number
            yield bytes(size)

    serve(gateway, behave)
    slow = ask(gateway, kind, [b""], metadata=[("who", "slow")])
    assert slow.next() == bytes(size)
    before = -1
    while before != made["slow"]:  # until no more is taken
        before = made["slow"]
        time.sleep(0.3)
    assert made["slow"] < total // 2
    quick = ask(gateway, kind, [b""], metadata=[("who", "quick")])
    assert len(quick.wait()) == total
    assert made["slow"] < total // 2
    assert sum(map(len, slow.wait())) == total * size
    eventually(lambda: in_flight(gateway) == 0)


@of_many_requests
def test_a_request_over_the_limit_in_mid_stream_ends_that_call_alone(
    run_gateway, serve: Serve, channel, talk, kind
) -> None:
    gateway = run_gateway(max_message_bytes=100_000)
    backend = serve(gateway, echo if kind == "stream_stream" else lambda each, _: iter([*each][:1]))
    caller = channel(gateway)
    may_go_on = threading.Event()

    def wait_for_it() -> Iterator[bytes]:
        yield b"1"
        assert may_go_on.wait(PATIENCE)

    def grow() -> Iterator[bytes]:
        yield b"small"
        assert is_there.wait(PATIENCE)
        yield from talk(b"x" * 100_001)

    is_there = threading.Event()
    beside = Asked(caller, kind, wait_for_it())
    bad = Asked(caller, kind, grow())
    contexts = [backend.calls.get(timeout=PATIENCE) for _ in range(2)]
    is_there.set()
    assert bad.end == (
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "a message of 100,001 bytes exceeds 100,000 (the gateway's max_message_bytes)",
    )
    may_go_on.set()
    assert beside.wait() == [b"1"]
    eventually(lambda: not any(each.is_active() for each in contexts), TIMEOUT)
    assert counted(gateway, "refused_max_message_bytes") == 1
    assert in_flight(gateway) == 0


@of_many_answers
def test_an_answer_over_the_limit_in_mid_stream_ends_that_call_alone(
    run_gateway, serve: Serve, channel, kind
) -> None:
    def behave(messages: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        for each in messages:
            yield b"small"
            yield each * 1000
            yield b"last"

    gateway = run_gateway(max_sent_message_bytes=100_000)
    serve(gateway, behave)
    caller = channel(gateway)
    bad = Asked(caller, kind, [b"x" * 101])
    assert bad.wait() == [b"small"]
    code, details = bad.end
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "a response of 101,000 bytes exceeds the 100,000 that may be sent" in details
    assert "max_sent_message_bytes" in details
    assert Asked(caller, kind, [b"y"]).wait() == [b"small", b"y" * 1000, b"last"]


@every_kind
def test_metadata_passes_both_ways_as_it_is(
    gateway: Gateway, serve: Serve, ask: Ask, talk, released, kind
) -> None:
    initial = (("first", "1"), ("first", "2"), ("first-bin", b"\0\1"))
    trailing = (("last", "a,b"), ("last-bin", b"\2"), ("last-bin", b"\3"))
    may_answer = threading.Event()

    def behave(messages: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        context.send_initial_metadata(initial)
        may_answer.wait(PATIENCE)
        yield b""
        context.set_trailing_metadata(trailing)

    backend = serve(gateway, behave)
    sent = [("authorization", "Bearer x"), ("a", "1"), ("a", "2"), ("trace-bin", b"\0\xff")]
    asked = (
        ask(gateway, kind, talk(), metadata=sent)
        if kind.startswith("stream_")
        else ask(gateway, kind, [b""], metadata=sent)
    )
    came = backend.calls.get(timeout=PATIENCE).invocation_metadata()
    assert [tuple(pair) for pair in came if pair[0] in dict(sent)] == sent
    if kind == "unary_unary":  # grpcio has it with the message alone
        may_answer.set()
    first = asked.call.initial_metadata()
    assert tuple(pair for pair in first if pair[0].startswith("first")) == initial
    may_answer.set()
    assert asked.wait() == [b""]
    last = tuple(pair for pair in asked.call.trailing_metadata() if pair[0].startswith("last"))
    assert last == trailing


@every_kind
def test_a_failure_half_way_passes_as_it_is(
    gateway: Gateway, serve: Serve, ask: Ask, talk, kind
) -> None:
    def behave(messages: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        yield next(messages)
        context.set_trailing_metadata([("grpc-status-details-bin", b"\x08\x09"), ("hint", "x")])
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not größer than 50 %\n")

    serve(gateway, behave)
    asked = ask(gateway, kind, talk(b"x"))
    assert asked.wait() == ([b"x"] if asked.streams else [])
    assert asked.end == (grpc.StatusCode.FAILED_PRECONDITION, "not größer than 50 %\n")
    trailers = dict(asked.call.trailing_metadata())
    assert (trailers["grpc-status-details-bin"], trailers["hint"]) == (b"\x08\x09", "x")
    eventually(lambda: in_flight(gateway) == 0)


@of_many_requests
def test_a_request_without_messages_has_its_end(
    gateway: Gateway, serve: Serve, ask: Ask, kind
) -> None:
    serve(gateway, lambda messages, _context: iter([b"%d" % len([*messages])]))
    assert ask(gateway, kind, []).wait() == [b"0"]


@of_many_answers
def test_an_answer_without_messages_has_its_end(
    gateway: Gateway, serve: Serve, ask: Ask, kind
) -> None:
    def behave(messages: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        context.set_trailing_metadata([("last", "1")])
        return iter([])

    serve(gateway, behave)
    asked = ask(gateway, kind, [b"x"])
    assert asked.wait() == []
    assert asked.end == (grpc.StatusCode.OK, "")
    assert dict(asked.call.trailing_metadata())["last"] == "1"


@of_many_answers
def test_a_backend_may_end_while_the_caller_still_speaks(
    gateway: Gateway, serve: Serve, ask: Ask, talk, kind
) -> None:
    serve(gateway, lambda messages, _context: iter([next(messages)]))
    assert ask(gateway, kind, talk(b"x")).wait() == [b"x"]
    eventually(lambda: in_flight(gateway) == 0)


@every_kind
def test_a_stopping_gateway_ends_its_calls(
    gateway: Gateway, serve: Serve, ask: Ask, talk, released, kind
) -> None:
    def behave(messages: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        yield next(messages)
        released.wait(PATIENCE)

    backend = serve(gateway, behave)
    asked = ask(gateway, kind, talk(b"x"))
    context = backend.calls.get(timeout=PATIENCE)
    if asked.streams:
        assert asked.next() == b"x"
    gateway.stop(grace=0)
    assert asked.end == (grpc.StatusCode.UNAVAILABLE, "the gateway is stopping")
    eventually(lambda: not context.is_active(), TIMEOUT)


@every_kind
def test_a_stopping_gateway_lets_a_call_come_to_its_end(
    gateway: Gateway, serve: Serve, ask: Ask, kind
) -> None:
    may_end = threading.Event()

    def behave(messages: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        yield next(messages)
        assert may_end.wait(PATIENCE)
        if kind.endswith("_stream"):
            yield b"y"

    backend = serve(gateway, behave)
    asked = ask(gateway, kind, [b"x"])
    backend.calls.get(timeout=PATIENCE)
    stopping = threading.Thread(target=gateway.stop, kwargs={"grace": PATIENCE})
    stopping.start()
    eventually(lambda: gateway._thread._serving._callers.is_leaving)
    may_end.set()
    assert asked.wait() == ([b"x", b"y"] if asked.streams else [b"x"])
    stopping.join(PATIENCE)
    assert not stopping.is_alive()
