"""The frames of a connector's connection that come seldom: what they mean, and what may not be."""

from __future__ import annotations

import struct

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import hpack
import pytest
from hyperframe.frame import Frame, HeadersFrame, SettingsFrame
from hypothesis import given
from hypothesis import strategies as st

from revconn.core.status import ProtocolError
from revconn.http2.control_frames import (
    ControlFrames,
    Event,
    Informational,
    Reset,
    Response,
    SettingsChanged,
    Trailers,
)
from revconn.http2.frames import (
    ACK,
    CONTINUATION,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PADDED,
    PING,
    PRIORITY,
    PRIORITY_FLAG,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
)
from revconn.http2.headers import encode_fields

GRPC = [(b":status", b"200"), (b"content-type", b"application/grpc")]
METADATA = {":status": "200", "content-type": "application/grpc"}
STATUS = [(b"grpc-status", b"0")]
UNKNOWN = 0x77
LAST = END_HEADERS | END_STREAM


def frames() -> ControlFrames:
    control = ControlFrames(8 << 20, 256 << 10)
    control.begin()
    return control


def headers(*fields: tuple[bytes, bytes]) -> bytes:
    return hpack.Encoder().encode(fields)


def say(control: ControlFrames, *said: tuple[int, int, int, bytes]) -> list[Event | None]:
    return [control.receive(*each) for each in said]


# What a client says first


def test_a_server_is_told_our_settings_and_opens_the_stream() -> None:
    server = h2.connection.H2Connection(
        h2.config.H2Configuration(client_side=False, header_encoding=None)
    )
    server.initiate_connection()
    control = ControlFrames(8 << 20, 256 << 10)
    request = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/a.B/C")]
    request += [(b":authority", b"a:1"), (b"te", b"trailers"), (b"x", b"y" * 40_000)]
    events = server.receive_data(control.begin() + control.open_stream(request))
    (changed,) = [each for each in events if isinstance(each, h2.events.RemoteSettingsChanged)]
    settings = {int(code): each.new_value for code, each in changed.changed_settings.items()}
    assert settings == {2: 0, 4: 8 << 20, 5: 256 << 10, 6: 64 << 10}
    (asked,) = [each for each in events if isinstance(each, h2.events.RequestReceived)]
    assert (asked.stream_id, list(asked.headers)) == (1, request)


# Settings


def settings(*values: tuple[int, int]) -> tuple[int, int, int, bytes]:
    return SETTINGS, 0, 0, b"".join(struct.pack(">HI", *each) for each in values)


def test_settings_change_the_window_by_the_difference_and_may_leave_less() -> None:
    said = settings((4, 100_000)), settings((4, 5), (4, 10)), settings((1, 0), (99, 7), (2, 0))
    changes = say(frames(), *said)
    assert changes == [
        SettingsChanged(100_000 - 65_535),
        SettingsChanged(10 - 100_000),
        SettingsChanged(0),
    ]


def test_settings_say_how_long_our_frames_may_be() -> None:
    control = frames()
    assert control.longest_outbound == 16_384
    say(control, settings((5, (1 << 24) - 1)))
    assert control.longest_outbound == (1 << 24) - 1


def test_an_acknowledgement_says_nothing() -> None:
    assert say(frames(), (SETTINGS, ACK, 0, b"")) == [None]


# Headers


def test_headers_answer_and_headers_end_the_stream() -> None:
    said = [(HEADERS, END_HEADERS, 1, headers(*GRPC)), (HEADERS, LAST, 1, headers(*STATUS))]
    expected = [Response(METADATA, ended=False), Trailers({"grpc-status": "0"})]
    assert say(frames(), *said) == expected


def test_an_answer_may_be_all_there_is() -> None:
    (answer,) = say(frames(), (HEADERS, LAST, 1, headers(*GRPC, *STATUS)))
    assert answer == Response({**METADATA, "grpc-status": "0"}, ended=True)


