"""Any order of what two ends of a connection may do to their streams, against what was sent."""

from __future__ import annotations

from collections import defaultdict

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from revconn.core import stream as one_stream
from revconn.core.status import StatusCode
from revconn.core.stream import WINDOW, Stream
from revconn.core.streams import TURN, Streams
from tests.core.test_streams import Heard, Pair, message_of

SIZES = st.sampled_from([0, 1, 1000, 5000, 30_000, TURN + 1, 2 * WINDOW, 300_000])
BOTH = st.booleans()
CODES = st.sampled_from([StatusCode.OK, StatusCode.ABORTED])


class TwoEnds(RuleBasedStateMachine):
    """``asks``: of the two ends the one that opens streams, in each rule."""

    @initialize(frame_limit=st.sampled_from([1 << 30, 50_000]), most=st.integers(1, 4))
    def connect(self, frame_limit: int, most: int) -> None:
        self.pair = Pair(reads=False, frame_limit=frame_limit, most_streams=most)
        self.sent: defaultdict[tuple[bool, int], list[bytes]] = defaultdict(list)
        self.given_up: set[int] = set()
        self.begun: set[int] = set()

    def ends(self, asks: bool) -> tuple[Streams, dict[int, Heard]]:
        if asks:
            return self.pair.asking, self.pair.callers
        return self.pair.answering, self.pair.handlers

    def pick(self, asks: bool, number: int) -> Stream | None:
        """One of the streams that were ever opened, over or not."""
        heard = self.ends(asks)[1]
        return [*heard.values()][number % len(heard)].stream if heard else None

    @precondition(lambda self: not self.pair.asking.is_full)
    @rule()
    def ask(self) -> None:
        self.pair.ask()

    @rule(asks=BOTH, number=st.integers(0, 20), sizes=st.lists(SIZES, min_size=1, max_size=5))
    def send(self, asks: bool, number: int, sizes: list[int]) -> None:
        stream = self.pick(asks, number)
        for size in sizes if stream is not None else ():
            assert stream is not None
            message = message_of(size, len(self.sent[asks, stream.id]))
            if not stream._is_closed:
                self.sent[asks, stream.id].append(message)
            stream.send(message)

    @rule(number=st.integers(0, 20))
    def begin(self, number: int) -> None:
        stream = self.pick(False, number)
        if stream is not None and not stream.put and stream.id not in self.begun:
            self.begun.add(stream.id)
            stream.begin((("number", str(stream.id)),))

    @rule(number=st.integers(0, 20))
    def half_close(self, number: int) -> None:
        stream = self.pick(True, number)
        if stream is not None:
            stream.half_close()

    @rule(number=st.integers(0, 20), code=CODES)
    def finish(self, number: int, code: StatusCode) -> None:
        stream = self.pick(False, number)
        if stream is not None:
            stream.finish(code)

    @rule(number=st.integers(0, 20))
    def cut_short(self, number: int) -> None:
        stream = self.pick(False, number)
        if stream is not None:
            self.given_up.add(stream.id)
            stream.cut_short(StatusCode.DEADLINE_EXCEEDED)

    @rule(asks=BOTH, number=st.integers(0, 20))
    def cancel(self, asks: bool, number: int) -> None:
        stream = self.pick(asks, number)
        if stream is not None:
            self.given_up.add(stream.id)
            stream.cancel("given up")
            assert stream.is_over

    @rule(asks=BOTH, number=st.integers(0, 20))
    def read(self, asks: bool, number: int) -> None:
        stream = self.pick(asks, number)
        if stream is not None:
            self.ends(asks)[1][stream.id].read()

    @rule(asks=BOTH, most=st.sampled_from([1, 50_000, 1 << 20]))
    def move(self, asks: bool, most: int) -> None:
        source, _ = self.ends(asks)
        had_output = source.has_output
        frames = self.pair.move(source, most)
        assert had_output or not frames

    @invariant()
    def accounts_are_right(self) -> None:
        for asks in (True, False):
            streams, heard = self.ends(asks)
            opened = streams.open.values()
            assert streams.held == sum(stream.held for stream in opened)
            assert streams.grown == sum(stream.window - WINDOW for stream in opened)
            assert len(opened) <= streams.most_streams
            for stream in (each.stream for each in heard.values()):
                assert stream.is_over != (stream.id in streams.open)
                assert stream.is_listed == (stream in streams._ready)
                assert stream.is_listed >= stream.has_output, "it is never forgotten"
                if not stream.is_over:
                    assert 0 <= heard[stream.id].unread <= stream.held
                    assert stream.allowed - stream.received <= stream.window
                    assert stream._sent <= stream.put

    @invariant()
    def credit_is_what_the_other_end_has_given(self) -> None:
        for asks in (True, False):
            other = self.ends(not asks)[0].open
            for stream in self.ends(asks)[0].open.values():
                if stream.id in other:
                    assert stream.granted <= other[stream.id].allowed
                    assert other[stream.id].received <= stream._sent
                assert stream.granted - stream._sent <= one_stream._LARGEST_WINDOW

    @invariant()
    def what_came_is_what_was_sent_in_its_order(self) -> None:
        for asks in (True, False):
            for number, heard in self.ends(asks)[1].items():
                sent = self.sent[not asks, number]
                assert heard.messages == sent[: len(heard.messages)]
                told = [each for each in heard.told if each != "resume"]
                assert not {"status", "broken"} & set(told[:-1]), "nothing is heard after that"
                assert "initial" not in told[1:]

    def teardown(self) -> None:
        if not hasattr(self, "pair"):
            return
        pair = self.pair
        for caller in pair.callers.values():
            caller.stream.half_close()
        for _ in range(1000):
            pair.settle()
            for heard in (*pair.callers.values(), *pair.handlers.values()):
                heard.read()
            if not (pair.asking.has_output or pair.answering.has_output):
                break
        for handler in pair.handlers.values():
            if not handler.stream.is_over:
                assert "ended" in handler.told
                assert handler.messages == self.sent[True, handler.stream.id]
                handler.stream.finish(StatusCode.OK)
        pair.settle()
        assert pair.asking.open == pair.answering.open == {}
        assert (pair.asking.held, pair.answering.held) == (0, 0)
        assert (pair.asking.grown, pair.answering.grown) == (0, 0)
        for number, caller in pair.callers.items():
            if number not in self.given_up:
                assert caller.status is not None
                assert caller.messages == self.sent[False, number]


TestTwoEnds = TwoEnds.TestCase
TestTwoEnds.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
