"""A connection with many streams: both sides of it together, and the server's against h2."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterable, Sequence

import h2.config
import h2.connection
import h2.events
import hpack
import pytest
from hyperframe.frame import (
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)
from hypothesis import given
from hypothesis import strategies as st

from revconn.core.rope import Data
from revconn.core.status import StatusCode
from revconn.http2.endpoint import Endpoint
from revconn.http2.grpc import request_headers
from revconn.http2.headers import Field, encode_fields
from revconn.http2.requests import OK_TRAILERS, OPENING, closing_block
from revconn.http2.streams import ErrorCode, Receiver, Stream
from revconn.http2.writing import Acceptor, Settings
from tests.support.scripted_http2 import message

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
REQUEST = request_headers("http", "gateway", "/a.A/B", {})
LIMIT = 1 << 20


class Heard(Receiver):
    """What came on a stream."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        stream.receiver = self
        self.messages: list[bytes] = []
        self.heads: list[dict[bytes, bytes]] = []
        self.has_ended = False
        self.refused = self.broken = ""
        self.code: int | None = None

    def take(self, messages: list[Data], *, ended: bool) -> None:
        assert not self.has_ended
        self.messages += map(bytes, messages)
        self.has_ended = ended

    def take_head(self, fields: Sequence[Field], *, ended: bool) -> None:
        self.heads.append({each.name: each.value for each in fields})
        self.has_ended = ended

    def refuse(self, error: Exception) -> None:
        self.refused = str(error)

    def break_off(self, reason: str) -> None:
        self.broken = reason

    def reset(self, code: int) -> None:
        self.code = code
        super().reset(code)


class Side(Acceptor):
    """One end, whose peer gets its bytes when a test says so."""

    def __init__(self, *, is_server: bool = True, **settings: int) -> None:
        self.heard: dict[int, Heard] = {}
        self.wishes: list[Stream] = []  # for credit
        self.gives_credit = True
        self.refused = self.wakes = 0
        self.closed: list[int] = []
        self.went: tuple[int, int, bytes] | None = None
        settings = {"message_limit": LIMIT, **settings}
        self.endpoint = Endpoint(Settings(**settings), self, is_server=is_server)

    def accept(self, stream: Stream, fields: list[Field], size: int, *, ended: bool) -> None:
        self.heard[stream.id] = heard = Heard(stream)
        heard.heads.append({each.name: each.value for each in fields})
        if ended:
            heard.take([], ended=True)

    def wake(self) -> None:
        self.wakes += 1

    def refuse_stream(self) -> None:
        self.refused += 1

    def close_stream(self, stream: Stream) -> None:
        self.closed.append(stream.id)

    def want_credit(self, stream: Stream) -> None:
        self.wishes.append(stream)
        if self.gives_credit:
            self.give_credit()

    def give_credit(self) -> None:
        wishes, self.wishes = self.wishes, []
        for stream in wishes:
            self.endpoint.grant(stream)

    def go(self, last_id: int, code: int, debug: bytes) -> None:
        self.went = last_id, code, debug

    def open(self) -> Heard:
        """A stream of a client's."""
        heard = Heard(self.endpoint.open_stream())
        self.heard[heard.stream.id] = heard
        heard.stream.open(encode_fields(REQUEST))
        return heard

    def receive(self, data: bytes) -> None:
        """Take all of that in, in as many turns as it takes."""
        while data:
            data = self.endpoint.receive(data)

    def take(self) -> bytes:
        """What it has to say now."""
        data = b"".join(self.endpoint.take())
        if self.endpoint.is_waiting:
            self.endpoint.pump()
        return data

    def say_all(self) -> bytes:
        """What it has to say, as long as there is any."""
        said = b""
        while more := self.take():
            said += more
        return said