def test_responses_of_status_1xx_come_ahead_of_the_answer() -> None:
    hints = HEADERS, END_HEADERS, 1, headers((b":status", b"103"), (b"link", b"x"))
    said = say(frames(), hints, hints, (HEADERS, END_HEADERS, 1, headers(*GRPC)))
    assert said == [Informational(), Informational(), Response(METADATA, ended=False)]


def test_headers_may_have_padding_and_a_priority() -> None:
    priority = struct.pack(">IB", 3, 16)
    both = b"\x02" + priority + headers(*GRPC) + bytes(2)
    flags = END_HEADERS | PADDED | PRIORITY_FLAG
    assert say(frames(), (HEADERS, flags, 1, both)) == [Response(METADATA, ended=False)]


@given(st.lists(st.integers(0, 30), max_size=6), st.booleans())
def test_a_block_means_the_same_in_however_many_frames(sizes: list[int], ended: bool) -> None:
    block, control, last = headers(*GRPC), frames(), END_STREAM if ended else 0
    kind, flags = HEADERS, last
    for size in sizes:
        assert control.receive(kind, flags, 1, block[:size]) is None
        assert control.block is not None
        kind, flags, block = CONTINUATION, 0, block[size:]
    assert control.receive(kind, flags | END_HEADERS, 1, block) == Response(METADATA, ended)
    assert control.block is None


def test_a_table_of_headers_lasts_from_block_to_block() -> None:
    encoder, control = hpack.Encoder(), frames()
    blocks = [encoder.encode([*GRPC, (b"x-id", b"17")]), encoder.encode([(b"x-id", b"17")])]
    assert len(blocks[1]) == 1
    answer, trailers = say(
        control, (HEADERS, END_HEADERS, 1, blocks[0]), (HEADERS, LAST, 1, blocks[1])
    )
    assert (answer, trailers) == (
        Response({**METADATA, "x-id": "17"}, ended=False),
        Trailers({"x-id": "17"}),
    )


# All else


def test_a_reset_of_the_stream_is_heard() -> None:
    assert say(frames(), (RST_STREAM, 0, 1, struct.pack(">I", 8))) == [Reset(8)]


def test_priorities_and_frames_of_unknown_kinds_are_ignored() -> None:
    said = [(PRIORITY, 0, 1, struct.pack(">IB", 3, 1)), (UNKNOWN, 255, 5, b"x")]
    assert say(frames(), *said) == [None, None]


# Rules that are broken

OPEN = HEADERS, END_HEADERS, 1, headers(*GRPC)
BEGUN = HEADERS, 0, 1, b"\x88"


def answer(*fields: tuple[bytes, bytes]) -> tuple[int, int, int, bytes]:
    return HEADERS, END_HEADERS, 1, encode_fields(fields)


def last(*fields: tuple[bytes, bytes]) -> tuple[int, int, int, bytes]:
    return HEADERS, LAST, 1, encode_fields(fields)


