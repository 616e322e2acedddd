"""gRPC over HTTP/2, as its own document (PROTOCOL-HTTP2) has it, over real sockets."""

from __future__ import annotations

import gzip
import logging
import re

import pytest
from hyperframe.frame import DataFrame, HeadersFrame, PingFrame

from revconn.core.status import StatusCode
from revconn.transport.base import StreamEnded
from tests.support.scripted_http2 import GRPC_HEADERS, Http2Peer, ScriptedHttp2, message

LARGEST = 256 << 20


@pytest.fixture
def peer(client, server: ScriptedHttp2) -> Http2Peer:
    """The server's side, with the request read and not answered."""
    peer = server.accept()
    peer.begin()
    return peer


# The request


def test_the_request_has_the_headers_that_grpc_wants(peer: Http2Peer, server) -> None:
    headers = dict(peer.headers)
    assert re.fullmatch(r"revconn-python/\d+\.\d+.*", headers.pop("user-agent"))
    assert headers == {
        ":method": "POST",
        ":scheme": "http",
        ":path": "/registry.RegistryService/EstablishConnection",
        ":authority": server.address,
        "te": "trailers",
        "content-type": "application/grpc",
        "grpc-accept-encoding": "identity,gzip",
        "revconn-features": "cancel,chunks,drain,metadata,streams",
    }
    names = [name for name, _ in peer.headers]
    assert names == sorted(names, key=lambda name: not name.startswith(":"))


def test_messages_travel_with_their_prefix_in_both_directions(client, peer) -> None:
    peer.accept_stream()
    client.send(b"one", b"", b"three")
    assert [peer.hears_message() for _ in range(3)] == [b"one", b"", b"three"]
    peer.say(DataFrame(1, message(b"four") + message(b"")))
    assert client.receive(2) == [b"four", b""]


def test_what_waits_leaves_before_the_server_has_answered_the_request(client, peer) -> None:
    client.send(b"register")
    assert peer.hears_message() == b"register"


def test_messages_may_be_cut_anywhere(client, peer) -> None:
    peer.accept_stream()
    for byte in message(b"abc") + message(b"de"):
        peer.say(DataFrame(1, bytes([byte])))
    assert client.receive(2) == [b"abc", b"de"]


def test_padding_is_taken_off_in_its_place(client, peer) -> None:
    peer.accept_stream()
    padded = DataFrame(1, message(b"two"), flags=["PADDED"], pad_length=30)
    one, three = DataFrame(1, message(b"one")), DataFrame(1, message(b"three"))
    peer.say(one.serialize() + padded.serialize() + three.serialize())
    assert client.receive(3) == [b"one", b"two", b"three"]


def test_the_last_message_may_come_with_the_trailers_in_one_piece(client, peer) -> None:
    peer.accept_stream()
    trailers = peer.headers_frame([("grpc-status", "0")], end=True)
    peer.say(DataFrame(1, message(b"last")).serialize() + trailers.serialize())
    assert client.receive() == [b"last"]
    assert client.end().code is StatusCode.OK


# How a stream ends


def test_trailers_end_the_stream_with_their_status(client, peer) -> None:
    peer.accept_stream()
    peer.trailers(("grpc-status", "16"), ("grpc-message", "Invalid%20token%3A %E2%9C%93"))
    ended = client.end()
    assert (ended.code, ended.details) == (StatusCode.UNAUTHENTICATED, "Invalid token: ✓")


def test_trailers_only_end_the_stream_with_their_status(client, peer) -> None:
    refusal = [*GRPC_HEADERS, ("grpc-status", "3"), ("grpc-message", "no services")]
    peer.say(peer.headers_frame(refusal, end=True))
    ended = client.end()
    assert (ended.code, ended.details) == (StatusCode.INVALID_ARGUMENT, "no services")


def test_status_details_in_binary_are_tolerated(client, peer) -> None:
    peer.accept_stream()
    peer.trailers(("grpc-status", "5"), ("grpc-status-details-bin", "CAUSBW5vdCBoZXJl"))
    assert client.end().code is StatusCode.NOT_FOUND


