"""The engine alone, without a socket: what needs many bytes, or any bytes."""

from __future__ import annotations

import gzip
import itertools
import random
import time
from typing import Callable

import h2.config
import h2.connection
import h2.events
import hpack
import pytest
from hyperframe.frame import DataFrame, GoAwayFrame, HeadersFrame, PingFrame, SettingsFrame
from hypothesis import given
from hypothesis import strategies as st

from revconn.core.rope import Rope
from revconn.core.status import StatusCode
from revconn.http2 import connection as connection_module
from revconn.http2.connection import Engine
from revconn.http2.frames import PING_ACK
from revconn.http2.grpc import StreamEnd
from tests.support.scripted_http2 import GRPC_HEADERS, message

MIB = 1 << 20
LIMIT = 100 * MIB
SETTINGS = SettingsFrame(0, settings={4: (1 << 31) - 1}).serialize()
WINDOW = b"\x00\x00\x04\x08\x00\x00\x00\x00\x00\x7f\x00\x00\x00"
UNKNOWN = b"\x00\x00\x03\xee\x00\x00\x00\x00\x00new"  # a kind of frame that nobody knows
PING = PingFrame(0, opaque_data=b"estimate").serialize()
HEADERS = HeadersFrame(1, hpack.Encoder().encode(GRPC_HEADERS), flags=["END_HEADERS"]).serialize()


def opened() -> Engine:
    """An engine whose stream is open, to a peer that takes as much as HTTP/2 allows."""
    engine = Engine(LIMIT)
    engine.open_stream("http", "example.com:1", "/a.B/C", {})
    assert engine.receive(SETTINGS + WINDOW + HEADERS) == []
    assert engine.end is None
    drain(engine)
    return engine


def drain(engine: Engine) -> bytes:
    """Everything that it has to say."""
    outputs = []
    while True:
        output, _ = engine.take_output()
        if not output:
            return b"".join(outputs)
        outputs += output


def says_nothing(engine: Engine) -> bool:
    """Whether there is nothing that it has to say and may."""
    return engine.take_output() == ([], 0)


def data_frames(payload: bytes) -> list[bytes]:
    return [
        DataFrame(1, payload[start : start + 16_384]).serialize()
        for start in range(0, len(payload), 16_384)
    ]


# What it says is HTTP/2 as others understand it


def test_what_it_says_is_what_a_server_hears() -> None:
    server = h2.connection.H2Connection(
        h2.config.H2Configuration(client_side=False, header_encoding=None)
    )
    server.initiate_connection()
    engine = Engine(LIMIT)
    engine.open_stream("https", "example.com:1", "/a.B/C", {"x-bin": b"\x00\xff", "y": "z"})
    engine.receive(server.data_to_send())
    engine.put([b"first", bytes(100_000)])
    received = b""
    events = server.receive_data(drain(engine))
    (asked,) = [e for e in events if isinstance(e, h2.events.RequestReceived)]
    headers = dict(asked.headers)
    assert (headers[b":scheme"], headers[b"x-bin"], headers[b"y"]) == (b"https", b"AP8", b"z")
    while len(received) < 100_015:
        for event in events:
            if isinstance(event, h2.events.DataReceived):
                received += event.data
                server.acknowledge_received_data(event.flow_controlled_length, 1)
        assert engine.receive(server.data_to_send()) == []
        events = server.receive_data(drain(engine))
    assert received == message(b"first") + message(bytes(100_000))
    assert not engine.unsent


@given(st.lists(st.integers(0, 70_000), max_size=8), st.integers(1, 300_000))
def test_no_more_data_leaves_than_the_window_allows(sizes: list[int], window: int) -> None:
    engine = Engine(LIMIT)
    engine.open_stream("http", "example.com:1", "/a.B/C", {})
    engine.receive(SettingsFrame(0, settings={4: window}).serialize() + WINDOW + HEADERS)
    drain(engine)
    messages = [bytes(size) for size in sizes]
    engine.put(messages)
    carried = 0
    while True:
        output, size = engine.take_output()
        if not output:
            break
        carried += size
    total = sum(size + 5 for size in sizes)
    assert carried == min(total, window)
    assert bool(engine.unsent) == (total > window)
    assert says_nothing(engine)


