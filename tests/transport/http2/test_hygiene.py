"""HTTP/2's own housekeeping, and peers that abuse it."""

from __future__ import annotations

import functools
import struct
import threading
from typing import Callable

import pytest
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    PushPromiseFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from revconn import Connector
from revconn._proto.registry_pb2 import ConnectionMessage, ConnectionStatus, ForwardRequest
from revconn.core.status import StatusCode
from revconn.http2.patience import Patience
from tests.support.connectors import QUICK
from tests.support.scripted_http2 import GRPC_HEADERS, Http2Peer, ScriptedHttp2, message
from tests.support.threads import TIMEOUT, in_thread

MIB = 1 << 20
BURST = 500  # frames without data that are borne at once; see tests/http2/test_windows.py
FLOOD = 6 * BURST


@pytest.fixture
def little_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A burst is sooner a flood, and no machine is so slow that patience comes back meanwhile."""
    patience = functools.partial(Patience, burst=BURST, per_second=0.0)
    monkeypatch.setattr("revconn.http2.connection.Patience", patience)


@pytest.fixture
def peer(client, server: ScriptedHttp2) -> Http2Peer:
    return server.accept_stream()


def raw(kind: int, payload: bytes = b"", *, flags: int = 0, stream_id: int = 0) -> bytes:
    """A frame that hyperframe would not write."""
    head = struct.pack(">HBBBI", len(payload) >> 8, len(payload) & 0xFF, kind, flags, stream_id)
    return head + payload


# Housekeeping


def test_the_windows_and_frames_that_a_client_announces_are_large(peer: Http2Peer) -> None:
    assert peer.settings[SettingsFrame.INITIAL_WINDOW_SIZE] == 8 * MIB
    assert peer.settings[SettingsFrame.MAX_FRAME_SIZE] == 256 << 10
    assert peer.settings[SettingsFrame.ENABLE_PUSH] == 0
    assert peer.connection_window == 16 * MIB


def test_settings_are_acknowledged(peer: Http2Peer) -> None:
    peer.hears(SettingsFrame, "ACK")
    peer.say(SettingsFrame(0, settings={3: 100}))
    peer.hears(SettingsFrame, "ACK")


def test_a_ping_is_answered_with_what_it_said(peer: Http2Peer) -> None:
    peer.ping(b"question")


def test_a_ping_is_answered_while_every_handler_is_busy(server: ScriptedHttp2) -> None:
    busy, done = threading.Semaphore(0), threading.Event()

    def block(request) -> bytes:
        busy.release()
        assert done.wait(10)
        return b"done"

    connector = Connector(server.address, **{**QUICK, "transport": "http2", "max_workers": 2})
    connector.add_service("echo.Echo", block)
    connector.start(block=False)
    try:
        peer = server.accept_stream()
        hear(peer, "register")
        peer.send(connected(), *(request(f"r{number}") for number in range(4)))
        for _ in range(2):
            assert busy.acquire(timeout=60)
        peer.ping()
        done.set()
        answered = {hear(peer, "response").request_id for _ in range(4)}
        assert answered == {"r0", "r1", "r2", "r3"}
    finally:
        done.set()
        connector.abort()


def connected() -> bytes:
    status = ConnectionStatus(connection_id="id-1", status=ConnectionStatus.CONNECTED)
    return ConnectionMessage(status=status).SerializeToString()


def request(request_id: str, payload: bytes = b"") -> bytes:
    forwarded = ForwardRequest(
        request_id=request_id, method_path="/echo.Echo/Say", payload=payload, timeout_seconds=30
    )
    return ConnectionMessage(request=forwarded).SerializeToString()


def hear(peer: Http2Peer, kind: str):
    said = ConnectionMessage.FromString(peer.hears_message())
    assert said.WhichOneof("message_type") == kind, said
    return getattr(said, kind)


def test_frames_that_http2_does_not_know_are_passed_over(client, peer) -> None:
    peer.say(raw(0x77, bytes(100)), PriorityFrame(1, depends_on=0))
    peer.send(b"after")
    assert client.receive() == [b"after"]


def test_frames_may_be_as_large_as_announced(client, peer) -> None:
    payload = b"x" * (600 << 10)
    peer.say(peer.data_frames(message(payload), size=256 << 10))
    assert [bytes(each) for each in client.receive()] == [payload]


@pytest.mark.parametrize("size", [16_384, 100_000, (1 << 24) - 1])
def test_our_frames_are_as_large_as_the_peer_allows(new_client, server, size: int) -> None:
    client = new_client(server.address)
    client.open()
    peer = server.accept_stream({5: size, 4: 64 * MIB})
    peer.open_window(64 * MIB)
    peer.ping()
    payload = b"x" * (2 * MIB)
    client.send(payload)
    largest = 0
    while len(peer._data) < 2 * MIB + 5:
        largest = max(largest, len(peer.hears(DataFrame).data))
    assert peer.hears_message() == payload
    assert largest == min(size, 256 << 10)


# Wrongs


def oversized(peer: Http2Peer) -> list[Frame | bytes]:
    return [DataFrame(1, bytes(300_000))]


def settings_on_a_stream(peer: Http2Peer) -> list[Frame | bytes]:
    return [raw(4, stream_id=1)]


def impossible_settings(peer: Http2Peer) -> list[Frame | bytes]:
    return [SettingsFrame(0, settings={4: (1 << 31)})]


def data_elsewhere(peer: Http2Peer) -> list[Frame | bytes]:
    return [DataFrame(3, b"x")]


def padding_only(peer: Http2Peer) -> list[Frame | bytes]:
    return [raw(0, b"\x07", flags=8, stream_id=1)]


def no_hpack(peer: Http2Peer) -> list[Frame | bytes]:
    return [HeadersFrame(1, b"\xff" * 30, flags=["END_HEADERS", "END_STREAM"])]


def headers_with_capitals(peer: Http2Peer) -> list[Frame | bytes]:
    return [peer.headers_frame([("Grpc-Status", "0")], end=True)]


def a_second_answer(peer: Http2Peer) -> list[Frame | bytes]:
    return [peer.headers_frame(GRPC_HEADERS)]


def push(peer: Http2Peer) -> list[Frame | bytes]:
    return [PushPromiseFrame(1, 2, peer._encoder.encode([(":path", "/")]), flags=["END_HEADERS"])]


def an_open_header_block(peer: Http2Peer) -> list[Frame | bytes]:
    return [HeadersFrame(1, b"\x88"), PingFrame(0, opaque_data=b"12345678")]


def huge_headers(peer: Http2Peer) -> list[Frame | bytes]:
    block = peer._encoder.encode([("x", "y" * 70_000), ("grpc-status", "0")], huffman=False)
    parts = [block[start : start + 16_384] for start in range(0, len(block), 16_384)]
    frames: list[Frame | bytes] = [HeadersFrame(1, parts[0], flags=["END_STREAM"])]
    frames += [ContinuationFrame(1, part) for part in parts[1:]]
    frames[-1].flags.add("END_HEADERS")
    return frames


def many_small_headers(peer: Http2Peer) -> list[Frame | bytes]:
    one = peer._encoder.encode([("x" * 1000, "y" * 1000)])
    again = peer._encoder.encode([("x" * 1000, "y" * 1000)])  # an index, one byte
    flags = ["END_HEADERS", "END_STREAM"]
    return [HeadersFrame(1, one + again * 5_000, flags=flags)]


def a_window_of_nothing(peer: Http2Peer) -> list[Frame | bytes]:
    return [raw(8, bytes(4), stream_id=1)]


def a_window_too_far(peer: Http2Peer) -> list[Frame | bytes]:
    return [WindowUpdateFrame(1, window_increment=(1 << 31) - 1)]


def a_window_update_too_long(peer: Http2Peer) -> list[Frame | bytes]:
    return [raw(8, bytes(8))]


def a_goaway_cut_short(peer: Http2Peer) -> list[Frame | bytes]:
    return [raw(7, bytes(4))]


def a_ping_too_long(peer: Http2Peer) -> list[Frame | bytes]:
    return [raw(6, bytes(9))]


def a_bare_continuation(peer: Http2Peer) -> list[Frame | bytes]:
    return [ContinuationFrame(1, b"\x88", flags=["END_HEADERS"])]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (oversized, "an HTTP/2 frame longer than announced (received 300,000 bytes)"),
        (settings_on_a_stream, "HTTP/2: SETTINGS on a stream (received stream 1)"),
        (impossible_settings, "HTTP/2: an initial window that is too large"),
        (data_elsewhere, "DATA where no stream is open (received stream 3)"),
        (padding_only, "a DATA frame with more padding than payload"),
        (no_hpack, "HTTP/2: HPACK: an endless integer"),
        (headers_with_capitals, "HTTP/2: a header that may not be (received b'Grpc-Status')"),
        (a_second_answer, "HTTP/2: headers in the middle of the stream"),
        (push, "HTTP/2: a PUSH_PROMISE, which was not allowed"),
        (an_open_header_block, "HTTP/2: a frame in the middle of headers"),
        (huge_headers, "HTTP/2: headers of more than 65,536 bytes"),
        (many_small_headers, "HTTP/2: headers of more than 65,536 bytes"),
        (a_window_of_nothing, "a WINDOW_UPDATE of 0 bytes"),
        (a_window_too_far, "the gateway opens its window too far"),
        (a_window_update_too_long, "a WINDOW_UPDATE frame of a wrong size"),
        (a_goaway_cut_short, "a GOAWAY frame cut short"),
        (a_ping_too_long, "HTTP/2: a PING frame of a wrong size (received 9 bytes)"),
        (a_bare_continuation, "HTTP/2: a CONTINUATION of nothing"),
    ],
)
def test_a_peer_that_breaks_the_rules_is_cut_off_with_the_reason(
    client, peer, wrong: Callable[[Http2Peer], list[Frame | bytes]], words: str
) -> None:
    peer.send(b"before")
    peer.say(*wrong(peer))
    assert client.receive() == [b"before"]
    ended = client.end()
    assert ended.code is StatusCode.INTERNAL
    assert ended.details.startswith(words), ended.details
    client.close()
    peer.hears_hang_up()


def test_data_before_the_answers_headers_is_refused(client, server) -> None:
    peer = server.accept()
    peer.begin()
    peer.say(DataFrame(1, message(b"early")))
    assert "DATA where no stream is open" in client.end().details


# Floods


FLOODS = {
    "pings": PingFrame(0, opaque_data=b"12345678"),
    "ping answers": PingFrame(0, opaque_data=b"12345678", flags=["ACK"]),
    "settings": SettingsFrame(0, settings={3: 100}),
    "settings acknowledgements": SettingsFrame(0, flags=["ACK"]),
    "empty data": DataFrame(1, b""),
    "padding": DataFrame(1, b"", flags=["PADDED"], pad_length=100),
    "tiny pieces of a message": DataFrame(1, b"\x00"),
    "priorities": PriorityFrame(1, depends_on=0),
    "window updates": WindowUpdateFrame(0, window_increment=1),
    "goaways": GoAwayFrame(0, 1, 0),
    "unknown frames": raw(0x77),
    "large unknown frames": raw(0x77, bytes(16_000)),
    "large goaways": GoAwayFrame(0, 1, 0, additional_data=bytes(16_000)),
}


@pytest.mark.usefixtures("little_patience")
@pytest.mark.parametrize("frame", FLOODS.values(), ids=FLOODS.keys())
def test_a_flood_is_cut_off_with_the_reason(client, peer, frame: Frame | bytes) -> None:
    if isinstance(frame, DataFrame):
        peer.say(DataFrame(1, message(bytes(MIB))[:100]))
    flood = (frame if isinstance(frame, bytes) else frame.serialize()) * 100
    flooding = in_thread(peer.say_as_long_as_it_listens, flood, FLOOD // 100)
    reason = "the gateway floods the connection with what costs more than it brings"
    assert client.end().details == reason
    client.close()
    flooding.result(TIMEOUT)


@pytest.mark.usefixtures("little_patience")
def test_endless_header_continuations_are_cut_off(client, peer) -> None:
    peer.say(HeadersFrame(1, b"\x88"))
    endless = ContinuationFrame(1, bytes(1000)).serialize()
    flooding = in_thread(peer.say_as_long_as_it_listens, endless, FLOOD)
    words = "HTTP/2: headers with more than 64 CONTINUATION frames"
    assert client.end().details == words
    client.close()
    flooding.result(TIMEOUT)


@pytest.mark.usefixtures("little_patience")
def test_many_small_messages_are_no_flood(client, peer) -> None:
    small = DataFrame(1, message(b"x")).serialize()
    for _ in range(6):
        peer.say(small * BURST)
    assert len(client.receive(FLOOD)) == FLOOD


@pytest.mark.usefixtures("little_patience")
def test_window_updates_for_what_was_sent_are_no_flood(client, peer) -> None:
    for _ in range(6):
        client.send(*[b"x" * 50] * BURST)
        for _ in range(BURST):
            peer.hears_message()
        update = WindowUpdateFrame(0, window_increment=55).serialize()
        update += WindowUpdateFrame(1, window_increment=55).serialize()
        for _ in range(BURST):
            peer.say(update)
    peer.send(b"fine")
    assert client.receive() == [b"fine"]
