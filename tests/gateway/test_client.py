"""What a gateway says to a backend in HTTP/2, and what it makes of the answers, frame by frame."""

from __future__ import annotations

import asyncio
import gzip
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress

import grpc
import pytest
from hyperframe.frame import (
    DataFrame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
)

from revconn.gateway import Gateway, client, dialling
from revconn.gateway.wires import Turn
from tests.gateway.test_backends import PATIENCE, SAY, register
from tests.support.backend import Backend
from tests.support.certificates import Authority
from tests.support.scripted_http2 import GRPC_HEADERS, Http2Peer, ScriptedHttp2, message
from tests.support.waiting import eventually

UNREACHABLE = "the backend of the service cannot be reached"


@pytest.fixture
def server(gateway: Gateway, resources) -> ScriptedHttp2:
    """A backend that says what the test tells it to; it is registered."""
    server = resources.enter_context(ScriptedHttp2())
    register(gateway, server.address)
    return server


@pytest.fixture
def begin(gateway: Gateway, server: ScriptedHttp2, call) -> Callable[..., tuple]:
    """A call that the backend has got, and the backend's end of the connection."""

    def begin(payload: bytes = b"", settings: dict[int, int] | None = None, **options):
        pending = call(gateway, SAY, payload, **options)
        peer = server.accept()
        peer.begin(settings)
        return pending, peer

    return begin


def answer(peer: Http2Peer, stream_id: int, payload: bytes) -> None:
    """All of the answer to a call."""
    opening = peer._encoder.encode(list(GRPC_HEADERS))
    closing = peer._encoder.encode([("grpc-status", "0")])
    peer.say(
        HeadersFrame(stream_id, opening, flags=["END_HEADERS"]),
        DataFrame(stream_id, message(payload)),
        HeadersFrame(stream_id, closing, flags=["END_HEADERS", "END_STREAM"]),
    )


def outcome(pending: grpc.Future) -> tuple[grpc.StatusCode, str]:
    return pending.code(), pending.details()


# What is asked


def test_a_call_is_headers_and_one_frame_that_ends_the_request(begin, server) -> None:
    pending, peer = begin(b"hello", timeout=30.0, metadata=[("trace-bin", b"\0\xff")])
    headers = dict(peer.headers)
    assert [name for name, _ in peer.headers[:4]] == [":method", ":scheme", ":path", ":authority"]
    assert (headers[":method"], headers[":scheme"], headers[":path"]) == ("POST", "http", SAY)
    assert headers[":authority"] == server.address
    assert (headers["te"], headers["content-type"]) == ("trailers", "application/grpc")
    assert headers["trace-bin"] == "AP8"
    assert headers["grpc-timeout"].endswith("u") or headers["grpc-timeout"].endswith("m")
    data = peer.hears(DataFrame)
    assert data.data == message(b"hello")
    assert "END_STREAM" in data.flags
    answer(peer, 1, b"hi")
    assert pending.result() == b"hi"


def test_calls_share_a_connection(begin, gateway, call) -> None:
    pending, peer = begin()
    more = [call(gateway, SAY) for _ in range(2)]
    asked = [1, *(peer.hears(HeadersFrame).stream_id for _ in more)]
    assert asked == [1, 3, 5]
    for stream_id in reversed(asked):
        answer(peer, stream_id, b"%d" % stream_id)
    assert sorted(each.result() for each in (pending, *more)) == [b"1", b"3", b"5"]


def test_no_more_calls_are_made_at_once_than_the_backend_takes(begin, gateway, call) -> None:
    _, peer = begin(settings={SettingsFrame.MAX_CONCURRENT_STREAMS: 1})
    peer.hears(DataFrame)
    second = call(gateway, SAY)
    hasty = call(gateway, SAY, timeout=0.2)
    assert hasty.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    eventually(lambda: gateway.stats()["pending"] == 2)
    peer.say(PingFrame(0, opaque_data=b"12345678"))
    assert isinstance(peer.hears_frame(), PingFrame)  # and no HEADERS before it
    answer(peer, 1, b"first")
    assert peer.hears(HeadersFrame).stream_id == 3
    answer(peer, 3, b"second")
    assert second.result() == b"second"


def test_who_waits_for_room_has_it_when_the_backend_takes_more(begin, gateway, call) -> None:
    _, peer = begin(settings={SettingsFrame.MAX_CONCURRENT_STREAMS: 1})
    second = call(gateway, SAY)
    eventually(lambda: gateway.stats()["pending"] == 2)
    peer.say(SettingsFrame(0, settings={SettingsFrame.MAX_CONCURRENT_STREAMS: 2}))
    assert peer.hears(HeadersFrame).stream_id == 3
    answer(peer, 3, b"second")
    assert second.result() == b"second"