def test_a_smaller_initial_window_holds_back_what_was_allowed_before() -> None:
    engine = opened()
    engine.put([bytes(1000)])
    drain(engine)
    engine.receive(SettingsFrame(0, settings={4: 500}).serialize())
    engine.put([b"x"])
    assert SettingsFrame(0, flags=["ACK"]).serialize() in drain(engine)
    assert engine.unsent
    assert says_nothing(engine)
    engine.receive(SettingsFrame(0, settings={4: 2000}).serialize())
    assert message(b"x") in drain(engine)


def test_large_payloads_leave_as_they_are_and_small_ones_as_one() -> None:
    engine = opened()
    large = bytes(100_000)
    engine.put([b"small", b"another", large, b"last"])
    output, _ = engine.take_output()
    copied = [each for each in output if isinstance(each, bytes)]
    views = [each for each in output if not isinstance(each, bytes)]
    assert all(view.obj is large for view in views)
    assert sum(map(len, copied)) < 20_000
    assert len(output) < 16


def test_a_frame_ends_with_a_large_message_and_begins_with_its_prefix() -> None:
    engine = opened()
    engine.receive(SettingsFrame(0, settings={5: 256 << 10}).serialize())
    drain(engine)
    messages = [b"small", b"a" * 64_000, b"another", b"b" * 64_000, b"last"]
    engine.put(messages)
    framed = [message(each) for each in messages]
    frames = [framed[0] + framed[1], framed[2] + framed[3], framed[4]]
    assert drain(engine) == b"".join(DataFrame(1, each).serialize() for each in frames)


def test_a_large_message_that_came_in_pieces_leaves_in_a_frame_with_what_is_around_them() -> None:
    engine = opened()
    engine.receive(SettingsFrame(0, settings={5: 256 << 10}).serialize())
    drain(engine)
    large = memoryview(bytes((256 << 10) - 105))
    engine.put([Rope((b"head", large, b"t" * 96))])
    output, carried = engine.take_output()
    framed = message(b"head" + bytes(large) + b"t" * 96)
    assert carried == len(framed) == 256 << 10
    assert b"".join(output) == b"".join(
        DataFrame(1, each).serialize() for each in (framed[:-96], framed[-96:])
    )
    assert [each for each in output if isinstance(each, memoryview)] == [large]


def test_many_small_messages_that_waited_are_few_buffers() -> None:
    engine = opened()
    for _ in range(5_000):  # each of them a run of its own: more than a system gathers at once
        engine.put([b"x" * 40])
    output, carried = engine.take_output()
    assert carried == 5_000 * 45
    assert len(output) == 1


def test_control_frames_leave_ahead_of_messages_that_wait() -> None:
    engine = opened()
    engine.put([bytes(3 * MIB)])
    engine.take_output()
    engine.receive(PingFrame(0, opaque_data=b"12345678").serialize())
    output, _ = engine.take_output()
    assert output[0].startswith(PingFrame(0, opaque_data=b"12345678", flags=["ACK"]).serialize())


# What arrives


def test_the_window_is_given_back_only_when_there_is_room() -> None:
    engine = opened()
    for frame in data_frames(message(bytes(5 * MIB))):
        engine.receive(frame)
    assert says_nothing(engine)
    engine.grant()
    assert len(drain(engine)) == 2 * 13
    engine.grant()
    assert says_nothing(engine)


def test_more_than_the_window_is_refused() -> None:
    engine = opened()
    for frame in data_frames(message(bytes(9 * MIB))):
        engine.receive(frame)
    assert engine.end == StreamEnd(
        StatusCode.INTERNAL, "the gateway sends more than the window allows"
    )


def test_padding_counts_for_the_window_and_opens_nothing_by_itself() -> None:
    engine = opened()
    padded = DataFrame(1, b"", flags=["PADDED"], pad_length=255).serialize()
    for _ in range(4):
        engine.receive(padded * 10_000)
        if engine.end:
            break
        assert says_nothing(engine)
    assert engine.end is not None
    assert "more than the window" in engine.end.details


