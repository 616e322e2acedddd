"""What a peer of an endpoint may do that is allowed, or nearly, and what it costs at most."""

from __future__ import annotations

import gzip
import struct

import hpack
import pytest
from hyperframe.frame import (
    DataFrame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from revconn.core.framing import GzipInflater
from revconn.core.status import ProtocolError, StatusCode
from revconn.http2.endpoint import Endpoint
from revconn.http2.headers import Decoder, encode_fields
from revconn.http2.requests import OPENING, RequestHeads, refusal_block
from revconn.http2.streams import ErrorCode, Stream
from tests.http2.test_endpoint import PREFACE, REQUEST, Side, frames, serialized
from tests.support.scripted_http2 import message

REFUSED = refusal_block(StatusCode.UNAVAILABLE, "x" * 3_000)


@pytest.fixture
def greeted() -> Side:
    """A server whose peer has said its SETTINGS."""
    server = Side()
    server.receive(PREFACE + SettingsFrame(0).serialize())
    server.say_all()
    return server


def opened(server: Side, stream_id: int = 1, *more: str) -> Stream:
    block = hpack.Encoder().encode(REQUEST)
    server.receive(HeadersFrame(stream_id, block, flags=["END_HEADERS", *more]).serialize())
    return server.heard[stream_id].stream


def turns(server: Side, data: bytes) -> int:
    """In how many turns of the loop it takes that."""
    count = 0
    while data:
        data = server.endpoint.receive(data)
        count += 1
    return count


# What is sent


def test_an_end_without_data_is_sent_though_the_window_was_taken_back(greeted: Side) -> None:
    stream = opened(greeted)
    stream.open(OPENING)
    stream.send([bytes(1_000)])
    greeted.receive(SettingsFrame(0, {SettingsFrame.INITIAL_WINDOW_SIZE: 10}).serialize())
    assert stream.send_window < 0
    stream.end_data(b"")
    said = frames(greeted.say_all())
    assert [each for each in said if isinstance(each, DataFrame)][-1].flags == {"END_STREAM"}


def test_streams_that_wait_for_room_are_told_of_it_once_each(greeted: Side) -> None:
    first, second = opened(greeted, 1), opened(greeted, 3)
    told = []

    def send() -> None:
        told.append(first)
        greeted.endpoint.pump()  # as whoever sends more than there is room for has it done

    greeted.heard[1].resume = send  # type: ignore[method-assign]
    greeted.heard[3].resume = lambda: told.append(second)  # type: ignore[method-assign]
    first.await_room()
    second.await_room()
    greeted.endpoint.pump()
    assert told == [first, second]


def test_no_stream_that_was_never_opened_is_reset(greeted: Side) -> None:
    broken = PriorityFrame(7).serialize().replace(b"\x00\x00\x05", b"\x00\x00\x04", 1)[:-1]
    greeted.receive(broken)
    said = frames(greeted.say_all())
    assert [type(each) for each in said] == [GoAwayFrame]
    assert said[0].error_code == ErrorCode.FRAME_SIZE_ERROR


def test_a_stream_that_was_refused_may_still_be_ended_by_trailers() -> None:
    server = Side(max_streams=1)
    server.receive(PREFACE + SettingsFrame(0).serialize())
    opened(server, 1)
    block = hpack.Encoder().encode(REQUEST)
    trailers = hpack.Encoder().encode([(b"x-trailer", b"1")])
    server.receive(
        serialized(
            HeadersFrame(3, block, flags=["END_HEADERS"]),
            DataFrame(3, message(b"hi")),
            HeadersFrame(3, trailers, flags=["END_HEADERS", "END_STREAM"]),
        )
    )
    assert not server.endpoint.is_ended
    resets = [each for each in frames(server.say_all()) if isinstance(each, RstStreamFrame)]
    assert [each.error_code for each in resets] == [ErrorCode.REFUSED_STREAM]


def test_who_asks_and_reads_no_refusals_is_not_served_for_ever(greeted: Side) -> None:
    block = hpack.Encoder().encode(REQUEST)
    for stream_id in range(1, 10_001, 2):
        call = HeadersFrame(stream_id, block, flags=["END_HEADERS", "END_STREAM"])
        greeted.receive(call.serialize())
        if greeted.endpoint.is_ended:
            break
        stream = greeted.heard[stream_id].stream
        stream.is_open = True
        stream.finish(REFUSED)
        assert greeted.endpoint.out_bytes < 5 << 20
    assert "does not read" in greeted.endpoint.end_reason


# Turns


@pytest.mark.parametrize(
    "frame",
    [
        SettingsFrame(0, {SettingsFrame.INITIAL_WINDOW_SIZE: 70_000}),
        WindowUpdateFrame(0, 1),
        PriorityFrame(1),
    ],
    ids=lambda frame: type(frame).__name__,
)
def test_a_flood_of_small_frames_takes_many_turns(greeted: Side, frame: SettingsFrame) -> None:
    opened(greeted)
    assert turns(greeted, frame.serialize() * 1_500) > 10


def test_all_streams_are_looked_at_once_for_many_settings(
    greeted: Side, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_at = []
    look = Endpoint._open_send_window

    def count(endpoint: Endpoint, stream: Stream, increment: int) -> None:
        looked_at.append(stream.id)
        look(endpoint, stream, increment)

    monkeypatch.setattr(Endpoint, "_open_send_window", count)
    ids = [1 + 2 * number for number in range(100)]
    for stream_id in ids:
        opened(greeted, stream_id)
    window = SettingsFrame.INITIAL_WINDOW_SIZE
    said = b"".join(struct.pack(">HI", window, 70_000 + number) for number in range(200))
    greeted.receive(len(said).to_bytes(3, "big") + b"\4\0\0\0\0\0" + said)
    assert looked_at == ids
    assert {each.send_window for each in greeted.endpoint.streams.values()} == {70_199}


def test_messages_that_inflate_to_much_more_take_several_turns_and_are_charged(
    greeted: Side,
) -> None:
    bomb = gzip.compress(bytes(900_000))
    said = struct.pack(">BI", 1, len(bomb)) + bomb
    data = b""
    for number in range(30):
        stream = opened(greeted, 1 + 2 * number)
        stream.inflate = GzipInflater(1 << 20)
        data += DataFrame(stream.id, said, flags=["END_STREAM"]).serialize()
    before = greeted.endpoint.cost
    assert turns(greeted, data) > 10
    assert greeted.endpoint.cost - before > 300


def test_a_large_block_of_headers_is_a_turn(greeted: Side) -> None:
    block = hpack.Encoder().encode([*REQUEST, (b"x", b"a" * 24_000)], huffman=True)
    assert 14_000 < len(block) < 16_384
    calls = [HeadersFrame(1 + 2 * each, block, flags=["END_HEADERS"]) for each in range(10)]
    assert turns(greeted, serialized(*calls)) >= 5


def test_a_message_that_inflates_beyond_the_limit_is_charged(greeted: Side) -> None:
    stream = opened(greeted)
    stream.inflate = GzipInflater(1 << 20)
    bomb = gzip.compress(bytes(4 << 20))
    before = greeted.endpoint.cost
    greeted.receive(DataFrame(1, struct.pack(">BI", 1, len(bomb)) + bomb).serialize())
    assert "more than" in greeted.heard[1].refused
    assert greeted.endpoint.cost - before > 10


def test_messages_of_nothing_pay_for_no_flood(greeted: Side) -> None:
    opened(greeted)
    before = greeted.endpoint.cost
    greeted.receive(DataFrame(1, message(b"") * 3_000).serialize())
    assert len(greeted.heard[1].messages) == 3_000
    assert before - greeted.endpoint.cost < 300


def test_nothing_is_taken_behind_messages_that_had_the_connection_ended(greeted: Side) -> None:
    opened(greeted)
    greeted.heard[1].take = lambda messages, ended: greeted.endpoint.end()  # type: ignore[method-assign]
    said = (DataFrame(1, message(b"one")), DataFrame(1, message(b"two")), PingFrame(0))
    greeted.receive(serialized(*said))
    assert isinstance(frames(greeted.say_all())[-1], GoAwayFrame)


# Headers


def test_a_block_that_stands_for_far_too_many_headers_is_charged_for_them(greeted: Side) -> None:
    before = greeted.endpoint.cost
    block = hpack.Encoder().encode(REQUEST) + b"\x82" * 16_000
    greeted.receive(HeadersFrame(1, block, flags=["END_HEADERS"]).serialize())
    assert greeted.endpoint.list_size > 500_000
    assert greeted.endpoint.cost - before > 400


def test_a_block_may_change_the_tables_size_twice_at_its_beginning_and_no_more() -> None:
    assert Decoder(1_000).decode(b"\x20\x3f\xe1\x1f\x82")
    with pytest.raises(ProtocolError):
        Decoder(1_000).decode(b"\x20\x20\x20\x82")
    with pytest.raises(ProtocolError):  # behind a header for which there was no room
        Decoder(10).decode(b"\x82\x20")


def test_large_heads_are_not_kept_for_the_next_ones() -> None:
    decoder, heads = Decoder(16 << 10), RequestHeads()
    heads.parse(decoder.decode(encode_fields(REQUEST)), decoder.list_size)  # nothing is kept of it
    small = decoder.decode(encode_fields(REQUEST))
    assert heads.parse(small, 300) is heads.parse(small, 300)
    large = decoder.decode(encode_fields([*REQUEST, (b"x", b"y" * 3_000)]))
    first = heads.parse(large, decoder.list_size)
    assert heads.parse(large, decoder.list_size) is not first
    repeated = encode_fields([*REQUEST, (b"x-a", b"y" * 60)]) + b"\x82" * 200
    assert decoder.decode(repeated) is not decoder.decode(repeated)


# Credit


class Bank(Side):
    """Counts what is granted and what comes back."""

    def __init__(self) -> None:
        super().__init__(stream_window=1_000)
        self.returned: list[tuple[int, int]] = []
        self.receive(PREFACE + SettingsFrame(0).serialize())

    def want_credit(self, stream: Stream) -> None:
        stream.granted = stream.missing
        super().want_credit(stream)

    def return_credit(self, stream: Stream) -> None:
        self.returned.append((stream.id, stream.granted))
        stream.granted = 0


@pytest.mark.parametrize("gives_credit", [True, False])
def test_credit_of_a_message_that_never_comes_is_returned_when_the_stream_ends(
    gives_credit: bool,
) -> None:
    server = Bank()
    server.gives_credit = gives_credit
    stream = opened(server)
    server.receive(DataFrame(1, struct.pack(">BI", 0, 50_000) + bytes(500)).serialize())
    assert server.returned == []
    assert stream.wanted == (0 if gives_credit else 50_005 - 1_000)
    server.receive(RstStreamFrame(1, ErrorCode.CANCEL).serialize())
    assert server.returned == [(1, 49_500)]


def test_no_more_is_granted_than_the_message_still_needs() -> None:
    server = Bank()
    server.gives_credit = False
    stream = opened(server)
    server.receive(DataFrame(1, struct.pack(">BI", 0, 50_000) + bytes(900)).serialize())
    stream.hold()
    stream.release()  # which opens the window, too
    server.give_credit()
    assert stream.receive_window == stream.missing