def test_the_end_is_reported_every_time_it_is_asked_for(client, peer) -> None:
    peer.accept_stream()
    peer.trailers(("grpc-status", "14"), ("grpc-message", "bye"))
    assert str(client.end()) == "UNAVAILABLE: bye"
    with pytest.raises(StreamEnded, match="UNAVAILABLE: bye"):
        client.stream.receive()


def test_a_stream_that_ends_without_trailers_is_broken(client, peer) -> None:
    peer.accept_stream()
    peer.say(DataFrame(1, message(b"last"), flags=["END_STREAM"]))
    assert client.receive() == [b"last"]
    ended = client.end()
    assert ended.code is StatusCode.INTERNAL
    assert ended.details == "the gateway ended the stream without trailers"


def test_headers_that_end_the_stream_without_a_status_are_no_trailers(client, peer) -> None:
    peer.say(peer.headers_frame(GRPC_HEADERS, end=True))
    assert "without trailers" in client.end().details


@pytest.mark.parametrize(
    ("code", "status", "name"),
    [
        (0x0, StatusCode.INTERNAL, "NO_ERROR"),
        (0x7, StatusCode.UNAVAILABLE, "REFUSED_STREAM"),
        (0x8, StatusCode.CANCELLED, "CANCEL"),
        (0xB, StatusCode.RESOURCE_EXHAUSTED, "ENHANCE_YOUR_CALM"),
        (0xFF, StatusCode.UNKNOWN, "code 0xff"),
    ],
)
def test_a_reset_ends_the_stream(client, peer, code: int, status: StatusCode, name: str) -> None:
    peer.accept_stream()
    peer.reset(code)
    ended = client.end()
    assert (ended.code, ended.details) == (status, f"the gateway reset the stream ({name})")


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize(
    ("status", "content_type", "code"),
    [
        ("502", "text/html", StatusCode.UNAVAILABLE),
        ("404", "text/html; charset=utf-8", StatusCode.UNIMPLEMENTED),
        ("200", "text/html", StatusCode.UNKNOWN),
        ("403", None, StatusCode.PERMISSION_DENIED),
    ],
)
def test_a_proxys_page_is_named_for_what_it_is(
    client, peer, status: str, content_type: str | None, code: StatusCode, split: bool
) -> None:
    page = b"<html>Bad Gateway</html>"
    headers = [(":status", status), ("content-length", str(len(page)))]
    if content_type is not None:
        headers.append(("content-type", content_type))
    frames = [peer.headers_frame(headers), DataFrame(1, page, flags=["END_STREAM"])]
    if split:
        for frame in frames:
            peer.say(frame)
    else:
        peer.say(*frames)
    ended = client.end()
    assert ended.code is code
    shown = f"content-type {content_type!r}" if content_type else "no content-type"
    assert f"no gRPC server: HTTP status {status}, {shown}" in ended.details


def test_an_http1_answer_is_named_for_what_it_is(client, server) -> None:
    peer = server.accept()
    peer.hears_preface()
    peer.say(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
    peer.hang_up()
    assert "speaks HTTP/1, not HTTP/2: is it a gateway, or a web server?" in client.end().details


def test_a_tls_port_spoken_to_in_plaintext_is_named_for_what_it_is(client, server) -> None:
    peer = server.accept()
    peer.hears_preface()
    peer.say(b"\x15\x03\x01\x00\x02\x02\x46")
    peer.hang_up()
    assert "speaks TLS: give tls=True" in client.end().details


def test_garbage_is_named_for_what_it_is(client, server) -> None:
    server.accept().say(b"220 mail.example.com ESMTP\r\n")
    assert "does not speak HTTP/2: it said b'220 mail" in client.end().details


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (b"", ""),
        (PingFrame(0).serialize()[:-1], " in the middle of a frame"),
        (DataFrame(1, message(b"abc")[:-1]).serialize(), " in the middle of a message"),
        (DataFrame(1, message(b"abc")).serialize()[:-1], " in the middle of a message"),
    ],
)
def test_a_connection_that_closes_says_where(client, peer, said: bytes, words: str) -> None:
    peer.accept_stream()
    peer.say(said)
    peer.hang_up()
    ended = client.end()
    assert ended.code is StatusCode.UNAVAILABLE
    assert ended.details == f"the gateway closed the connection{words}"


