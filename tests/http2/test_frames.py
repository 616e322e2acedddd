from __future__ import annotations

import struct
import time

import pytest
from hyperframe.frame import DataFrame, Frame, GoAwayFrame, PingFrame, SettingsFrame
from hypothesis import given
from hypothesis import strategies as st

from revconn.core.status import ProtocolError
from revconn.http2.frames import (
    DATA,
    END_STREAM,
    GOAWAY,
    PADDED,
    WINDOW_UPDATE,
    FrameSplitter,
    Piece,
    data_header,
    parse_window_update,
    unpad,
    window_update,
)
from revconn.http2.grpc import Goaway, error_name, parse_goaway

LONGEST = 1000
SETTINGS = SettingsFrame(0).serialize()

FRAMES = st.one_of(
    st.builds(
        lambda data, pad, end: data_frame(data, pad=pad, end=end),
        st.binary(max_size=60),
        st.none() | st.integers(0, 20),
        st.booleans(),
    ),
    st.binary(min_size=8, max_size=8).map(lambda data: PingFrame(0, opaque_data=data)),
    st.binary(max_size=30).map(lambda data: GoAwayFrame(0, 1, 11, additional_data=data)),
    st.builds(lambda: SettingsFrame(0, settings={4: 100})),
)


def data_frame(data: bytes, *, pad: int | None = None, end: bool = False) -> DataFrame:
    frame = DataFrame(1, data)
    if pad is not None:
        frame.flags.add("PADDED")
        frame.pad_length = pad
    if end:
        frame.flags.add("END_STREAM")
    return frame


def greeted(longest: int = LONGEST) -> FrameSplitter:
    splitter = FrameSplitter(longest)
    list(splitter.feed(SETTINGS))
    splitter.take_weight()
    return splitter


def cut(stream: bytes, sizes: list[int]) -> list[bytes]:
    parts = []
    for size in sizes:
        parts.append(stream[:size])
        stream = stream[size:]
    return [*parts, stream]


def read(splitter: FrameSplitter, parts: list[bytes]) -> tuple[bytes, bool, list[bytes]]:
    """All the data, whether END_STREAM came (last of all), and all other frames."""
    data, ended, others = b"", False, []
    for part in parts:
        for kind, flags, stream_id, buffer, start, end in splitter.feed(part):
            if kind == DATA:
                assert stream_id == 1
                if flags & PADDED:
                    start, end = unpad(buffer, start, end)
                data += buffer[start:end]
                ended = bool(flags & END_STREAM)
            else:
                others.append(buffer[start - 9 : end])
    return data, ended, others


@given(st.lists(FRAMES, max_size=8), st.lists(st.integers(0, 80)))
def test_the_same_comes_out_however_the_stream_is_cut(
    frames: list[Frame], sizes: list[int]
) -> None:
    stream = b"".join(frame.serialize() for frame in frames)
    datas = [frame for frame in frames if isinstance(frame, DataFrame)]
    data, ended, others = read(greeted(), cut(stream, sizes))
    assert data == b"".join(frame.data for frame in datas)
    assert ended == bool(datas and "END_STREAM" in datas[-1].flags)
    assert others == [f.serialize() for f in frames if not isinstance(f, DataFrame)]


@given(st.lists(FRAMES, max_size=8), st.lists(st.integers(0, 80)))
def test_the_weight_of_a_stream_does_not_depend_on_how_it_is_cut(
    frames: list[Frame], sizes: list[int]
) -> None:
    stream = b"".join(frame.serialize() for frame in frames)
    whole, parts = greeted(), greeted()
    read(whole, [stream])
    read(parts, cut(stream, sizes))
    assert whole.take_weight() == parts.take_weight()
    assert parts.take_weight() == 0


@pytest.mark.parametrize(
    ("frame", "weight"),
    [
        (data_frame(b""), 1),
        (data_frame(bytes(255)), 1),
        (data_frame(bytes(256)), 0),
        (PingFrame(0), 1),
        (GoAwayFrame(0, additional_data=bytes(900)), 4),
    ],
)
def test_frames_without_much_data_weigh_what_they_cost(frame: Frame, weight: int) -> None:
    splitter = greeted()
    read(splitter, [frame.serialize()])
    assert splitter.take_weight() == weight


@given(st.lists(st.binary(max_size=60)))
def test_nothing_but_a_protocol_error_comes_of_arbitrary_bytes(parts: list[bytes]) -> None:
    splitter = FrameSplitter(LONGEST)
    try:
        for part in parts:
            for _, _, _, buffer, start, end in splitter.feed(part):
                assert 0 <= start <= end <= len(buffer)
    except ProtocolError:
        pass
    assert isinstance(splitter.describe_end(), str)


def test_data_comes_out_as_it_arrives_and_its_flags_with_its_last_piece() -> None:
    frame = data_frame(b"abcdef", end=True).serialize()
    splitter = greeted()
    pieces = [
        (flags, buffer[start:end])
        for part in (frame[:10], frame[10:12], frame[12:])
        for _, flags, _, buffer, start, end in splitter.feed(part)
    ]
    assert pieces == [(0, b"a"), (0, b"bc"), (END_STREAM, b"def")]