@pytest.mark.parametrize("gives_up", ["the caller", "its deadline"])
def test_a_call_that_nobody_waits_for_is_cancelled(begin, gives_up) -> None:
    pending, peer = begin(timeout=PATIENCE if gives_up == "the caller" else 0.3)
    if gives_up == "the caller":
        pending.cancel()
    reset = peer.hears(RstStreamFrame)
    assert (reset.stream_id, reset.error_code) == (1, 8)


def test_messages_of_several_windows_pass_both_ways(gateway, resources, call) -> None:
    backend = resources.enter_context(Backend(lambda payload, _: payload[:1] * 5_000_000))
    register(gateway, backend.address)
    assert call(gateway, SAY, b"x" * 3_000_000).result() == b"x" * 5_000_000


# What is answered


def test_an_answer_without_a_message_says_why(begin) -> None:
    pending, peer = begin()
    peer.trailers(*GRPC_HEADERS, ("grpc-status", "5"), ("grpc-message", "gr%C3%B6%C3%9Fer"))
    assert outcome(pending) == (grpc.StatusCode.NOT_FOUND, "größer")


def test_a_failure_in_headers_that_are_not_the_end_is_the_answer(begin) -> None:
    pending, peer = begin()
    peer.accept_stream(("grpc-status", "5"), ("grpc-message", "no such thing"))
    assert outcome(pending) == (grpc.StatusCode.NOT_FOUND, "no such thing")


def test_a_success_in_headers_that_are_not_the_end_ends_nothing(begin) -> None:
    pending, peer = begin()
    peer.accept_stream(("grpc-status", "0"))
    peer.send(b"x")
    peer.trailers(("grpc-status", "0"))
    assert pending.result() == b"x"


def test_headers_that_announce_others_are_passed_over(begin) -> None:
    pending, peer = begin()
    peer.say(peer.headers_frame([(":status", "103"), ("link", "x")]))
    answer(peer, 1, b"x")
    assert pending.result() == b"x"


def test_a_compressed_answer_is_inflated(begin) -> None:
    pending, peer = begin()
    peer.accept_stream(("grpc-encoding", "gzip"))
    peer.say(peer.data_frames(message(gzip.compress(b"x" * 1000), compressed=True)))
    peer.trailers(("grpc-status", "0"))
    assert pending.result() == b"x" * 1000


def test_no_answer_is_inflated_beyond_the_limit(run_gateway, resources, call) -> None:
    gateway = run_gateway(max_sent_message_bytes=10_000)
    server = resources.enter_context(ScriptedHttp2())
    register(gateway, server.address)
    pending = call(gateway, SAY)
    peer = server.accept()
    peer.begin()
    peer.accept_stream(("grpc-encoding", "gzip"))
    peer.say(peer.data_frames(message(gzip.compress(b"x" * 1_000_000), compressed=True)))
    assert pending.code() is grpc.StatusCode.INTERNAL
    assert "gzip messages inflate to more than 10,000 bytes" in pending.details()
    assert peer.hears(RstStreamFrame).error_code == 8


@pytest.mark.parametrize(
    ("error", "code", "name"),
    [
        (0x2, grpc.StatusCode.INTERNAL, "INTERNAL_ERROR"),
        (0x8, grpc.StatusCode.CANCELLED, "CANCEL"),
        (0xB, grpc.StatusCode.RESOURCE_EXHAUSTED, "ENHANCE_YOUR_CALM"),
        (0xC, grpc.StatusCode.PERMISSION_DENIED, "INADEQUATE_SECURITY"),
        (0x99, grpc.StatusCode.UNKNOWN, "code 0x99"),
    ],
)
def test_a_reset_is_an_answer(begin, error, code, name) -> None:
    pending, peer = begin()
    peer.reset(error)
    assert outcome(pending) == (code, f"the backend reset the stream ({name})")


def _ends_without_status(peer: Http2Peer) -> None:
    peer.accept_stream()
    peer.say(DataFrame(1, message(b"x"), flags=["END_STREAM"]))


def _sends_data_first(peer: Http2Peer) -> None:
    peer.say(DataFrame(1, message(b"x")))


def _sends_headers_twice(peer: Http2Peer) -> None:
    peer.accept_stream()
    peer.accept_stream()


def _sends_illegal_headers(peer: Http2Peer) -> None:
    peer.accept_stream(("Upper", "case"))


def _sends_compressed_unannounced(peer: Http2Peer) -> None:
    peer.accept_stream()
    peer.say(DataFrame(1, message(gzip.compress(b"x"), compressed=True)))


