"""Both ends of streaming calls, played against each other: no thread, no connection, no time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from revconn._proto.registry_pb2 import (
    ConnectionMessage,
    StreamCancel,
    StreamFrame,
    StreamMetadata,
    StreamOpening,
    StreamPiece,
    StreamStatus,
)
from revconn.core import stream as one_stream
from revconn.core import streams as all_streams
from revconn.core.metadata import Metadata, entries_of
from revconn.core.requests import STREAM_TAG, LargeAlone, split_frame
from revconn.core.rope import Data, Rope
from revconn.core.status import StatusCode
from revconn.core.stream import OVERHEAD, WINDOW, Listener, Received, Stream
from revconn.core.streams import TURN, Streams

OPENING = StreamOpening(method_path="/a.B/C")
LARGEST_WINDOW = one_stream._LARGEST_WINDOW
MIB = 1 << 20


class Heard(Listener):
    """Keeps what it is told, and what it read it gives back at once, unless it does not read.

    :ivar does: is called with the name of what it is told of, each time.
    """

    def __init__(self, *, reads: bool = True) -> None:
        self.stream: Stream
        self.reads = reads
        self.told: list[str] = []
        self.messages: list[bytes] = []
        self.initial: Metadata | None = None
        self.status: tuple[StatusCode, str, Metadata] | None = None
        self.broken: tuple[StatusCode, str] | None = None
        self.unread = 0
        self.does: Callable[[str], object] = lambda _: None

    def take_initial(self, metadata: Metadata) -> None:
        self.initial = metadata
        self._note("initial")

    def take(self, messages: list[Received], *, ended: bool) -> None:
        self.messages += map(bytes, messages)
        self.unread += sum(len(message) + OVERHEAD for message in messages)
        if messages:
            self._note("messages")
        if ended:
            self._note("ended")
        if self.reads:
            self.read()

    def take_status(self, code: StatusCode, message: str, trailing: Metadata) -> None:
        self.status = code, message, trailing
        self._note("status")

    def break_off(self, code: StatusCode, reason: str) -> None:
        self.broken = code, reason
        self._note("broken")

    def resume(self) -> None:
        self._note("resume")

    def read(self) -> None:
        """Give back what was not yet."""
        cost, self.unread = self.unread, 0
        self.stream.consume(cost)

    def _note(self, name: str) -> None:
        self.told.append(name)
        self.does(name)


class Pair:
    """A gateway's end that asks and a connector's that answers, and what is between them.

    :ivar callers: who hears the answers, by the number of the stream.
    :ivar handlers: who hears what is asked.
    """

    def __init__(
        self,
        *,
        reads: bool = True,
        message_limit: int = 64 * MIB,
        most_streams: int = 100,
        most_held: int = 64 * MIB,
        frame_limit: int = 1 << 30,
    ) -> None:
        self.reads = reads
        self.ready = 0
        self.asking, self.answering = (
            Streams(
                self._get_ready,
                accept=accept,
                message_limit=message_limit,
                most_streams=most_streams,
                most_held=most_held,
                frame_limit=frame_limit,
            )
            for accept in (None, self._accept)
        )
        self.callers: dict[int, Heard] = {}
        self.handlers: dict[int, Heard] = {}
        self.openings: list[StreamOpening] = []
        self.accepts: Callable[[Stream], object] = lambda _: None

    def _get_ready(self) -> None:
        self.ready += 1

    def _accept(self, stream: Stream, opening: StreamOpening) -> None:
        heard = stream.listener = self.handlers[stream.id] = Heard(reads=self.reads)
        heard.stream = stream
        self.openings.append(opening)
        self.accepts(stream)

    def ask(self, opening: StreamOpening = OPENING) -> Stream:
        """Open a stream. Nothing of that is said yet."""
        heard = Heard(reads=self.reads)
        stream = heard.stream = self.asking.ask(opening, heard)
        self.callers[stream.id] = heard
        return stream

    def opened(self) -> tuple[Stream, Stream]:
        """The two ends of a stream that is open at both."""
        asked = self.ask()
        self.settle()
        return asked, self.handlers[asked.id].stream

    def move(self, source: Streams, most: int = 1) -> list[StreamFrame]:
        """Have the other end hear a batch of what one says."""
        other = self.answering if source is self.asking else self.asking
        frames = []
        for data in source.take(most):
            frame = checked(data)
            apart = split_frame(data)  # as both ends do with what is large
            heard = (heard_as(frame), None) if apart is None else apart
            assert other.receive(*heard) == ""
            frames.append(frame)
        return frames

    def settle(self) -> list[StreamFrame]:
        """Go on until nobody has anything to say."""
        frames = []
        while self.asking.has_output or self.answering.has_output:
            frames += self.move(self.asking, 1 << 16)
            frames += self.move(self.answering, 1 << 16)
        return frames


def taken(source: Streams, most: int = 1) -> list[StreamFrame]:
    return [checked(data) for data in source.take(most)]


def checked(data: Data) -> StreamFrame:
    assert bytes(data).startswith(STREAM_TAG)
    message = ConnectionMessage.FromString(bytes(data))
    # But for the bytes of a piece, which are behind what is missing.
    assert len(message.SerializeToString()) == len(data), "no longer than protobuf writes it"
    return message.stream


def heard_as(frame: StreamFrame) -> StreamFrame:
    """A frame of its own: who receives one may change it."""
    return StreamFrame.FromString(frame.SerializeToString())


def cost(*messages: Data) -> int:
    return sum(len(message) + OVERHEAD for message in messages)


def piece(data: bytes, missing: int) -> StreamPiece:
    return StreamPiece(data=data, missing=missing)


@pytest.fixture
def pair() -> Pair:
    return Pair()


# The four kinds


def test_a_call_with_one_message_each_way_is_two_frames(pair: Pair) -> None:
    asked = pair.ask(StreamOpening(method_path="/a.B/C", peer="ipv4:1.2.3.4:5"))
    asked.send(b"question")
    asked.half_close()
    (frame,) = pair.move(pair.asking)
    assert frame == StreamFrame(
        stream_id=1,
        opening=StreamOpening(method_path="/a.B/C", peer="ipv4:1.2.3.4:5"),
        messages=[b"question"],
        half_close=True,
    )
    handler = pair.handlers[1]
    assert (handler.told, handler.messages) == (["messages", "ended"], [b"question"])
    handler.stream.begin((("a", "1"),))
    handler.stream.send(b"answer")
    handler.stream.finish(StatusCode.OK, "fine", (("b", "2"),))
    (frame,) = pair.move(pair.answering)
    caller = pair.callers[1]
    assert caller.told == ["initial", "messages", "status"]
    assert caller.messages == [b"answer"]
    assert (caller.initial, caller.status) == (
        (("a", "1"),),
        (StatusCode.OK, "fine", (("b", "2"),)),
    )
    assert asked.is_over
    assert handler.stream.is_over
    assert not pair.asking.open
    assert not pair.answering.open


def test_messages_go_both_ways_while_both_ends_are_open(pair: Pair) -> None:
    asked, answered = pair.opened()
    for number in range(3):
        asked.send(b"ask %d" % number)
        answered.send(b"say %d" % number)
        pair.settle()
    assert pair.handlers[1].messages == [b"ask 0", b"ask 1", b"ask 2"]
    assert pair.callers[1].messages == [b"say 0", b"say 1", b"say 2"]


def test_an_answer_may_go_on_after_the_half_close(pair: Pair) -> None:
    asked, answered = pair.opened()
    asked.half_close()
    pair.settle()
    assert answered.has_ended
    answered.send(b"still here")
    answered.finish(StatusCode.OK)
    pair.settle()
    assert pair.callers[1].told == ["messages", "status"]


def test_an_answer_may_end_before_the_half_close(pair: Pair) -> None:
    asked, answered = pair.opened()
    answered.finish(StatusCode.NOT_FOUND, "none")
    pair.settle()
    assert pair.callers[1].status == (StatusCode.NOT_FOUND, "none", ())
    asked.send(b"too late")
    asked.half_close()
    assert not pair.asking.has_output
    assert not asked.queue


def test_an_empty_message_is_not_no_message(pair: Pair) -> None:
    asked, answered = pair.opened()
    asked.send(b"")
    asked.send(Rope([]))
    asked.half_close()
    answered.finish(StatusCode.OK)
    pair.settle()
    assert pair.handlers[1].messages == [b"", b""]
    assert pair.callers[1].messages == []
    assert pair.callers[1].told == ["status"]


def test_metadata_may_be_binary_and_repeated_and_keeps_its_order(pair: Pair) -> None:
    metadata: Metadata = (("a", "1"), ("b-bin", b"\x00\xff"), ("a", "2"), ("b-bin", b""))
    opening = StreamOpening(method_path="/a.B/C", metadata=entries_of(metadata))
    pair.ask(opening)
    pair.settle()
    assert pair.openings == [opening]
    answered = pair.handlers[1].stream
    answered.begin(metadata)
    answered.finish(StatusCode.OK, "", metadata)
    pair.settle()
    assert pair.callers[1].initial == metadata
    assert pair.callers[1].status == (StatusCode.OK, "", metadata)


def test_no_initial_metadata_is_something_to_say_too(pair: Pair) -> None:
    _, answered = pair.opened()
    answered.begin(())
    pair.settle()
    assert pair.callers[1].initial == ()


def test_initial_metadata_goes_before_messages_that_were_sent_before_it(pair: Pair) -> None:
    _, answered = pair.opened()
    answered.send(b"message")
    answered.begin((("a", "1"),))
    pair.settle()
    assert pair.callers[1].told == ["initial", "messages"]


def test_a_status_goes_behind_all_messages_however_long_they_wait_for_credit(pair: Pair) -> None:
    pair.reads = False
    _, answered = pair.opened()
    messages = [bytes([number]) * 1000 for number in range(200)]
    for message in messages:
        answered.send(message)
    answered.finish(StatusCode.OK)
    pair.settle()
    caller = pair.callers[1]
    assert caller.told == ["messages"] * caller.told.count("messages")
    assert not answered.is_over
    while caller.unread:
        caller.read()
        pair.settle()
    assert caller.messages == messages
    assert caller.told[-1] == "status"


def test_words_that_utf_8_cannot_hold_are_said_with_escapes(pair: Pair) -> None:
    asked, _ = pair.opened()
    asked.cancel("why \ud800")
    _, answered = pair.opened()
    answered.finish(StatusCode.INTERNAL, "lone \udcff, ü")
    pair.settle()
    assert pair.handlers[1].broken == (StatusCode.CANCELLED, "why \\ud800")
    assert pair.callers[2].status == (StatusCode.INTERNAL, "lone \\udcff, ü", ())


def test_a_code_that_nobody_knows_is_unknown(pair: Pair) -> None:
    pair.opened()
    pair.asking.receive(StreamFrame(stream_id=1, status=StreamStatus(code=77, message="new")))
    assert pair.callers[1].status == (StatusCode.UNKNOWN, "new", ())


def test_a_listener_need_not_hear_of_all_there_is() -> None:
    listener = Listener()
    listener.take_initial(())
    listener.take_status(StatusCode.OK, "", ())
    listener.resume()
    with pytest.raises(NotImplementedError):
        listener.take([], ended=True)
    with pytest.raises(NotImplementedError):
        listener.break_off(StatusCode.OK, "")


# Whole, and in order

SIZES = st.one_of(
    st.integers(0, 40),
    st.sampled_from([126, 127, 128, 1022, 1023, 1024, 1025, 4096, 4097]),
    st.sampled_from([TURN - 1, TURN, TURN + 1, WINDOW - 1, WINDOW, WINDOW + 1, 3 * WINDOW + 7]),
    st.sampled_from(
        [all_streams._ALONE - 1, all_streams._ALONE, all_streams._ALONE + 1, LARGEST_WINDOW + 1]
    ),
)
PATTERN = bytes(range(251)) * (LARGEST_WINDOW // 251 + 2)


def message_of(size: int, number: int) -> bytes:
    return PATTERN[number % 251 :][:size]


def rope_of(message: bytes, size: int) -> Rope:
    view = memoryview(message)
    return Rope([view[at : at + size] for at in range(0, len(message), size)])


Said = list[tuple[int, int]]
"""Sizes of messages, and of the pieces of each that is a rope, else 0."""

SAID = st.lists(st.tuples(SIZES, st.sampled_from([0, 0, 700, 5000, 1 << 16])), max_size=8)
SOME_SIZES = (0, 10, 1023, 1024, 1025, 5000, 9000, 100, 300_000)
LIMITS = st.sampled_from([1 << 30, 4 * MIB, 100_000, 10_000])


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(SAID, SAID), min_size=1, max_size=3), LIMITS, st.data())
def test_whatever_is_sent_arrives_whole_and_in_order(
    calls: list[tuple[Said, Said]], frame_limit: int, data: st.DataObject
) -> None:
    pair = Pair(frame_limit=frame_limit)
    sent: dict[int, tuple[list[bytes], list[bytes]]] = {}
    to_say: list[Iterator[None]] = []

    def says(stream: Stream, said: Said, kept: list[bytes]) -> Iterator[None]:
        for number, (size, of_pieces) in enumerate(said):
            message = message_of(size, number)
            stream.send(rope_of(message, of_pieces) if of_pieces else message)
            kept.append(message)
            yield
        if stream is pair.callers[stream.id].stream:
            stream.half_close()

    for asks, answers in calls:
        asked, answered = pair.opened()
        sent[asked.id] = [], []
        to_say += says(asked, asks, sent[asked.id][0]), says(answered, answers, sent[asked.id][1])
    while to_say:
        speaker = data.draw(st.sampled_from(to_say))
        if next(speaker, "ended") == "ended":
            to_say.remove(speaker)
        source = data.draw(st.sampled_from([None, None, pair.asking, pair.answering]))
        if source is not None:
            for frame in pair.move(source, data.draw(st.sampled_from([1, 1000, 1 << 20]))):
                assert ConnectionMessage(stream=frame).ByteSize() <= frame_limit
    for handler in pair.handlers.values():
        if not handler.stream.has_ended:  # else its answer may wait to be sent
            pair.settle()
        handler.stream.finish(StatusCode.OK)
    pair.settle()
    for number, (asked_for, said) in sent.items():
        assert pair.handlers[number].messages == asked_for
        assert pair.handlers[number].told.count("ended") == 1
        assert pair.callers[number].messages == said
        assert pair.callers[number].status == (StatusCode.OK, "", ())
    for streams in (pair.asking, pair.answering):
        assert (streams.held, streams.grown, streams.open) == (0, 0, {})


@settings(max_examples=40, deadline=None)
@given(st.lists(SIZES, min_size=1, max_size=12), st.data())
def test_credit_is_never_overdrawn_by_more_than_a_message(
    sizes: list[int], data: st.DataObject
) -> None:
    pair = Pair(reads=False)
    asked, answered = pair.opened()
    for number, size in enumerate(sizes):
        asked.send(message_of(size, number))
    allowed = WINDOW
    heard = pair.handlers[1]
    costs = [size + OVERHEAD for size in sizes]
    while len(heard.messages) < len(sizes):
        pair.move(pair.asking)
        # What has begun to come counts in full; all before the last of it was within the credit.
        begun = len(heard.messages) + bool(answered.missing)
        assert answered.received == sum(costs[:begun])
        assert sum(costs[: max(0, begun - 1)]) < allowed
        read = sum(costs[: len(heard.messages)]) - heard.unread
        assert answered.held == pair.answering.held == answered.received - read
        if not pair.asking.has_output or data.draw(st.booleans()):
            heard.read()
        allowed += sum(frame.credit for frame in pair.move(pair.answering))
        assert allowed == answered.allowed == asked.granted
        assert asked.granted - answered.received <= one_stream._MOST_ALLOWED
    assert heard.messages == [message_of(size, number) for number, size in enumerate(sizes)]


@given(
    st.integers(1, 2**32 - 1),
    st.lists(st.binary(max_size=300) | st.sampled_from([PATTERN[:1023], PATTERN[:1024]])),
    st.lists(st.tuples(st.sampled_from(["a", "b"]), st.text("xyz")), max_size=3),
    st.integers(0, 16),
)
def test_frames_by_hand_are_those_of_protobuf(
    stream_id: int, messages: list[bytes], pairs: list[tuple[str, str]], code: int
) -> None:
    metadata: Metadata = tuple(pairs)
    streams = Pair().answering
    streams.receive(StreamFrame(stream_id=stream_id, opening=OPENING))
    stream = streams.open[stream_id]
    stream.begin(metadata)
    for message in messages:
        stream.send(message)
    stream.consume(0)
    stream._give(WINDOW)
    stream.finish(StatusCode(code), "ü", metadata)
    frame = StreamFrame(
        stream_id=stream_id,
        initial_metadata=StreamMetadata(entries=entries_of(metadata)),
        messages=messages,
        status=StreamStatus(code=code, message="ü", trailing_metadata=entries_of(metadata)),
    )
    data = streams.take(1)
    assert data == [ConnectionMessage(stream=frame).SerializeToString()]


# Turns


def test_streams_with_something_to_say_take_turns(pair: Pair) -> None:
    pair.reads = False
    first, _ = pair.opened()
    second, _ = pair.opened()
    for stream in (first, second):
        for _ in range(4):
            stream.send(b"x" * (TURN // 4))
            stream.send(b"x" * (TURN // 4))
    frames = taken(pair.asking, 1 << 20)
    assert [frame.stream_id for frame in frames[:2]] == [1, 2]
    assert all(len(b"".join(frame.messages)) <= TURN for frame in frames)


def test_a_small_message_waits_for_one_piece_of_a_large_one_and_not_for_all(pair: Pair) -> None:
    large, _ = pair.opened()
    small, _ = pair.opened()
    large.send(b"x" * (10 * TURN))
    small.send(b"y")
    frames = taken(pair.asking, 1 << 30)
    assert [frame.stream_id for frame in frames][:3] == [1, 2, 1]
    assert len(frames[0].piece.data) == TURN
    assert frames[0].piece.missing == 9 * TURN
    assert frames[1].messages == [b"y"]


def test_a_piece_follows_messages_in_their_frame_and_the_next_has_its_rest(pair: Pair) -> None:
    asked, _ = pair.opened()
    other, _ = pair.opened()
    asked.send(b"x")
    asked.send(b"y" * (2 * TURN))
    asked.half_close()
    other.send(b"z" * (2 * TURN))
    first, _, second, *rest = taken(pair.asking, 1 << 30)
    assert first.messages == [b"x"]
    assert len(first.piece.data) == TURN - cost(b"x")
    assert not first.half_close
    assert len(second.piece.data) == TURN
    assert [frame.half_close for frame in rest if frame.stream_id == 1] == [True]


def test_a_message_of_no_more_than_a_turn_goes_whole(pair: Pair) -> None:
    asked, _ = pair.opened()
    other, _ = pair.opened()
    asked.send(b"x")
    asked.send(b"y" * TURN)
    asked.send(b"z")
    other.send(b"z")
    first, *_ = taken(pair.asking, 1 << 20)
    assert list(map(len, first.messages)) == [1, TURN]


def test_a_frame_that_is_full_begins_no_piece(pair: Pair) -> None:
    asked, _ = pair.opened()
    pair.ask()  # it is not alone
    pair.opened()
    other, _ = pair.opened()
    asked.send(b"x" * (TURN - 1))
    asked.send(b"y" * (2 * TURN))
    other.send(b"z")
    (frame,) = taken(pair.asking)
    assert (len(frame.messages), frame.HasField("piece")) == (1, False)
    pair.settle()
    assert pair.asking.open.keys() == {1, 2, 3, 4}


def test_what_one_does_not_read_holds_up_no_other(pair: Pair) -> None:
    slow, slow_answer = pair.opened()
    pair.handlers[1].reads = pair.callers[1].reads = False
    quick, quick_answer = pair.opened()
    for _ in range(100):
        slow.send(b"x" * 4000)
        slow_answer.send(b"x" * 4000)
    pair.settle()
    assert slow.queue
    assert slow_answer.queue
    for _ in range(1000):
        quick.send(b"y" * 1000)
        quick_answer.send(b"z" * 1000)
    pair.settle()
    assert len(pair.handlers[2].messages) == len(pair.callers[2].messages) == 1000
    assert cost(*pair.handlers[1].messages) < WINDOW + cost(b"x" * 4000)
    pair.handlers[1].reads = pair.callers[1].reads = True
    pair.handlers[1].read()
    pair.callers[1].read()
    pair.settle()
    assert len(pair.handlers[1].messages) == len(pair.callers[1].messages) == 100


def test_nothing_is_taken_where_nothing_is_said(pair: Pair) -> None:
    assert pair.asking.take(1000) == []
    assert not pair.asking.has_output


def test_nothing_is_taken_where_there_is_no_room(pair: Pair) -> None:
    pair.ask()
    assert pair.asking.take(0) == []
    assert pair.asking.has_output


def test_its_owner_is_told_once_when_there_is_something_to_take(pair: Pair) -> None:
    asked = pair.ask()
    asked.send(b"x")
    pair.ask()
    assert pair.ready == 1
    pair.asking.take(1 << 20)
    assert pair.ready == 1
    asked.send(b"y")
    assert pair.ready == 2


def test_a_message_put_without_the_guard_while_its_stream_is_taken_is_not_forgotten(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, _ = pair.opened()
    looked = vars(Stream)["has_output"].fget
    puts = [b"b"]

    def looks(stream: Stream) -> bool:
        has_output = bool(looked(stream))
        if not has_output and puts:  # just after it was looked at
            stream.queue.append(puts.pop())
        return has_output

    asked.send(b"a")
    monkeypatch.setattr(Stream, "has_output", property(looks))
    frames = taken(pair.asking, 1 << 20)
    assert [list(frame.messages) for frame in frames] == [[b"a"], [b"b"]]
    assert not asked.is_listed


@pytest.mark.parametrize("frame_limit", [1, 4096, 20_000, 70_000, 4 * MIB])
def test_no_frame_is_larger_than_the_other_end_takes(frame_limit: int) -> None:
    pair = Pair(frame_limit=frame_limit)
    asked, answered = pair.opened()
    other, _ = pair.opened()
    messages = [
        message_of(size, size) for size in (0, 10, 1023, 1024, 1025, 5000, 9000, 100, 300_000)
    ]
    for message in messages:
        asked.send(message)
        answered.send(message)
        other.send(message)
    for frame in pair.settle():
        assert ConnectionMessage(stream=frame).ByteSize() <= max(frame_limit, 4096)
    heard = (pair.handlers[1], pair.handlers[2], pair.callers[1])
    assert [each.messages for each in heard] == [messages] * 3


# Credit


def test_credit_is_given_back_once_half_a_window_was_read(pair: Pair) -> None:
    pair.reads = False
    asked, answered = pair.opened()
    asked.send(b"x" * 1000)
    pair.settle()
    answered.consume(WINDOW // 2 - 1)
    assert not pair.answering.has_output
    answered.consume(1)
    (frame,) = pair.move(pair.answering)
    assert frame == StreamFrame(stream_id=1, credit=WINDOW // 2)
    assert asked.granted == answered.allowed == WINDOW + WINDOW // 2


def test_no_credit_is_given_to_who_has_said_that_it_sends_no_more(pair: Pair) -> None:
    pair.reads = False
    asked, answered = pair.opened()
    for _ in range(60):
        asked.send(b"x" * 1000)
    asked.half_close()
    pair.settle()
    assert answered.held == pair.answering.held == 60 * 1032
    pair.handlers[1].read()
    assert answered.held == pair.answering.held == 0
    assert not pair.answering.has_output


def test_who_waits_for_room_is_told_when_there_is_some(pair: Pair) -> None:
    pair.reads = False
    asked, _ = pair.opened()
    assert asked.room == WINDOW
    asked.send(b"x" * WINDOW)
    assert asked.room == -OVERHEAD
    asked.send(b"y" * 2 * WINDOW)
    pair.settle()
    caller, handler = pair.callers[1], pair.handlers[1]
    told = len(caller.told)
    handler.read()
    pair.settle()
    handler.read()
    pair.settle()
    assert caller.told[told:].count("resume") <= 1
    assert "resume" in caller.told
    assert asked.room > 0
    told = len(caller.told)
    pair.asking.receive(StreamFrame(stream_id=1, credit=1))
    assert len(caller.told) == told, "it did not wait"


def test_credit_that_is_not_enough_is_no_room(pair: Pair) -> None:
    asked, _ = pair.opened()
    asked.send(b"x" * (WINDOW + 1000))
    pair.asking.receive(StreamFrame(stream_id=1, credit=1))
    assert asked.room < 0
    assert pair.callers[1].told == []


def test_a_message_larger_than_the_window_passes_and_the_next_waits(pair: Pair) -> None:
    pair.reads = False
    asked, _ = pair.opened()
    asked.send(b"x" * (LARGEST_WINDOW + 1))
    asked.send(b"y")
    pair.settle()
    assert [len(message) for message in pair.handlers[1].messages] == [LARGEST_WINDOW + 1]
    pair.handlers[1].read()
    pair.settle()
    assert pair.handlers[1].messages[1:] == [b"y"]


def test_a_window_grows_by_large_messages_whole_or_in_pieces_up_to_a_bound(pair: Pair) -> None:
    asked, answered = pair.opened()
    windows = []
    for size in (4096, 4097, 8000, 8000, 20_000, 200_000, 3 * LARGEST_WINDOW):
        asked.send(b"x" * size)
        pair.settle()
        windows.append(answered.window)
    assert windows[0] == WINDOW
    assert windows == sorted(windows)
    assert windows[1] == 16 * 4097
    assert windows[-1] == LARGEST_WINDOW
    assert pair.answering.grown == LARGEST_WINDOW - WINDOW
    assert asked.granted == answered.allowed
    answered.finish(StatusCode.OK)
    pair.settle()
    assert pair.answering.grown == 0


def test_all_windows_of_a_connection_together_are_bounded(pair: Pair) -> None:
    answers = []
    for _ in range(12):
        asked, answered = pair.opened()
        asked.send(b"x" * MIB)
        pair.settle()
        answers.append(answered)
    grown = [answered.window > WINDOW for answered in answers]
    assert grown == [True] * 8 + [False] * 4
    assert pair.answering.grown <= one_stream._MOST_WINDOWS
    answers[0].finish(StatusCode.OK)
    asked, answered = pair.opened()
    asked.send(b"x" * MIB)
    pair.settle()
    assert answered.window == LARGEST_WINDOW, "another one's turn"


# Who breaks a rule loses that stream, and no other


def broken(pair: Pair, *frames: StreamFrame) -> tuple[StatusCode, str]:
    """The answering end's word on these, which its caller hears as a status."""
    asked, _ = pair.opened()
    other, _ = pair.opened()
    for frame in frames:
        frame.stream_id = 1
        assert pair.answering.receive(frame) == ""
    handler = pair.handlers[1]
    assert handler.broken is not None
    assert handler.told.count("broken") == 1
    assert handler.stream.is_over
    assert pair.answering.held == 0
    pair.settle()
    status = pair.callers[1].status
    assert asked.is_over
    assert status == (handler.broken[0], f"the gateway {handler.broken[1]}", ())
    other.send(b"x")
    pair.settle()
    assert pair.handlers[2].messages == [b"x"]
    return handler.broken