def test_pings_whose_answers_are_not_read_are_cut_off(monkeypatch) -> None:
    monkeypatch.setattr(connection_module, "_MOST_UNSENT_CONTROL", 100_000)
    engine = opened()
    pings = PingFrame(0, opaque_data=b"12345678").serialize() * 1000
    messages = DataFrame(1, message(b"") * 1000).serialize()  # or it would be a flood
    for _ in range(10):
        engine.receive(pings + messages)
        engine.grant()
    assert engine.end == StreamEnd(
        StatusCode.INTERNAL, "the gateway asks for answers and does not read them"
    )


def test_after_the_end_nothing_is_said_or_heard() -> None:
    engine = opened()
    engine.put([bytes(10 * MIB)])
    engine.receive(b"\xff" * 100)
    assert engine.end is not None
    engine.ping()
    engine.put([b"more"])
    engine.grant()
    assert engine.take_output() == ([], 0)
    assert engine.receive(data_frames(message(b"late"))[0]) == []


PIECES = st.one_of(
    st.binary(max_size=40),
    st.builds(
        lambda kind, flags, stream_id, payload: (
            len(payload).to_bytes(3, "big")
            + bytes([kind, flags])
            + stream_id.to_bytes(4, "big")
            + payload
        ),
        st.integers(0, 12),
        st.integers(0, 255),
        st.sampled_from([0, 1, 2, 3, 1 << 31]),
        st.binary(max_size=60),
    ),
    st.sampled_from(
        [SETTINGS, HEADERS, WINDOW, *data_frames(message(b"hello")), PingFrame(0).serialize()]
    ),
)


@given(st.lists(PIECES, max_size=20), st.booleans())
def test_whatever_arrives_the_stream_at_most_ends(pieces: list[bytes], begun: bool) -> None:
    engine = opened() if begun else Engine(LIMIT)
    if not begun:
        engine.open_stream("http", "example.com:1", "/a.B/C", {})
    engine.put([b"ours"])
    for piece in pieces:
        for received in engine.receive(piece):
            assert isinstance(received, bytes)
        engine.grant()
        engine.ping()
        engine.take_output()
    assert isinstance(engine.describe_end(), str)
    if engine.end is not None:
        assert engine.end.details
        assert engine.take_output() == ([], 0)


SMALL_MESSAGES = st.lists(st.binary(max_size=300), min_size=1, max_size=4)
GOOD_FRAMES = st.one_of(
    SMALL_MESSAGES.map(lambda each: DataFrame(1, b"".join(map(message, each))).serialize()),
    st.builds(
        lambda data, at: (
            DataFrame(1, message(data)[:at]).serialize()
            + PingFrame(0, opaque_data=b"between.").serialize()
            + DataFrame(1, message(data)[at:]).serialize()
        ),
        st.binary(max_size=300),
        st.integers(0, 310),
    ),
    st.builds(
        lambda data, pad: DataFrame(1, message(data), flags=["PADDED"], pad_length=pad).serialize(),
        st.binary(max_size=20),
        st.integers(0, 20),
    ),
    st.sampled_from(
        [
            SETTINGS,
            WINDOW,
            DataFrame(1, b"").serialize(),
            PingFrame(0, opaque_data=b"estimate").serialize(),
            PingFrame(0, opaque_data=b"estimate", flags=["ACK"]).serialize(),
            UNKNOWN,
        ]
    ),
)


@given(st.lists(GOOD_FRAMES, max_size=12), st.lists(st.integers(1, 400), max_size=12))
def test_frames_mean_the_same_however_many_arrive_at_once(
    frames: list[bytes], sizes: list[int]
) -> None:
    """What is read in whole frames is taken apart in one go; what is cut, piece by piece."""
    said = b"".join(frames)
    at_once, in_pieces = opened(), opened()
    messages = at_once.receive(said)
    received = []
    for size in sizes:
        received += in_pieces.receive(said[:size])
        said = said[size:]
    for byte in said:
        received += in_pieces.receive(bytes([byte]))
    assert received == messages
    assert at_once.end == in_pieces.end
    assert drain(at_once) == drain(in_pieces)
    at_once.put([b"x" * 100])
    in_pieces.put([b"x" * 100])
    assert drain(at_once) == drain(in_pieces)
    if at_once.end is None:  # else nothing counts any more: a window that is opened too far, say
        assert at_once._received == in_pieces._received