def _ends_in_a_message(peer: Http2Peer) -> None:
    peer.accept_stream()
    peer.say(DataFrame(1, message(b"xyz")[:-1], flags=["END_STREAM"]))


def _says_too_much(peer: Http2Peer) -> None:
    peer.accept_stream(("big", "x" * 16_500))


@pytest.mark.parametrize(
    ("misbehave", "code", "words"),
    [
        (_ends_without_status, grpc.StatusCode.UNKNOWN, "without a status"),
        (_sends_data_first, grpc.StatusCode.INTERNAL, "an answer without headers"),
        (_sends_headers_twice, grpc.StatusCode.INTERNAL, "headers in the middle of an answer"),
        (_sends_illegal_headers, grpc.StatusCode.INTERNAL, "that HTTP/2 does not allow"),
        (_sends_compressed_unannounced, grpc.StatusCode.INTERNAL, "without grpc-encoding"),
        (_ends_in_a_message, grpc.StatusCode.INTERNAL, "ended in the middle of a message"),
        (_says_too_much, grpc.StatusCode.RESOURCE_EXHAUSTED, "metadata exceeds 16,384 bytes"),
    ],
    ids=lambda each: each.__name__ if callable(each) else "",
)
def test_an_answer_that_is_none_fails_its_call_alone(
    begin, gateway, call, misbehave, code, words
) -> None:
    pending, peer = begin()
    misbehave(peer)
    assert pending.code() is code
    assert words in pending.details()
    following = call(gateway, SAY)
    assert peer.hears(HeadersFrame).stream_id == 3
    answer(peer, 3, b"x")
    assert following.result() == b"x"


# Connections that end


def test_a_refused_call_is_made_once_more(begin) -> None:
    pending, peer = begin()
    peer.reset(7)
    assert peer.hears(HeadersFrame).stream_id == 3
    answer(peer, 3, b"x")
    assert pending.result() == b"x"


def test_a_call_that_is_refused_twice_has_not_reached_the_backend(begin) -> None:
    pending, peer = begin()
    peer.reset(7)
    assert peer.hears(HeadersFrame).stream_id == 3
    peer.say(RstStreamFrame(3, error_code=7))
    assert outcome(pending) == (grpc.StatusCode.UNAVAILABLE, UNREACHABLE)


def test_what_a_leaving_backend_did_not_take_goes_to_the_next_connection(begin, server) -> None:
    pending, peer = begin()
    peer.goaway(0, 0)
    following = server.accept()
    following.begin()
    answer(following, 1, b"x")
    assert pending.result() == b"x"
    peer.hears_hang_up()


def test_a_leaving_backend_answers_what_it_took_and_gets_no_more(
    begin, gateway, server, call
) -> None:
    pending, peer = begin()
    peer.goaway(0, 1)
    peer.ping()
    later = call(gateway, SAY)
    following = server.accept()
    following.begin()
    answer(following, 1, b"next")
    assert later.result() == b"next"
    answer(peer, 1, b"last")
    assert pending.result() == b"last"
    peer.hears(GoAwayFrame)
    peer.hears_hang_up()


def test_a_call_that_was_sent_is_not_made_again_when_its_connection_is_gone(
    begin, gateway, server, call, caplog
) -> None:
    pending, peer = begin()
    peer.accept_stream()
    peer.hang_up()
    assert outcome(pending) == (grpc.StatusCode.UNAVAILABLE, UNREACHABLE)
    assert "cannot be reached: the peer closed the connection" in caplog.text
    later = call(gateway, SAY)
    following = server.accept()  # the first since
    following.begin()
    answer(following, 1, b"x")
    assert later.result() == b"x"


def test_calls_that_wait_for_room_go_to_the_next_connection(begin, gateway, server, call) -> None:
    first, peer = begin(settings={SettingsFrame.MAX_CONCURRENT_STREAMS: 1})
    second = call(gateway, SAY)
    eventually(lambda: gateway.stats()["pending"] == 2)
    peer.hang_up()
    assert outcome(first) == (grpc.StatusCode.UNAVAILABLE, UNREACHABLE)
    following = server.accept()
    following.begin()
    answer(following, 1, b"second")
    assert second.result() == b"second"


def test_a_backend_that_breaks_http2_is_told_so_and_dialled_anew(
    begin, gateway, server, call
) -> None:
    pending, peer = begin()
    peer.say(DataFrame(9, b"x"))  # of a stream that there is not
    assert outcome(pending) == (grpc.StatusCode.UNAVAILABLE, UNREACHABLE)
    assert peer.hears(GoAwayFrame).error_code == 1
    later = call(gateway, SAY)
    following = server.accept()
    following.begin()
    answer(following, 1, b"x")
    assert later.result() == b"x"