def test_a_server_that_says_nothing_at_all_is_told_from_one_that_goes(client, server) -> None:
    server.accept().hang_up()
    assert "before anything was said (does the port expect TLS, or none" in client.end().details


# Compression


def test_a_compressed_message_is_inflated_when_that_was_announced(client, peer) -> None:
    peer.accept_stream(("grpc-encoding", "gzip"))
    zipped = message(gzip.compress(b"a" * 1000), compressed=True)
    peer.say(DataFrame(1, zipped + message(b"plain")))
    assert client.receive(2) == [b"a" * 1000, b"plain"]


def test_a_compressed_message_that_was_not_announced_ends_the_stream(client, peer) -> None:
    peer.accept_stream()
    zipped = message(gzip.compress(b"a"), compressed=True)
    peer.say(DataFrame(1, message(b"plain") + zipped))
    assert client.receive() == [b"plain"]
    ended = client.end()
    assert ended.code is StatusCode.INTERNAL
    assert "without grpc-encoding" in ended.details


def test_an_encoding_that_is_not_known_is_refused(client, peer) -> None:
    peer.accept_stream(("grpc-encoding", "snappy"))
    ended = client.end()
    assert (ended.code, ended.details) == (
        StatusCode.UNIMPLEMENTED,
        "unknown grpc-encoding 'snappy'",
    )


@pytest.mark.costly
def test_a_gzip_bomb_ends_the_stream(client, peer) -> None:
    peer.accept_stream(("grpc-encoding", "gzip"))
    bomb = message(gzip.compress(bytes(LARGEST + 1), 1), compressed=True)
    peer.say(peer.data_frames(bomb))
    assert "gzip messages inflate to more than 268,435,456 bytes" in client.end().details