ALONE = "a response without one :status alone"
BROKEN: dict[str, tuple[list[tuple[int, int, int, bytes]], str]] = {
    "settings on a stream": ([(SETTINGS, 0, 1, b"")], "SETTINGS on a stream (received stream 1)"),
    "settings that acknowledge": (
        [(SETTINGS, ACK, 0, bytes(6))],
        "SETTINGS in an acknowledgement (received 6 bytes)",
    ),
    "settings cut short": (
        [(SETTINGS, 0, 0, bytes(7))],
        "a SETTINGS frame of a wrong size (received 7 bytes)",
    ),
    "a window too large": (
        [settings((4, 1 << 31))],
        "an initial window that is too large (received 2,147,483,648 bytes)",
    ),
    "a frame too short": (
        [settings((5, 16_383))],
        "a frame size that may not be (received 16,383 bytes)",
    ),
    "a frame too long": (
        [settings((5, 1 << 24))],
        "a frame size that may not be (received 16,777,216 bytes)",
    ),
    "a server that would be pushed to": (
        [settings((2, 1))],
        "an ENABLE_PUSH other than 0 (received 1)",
    ),
    "headers elsewhere": (
        [(HEADERS, END_HEADERS, 3, headers(*GRPC))],
        "HEADERS where no stream is open (received stream 3)",
    ),
    "headers of the connection": (
        [(HEADERS, END_HEADERS, 0, headers(*GRPC))],
        "HEADERS where no stream is open (received stream 0)",
    ),
    "padding alone": (
        [(HEADERS, END_HEADERS | PADDED, 1, b"\x01")],
        "a HEADERS frame with more padding than payload",
    ),
    "half a priority": (
        [(HEADERS, END_HEADERS | PRIORITY_FLAG, 1, bytes(4))],
        "a HEADERS frame cut short (received 4 bytes)",
    ),
    "headers that depend on themselves": (
        [(HEADERS, END_HEADERS | PRIORITY_FLAG, 1, struct.pack(">IB", 1 << 31 | 1, 0))],
        "a stream that depends on itself (received stream 1)",
    ),
    "no HPACK": ([(HEADERS, END_HEADERS, 1, b"\xff" * 20)], "HPACK: an endless integer"),
    "no headers": ([answer()], f"{ALONE} (received none)"),
    "no status": ([answer((b"a", b"b"))], f"{ALONE} (received none)"),
    "two statuses": ([answer(*GRPC[:1], *GRPC)], f"{ALONE} (received b':status, :status')"),
    "a request": ([answer((b":path", b"/"))], f"{ALONE} (received b':path')"),
    "a late status": ([answer(*reversed(GRPC))], "a :status behind other headers"),
    "capitals": ([answer(*GRPC, (b"X", b""))], "a header that may not be (received b'X')"),
    "a line break": ([answer(*GRPC, (b"x", b"\n"))], "a header that may not be (received b'x')"),
    "an upgrade": (
        [answer(*GRPC, (b"upgrade", b"h3"))],
        "a header that may not be (received b'upgrade')",
    ),
    "only 1xx": ([last((b":status", b"100"))], "a response of status 1xx that ends the stream"),
    "a second answer": ([OPEN, OPEN], "headers in the middle of the stream"),
    "trailers with a status": ([OPEN, last(*GRPC)], "trailers with a pseudo-header"),
    "trailers with capitals": (
        [OPEN, last((b"Grpc-Status", b"0"))],
        "a header that may not be (received b'Grpc-Status')",
    ),
    "a longer list": (
        [answer(*GRPC, (b"x", b"y" * (64 << 10)))],
        "headers of more than 65,536 bytes",
    ),
    "an endless block": (
        [BEGUN, *[(CONTINUATION, 0, 1, bytes(100 << 10))] * 3],
        "headers of more than 262,144 bytes",
    ),
    "endless continuations": (
        [BEGUN, *[(CONTINUATION, 0, 1, b"")] * 65],
        "headers with more than 64 CONTINUATION frames",
    ),
    "a bare continuation": ([(CONTINUATION, END_HEADERS, 1, b"")], "a CONTINUATION of nothing"),
    "a continuation after the end": (
        [OPEN, (CONTINUATION, END_HEADERS, 1, b"")],
        "a CONTINUATION of nothing",
    ),
    "another stream's continuation": (
        [BEGUN, (CONTINUATION, END_HEADERS, 3, b"")],
        "a frame in the middle of headers",
    ),
    "headers in headers": ([BEGUN, OPEN], "a frame in the middle of headers"),
    "what nobody knows in headers": (
        [BEGUN, (UNKNOWN, 0, 1, b"")],
        "a frame in the middle of headers",
    ),
    "a push": ([(PUSH_PROMISE, 0, 1, bytes(4))], "a PUSH_PROMISE, which was not allowed"),
    "a long reset": (
        [(RST_STREAM, 0, 1, bytes(5))],
        "a RST_STREAM frame of a wrong size (received 5 bytes)",
    ),
    "a reset of nothing": (
        [(RST_STREAM, 0, 0, bytes(4))],
        "a RST_STREAM where no stream is open (received stream 0)",
    ),
    "a reset of another stream": (
        [(RST_STREAM, 0, 3, bytes(4))],
        "a RST_STREAM where no stream is open (received stream 3)",
    ),
    "a short priority": (
        [(PRIORITY, 0, 1, bytes(4))],
        "a PRIORITY frame of a wrong size (received 4 bytes)",
    ),
    "a priority of nothing": ([(PRIORITY, 0, 0, bytes(5))], "a PRIORITY of no stream"),
    "a priority of its own": (
        [(PRIORITY, 0, 3, struct.pack(">IB", 3, 0))],
        "a stream that depends on itself (received stream 3)",
    ),
    "a short ping": ([(PING, 0, 0, bytes(7))], "a PING frame of a wrong size (received 7 bytes)"),
    "a ping on a stream": ([(PING, 0, 1, bytes(8))], "a PING on a stream (received stream 1)"),
    "a window elsewhere": (
        [(WINDOW_UPDATE, 0, 3, b"\0\0\0\1")],
        "a WINDOW_UPDATE where no stream is open (received stream 3)",
    ),
}