@given(
    st.lists(st.sampled_from([0, 5, 300, 3_000, 20_000]), min_size=1, max_size=5),
    st.lists(st.sampled_from([0, 1, 4, 255, 256, 1_025, 5_000]), max_size=20),
    st.lists(st.sampled_from([b"", b"", PING, UNKNOWN]), max_size=20),
    st.lists(st.sampled_from([1, 8, 9, 10, 1_024, 1_025, 7_000, 30_000]), max_size=20),
)
def test_large_messages_come_out_whole_whatever_they_are_cut_into(
    sizes: list[int], frames: list[int], between: list[bytes], reads: list[int]
) -> None:
    messages = [bytes([number]) * size for number, size in enumerate(sizes)]
    left, said = b"".join(map(message, messages)), b""
    total = len(left)
    for count, other in itertools.zip_longest(frames, between, fillvalue=0):
        said += DataFrame(1, left[:count]).serialize() + (other or b"")
        left = left[count:]
    said += b"".join(data_frames(left)) + PING
    engine, received = opened(), []
    for size in reads:
        received += engine.receive(said[:size])
        said = said[size:]
    received += engine.receive(said)
    assert (received, engine.end) == (messages, None)
    assert engine._received == total
    assert drain(engine).endswith(PING_ACK + b"estimate")


def opened_with_gzip() -> Engine:
    """The same, with a peer that may compress its messages."""
    engine = Engine(LIMIT)
    engine.open_stream("http", "example.com:1", "/a.B/C", {})
    headers = hpack.Encoder().encode([*GRPC_HEADERS, ("grpc-encoding", "gzip")])
    engine.receive(SETTINGS + WINDOW + HeadersFrame(1, headers, flags=["END_HEADERS"]).serialize())
    drain(engine)
    return engine


def compressed(data: bytes) -> bytes:
    zipped = gzip.compress(data)
    return b"\x01" + len(zipped).to_bytes(4, "big") + zipped


def test_a_compressed_message_of_many_frames_is_inflated() -> None:
    noise = random.Random(1).randbytes(100_000)
    whole = b"".join(data_frames(compressed(noise)))
    assert opened_with_gzip().receive(whole) == [noise]


def test_many_compressed_messages_are_no_flood() -> None:
    engine, frame = opened_with_gzip(), data_frames(compressed(b"hello"))[0]
    for _ in range(12):
        assert engine.receive(frame * 1_000) == [b"hello"] * 1_000
    assert engine.end is None


UPDATES = [WINDOW[:5] + stream_id + b"\x00\x00\x00\x01" for stream_id in (bytes(4), b"\0\0\0\x01")]
ENDS = [
    b"",
    HeadersFrame(
        1, hpack.Encoder().encode([("grpc-status", "0")]), flags=["END_HEADERS", "END_STREAM"]
    ).serialize(),
    DataFrame(1, message(b"bye"), flags=["PADDED", "END_STREAM"], pad_length=3).serialize(),
]


@st.composite
def conversations(draw: st.DrawFn) -> list[bytes]:
    """The frames of messages large and small, compressed or not, in frames cut anywhere."""
    kinds = st.tuples(
        st.sampled_from([message, compressed]), st.sampled_from([0, 1, 251, 252, 1_025, 20_000])
    )
    noise = random.Random(1)
    left = b"".join(kind(noise.randbytes(size)) for kind, size in draw(st.lists(kinds, max_size=6)))
    frames = []
    sizes = st.sampled_from([0, 1, 4, 5, 6, 255, 256, 257, 1_025, 16_000])
    for size in draw(st.lists(sizes, max_size=15)):
        padding = draw(st.sampled_from([None, None, None, 0, 255]))
        flags = [] if padding is None else ["PADDED"]
        frames.append(DataFrame(1, left[:size], flags=flags, pad_length=padding or 0).serialize())
        frames.append(draw(st.sampled_from([b"", b"", PING, UNKNOWN, SETTINGS, *UPDATES])))
        left = left[size:]
    return [*frames, *data_frames(left), draw(st.sampled_from(ENDS))]