def test_a_forgotten_backends_connection_is_ended(begin, gateway) -> None:
    pending, peer = begin()
    gateway.replace_keys("another-key")
    answer(peer, 1, b"x")
    assert pending.result() == b"x"
    peer.hears(GoAwayFrame)
    peer.hears_hang_up()


def test_a_stopping_gateway_ends_its_connections(begin, gateway) -> None:
    _, peer = begin()
    answer(peer, 1, b"x")
    gateway.stop()
    peer.hears_hang_up()


def test_a_silent_backend_is_pinged_and_given_up(begin, monkeypatch, caplog) -> None:
    monkeypatch.setattr(client, "_SILENCE", 0.05)
    pending, peer = begin()
    peer.hears(PingFrame)
    peer.say(PingFrame(0, opaque_data=b"revconn\0", flags=["ACK"]))
    peer.ping()  # it was taken in
    monkeypatch.setattr(client, "_PING_INTERVAL", 0.0)
    monkeypatch.setattr(client, "_PING_TIMEOUT", 0.05)
    peer.hears(PingFrame)
    assert outcome(pending) == (grpc.StatusCode.UNAVAILABLE, UNREACHABLE)
    assert "the backend does not answer a ping" in caplog.text


# TLS


@pytest.fixture
def shaking_hands(resources) -> Iterator[Callable[[ScriptedHttp2], None]]:
    """Somebody who accepts what comes, and may be refused."""
    threads = []

    def shake(server: ScriptedHttp2) -> None:
        def accept() -> None:
            with suppress(OSError):
                server.accept().hears_hang_up()

        threads.append(threading.Thread(target=accept, daemon=True))
        threads[-1].start()

    yield shake
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()


def test_a_backend_whose_tls_knows_no_http2_is_out_of_reach(
    gateway, resources, call, monkeypatch, tmp_path, caplog, shaking_hands
) -> None:
    authority = Authority()
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.write(tmp_path / "ca.pem")))
    cert, key = authority.issue_files(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    server = resources.enter_context(ScriptedHttp2(tls=context))
    shaking_hands(server)
    register(gateway, f"https://{server.address}")
    assert outcome(call(gateway, SAY)) == (grpc.StatusCode.UNAVAILABLE, UNREACHABLE)
    assert "the peer does not speak HTTP/2" in caplog.text


def test_a_backend_of_another_authority_is_out_of_reach(
    gateway, resources, call, caplog, shaking_hands
) -> None:
    server = resources.enter_context(ScriptedHttp2(tls=Authority().server_context()))
    shaking_hands(server)
    register(gateway, f"https://{server.address}")
    assert outcome(call(gateway, SAY)) == (grpc.StatusCode.UNAVAILABLE, UNREACHABLE)
    assert "certificate verify failed" in caplog.text


# Out of reach


def test_while_a_backend_is_out_of_reach_calls_fail_at_once(
    gateway, resources, call, monkeypatch
) -> None:
    monkeypatch.setattr(dialling, "_CONNECT_TIMEOUT", 0.2)
    monkeypatch.setattr(dialling, "_FIRST_DELAY", PATIENCE)
    server = resources.enter_context(ScriptedHttp2())
    register(gateway, server.address)
    assert outcome(call(gateway, SAY)) == (grpc.StatusCode.UNAVAILABLE, UNREACHABLE)
    server.accept().hears_hang_up()
    monkeypatch.setattr(dialling, "_CONNECT_TIMEOUT", PATIENCE)
    assert outcome(call(gateway, SAY)) == (grpc.StatusCode.UNAVAILABLE, UNREACHABLE)


def test_a_gateway_stops_while_it_dials(gateway, resources, call) -> None:
    server = resources.enter_context(ScriptedHttp2())
    register(gateway, server.address)
    pending = call(gateway, SAY)
    peer = server.accept()
    peer.hears_preface()
    gateway.stop(grace=0)
    assert pending.code() is grpc.StatusCode.UNAVAILABLE
    peer.hears_hang_up()


# Turns


def test_what_fails_at_the_end_of_a_turn_keeps_nothing_else_from_being_done() -> None:
    done = []
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda _loop, context: done.append(type(context["exception"])))
    turn = Turn(loop)
    turn.at_end(lambda: done.append(1))
    turn.at_end(lambda: 1 // 0)
    turn.at_end(lambda: turn.at_end(lambda: done.append(2)))
    loop.call_later(0.01, loop.stop)
    loop.run_forever()
    loop.close()
    assert done == [1, ZeroDivisionError, 2]