def test_what_came_before_an_oversized_frame_is_not_lost() -> None:
    seen: list[Piece] = []
    with pytest.raises(ProtocolError, match="longer than announced") as caught:
        seen += greeted().feed(data_frame(b"good").serialize() + data_header(1001, 1))
    assert caught.value.received == "1,001 bytes"
    assert len(seen) == 1


def test_a_frame_64_times_as_large_takes_about_64_times_as_long() -> None:
    def seconds(size: int, rounds: int) -> float:
        times = []
        for _ in range(rounds):
            splitter = greeted(1 << 24)
            stream = struct.pack(">HBBBI", size >> 8, size & 0xFF, 0x77, 0, 0) + bytes(size)
            started = time.thread_time()
            for start in range(0, len(stream), 256):
                list(splitter.feed(stream[start : start + 256]))
            times.append(time.thread_time() - started)
        return min(times)

    # A quadratic splitter takes 64 times as much again, a processor's cache a few times.
    assert seconds(2 << 20, 3) < 64 * 16 * seconds(32 << 10, 10)


# The beginning and the end


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"\x15\x03\x01\x00\x02\x02\x46", "speaks TLS: give tls=True"),
        (b"\x15\x03\x03\x00\x02\x02\x46", "speaks TLS"),
        (b"HTTP/1.1", "speaks HTTP/1, not HTTP/2"),
        (b"SSH-2.0", "does not speak HTTP/2: it said b'SSH-2.0'"),
    ],
)
@pytest.mark.parametrize("more", [b"", b" 400 Bad Request\r\n\r\n"])
def test_what_is_no_http2_is_named(answer: bytes, more: bytes, words: str) -> None:
    splitter = FrameSplitter(LONGEST)
    if more:
        with pytest.raises(ProtocolError, match=words[:20]):
            list(splitter.feed(answer + more))
    else:
        list(splitter.feed(answer))
        assert words in splitter.describe_end()


@pytest.mark.parametrize(
    "first", [PingFrame(0), DataFrame(1, b"x"), SettingsFrame(0, flags=["ACK"])]
)
def test_a_connection_begins_with_settings(first: Frame) -> None:
    with pytest.raises(ProtocolError, match="does not speak HTTP/2"):
        list(FrameSplitter(LONGEST).feed(first.serialize()))


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (b"", "before anything was said"),
        (SETTINGS, ""),
        (SETTINGS + SETTINGS[:3], "in the middle of a frame"),
        (SETTINGS + data_frame(b"abc").serialize()[:-1], "in the middle of a frame"),
        (SETTINGS + data_frame(b"abc").serialize(), ""),
    ],
)
def test_an_end_says_where_it_came(said: bytes, words: str) -> None:
    splitter = FrameSplitter(LONGEST)
    list(splitter.feed(said))
    assert splitter.describe_end().strip().startswith(words)
    assert bool(splitter.describe_end()) == bool(words)


# Single frames


def test_a_data_header_is_what_comes_before_the_data() -> None:
    assert data_header(70_000, 5) + bytes(70_000) == DataFrame(5, bytes(70_000)).serialize()


@given(st.integers(0, (1 << 31) - 1), st.integers(1, (1 << 31) - 1))
def test_a_window_update_is_written_and_read(stream_id: int, increment: int) -> None:
    frame = window_update(stream_id, increment)
    ((kind, _, read_id, _, start, end),) = greeted().feed(frame)
    assert (kind, read_id) == (WINDOW_UPDATE, stream_id)
    assert parse_window_update(frame[start:end]) == increment


def test_a_window_update_of_a_wrong_size_is_refused() -> None:
    with pytest.raises(ProtocolError, match="wrong size"):
        parse_window_update(b"\x00\x00\x01")


@pytest.mark.parametrize("payload", [b"", b"\x01", b"\x03abc"])
def test_more_padding_than_payload_is_refused(payload: bytes) -> None:
    if payload == b"\x03abc":
        assert unpad(payload, 0, 4) == (1, 1)
        return
    with pytest.raises(ProtocolError, match="more padding than payload"):
        unpad(payload, 0, len(payload))


def test_a_goaway_says_code_last_stream_and_words() -> None:
    frame = GoAwayFrame(0, 7, 11, additional_data=b"too_many_pings\xff")
    ((kind, _, _, buffer, start, end),) = greeted().feed(frame.serialize())
    assert kind == GOAWAY
    goaway = parse_goaway(buffer[start:end])
    assert goaway == Goaway(11, 7, "too_many_pings\ufffd")
    assert str(goaway) == "GOAWAY ENHANCE_YOUR_CALM, 'too_many_pings\ufffd'"
    assert str(Goaway(0, 0, "")) == "GOAWAY NO_ERROR"


def test_a_goaway_cut_short_is_refused() -> None:
    with pytest.raises(ProtocolError, match="cut short"):
        parse_goaway(b"1234567")


@pytest.mark.parametrize(
    ("code", "debug", "expected"),
    [(11, "too_many_pings", True), (11, "other", False), (0, "too_many_pings", False)],
)
def test_too_many_pings_is_a_code_and_a_word(code: int, debug: str, expected: bool) -> None:
    assert Goaway(code, 1, debug).is_too_many_pings is expected


def test_an_unknown_error_code_is_shown_as_a_number() -> None:
    assert error_name(0x8) == "CANCEL"
    assert error_name(0xE) == "code 0xe"