@given(
    conversations(),
    st.lists(st.sampled_from([1, 2, 5, 8, 9, 13, 14, 100, 1_024, 1_025, 7_000]), max_size=30),
)
def test_a_conversation_cut_anywhere_is_what_it_is_frame_by_frame(
    frames: list[bytes], sizes: list[int]
) -> None:
    """Its messages and end, what is answered, what the windows hold, and what it has cost."""
    left, reads = b"".join(frames), []
    for size in sizes:
        reads.append(left[:size])
        left = left[size:]
    by_frame, by_read, at_once = (
        outcome(each) for each in (frames, [*reads, left], [b"".join(frames)])
    )
    assert by_read == by_frame
    assert at_once == by_frame


def outcome(reads: list[bytes]) -> tuple[object, ...]:
    engine = opened_with_gzip()
    messages = [each for read in reads for each in engine.receive(read)]
    if engine.end is not None:  # nothing counts any more
        return messages, engine.end
    counts = engine._received, engine._outbound.opened - engine._sent, engine._cost
    return messages, engine.end, counts, drain(engine)


def test_data_in_the_middle_of_headers_is_refused_though_the_read_cuts_it() -> None:
    """HTTP/2 allows nothing there but CONTINUATION."""
    engine = opened()
    engine.receive(HeadersFrame(1, b"", flags=[]).serialize())
    engine.receive(data_frames(message(b"x" * 100))[0][:50])
    assert engine.end == StreamEnd(StatusCode.INTERNAL, "DATA in the middle of headers")


def test_the_reserved_bit_of_a_stream_id_is_ignored() -> None:
    engine, frame = opened(), bytearray(data_frames(message(b"hello"))[0])
    frame[5] |= 0x80
    assert engine.receive(bytes(frame)) == [b"hello"]
    assert engine.end is None


@pytest.mark.parametrize("flags", [["END_STREAM"], ["PADDED", "END_STREAM"]])
def test_the_last_frame_of_a_large_message_may_end_the_stream(flags: list[str]) -> None:
    engine = opened()
    *first, last = data_frames(message(bytes(50_000)))
    last = DataFrame(1, last[9:], flags=flags).serialize()
    assert engine.receive(b"".join([*first, last])) == [bytes(50_000)]
    assert engine.end is not None
    assert engine.end.details == "the gateway ended the stream without trailers"


# How long it takes


def seconds_for(body: Callable[[], object]) -> float:
    """The thread's time for it: the least of a few, since a machine does other things too."""
    times = []
    for _ in range(4):
        started = time.thread_time()
        body()
        times.append(time.thread_time() - started)
    return min(times)


def receive_message(frames: list[bytes], size: int) -> None:
    engine, received = opened(), []
    for frame in frames:
        received += engine.receive(frame)
        engine.grant()
        engine.take_output()
    assert [len(each) for each in received] == [size]


def send_message(frames: list[bytes], size: int) -> None:
    engine = opened()
    engine.put([bytes(size)])
    assert sum(engine.take_output()[1] for _ in range(size // (256 << 10) + 1)) == size + 5


@pytest.mark.costly
@pytest.mark.parametrize("transfer", [receive_message, send_message])
def test_64_times_as_much_takes_about_64_times_as_long(
    transfer: Callable[[list[bytes], int], None],
) -> None:
    little, much = MIB // 4, 16 * MIB
    small, large = (data_frames(message(bytes(size))) for size in (little, much))
    one = seconds_for(lambda: [transfer(small, little) for _ in range(8)]) / 8
    # Quadratic would be 64 times as much again; a processor's cache makes a few times of it.
    assert seconds_for(lambda: transfer(large, much)) < 64 * 16 * one


def test_a_goaway_on_a_stream_ends_it() -> None:
    engine = opened()
    goaway = GoAwayFrame(0).serialize()
    engine.receive(goaway[:8] + b"\x01" + goaway[9:])
    assert engine.end is not None
    assert engine.end.details == "a GOAWAY on a stream (received stream 1)"