@pytest.mark.costly
def test_many_gzip_bombs_together_are_one_while_nobody_takes_them_away(new_client, server) -> None:
    client = new_client(server.address)
    client.saturate(True)
    client.open()
    peer = server.accept()
    peer.begin()
    peer.accept_stream(("grpc-encoding", "gzip"))
    half = message(gzip.compress(bytes(LARGEST // 2), 1), compressed=True)
    peer.say(peer.data_frames(half + half))
    assert sum(map(len, client.receive(2))) == LARGEST
    peer.say(peer.data_frames(half))
    assert "gzip messages inflate to more than" in client.end().details


# GOAWAY


def test_a_stream_goes_on_after_a_graceful_goaway(client, peer, caplog) -> None:
    caplog.set_level(logging.INFO, "revconn")
    peer.accept_stream()
    peer.goaway(0, (1 << 31) - 1, b"max_age")
    peer.goaway(0, 1)
    peer.send(b"still")
    assert client.receive() == [b"still"]
    client.send(b"here")
    assert peer.hears_message() == b"here"
    assert "is going away (GOAWAY NO_ERROR, 'max_age')" in caplog.text
    peer.hang_up()
    assert client.end().details == "the gateway closed the connection after GOAWAY NO_ERROR"


def test_a_goaway_that_excludes_the_stream_ends_it(client, peer) -> None:
    peer.accept_stream()
    peer.goaway(2, 0, b"out of memory")
    ended = client.end()
    assert ended.code is StatusCode.UNAVAILABLE
    assert (
        ended.details == "the gateway refused the stream (GOAWAY INTERNAL_ERROR, 'out of memory')"
    )


def test_too_many_pings_doubles_the_interval_of_every_connection_to_come(
    new_client, server, caplog
) -> None:
    client = new_client(server.address, keepalive_interval=10.0)
    client.open()
    peer = server.accept_stream()
    peer.goaway(0, (1 << 31) - 1)
    peer.goaway(11, 1, b"too_many_pings")
    peer.hang_up()
    assert "after GOAWAY ENHANCE_YOUR_CALM, 'too_many_pings'" in client.end().details
    assert client.transport.keepalive_interval == 20.0
    assert "finds keepalive pings too frequent: the interval is 20 s from now on" in caplog.text


# What becomes of messages when a stream ends


def test_a_status_is_heard_although_sending_fails_at_the_same_time(client, peer) -> None:
    peer.accept_stream()
    peer.trailers(("grpc-status", "16"), ("grpc-message", "Invalid token"))
    peer.close()  # unread data makes that a reset
    while client.stream._sender.is_alive():
        client.send(b"x" * 100_000)
    assert client.end().code is StatusCode.UNAUTHENTICATED


def test_what_was_sent_after_the_end_of_the_stream_goes_out_on_the_next(client, peer) -> None:
    peer.accept_stream()
    client.send(b"first")
    assert peer.hears_message() == b"first"
    peer.trailers(("grpc-status", "0"))
    with pytest.raises(StreamEnded):
        client.receive()
    client.send(b"second", b"third")
    # The first may be among them: sending an answer twice is harmless.
    assert client.unsent()[-2:] == [b"second", b"third"]


@pytest.mark.parametrize(
    "end",
    [
        lambda peer: peer.reset(8),
        lambda peer: peer.trailers(("grpc-status", "14")),
        lambda peer: peer.goaway(0, 0),
        lambda peer: peer.say(b"\xff" * 50),
        lambda peer: peer.hang_up(),
        lambda peer: peer.close(),
    ],
    ids=["reset", "trailers", "GOAWAY", "garbage", "end of file", "broken connection"],
)
def test_what_the_window_held_back_goes_out_on_the_next_stream(new_client, server, end) -> None:
    client = new_client(server.address)
    client.open()
    peer = server.accept_stream({4: 10})
    peer.ping()
    client.send(b"x" * 100, b"y")
    client.send(b"z")
    assert len(peer.hears(DataFrame).data) == 10
    end(peer)
    client.end()
    assert client.unsent() == [b"x" * 100, b"y", b"z"]


def test_a_sender_that_fails_for_whatever_reason_ends_the_stream(
    client, peer, caplog, monkeypatch
) -> None:
    def fail(messages: list[bytes]) -> None:
        raise RuntimeError("nobody foresaw this")

    peer.accept_stream()
    peer.ping()
    monkeypatch.setattr(client.stream._engine, "take_output", fail)
    client.send(b"x")
    ended = client.end()
    assert (ended.code, ended.details) == (
        StatusCode.INTERNAL,
        "sending failed; the log says why",
    )
    assert "nobody foresaw this" in caplog.text
    monkeypatch.undo()
    assert client.unsent() == [b"x"]


def test_interim_headers_are_passed_over(client, peer) -> None:
    peer.say(HeadersFrame(1, peer._encoder.encode([(":status", "103")]), flags=["END_HEADERS"]))
    peer.accept_stream()
    peer.send(b"hello")
    assert client.receive() == [b"hello"]


def test_interim_headers_without_end_are_cut_off(client, peer) -> None:
    for _ in range(11):
        hints = peer._encoder.encode([(":status", "103")])
        peer.say(HeadersFrame(1, hints, flags=["END_HEADERS"]))
    assert client.end().details == "more than 10 responses of status 1xx"


def test_gzip_that_costs_more_than_it_brings_is_a_flood(client, peer, monkeypatch) -> None:
    monkeypatch.setattr("revconn.core.framing._EXCESS_PER_WEIGHT", 1 << 10)
    peer.accept_stream(("grpc-encoding", "gzip"))
    text = b"".join(b"%d" % number for number in range(100_000))
    worthy = message(gzip.compress(text), compressed=True)
    for _ in range(30):
        peer.say(peer.data_frames(worthy))
    assert client.receive(30) == [text] * 30
    bomb = message(gzip.compress(bytes(1 << 20)), compressed=True)
    peer.say_as_long_as_it_listens(peer.data_frames(bomb), 30)
    assert "the gateway floods the connection" in client.end().details


def test_initial_metadata_is_exposed(client, peer) -> None:
    peer.accept_stream(("revconn-features", "cancel,drain"), ("x-bin", "AP8"))
    peer.send(b"hello")
    client.receive()
    metadata = client.stream._engine.initial_metadata
    assert metadata["revconn-features"] == "cancel,drain"
    assert metadata["x-bin"] == b"\x00\xff"