class Pair:
    """A client and a server, and what is on its way between them."""

    def __init__(self, client: Side, server: Side, chance: random.Random | None = None) -> None:
        self.client, self.server = client, server
        self._chance = chance
        self._to_server = self._to_client = b""

    def exchange(self) -> None:
        """Carry bytes, in pieces cut anywhere, until nobody has anything to say."""
        while True:
            self._to_server += self.client.take()
            self._to_client += self.server.take()
            if not (self._to_server or self._to_client):
                return
            self._to_server = self._carry(self._to_server, self.server)
            self._to_client = self._carry(self._to_client, self.client)

    def _carry(self, data: bytes, to: Side) -> bytes:
        size = len(data)
        if self._chance is not None and size:
            size = self._chance.choice([1, 9, 100, 5_000, size]) if self._chance else size
        to.receive(data[:size])
        return data[size:]


def pair(**settings: int) -> Pair:
    made = Pair(Side(is_server=False), Side(**settings))
    made.exchange()
    return made


def frames(data: bytes) -> list[Frame]:
    """What was said, frame by frame."""
    parsed = []
    while data:
        frame, length = Frame.parse_frame_header(memoryview(data[:9]))
        frame.parse_body(memoryview(data[9 : 9 + length]))
        parsed.append(frame)
        data = data[9 + length :]
    return parsed


def serialized(*said: Frame) -> bytes:
    return b"".join(each.serialize() for each in said)


# Messages, both ways

sizes = st.one_of(st.integers(0, 20), st.integers(0, 40_000), st.sampled_from([16_379, 200_000]))
conversations = st.lists(st.tuples(st.lists(sizes, max_size=5), st.lists(sizes, max_size=5)))
windows = st.one_of(st.integers(64, 3_000), st.sampled_from([65_535, 128 << 10, 1 << 20]))