RULES = [
    ("was allowed", [StreamFrame(messages=[b"x" * WINDOW, b"y"])]),
    ("was allowed", [StreamFrame(messages=[b"x" * WINDOW]), StreamFrame(messages=[b""] * 99999)]),
    ("was allowed", [StreamFrame(messages=[b""] * (WINDOW // OVERHEAD + 1))]),
    ("was allowed", [StreamFrame(messages=[b""] * (WINDOW // OVERHEAD), piece=piece(b"x", 1))]),
    ("none may be", [StreamFrame(half_close=True), StreamFrame(messages=[b"x"])]),
    ("none may be", [StreamFrame(half_close=True), StreamFrame(piece=piece(b"", 0))]),
    ("none may be", [StreamFrame(piece=piece(b"x", 9)), StreamFrame(messages=[b"x"])]),
    ("not make a message", [StreamFrame(piece=piece(b"x", 9)), StreamFrame(piece=piece(b"x", 9))]),
    ("not make a message", [StreamFrame(piece=piece(b"x", 1)), StreamFrame(piece=piece(b"xx", 0))]),
    ("in the middle", [StreamFrame(piece=piece(b"x", 9), half_close=True)]),
    ("in the middle", [StreamFrame(piece=piece(b"x", 9)), StreamFrame(half_close=True)]),
    ("a message of 1,000,001 bytes; 1,000,000 may", [StreamFrame(piece=piece(b"x", 1_000_000))]),
    ("a message of 1,000,001 bytes; 1,000,000 may", [StreamFrame(messages=[b"x" * 1_000_001])]),
    ("a message of 4,294,967,295 bytes", [StreamFrame(piece=piece(b"", 2**32 - 1))]),
    ("more than 8,388,608 bytes at once", [StreamFrame(credit=2**32 - 1)]),
    ("8,388,608 bytes at once", [StreamFrame(credit=4 * MIB), StreamFrame(credit=4 * MIB)]),
]


@pytest.mark.parametrize(("words", "frames"), RULES)
def test_a_gateway_that_breaks_a_rule_ends_one_stream(
    words: str, frames: list[StreamFrame]
) -> None:
    pair = Pair(message_limit=1_000_000, reads=False)
    # A large message whose window grows with it would be the credit for the next one.
    pair.answering.grown = one_stream._MOST_WINDOWS if "allowed" in words else 0
    code, reason = broken(pair, *map(heard_as, frames))
    assert code is StatusCode.RESOURCE_EXHAUSTED
    assert words in reason


@pytest.mark.parametrize(
    ("words", "frames"),
    [
        ("none may be", [StreamFrame(piece=piece(b"x", 9)), StreamFrame(messages=[b"x"])]),
        ("in the middle", [StreamFrame(piece=piece(b"x", 9), status=StreamStatus())]),
        ("at once", [StreamFrame(credit=2**32 - 1, messages=[b"x"])]),
    ],
)
def test_a_connector_that_breaks_a_rule_is_told_that_the_call_is_given_up(
    pair: Pair, words: str, frames: list[StreamFrame]
) -> None:
    pair.opened()
    for frame in frames:
        frame = heard_as(frame)
        frame.stream_id = 1
        assert pair.asking.receive(frame) == ""
    caller, handler = pair.callers[1], pair.handlers[1]
    assert caller.broken is not None
    assert caller.broken[0] is StatusCode.RESOURCE_EXHAUSTED
    assert words in caller.broken[1]
    assert "status" not in caller.told
    pair.settle()
    assert handler.broken == (StatusCode.CANCELLED, caller.broken[1])
    assert (pair.asking.open, pair.answering.open, pair.asking.held) == ({}, {}, 0)


def test_nothing_is_heard_on_a_stream_that_was_broken_off(pair: Pair) -> None:
    _, answered = pair.opened()
    frame = StreamFrame(stream_id=1, half_close=True)
    pair.answering.receive(heard_as(frame))
    frame.messages.append(b"x")
    for _ in range(3):
        pair.answering.receive(heard_as(frame))
    pair.answering.receive(StreamFrame(stream_id=1, cancel=StreamCancel(reason="why")))
    assert pair.handlers[1].told == ["ended", "broken"]
    assert answered.held == pair.answering.held == 0


def test_the_largest_message_may_be_as_large_as_the_limit() -> None:
    pair = Pair(message_limit=100_000)
    asked, _ = pair.opened()
    asked.send(b"x" * 100_000)
    pair.settle()
    assert [len(message) for message in pair.handlers[1].messages] == [100_000]


def test_a_small_limit_holds_for_whole_messages_too() -> None:
    pair = Pair(message_limit=100)
    asked, _ = pair.opened()
    asked.send(b"x" * 100)
    asked.send(b"x" * 101)
    pair.settle()
    caller = pair.callers[1]
    assert caller.status is not None
    assert caller.status[1] == "the gateway sent a message of 101 bytes; 100 may be"


@pytest.mark.parametrize("frame_limit", [1 << 30, 100_000], ids=["whole", "pieces"])
def test_large_messages_of_all_streams_are_held_within_one_budget(frame_limit: int) -> None:
    pair = Pair(reads=False, most_held=1_000_000, frame_limit=frame_limit)
    pair.answering.held_option = "an option"
    size = 200_000
    numbers = range(1, 7)
    for _ in numbers:
        asked, _ = pair.opened()
        asked.send(b"x" * size)
        pair.settle()
    assert pair.answering.held == 4 * (size + OVERHEAD)
    assert [pair.callers[number].status is None for number in numbers] == [True] * 4 + [False] * 2
    refused = pair.callers[6].status
    assert refused is not None
    assert refused[:2] == (
        StatusCode.RESOURCE_EXHAUSTED,
        "the gateway sent more than the 1,000,000 bytes that all may hold (an option)",
    )
    # What goes into a window always may, and there is room again once one was read.
    asked, _ = pair.opened()
    asked.send(b"x" * (WINDOW - OVERHEAD))
    pair.settle()
    assert len(pair.handlers[7].messages) == 1
    pair.handlers[1].read()
    asked, _ = pair.opened()
    asked.send(b"x" * size)
    pair.settle()
    assert len(pair.handlers[8].messages) == 1


def test_what_cannot_come_in_pieces_needs_no_room_beside_the_window() -> None:
    pair = Pair(reads=False, most_held=0)
    pair.answering.grown = one_stream._MOST_WINDOWS  # no window grows
    asked, _ = pair.opened()
    asked.send(b"x" * (WINDOW - 1000))
    asked.send(b"y" * min(TURN, 16_000))
    pair.settle()
    assert pair.callers[1].status is None
    assert len(pair.handlers[1].messages) == 2


@pytest.mark.parametrize("size", [0, 1, 2, 7, 1023, 1024, 1025])
def test_pieces_of_any_size_make_a_message(pair: Pair, size: int) -> None:
    pair.opened()
    message = message_of(5000, 1)
    frames = [
        piece(message[at : at + size], max(0, 5000 - at - size))
        for at in range(0, 5000, size)
    ] if size else [piece(b"", 5000), piece(b"", 5000), piece(message, 0)]  # fmt: skip
    for each in frames:
        pair.answering.receive(StreamFrame(stream_id=1, piece=each))
    assert pair.handlers[1].messages == [message]


def test_small_pieces_are_kept_together(pair: Pair) -> None:
    _, answered = pair.opened()
    missing = 100_000
    for _ in range(10_000):
        missing -= 2
        pair.answering.receive(StreamFrame(stream_id=1, piece=piece(b"xy", missing)))
        pair.answering.receive(StreamFrame(stream_id=1, piece=piece(b"", missing)))
    assert len(answered._parts) <= 20_000 // one_stream._SMALL_PIECE + 1
    assert answered.held == 100_000 + OVERHEAD


def test_a_piece_alone_may_be_an_empty_message(pair: Pair) -> None:
    _, answered = pair.opened()
    pair.answering.receive(StreamFrame(stream_id=1, piece=piece(b"", 0)))
    assert pair.handlers[1].messages == [b""]
    assert answered.received == OVERHEAD


def test_a_frame_that_says_nothing_is_nothing(pair: Pair) -> None:
    pair.opened()
    assert pair.answering.receive(StreamFrame(stream_id=1)) == ""
    assert pair.asking.receive(StreamFrame(stream_id=1)) == ""
    assert pair.handlers[1].told == pair.callers[1].told == []


def test_what_only_the_other_end_may_say_is_ignored(pair: Pair) -> None:
    asked, answered = pair.opened()
    status = StreamStatus(code=5)
    pair.answering.receive(
        StreamFrame(stream_id=1, initial_metadata=StreamMetadata(), status=status)
    )
    pair.asking.receive(StreamFrame(stream_id=1, half_close=True))
    assert pair.handlers[1].told == pair.callers[1].told == []
    assert pair.asking.open == {1: asked}
    assert pair.answering.open == {1: answered}
    assert not asked.has_ended


def test_a_second_half_close_says_nothing(pair: Pair) -> None:
    asked, _ = pair.opened()
    asked.half_close()
    asked.half_close()
    pair.settle()
    asked.half_close()
    assert not pair.asking.has_output
    pair.answering.receive(StreamFrame(stream_id=1, half_close=True))
    assert pair.handlers[1].told == ["ended"]


# Opening


def test_ids_go_up_from_one_and_are_never_used_again(pair: Pair) -> None:
    for number in range(1, 5):
        asked = pair.ask()
        assert asked.id == number
        if number % 2:
            asked.cancel("not wanted")
        else:
            pair.settle()
            pair.handlers[number].stream.finish(StatusCode.OK)
        pair.settle()
    assert not pair.asking.open
    # Each is over: to open it anew is none.
    for number in range(5):
        assert pair.answering.receive(StreamFrame(stream_id=number, opening=OPENING)) == ""
    assert not pair.answering.open
    assert not pair.answering.has_output


def test_a_second_opening_of_an_open_stream_is_named_and_ignored(pair: Pair) -> None:
    pair.opened()
    second = StreamFrame(stream_id=1, opening=OPENING, messages=[b"x"])
    for streams in (pair.asking, pair.answering):
        assert streams.receive(heard_as(second)) == "a second opening of a stream"
    assert len(pair.openings) == 1
    assert pair.handlers[1].told == pair.callers[1].told == []


def test_a_frame_of_a_stream_that_was_never_opened_is_named_and_ignored(pair: Pair) -> None:
    problem = "a frame of a stream that was never opened"
    opening = StreamFrame(stream_id=3, opening=OPENING)
    cancel = StreamFrame(stream_id=3, cancel=StreamCancel(), credit=2**32 - 1)
    assert pair.asking.receive(opening) == problem, "only one end opens any"
    for streams in (pair.asking, pair.answering):
        assert streams.receive(heard_as(cancel)) == problem
        assert streams.receive(StreamFrame(stream_id=9, messages=[b"x"])) == problem
        assert streams.receive(LargeAlone(9, None), memoryview(b"x" * 20_000)) == problem
        assert not streams.open
        assert streams.held == 0
    assert pair.answering.receive(opening) == "", "later is not too late"


def test_a_large_message_of_a_stream_that_is_over_is_ignored(pair: Pair) -> None:
    asked, _ = pair.opened()
    asked.cancel("enough")
    pair.settle()
    for missing in (None, 0, 7):
        for streams in (pair.asking, pair.answering):
            assert streams.receive(LargeAlone(1, missing), memoryview(b"x" * 20_000)) == ""
            assert streams.held == 0


def test_ids_may_be_left_out(pair: Pair) -> None:
    pair.ask().cancel("before anything was said")
    asked = pair.ask()
    pair.settle()
    assert pair.handlers.keys() == {2}
    assert pair.answering.receive(StreamFrame(stream_id=1, opening=OPENING)) == ""
    assert pair.handlers.keys() == {2}, "its turn is over"
    assert not asked.is_over


def test_one_too_many_is_refused_with_the_limit_and_its_id_is_used_up() -> None:
    pair = Pair(most_streams=2)
    pair.ask()
    pair.ask()
    assert pair.asking.is_full
    third = pair.ask()  # who asks is to look first
    third.send(b"x")
    third.half_close()
    pair.settle()
    assert pair.handlers.keys() == {1, 2}
    problem = "2 streams are open on this connection"
    assert pair.callers[3].status == (StatusCode.RESOURCE_EXHAUSTED, problem, ())
    assert third.is_over
    assert pair.answering.open.keys() == {1, 2}
    assert pair.answering.held == 0
    pair.handlers[1].stream.finish(StatusCode.OK)
    pair.settle()
    assert not pair.asking.is_full
    assert pair.answering.receive(StreamFrame(stream_id=3, opening=OPENING)) == ""
    assert pair.handlers.keys() == {1, 2}
    pair.ask()
    pair.settle()
    assert pair.handlers.keys() == {1, 2, 4}


def test_what_follows_a_refused_opening_is_nobodys() -> None:
    pair = Pair(most_streams=0)
    pair.answering.receive(StreamFrame(stream_id=1, opening=OPENING, messages=[b"x" * 1000]))
    pair.answering.receive(StreamFrame(stream_id=1, messages=[b"x" * 1000], half_close=True))
    pair.answering.receive(StreamFrame(stream_id=1, credit=2**32 - 1))
    pair.answering.receive(StreamFrame(stream_id=1, cancel=StreamCancel()))
    assert (pair.answering.open, pair.answering.held) == ({}, 0)
    assert len(taken(pair.answering, 1 << 20)) == 1


def test_who_has_no_id_left_is_full(pair: Pair) -> None:
    pair.asking._last_id = all_streams.LAST_ID - 1
    assert not pair.asking.is_full
    assert pair.ask().id == 2**32 - 1
    assert pair.asking.is_full
    pair.settle()
    assert pair.handlers.keys() == {2**32 - 1}


def test_who_is_not_read_from_is_full_of_what_was_given_up() -> None:
    pair = Pair(most_streams=2)
    opened = 0
    while not pair.asking.is_full:
        pair.ask().cancel("not wanted")
        opened += 1
        assert opened < 10_000
    assert not pair.asking.open
    assert taken(pair.asking, 1 << 20) == []
    assert not pair.asking.is_full


def test_who_accepts_may_refuse_at_once(pair: Pair) -> None:
    pair.accepts = lambda stream: stream.finish(StatusCode.UNIMPLEMENTED, "no")
    asked = pair.ask()
    asked.send(b"x")
    pair.settle()
    assert pair.callers[1].status == (StatusCode.UNIMPLEMENTED, "no", ())
    pair.accepts = lambda stream: stream.cut_short(StatusCode.UNAVAILABLE, "not now")
    asked = pair.ask()
    asked.send(b"x")
    pair.settle()
    assert pair.callers[2].status == (StatusCode.UNAVAILABLE, "not now", ())
    assert pair.handlers[2].told == []
    assert pair.answering.held == 0


def test_who_accepts_and_names_no_listener_hears_nothing(pair: Pair) -> None:
    streams = Streams(
        lambda: None, accept=lambda *_: None, message_limit=1, most_streams=1, most_held=1
    )
    streams.receive(StreamFrame(stream_id=1, opening=OPENING, messages=[b"x"]))
    streams.receive(StreamFrame(stream_id=1, cancel=StreamCancel()))
    assert not streams.open


# How it ends


def test_a_call_that_is_cancelled_is_over_at_once_and_its_handler_is_told(pair: Pair) -> None:
    asked, answered = pair.opened()
    for _ in range(200):
        asked.send(b"x" * 1000)
        answered.send(b"y" * 1000)
    asked.cancel("the caller gave up")
    assert asked.is_over
    assert not asked.queue
    asked.cancel("again")
    (frame,) = pair.move(pair.asking, 1 << 20)
    assert frame == StreamFrame(stream_id=1, cancel=StreamCancel(reason="the caller gave up"))
    handler = pair.handlers[1]
    assert handler.told == ["broken"]
    assert handler.broken == (StatusCode.CANCELLED, "the caller gave up")
    assert answered.is_over
    assert pair.settle() == []
    assert pair.callers[1].told == []


def test_an_answer_that_is_cancelled_ends_the_call(pair: Pair) -> None:
    asked, answered = pair.opened()
    answered.send(b"y")
    answered.cancel("no more")
    pair.settle()
    assert pair.callers[1].told == ["broken"]
    assert pair.callers[1].broken == (StatusCode.CANCELLED, "no more")
    assert asked.is_over


def test_a_call_that_is_cancelled_before_it_was_opened_is_never_heard_of(pair: Pair) -> None:
    asked = pair.ask()
    asked.send(b"x")
    asked.half_close()
    asked.cancel("the caller gave up")
    asked.cancel("again")
    assert pair.settle() == []
    assert not pair.openings
    assert not asked.is_listed


def test_a_cancel_goes_without_credit(pair: Pair) -> None:
    pair.reads = False
    asked, _ = pair.opened()
    asked.send(b"x" * WINDOW)
    asked.send(b"y")
    pair.settle()
    assert not pair.asking.has_output
    asked.cancel("enough")
    pair.settle()
    assert pair.handlers[1].broken == (StatusCode.CANCELLED, "enough")


def test_a_cancel_is_said_instead_of_the_rest_of_a_message(pair: Pair) -> None:
    asked, answered = pair.opened()
    asked.send(b"x" * MIB)
    pair.move(pair.asking)
    assert answered.missing
    asked.cancel("enough")
    (frame,) = pair.settle()
    assert frame.HasField("cancel")
    assert (answered.missing, answered._parts, pair.answering.held) == (0, [], 0)


def test_what_waits_is_not_said_of_a_stream_that_the_other_end_has_ended(pair: Pair) -> None:
    asked, answered = pair.opened()
    asked.send(b"x" * MIB)
    pair.move(pair.asking)  # and the rest of it waits
    asked.half_close()
    answered.cut_short(StatusCode.ABORTED)
    pair.move(pair.answering)
    assert asked.is_over
    assert pair.settle() == []
    _, answered = pair.opened()
    answered.send(b"y" * MIB)
    pair.move(pair.answering)
    answered.begin((("a", "1"),))
    answered.finish(StatusCode.OK)
    pair.answering.receive(StreamFrame(stream_id=2, cancel=StreamCancel()))
    assert answered.is_over
    assert taken(pair.answering, 1 << 20) == []


def test_an_answer_that_is_cut_short_says_nothing_else(pair: Pair) -> None:
    pair.reads = False
    asked, answered = pair.opened()
    for _ in range(200):
        answered.send(b"y" * 1000)
    answered.finish(StatusCode.OK)
    pair.settle()
    asked.send(b"x")
    answered.cut_short(StatusCode.DEADLINE_EXCEEDED, "too late", (("a", "1"),))
    answered.cut_short(StatusCode.OK, "again")
    assert answered.is_over
    (frame,) = pair.move(pair.answering)
    assert not frame.messages
    assert pair.callers[1].status == (
        StatusCode.DEADLINE_EXCEEDED,
        "too late",
        (("a", "1"),),
    )
    pair.settle()
    assert pair.handlers[1].told == []
    assert (pair.asking.open, pair.answering.open) == ({}, {})
    assert (pair.asking.held, pair.answering.held) == (0, 0)


def test_an_answer_may_be_cut_short_in_the_middle_of_a_message(pair: Pair) -> None:
    asked, answered = pair.opened()
    answered.send(b"y" * MIB)
    pair.move(pair.answering)
    assert asked.missing
    answered.cut_short(StatusCode.DEADLINE_EXCEEDED, "too late")
    # A handler that does not know yet puts one more, without the guard.
    answered.queue.append(b"z")
    answered.put += cost(b"z")
    pair.settle()
    caller = pair.callers[1]
    assert (caller.told, caller.messages) == (["status"], [])
    assert caller.status == (StatusCode.DEADLINE_EXCEEDED, "too late", ())
    assert not asked._parts


def test_what_is_put_behind_the_end_is_never_sent(pair: Pair) -> None:
    asked, answered = pair.opened()
    asked.send(b"x")
    asked.half_close()
    asked.send(b"behind")
    answered.send(b"y")
    answered.finish(StatusCode.OK)
    answered.send(b"behind")
    answered.finish(StatusCode.ABORTED)
    pair.settle()
    assert pair.handlers[1].messages == [b"x"]
    assert pair.callers[1].messages == [b"y"]
    answered.send(b"far behind")
    answered.begin(())
    answered.finish(StatusCode.ABORTED)
    answered.cut_short(StatusCode.ABORTED)
    answered.cancel("behind")
    assert pair.callers[1].status == (StatusCode.OK, "", ())
    assert pair.settle() == []


def test_frames_after_the_end_are_ignored_at_both(pair: Pair) -> None:
    _, answered = pair.opened()
    answered.finish(StatusCode.OK)
    pair.settle()
    told = [*pair.callers[1].told], [*pair.handlers[1].told]
    late = StreamFrame(
        stream_id=1,
        initial_metadata=StreamMetadata(),
        messages=[b"x" * 100_000] * 3,
        piece=piece(b"x", 5),
        half_close=True,
        status=StreamStatus(),
        credit=2**32 - 1,
    )
    for streams in (pair.asking, pair.answering):
        assert streams.receive(heard_as(late)) == ""
        late.ClearField("opening")
        cancel = StreamFrame(stream_id=1, cancel=StreamCancel(reason="late"))
        assert streams.receive(cancel) == ""
        assert (streams.held, streams.has_output) == (0, False)
    assert (pair.callers[1].told, pair.handlers[1].told) == told


def test_what_is_read_after_the_end_counts_for_nothing(pair: Pair) -> None:
    pair.reads = False
    asked, answered = pair.opened()
    asked.send(b"x" * 1000)
    answered.send(b"y" * 1000)
    pair.settle()
    assert pair.asking.held == pair.answering.held == 1032
    answered.finish(StatusCode.OK)
    pair.settle()
    pair.callers[1].read()
    pair.handlers[1].read()
    assert pair.asking.held == pair.answering.held == 0
    assert asked.held == answered.held == 0


def test_a_stream_that_is_over_keeps_nothing(pair: Pair) -> None:
    asked, answered = pair.opened()
    for stream in (asked, answered):
        stream.send(b"x" * MIB)
        stream.send(b"x" * MIB)
    pair.move(pair.asking)
    pair.move(pair.answering)
    asked.cancel("enough")
    pair.settle()
    for stream in (asked, answered):
        assert not any((stream.queue, stream._rest, stream._parts, stream.missing))


@pytest.mark.parametrize("told", ["resume", "initial", "messages"])
def test_who_is_told_of_something_may_give_the_call_up(pair: Pair, told: str) -> None:
    pair.reads = False
    asked, _ = pair.opened()
    asked.send(b"x" * WINDOW)
    caller = pair.callers[1]
    caller.does = lambda name: asked.cancel("enough") if name == told else None
    frame = StreamFrame(
        stream_id=1,
        credit=WINDOW,
        initial_metadata=StreamMetadata(),
        messages=[b"y" * 10_000],
        status=StreamStatus(),
    )
    pair.asking.receive(frame)
    assert caller.told[-1] == told
    assert (pair.asking.held, pair.asking.grown, pair.asking.open) == (0, 0, {})
    pair.settle()
    assert pair.handlers[1].broken == (StatusCode.CANCELLED, "enough")


# The connection is gone


def test_streams_are_lost_with_their_connection(pair: Pair) -> None:
    ends = [end for _ in range(3) for end in pair.opened()]
    unsaid = pair.ask()
    for stream in (*ends, unsaid):
        stream.send(b"x" * 100_000)
    pair.move(pair.asking)
    for streams, heard in ((pair.asking, pair.callers), (pair.answering, pair.handlers)):
        streams.lose("gone")
        assert [each.broken for each in heard.values()] == [
            (StatusCode.UNAVAILABLE, "gone") for _ in heard
        ]
        assert all(each.told.count("broken") == 1 for each in heard.values())
        assert (streams.open, streams.held, streams.grown) == ({}, 0, 0)
        assert not streams.has_output
    for stream in (*ends, unsaid):
        stream.send(b"x")
        stream.half_close()
        stream.finish(StatusCode.OK)
        stream.cancel("late")
        stream.consume(1000)
    assert not pair.asking.has_output
    assert not pair.answering.has_output
    assert pair.asking.held == pair.answering.held == 0


def test_nothing_opens_on_a_connection_that_is_gone(pair: Pair) -> None:
    pair.opened()
    pair.asking.lose("gone")
    pair.answering.lose("gone")
    assert pair.asking.is_full
    assert pair.answering.receive(StreamFrame(stream_id=2, opening=OPENING)) == ""
    assert (len(pair.openings), pair.answering.open) == (1, {})


def test_who_hears_that_the_connection_is_gone_may_give_up_another_call(pair: Pair) -> None:
    first, _ = pair.opened()
    second, _ = pair.opened()
    pair.callers[1].does = lambda _: second.cancel("that one too")
    pair.asking.lose("gone")
    assert pair.callers[1].told == ["broken"]
    assert pair.callers[2].told == []
    assert first.is_over
    assert second.is_over
    assert not pair.asking.has_output


def test_an_end_and_metadata_that_are_too_long_for_a_frame_are_cut_and_do_not_end_the_tunnel() -> (
    None
):
    limit = 1 << 20
    streams = Streams(
        lambda: None, message_limit=limit, most_streams=9, most_held=limit, frame_limit=limit
    )
    endless = (("large", "x" * limit), ("small", "y"))
    for end in (Stream.finish, Stream.cut_short):
        stream = streams.ask(OPENING, Heard())
        stream.begin(endless)
        stream.send(b"x" * (streams.turn - 1))
        end(stream, StatusCode.INTERNAL, "\N{EURO SIGN}" * limit, endless)
        frames = [ConnectionMessage.FromString(bytes(each)) for each in streams.take(limit)]
        status = frames[-1].stream.status
        assert max(each.ByteSize() for each in frames) < limit
        assert status.code == StatusCode.INTERNAL
        assert status.message.endswith("\N{EURO SIGN}...")
        assert [entry.key for entry in status.trailing_metadata] == ["small"]