@pytest.mark.parametrize(("said", "words"), BROKEN.values(), ids=BROKEN.keys())
def test_a_rule_that_is_broken_is_named(
    said: list[tuple[int, int, int, bytes]], words: str
) -> None:
    control = frames()
    say(control, *said[:-1])
    with pytest.raises(ProtocolError) as caught:
        control.receive(*said[-1])
    assert str(caught.value) == f"HTTP/2: {words}"


# What h2 makes of the same headers


NAMES = st.sampled_from([b":status", b":path", b"x", b"X", b"te", b"connection"])
VALUES = st.sampled_from([b"200", b"103", b"v", b" v", b"trailers", b""])
HEADER_LISTS = st.builds(
    lambda begun, fields: [*begun, *fields],
    st.sampled_from([GRPC[:1], GRPC, [(b":status", b"103")], STATUS, []]),
    st.lists(st.tuples(NAMES, VALUES), max_size=2),
)
KINDS = {
    h2.events.ResponseReceived: Response,
    h2.events.TrailersReceived: Trailers,
    h2.events.InformationalResponseReceived: Informational,
}


@given(st.lists(st.tuples(HEADER_LISTS, st.booleans()), min_size=1, max_size=4))
def test_headers_are_taken_and_refused_as_h2_has_it(
    conversation: list[tuple[list[tuple[bytes, bytes]], bool]],
) -> None:
    ours, theirs = frames(), h2_client()
    for fields, ended in conversation:
        block = encode_fields(fields)
        flags = ["END_HEADERS", "END_STREAM"] if ended else ["END_HEADERS"]
        expected = heard_by_h2(theirs, HeadersFrame(1, block, flags=flags))
        if expected is None:
            with pytest.raises(ProtocolError):
                ours.receive(HEADERS, LAST if ended else END_HEADERS, 1, block)
            return
        event = ours.receive(HEADERS, LAST if ended else END_HEADERS, 1, block)
        assert type(event) is expected
        if ended:
            return


def h2_client() -> h2.connection.H2Connection:
    client = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding=None))
    client.initiate_connection()
    request = [(":method", "POST"), (":scheme", "http"), (":path", "/"), (":authority", "a")]
    client.send_headers(1, request)
    client.receive_data(SettingsFrame(0).serialize())
    return client


def heard_by_h2(client: h2.connection.H2Connection, frame: Frame) -> type[object] | None:
    """What h2 takes the frame for; ``None`` if it refuses it."""
    try:
        events = client.receive_data(frame.serialize())
    except h2.exceptions.ProtocolError:
        return None
    return next(KINDS[type(each)] for each in events if type(each) in KINDS)