def payloads(mark: int, wanted: Iterable[int]) -> list[bytes]:
    return [bytes([mark % 251, number]) * (size // 2 + 1) for number, size in enumerate(wanted)]


@given(
    conversations,
    windows,
    windows,
    st.sampled_from([1, 3, 64]),
    st.randoms(use_true_random=False),
    st.booleans(),
    st.sampled_from([16 << 10, 100_000, 1 << 20]),
)
def test_what_is_sent_on_many_streams_arrives_whole_and_in_order_both_ways(
    conversations: list[tuple[list[int], list[int]]],
    client_window: int,
    server_window: int,
    turn: int,
    chance: random.Random,
    together: bool,
    longest_frame: int,
) -> None:
    client = Side(is_server=False, stream_window=client_window)
    server = Side(stream_window=server_window, turn=turn)
    server.endpoint.allow_frames(longest_frame)
    line = Pair(client, server, chance)
    line.exchange()  # a window smaller than the default holds once it is known
    expected = {}
    for number, (up, down) in enumerate(conversations):
        heard = client.open()
        expected[heard.stream.id] = payloads(number, up), payloads(number + 100, down)
        send(heard.stream, expected[heard.stream.id][0], together)
    line.exchange()
    for stream_id, (up_messages, down_messages) in expected.items():
        assert server.heard[stream_id].messages == up_messages
        stream = server.heard[stream_id].stream
        stream.open(OPENING)
        send(stream, down_messages, together)
    line.exchange()
    for heard in client.heard.values():
        heard.stream.end_data(b"")
    line.exchange()
    for stream_id, heard in server.heard.items():
        assert heard.has_ended
        heard.stream.finish(OK_TRAILERS)
        line.exchange()
        assert client.heard[stream_id].messages == expected[stream_id][1]
        assert client.heard[stream_id].has_ended
        assert client.heard[stream_id].heads[-1] == {b"grpc-status": b"0"}
    for side in (client, server):
        assert side.endpoint.streams == {}
        assert side.endpoint.unsent_bytes == 0
        assert not side.endpoint.is_ended
        assert sorted(side.closed) == sorted(expected)


def send(stream: Stream, messages: list[bytes], together: bool) -> None:
    if together and messages:
        stream.send(messages)
    else:
        for each in messages:
            stream.send([each])


def test_windows_that_are_used_up_both_ways_at_once_hold_up_nobody() -> None:
    line = Pair(Side(is_server=False, stream_window=1_000), Side(stream_window=1_000))
    line.exchange()
    said = [bytes(100_000), b"end"]
    ours = [line.client.open() for _ in range(3)]
    line.exchange()
    for heard in ours:
        line.server.heard[heard.stream.id].stream.open(OPENING)
    for heard in ours:  # before either side has read anything
        heard.stream.send(said)
        line.server.heard[heard.stream.id].stream.send(said)
    line.exchange()
    for heard in ours:
        assert heard.messages == line.server.heard[heard.stream.id].messages == said


def test_the_connections_window_is_given_back_whatever_becomes_of_the_streams() -> None:
    line = pair()
    for _ in range(40):
        heard = line.client.open()
        heard.stream.send([bytes(LIMIT)])
        line.exchange()
        assert len(line.server.heard[heard.stream.id].messages) == 1
        heard.stream.reset(ErrorCode.CANCEL)
    assert line.client.endpoint.send_window > 0


def test_a_message_larger_than_the_window_waits_for_credit() -> None:
    line = pair(stream_window=1_000)
    line.server.gives_credit = False
    heard = line.client.open()
    heard.stream.send([bytes(50_000)])
    line.exchange()
    there = line.server.heard[heard.stream.id]
    assert there.messages == []
    assert line.server.wishes[-1] is there.stream
    assert there.stream.wanted == 50_005 - 1_000
    line.server.give_credit()
    line.exchange()
    assert there.messages == [bytes(50_000)]


def test_a_message_over_the_limit_is_refused_and_others_go_on() -> None:
    line = pair(message_limit=1_000)
    first, second = line.client.open(), line.client.open()
    first.stream.send([b"before", bytes(1_001)])
    second.stream.send([bytes(1_000)])
    line.exchange()
    there = line.server.heard[first.stream.id]
    assert there.messages == [b"before"]
    assert "1,000 bytes" in there.refused
    assert line.server.heard[second.stream.id].messages == [bytes(1_000)]


def test_who_does_not_keep_up_is_told_when_there_is_room() -> None:
    resumed = []
    line = pair()
    heard = line.client.open()
    line.exchange()
    stream = line.server.heard[heard.stream.id].stream
    line.server.heard[heard.stream.id].resume = lambda: resumed.append(stream.room)  # type: ignore[method-assign]
    stream.open(OPENING)
    stream.send([bytes(LIMIT)])
    assert stream.room == 0
    stream.await_room()
    assert resumed == []
    line.exchange()
    assert len(resumed) == 1
    assert resumed[0] > 0


# How streams end


def test_a_reset_is_heard_and_what_was_to_be_sent_is_not() -> None:
    line = pair()
    heard = line.client.open()
    line.exchange()
    there = line.server.heard[heard.stream.id]
    there.stream.open(OPENING)
    there.stream.send([bytes(LIMIT)])
    heard.stream.reset(ErrorCode.CANCEL)
    line.exchange()
    assert there.code == ErrorCode.CANCEL
    assert line.server.endpoint.streams == line.client.endpoint.streams == {}
    assert line.server.endpoint.unsent_bytes == 0
    there.stream.send([b"too late"])
    there.stream.finish(OK_TRAILERS)
    assert line.server.say_all() == b""


def test_who_is_answered_before_the_end_of_the_request_need_not_go_on() -> None:
    line = pair()
    heard = line.client.open()
    line.exchange()
    there = line.server.heard[heard.stream.id].stream
    there.finish(closing_block(StatusCode.NOT_FOUND, "nobody"))
    said = frames(line.server.say_all())
    assert [type(each) for each in said] == [HeadersFrame, RstStreamFrame]
    assert said[1].error_code == ErrorCode.NO_ERROR


def test_more_streams_than_are_allowed_are_refused_and_a_place_is_used_again() -> None:
    line = pair(max_streams=2)
    first, second, third = (line.client.open() for _ in range(3))
    line.exchange()
    assert line.server.refused == 1
    assert third.code == ErrorCode.REFUSED_STREAM
    assert list(line.server.heard) == [first.stream.id, second.stream.id]
    first.stream.reset(ErrorCode.CANCEL)
    fourth = line.client.open()
    line.exchange()
    assert fourth.stream.id in line.server.heard
    assert line.client.endpoint.peer_max_streams == 2


def test_after_goaway_those_on_their_way_are_taken_and_after_the_last_none() -> None:
    line = pair()
    first = line.client.open()
    line.server.endpoint.go_away()
    line.exchange()
    assert line.client.went == ((1 << 31) - 1, ErrorCode.NO_ERROR, b"")
    assert first.stream.id in line.server.heard
    line.server.endpoint.go_away(last=True)
    second = line.client.open()
    line.exchange()
    assert line.client.went == (first.stream.id, ErrorCode.NO_ERROR, b"")
    assert second.stream.id not in line.server.heard
    assert second.code == ErrorCode.REFUSED_STREAM
    assert first.code is None
    first.stream.send([b"goes on"])
    line.exchange()
    assert line.server.heard[first.stream.id].messages == [b"goes on"]


def test_an_end_says_why_and_breaks_all_streams_off() -> None:
    line = pair()
    heard = line.client.open()
    line.exchange()
    line.server.endpoint.end(reason="it is late")
    assert line.server.heard[heard.stream.id].broken == "it is late"
    line.exchange()
    assert line.client.went == (heard.stream.id, ErrorCode.NO_ERROR, b"it is late")
    assert line.server.endpoint.receive(PingFrame(0).serialize()) == b""
    assert line.server.say_all() == b""


# Turns


def test_who_sends_much_at_once_lets_others_have_their_turn() -> None:
    server = Side(turn=8)
    server.receive(PREFACE + SettingsFrame(0).serialize())
    block = hpack.Encoder().encode(REQUEST)
    data = serialized(
        HeadersFrame(1, block, flags=["END_HEADERS"]),
        *(DataFrame(1, message(b"%d" % number)) for number in range(100)),
    )
    counts = []
    while data:
        before = len(server.heard[1].messages) if counts else 0
        data = server.endpoint.receive(data)
        counts.append(len(server.heard[1].messages) - before)
    assert len(counts) > 10
    assert max(counts) <= 8
    assert server.heard[1].messages == [b"%d" % number for number in range(100)]


# h2 as the client


class H2Client:
    """h2's client, which heeds the windows and opens its own again."""

    def __init__(self, window: int) -> None:
        config = h2.config.H2Configuration(client_side=True, header_encoding=None)
        self.h2 = h2.connection.H2Connection(config)
        self.h2.initiate_connection()
        self.h2.update_settings({4: window})  # INITIAL_WINDOW_SIZE
        self.unsent: dict[int, bytearray] = {}
        self.data: dict[int, bytes] = {}
        self.trailers: dict[int, list[tuple[bytes, bytes]]] = {}

    def call(self, said: bytes) -> int:
        stream_id = self.h2.get_next_available_stream_id()
        self.h2.send_headers(stream_id, REQUEST)
        self.unsent[stream_id] = bytearray(said)
        self.data[stream_id] = b""
        return stream_id

    def take(self) -> bytes:
        for stream_id, unsent in tuple(self.unsent.items()):
            while room := min(
                self.h2.local_flow_control_window(stream_id),
                self.h2.max_outbound_frame_size,
                len(unsent),
            ):
                self.h2.send_data(stream_id, bytes(unsent[:room]))
                del unsent[:room]
            if not unsent:
                self.h2.end_stream(stream_id)
                del self.unsent[stream_id]
        return self.h2.data_to_send()

    def receive(self, data: bytes) -> None:
        for event in self.h2.receive_data(data):
            if isinstance(event, h2.events.DataReceived):
                self.data[event.stream_id] += event.data
                self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, h2.events.TrailersReceived):
                self.trailers[event.stream_id] = [tuple(each) for each in event.headers]
            else:
                gone = (h2.events.StreamReset, h2.events.ConnectionTerminated)
                assert not isinstance(event, gone), event


@given(
    st.lists(st.tuples(st.lists(sizes, max_size=4), st.lists(sizes, max_size=4)), max_size=4),
    st.integers(100, 200_000),
    windows,
    st.randoms(use_true_random=False),
)
def test_h2_is_understood_and_understands(
    conversations: list[tuple[list[int], list[int]]],
    client_window: int,
    server_window: int,
    chance: random.Random,
) -> None:
    client, server = H2Client(client_window), Side(stream_window=server_window)
    line = Pair(client, server, chance)  # type: ignore[arg-type]
    line.exchange()
    expected = {}
    for number, (up, down) in enumerate(conversations):
        ups, downs = payloads(number, up), payloads(number + 100, down)
        expected[client.call(b"".join(map(message, ups)))] = ups, downs
    line.exchange()
    for stream_id, (ups, downs) in expected.items():
        heard = server.heard[stream_id]
        assert heard.has_ended
        assert heard.messages == ups
        heard.stream.open(OPENING)
        heard.stream.send(downs)
        heard.stream.finish(OK_TRAILERS)
    line.exchange()
    for stream_id, (_, downs) in expected.items():
        assert client.data[stream_id] == b"".join(map(message, downs))
        assert client.trailers[stream_id] == [(b"grpc-status", b"0")]
    assert server.endpoint.streams == {}
    assert not server.endpoint.is_ended


# A peer that keeps no rules


@pytest.fixture
def greeted() -> Side:
    """A server that was greeted, and has said its own."""
    server = Side()
    server.receive(PREFACE + SettingsFrame(0).serialize())
    server.say_all()
    return server


OPEN = HeadersFrame(1, hpack.Encoder().encode(REQUEST), flags=["END_HEADERS"])

FAULTS = {
    "no preface": (b"GET / HTTP/1.1\r\n\r\n", ErrorCode.PROTOCOL_ERROR),
    "DATA of no stream": (DataFrame(1, b"x").serialize(), ErrorCode.PROTOCOL_ERROR),
    "a stream of the server's": (
        HeadersFrame(2, OPEN.data, flags=["END_HEADERS"]).serialize(),
        ErrorCode.PROTOCOL_ERROR,
    ),
    "no HPACK": (
        HeadersFrame(1, b"\x80", flags=["END_HEADERS"]).serialize(),
        ErrorCode.COMPRESSION_ERROR,
    ),
    "a long frame": (struct.pack(">BHBBI", 0, 16_385, 0, 0, 1), ErrorCode.FRAME_SIZE_ERROR),
    "a window too large": (
        WindowUpdateFrame(0, window_increment=(1 << 31) - 1).serialize(),
        ErrorCode.FLOW_CONTROL_ERROR,
    ),
    "no increment": (struct.pack(">BHBBII", 0, 4, 8, 0, 0, 0), ErrorCode.PROTOCOL_ERROR),
    "a ping cut short": (struct.pack(">BHBBI", 0, 1, 6, 0, 0) + b"x", ErrorCode.FRAME_SIZE_ERROR),
    "headers that go on with something else": (
        HeadersFrame(1, OPEN.data).serialize() + PingFrame(0).serialize(),
        ErrorCode.PROTOCOL_ERROR,
    ),
}


@pytest.mark.parametrize(("said", "code"), FAULTS.values(), ids=FAULTS)
def test_what_breaks_http2_ends_the_connection_with_the_code_for_it(
    greeted: Side, said: bytes, code: int
) -> None:
    server = Side() if said.startswith(b"GET") else greeted
    server.receive(said)
    assert server.endpoint.is_ended
    goaway = frames(server.say_all())[-1]
    assert isinstance(goaway, GoAwayFrame)
    assert goaway.error_code == code
    assert goaway.additional_data.decode() == server.endpoint.end_reason != ""


def test_more_than_a_streams_window_ends_the_stream_alone(greeted: Side) -> None:
    greeted.receive(OPEN.serialize())
    greeted.gives_credit = False
    piece = DataFrame(1, message(bytes(LIMIT))[:16_384]).serialize()
    greeted.receive(piece + DataFrame(1, bytes(16_384)).serialize() * 8)
    (reset,) = [each for each in frames(greeted.say_all()) if isinstance(each, RstStreamFrame)]
    assert reset.error_code == ErrorCode.FLOW_CONTROL_ERROR
    assert greeted.heard[1].broken
    assert not greeted.endpoint.is_ended


def flood(side: Side, pings: int, at_once: int) -> None:
    for _ in range(pings // at_once):
        side.receive(PingFrame(0).serialize() * at_once)
        side.endpoint.settle(0.0)
        side.say_all()


@pytest.mark.parametrize("at_once", [1, 100, 1_000])
def test_a_flood_of_what_brings_nothing_ends_the_connection(greeted: Side, at_once: int) -> None:
    flood(greeted, 1_000, at_once)
    assert not greeted.endpoint.is_ended
    flood(greeted, 5_000, at_once)
    assert greeted.endpoint.is_flooded
    assert "floods" in greeted.endpoint.end_reason


def test_who_was_useful_for_years_cannot_pay_for_a_flood_with_it(greeted: Side) -> None:
    greeted.receive(OPEN.serialize())
    data = DataFrame(1, message(bytes(2_000)) * 8).serialize()
    for _ in range(20_000):
        greeted.receive(data)
        greeted.endpoint.settle(0.0)
        greeted.say_all()
    greeted.heard.clear()
    flood(greeted, 100_000, 1_000)
    assert greeted.endpoint.is_flooded


@given(st.lists(st.binary(max_size=200), max_size=5), st.randoms(use_true_random=False))
def test_random_bytes_raise_nothing(received: list[bytes], chance: random.Random) -> None:
    server = Side()
    server.receive(PREFACE + SettingsFrame(0).serialize())
    for each in received:
        kind, flags = chance.randrange(12), chance.randrange(256)
        head = struct.pack(">BHBBI", 0, len(each), kind, flags, chance.randrange(4))
        server.receive(head + each)
        server.receive(each)
    server.say_all()


@pytest.mark.parametrize("size", [16_384, 16_385, 2 * 16_384, 40_000])
def test_a_large_body_is_full_frames_of_which_the_last_ends_the_stream(size: int) -> None:
    endpoint = Endpoint(Settings(), Silent(), is_server=False)
    endpoint.take()
    body = bytes(range(256)) * 157
    endpoint.open_stream().end_data(body[:size])
    written, frames = b"".join(endpoint.take()), []
    while written:
        frame, length = Frame.parse_frame_header(memoryview(written[:9]))
        frame.parse_body(memoryview(written[9 : 9 + length]))
        frames.append(frame)
        written = written[9 + length :]
    assert b"".join(frame.data for frame in frames) == body[:size]
    assert [len(frame.data) for frame in frames[:-1]] == [16_384] * (len(frames) - 1)
    ends = ["END_STREAM" in frame.flags for frame in frames]
    assert ends == [False] * (len(frames) - 1) + [True]


class Silent(Acceptor):
    """Is told what happens, and does nothing about it."""

    def wake(self) -> None:
        pass
