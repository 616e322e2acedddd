"""Streaming calls to backends, frame by frame: windows, refused streams, and broken answers."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any, Callable

import grpc
import pytest
from hyperframe.frame import (
    DataFrame,
    GoAwayFrame,
    HeadersFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from revconn.gateway import Gateway, callers, trials
from tests.gateway.conftest import counted
from tests.gateway.streaming_backends import ask, channel, in_flight, streaming, talk
from tests.gateway.test_backends import register
from tests.support.http2_caller import Http2Caller
from tests.support.scripted_http2 import GRPC_HEADERS, Http2Peer, ScriptedHttp2, message
from tests.support.streaming_backend import Asked
from tests.support.waiting import eventually

__all__ = ["ask", "channel", "talk"]

CHAT = "/echo.Echo/stream_stream"
UNREACHABLE = (grpc.StatusCode.UNAVAILABLE, "the backend of the service cannot be reached")
WINDOW = 128 << 10


@pytest.fixture
def server(gateway: Gateway, resources) -> ScriptedHttp2:
    """A backend that says what the test tells it to; it is registered."""
    server = resources.enter_context(ScriptedHttp2())
    register(gateway, server.address)
    return server


@pytest.fixture
def begin(gateway: Gateway, server: ScriptedHttp2, ask) -> Callable[..., tuple[Asked, Http2Peer]]:
    """A call that streams both ways, which the backend has got."""

    def begin(said: Any, settings: dict[int, int] | None = None) -> tuple[Asked, Http2Peer]:
        asked = ask(gateway, "stream_stream", said)
        peer = server.accept()
        peer.begin(settings)
        return asked, peer

    return begin


def finish(peer: Http2Peer, stream_id: int, *payloads: bytes) -> None:
    """All of an answer."""
    opening = peer._encoder.encode(list(GRPC_HEADERS))
    closing = peer._encoder.encode([("grpc-status", "0")])
    peer.say(
        HeadersFrame(stream_id, opening, flags=["END_HEADERS"]),
        DataFrame(stream_id, b"".join(map(message, payloads))),
        HeadersFrame(stream_id, closing, flags=["END_HEADERS", "END_STREAM"]),
    )


def test_messages_go_on_as_they_come_and_the_end_behind_them(begin) -> None:
    may_end = threading.Event()

    def speak() -> Iterator[bytes]:
        yield b"1"
        yield b"2"
        may_end.wait(60.0)

    asked, peer = begin(speak())
    assert [peer.hears_message(), peer.hears_message()] == [b"1", b"2"]
    may_end.set()
    end = peer.hears(DataFrame, "END_STREAM")
    assert end.data == b""
    finish(peer, 1, b"a", b"b")
    assert asked.wait() == [b"a", b"b"]


# Windows


def test_a_caller_that_does_not_read_shuts_the_backends_window(gateway: Gateway, server) -> None:
    chunk = b"x" * 1_000
    with Http2Caller(gateway.address, settings={SettingsFrame.INITIAL_WINDOW_SIZE: 0}) as caller:
        caller.call(CHAT)
        peer = server.accept()
        peer.begin()
        peer.hears(DataFrame, "END_STREAM")
        peer.accept_stream()
        sent = 0
        while peer.window > len(chunk) + 5:
            peer.send(chunk)
            sent += 1
        peer.ping()
        assert peer.window <= len(chunk) + 5  # it was not opened
        assert streaming(gateway) == 1
        caller.open_window(1 << 20)
        peer.hears(WindowUpdateFrame)
        assert peer.window > WINDOW // 2
        peer.trailers(("grpc-status", "0"))
        answer = caller.hears_answer()
    assert (answer.status, answer.data) == ("0", message(chunk) * sent)


def test_a_caller_that_does_not_read_keeps_a_large_message_at_the_backend(
    gateway: Gateway, server
) -> None:
    size = 1_000_000
    with Http2Caller(gateway.address, settings={SettingsFrame.INITIAL_WINDOW_SIZE: 0}) as caller:
        caller.call(CHAT)
        peer = server.accept()
        peer.begin()
        peer.hears(DataFrame, "END_STREAM")
        peer.accept_stream()
        peer.send(b"a" * 100_000)
        rest = message(b"b" * size)
        begun = rest[: peer.window]
        peer.say(peer.data_frames(begun))
        peer.stream_window -= len(begun)
        peer.connection_window -= len(begun)
        peer.ping()
        assert peer.window == 0  # the rest of the message is not asked for
        assert 0 < len(begun) < WINDOW
        caller.say(
            WindowUpdateFrame(0, window_increment=1 << 24),
            WindowUpdateFrame(1, window_increment=1 << 24),
        )
        rest = rest[len(begun) :]
        while rest:
            while peer.window <= 0:
                peer.hears_frame()
            piece = rest[: min(peer.window, 16_384)]
            peer.stream_window -= len(piece)
            peer.connection_window -= len(piece)
            peer.say(DataFrame(1, piece))
            rest = rest[len(piece) :]
        peer.trailers(("grpc-status", "0"))
        answer = caller.hears_answer()
    assert answer.data == message(b"a" * 100_000) + message(b"b" * size)


def test_a_backend_that_opens_no_window_is_sent_nothing_beyond_it(begin, gateway) -> None:
    said = 0

    def speak() -> Iterator[bytes]:
        nonlocal said
        for _ in range(100):
            said += 1
            yield b"x" * 10_000

    asked, peer = begin(speak(), {SettingsFrame.INITIAL_WINDOW_SIZE: 25_000})
    first = [peer.hears_message() for _ in range(2)]
    eventually(lambda: said > 2)
    peer.ping()
    peer.open_window(1 << 20)
    assert [*first, *(peer.hears_message() for _ in range(98))] == [b"x" * 10_000] * 100
    finish(peer, 1, b"done")
    assert asked.wait() == [b"done"]


def test_calls_wait_for_a_backend_that_takes_no_more_at_once(begin, gateway, ask) -> None:
    first, peer = begin([b"1", b"1"], {SettingsFrame.MAX_CONCURRENT_STREAMS: 1})
    second = ask(gateway, "stream_stream", [b"2", b"2"])
    eventually(lambda: streaming(gateway) == 2)
    peer.ping()
    finish(peer, 1, b"first")
    assert first.wait() == [b"first"]
    assert peer.hears(HeadersFrame).stream_id == 3
    finish(peer, 3, b"second")
    assert second.wait() == [b"second"]


# Connections and streams that end


def test_what_a_backend_refused_is_said_to_it_once_more(begin) -> None:
    asked, peer = begin([b"1", b"2"])
    peer.hears(DataFrame, "END_STREAM")
    peer._data.clear()
    peer.reset(7)
    assert peer.hears(HeadersFrame).stream_id == 3
    assert [peer.hears_message(), peer.hears_message()] == [b"1", b"2"]
    finish(peer, 3, b"done")
    assert asked.wait() == [b"done"]


def test_what_a_leaving_backend_did_not_take_goes_to_the_next_connection(begin, server) -> None:
    asked, peer = begin([b"1", b"2"])
    peer.goaway(0, 0)
    following = server.accept()
    following.begin()
    assert [following.hears_message(), following.hears_message()] == [b"1", b"2"]
    finish(following, 1, b"done")
    assert asked.wait() == [b"done"]


def test_a_leaving_backend_goes_on_with_the_streams_that_it_took(
    begin, gateway, server, ask, talk
) -> None:
    asked, peer = begin(talk(b"1", b"2"))
    peer.hears_message()
    peer.goaway(0, 1)
    peer.ping()
    later = ask(gateway, "stream_stream", [b"3", b"4"])
    following = server.accept()
    following.begin()
    finish(following, 1, b"next")
    assert later.wait() == [b"next"]
    finish(peer, 1, b"last")
    assert asked.wait() == [b"last"]
    peer.hears_hang_up()


def test_a_forgotten_backends_connection_ends_with_its_last_stream(begin, gateway, talk) -> None:
    asked, peer = begin(talk(b"1", b"2"))
    peer.accept_stream()
    gateway.replace_keys("another-key")
    eventually(lambda: not gateway._thread._serving.shared.backends._backends)
    peer.send(b"a")
    assert asked.next() == b"a"
    peer.trailers(("grpc-status", "0"))
    assert asked.wait() == [b"a"]
    peer.hears(GoAwayFrame)
    peer.hears_hang_up()


def test_a_call_that_is_refused_twice_has_not_reached_the_backend(begin, gateway) -> None:
    asked, peer = begin([b"1", b"2"])
    peer.reset(7)
    assert peer.hears(HeadersFrame).stream_id == 3
    peer.say(RstStreamFrame(3, error_code=7))
    assert asked.end == UNREACHABLE
    eventually(lambda: in_flight(gateway) == 0)


def test_of_much_that_was_said_nothing_is_kept_to_be_said_again(begin, talk) -> None:
    asked, peer = begin(talk(b"x" * 50_000, b"x" * 50_000))
    peer.open_window(1 << 20)
    peer.hears_message()
    peer.hears_message()
    peer.reset(7)
    assert asked.end == UNREACHABLE


def test_a_connection_that_breaks_in_mid_stream_ends_the_call(begin, talk) -> None:
    asked, peer = begin(talk(b"1", b"2"))
    peer.accept_stream()
    peer.send(b"a")
    assert asked.next() == b"a"
    peer.hang_up()
    assert asked.end == (grpc.StatusCode.UNAVAILABLE, "the backend's connection ended")


def test_a_connection_that_breaks_before_the_first_message_had_been_reached(begin, talk) -> None:
    asked, peer = begin(talk(b"1", b"2"))
    peer.accept_stream()
    peer.hang_up()
    assert asked.end == (grpc.StatusCode.UNAVAILABLE, "the backend's connection ended")


def test_a_reset_in_mid_stream_is_an_end(begin, talk) -> None:
    asked, peer = begin(talk(b"1", b"2"))
    peer.accept_stream()
    peer.send(b"a")
    assert asked.next() == b"a"
    peer.reset(0xB)
    expected = "the backend reset the stream (ENHANCE_YOUR_CALM)"
    assert asked.end == (grpc.StatusCode.RESOURCE_EXHAUSTED, expected)


def _ends_without_trailers(peer: Http2Peer) -> None:
    peer.say(DataFrame(1, message(b"x"), flags=["END_STREAM"]))


def _sends_headers_twice(peer: Http2Peer) -> None:
    peer.accept_stream()


def _breaks_a_message_off(peer: Http2Peer) -> None:
    peer.say(DataFrame(1, message(b"xyz")[:-1], flags=["END_STREAM"]))


def _breaks_a_message_off_and_says_that_all_is_well(peer: Http2Peer) -> None:
    peer.say(DataFrame(1, message(b"xyz")[:-1]))
    peer.trailers(("grpc-status", "0"))


@pytest.mark.parametrize(
    ("misbehave", "code", "words"),
    [
        (_ends_without_trailers, grpc.StatusCode.UNKNOWN, "without a status"),
        (_sends_headers_twice, grpc.StatusCode.INTERNAL, "headers in the middle of an answer"),
        (_breaks_a_message_off, grpc.StatusCode.INTERNAL, "ended in the middle of a message"),
        (
            _breaks_a_message_off_and_says_that_all_is_well,
            grpc.StatusCode.INTERNAL,
            "ended in the middle of a message",
        ),
    ],
    ids=lambda each: each.__name__ if callable(each) else "",
)
def test_an_answer_that_breaks_a_rule_in_mid_stream_fails_its_call_alone(
    begin, gateway, ask, talk, misbehave, code, words
) -> None:
    asked, peer = begin(talk(b"1", b"2"))
    peer.accept_stream()
    peer.send(b"a")
    assert asked.next() == b"a"
    misbehave(peer)
    assert asked.end[0] is code
    assert words in asked.end[1]
    following = ask(gateway, "stream_stream", [b"3", b"4"])
    assert peer.hears(HeadersFrame).stream_id == 3
    finish(peer, 3, b"b")
    assert following.wait() == [b"b"]


def test_thousands_of_small_messages_of_a_backends_are_no_flood(impatient, begin, talk) -> None:
    count = 4_000
    asked, peer = begin(talk(b"1", b"2"))
    peer.accept_stream()
    heard: list[bytes] = []

    def read() -> None:
        heard.extend(asked.call)

    reading = threading.Thread(target=read)
    reading.start()
    for _ in range(count // 100):
        body = message(b"y") * 100
        while peer.window < len(body):
            peer.hears_frame()
        peer.stream_window -= len(body)
        peer.connection_window -= len(body)
        peer.say(b"".join(DataFrame(1, message(b"y")).serialize() for _ in range(100)))
    peer.trailers(("grpc-status", "0"))
    reading.join(60.0)
    assert heard == [b"y"] * count


# A call that may be unary, and one that may not


def test_a_request_that_comes_in_two_parts_shortly_behind_each_other_is_unary(
    gateway: Gateway, server, monkeypatch
) -> None:
    monkeypatch.setattr(callers, "_PATIENCE", 60.0)
    with Http2Caller(gateway.address) as caller:
        block = caller.request_block(CHAT)
        caller.say(HeadersFrame(1, block, flags=["END_HEADERS"]))
        caller.ping()
        caller.say(DataFrame(1, message(b"x")[:-1]))
        caller.ping()
        caller.say(DataFrame(1, b"x"))
        caller.ping()
        assert in_flight(gateway) == 0  # nothing was sent on
        caller.say(DataFrame(1, b"", flags=["END_STREAM"]))
        peer = server.accept()
        peer.begin()
        assert peer.hears(DataFrame, "END_STREAM").data == message(b"x")
        finish(peer, 1, b"done")
        assert caller.hears_answer().data == message(b"done")
    assert counted(gateway, "calls_answered") == 1


def test_a_large_request_that_comes_slowly_is_none_that_streams(gateway: Gateway, server) -> None:
    body = message(b"x" * 1_000)
    with Http2Caller(gateway.address) as caller:
        block = caller.request_block(CHAT)
        caller.say(HeadersFrame(1, block, flags=["END_HEADERS"]), DataFrame(1, body[:600]))
        serving = gateway._thread._serving
        (incoming,) = eventually(lambda: tuple(serving._callers._incoming))
        eventually(lambda: incoming._looks or incoming.stream.is_mid_message)
        gateway._thread._loop.call_soon_threadsafe(incoming.consider)
        caller.ping()
        assert serving._callers.receiving == 1
        assert streaming(gateway) == 0
        caller.say(DataFrame(1, body[600:], flags=["END_STREAM"]))
        peer = server.accept()
        peer.begin()
        finish(peer, 1, b"done")
        assert caller.hears_answer().data == message(b"done")


def on_trial(gateway: Gateway) -> bool:
    """Whether the one streaming call has the time of a unary one."""
    (call,) = gateway._thread._serving._callers.streaming._open
    return call._trial is not None and not call._trial._timer.cancelled()


@pytest.fixture
def open_one(gateway: Gateway, server, resources) -> Callable[[], tuple[Http2Caller, Http2Peer]]:
    """A caller that has said nothing yet, and the backend that has heard of it."""

    def open_one() -> tuple[Http2Caller, Http2Peer]:
        caller = resources.enter_context(Http2Caller(gateway.address))
        caller.say(HeadersFrame(1, caller.request_block(CHAT), flags=["END_HEADERS"]))
        peer = server.accept()
        peer.begin()
        return caller, peer

    return open_one


def test_a_call_is_on_trial_until_its_answer_begins(gateway, open_one, monkeypatch) -> None:
    monkeypatch.setattr(trials, "_LONGEST_REQUEST", 60.0)
    caller, peer = open_one()
    caller.say(DataFrame(1, message(b"x"), flags=["END_STREAM"]))
    peer.hears(DataFrame, "END_STREAM")
    assert on_trial(gateway)
    peer.accept_stream()
    eventually(lambda: not on_trial(gateway))
    peer.send(b"a")
    peer.trailers(("grpc-status", "0"))
    assert caller.hears_answer().data == message(b"a")


@pytest.mark.parametrize("said", [[], [b"x", b"y"]])
def test_a_call_whose_request_is_not_one_message_is_not_on_trial(gateway, open_one, said) -> None:
    caller, peer = open_one()
    caller.say(DataFrame(1, b"".join(map(message, said)), flags=["END_STREAM"]))
    peer.hears(DataFrame, "END_STREAM")
    assert not on_trial(gateway)
    finish(peer, 1, b"a")
    assert caller.hears_answer().data == message(b"a")


def test_a_call_that_fails_its_trial_is_over(run_gateway, resources, monkeypatch) -> None:
    monkeypatch.setattr(trials, "_LONGEST_REQUEST", 60.0)
    gateway = run_gateway(request_timeout=3.0)
    server = resources.enter_context(ScriptedHttp2())
    register(gateway, server.address)
    caller = resources.enter_context(Http2Caller(gateway.address))
    caller.say(HeadersFrame(1, caller.request_block(CHAT), flags=["END_HEADERS"]))
    peer = server.accept()
    peer.begin()
    caller.say(DataFrame(1, message(b"x"), flags=["END_STREAM"]))
    answer = caller.hears_answer()
    assert answer.status == "4"
    assert answer.blocks[-1]["grpc-message"] == "the backend did not answer in time"
    assert peer.hears(RstStreamFrame).error_code == 8
    assert counted(gateway, "calls_expired") == 1


@pytest.mark.parametrize("said", [[], [b"x", b"y"]])
def test_a_deadline_that_its_caller_forgets_ends_the_call(gateway, server, resources, said) -> None:
    caller = resources.enter_context(Http2Caller(gateway.address))
    block = caller.request_block(CHAT, [("grpc-timeout", "300m")])
    body = b"".join(map(message, said))
    caller.say(HeadersFrame(1, block, flags=["END_HEADERS"]), DataFrame(1, body))
    answer = caller.hears_answer()
    assert (answer.status, answer.blocks[-1]["grpc-message"]) == ("4", "the deadline has passed")
    assert counted(gateway, "calls_expired") == 1
    assert in_flight(gateway) == 0
