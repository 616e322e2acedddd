"""Any order of answers, control messages, streams and breaks, against lists."""

from __future__ import annotations

import itertools
from unittest import mock

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from revconn.core.sending import Answer, answer
from revconn.runtime import clock
from revconn.serving.line import Line
from revconn.serving.replies import Replies
from tests.support.lines import let_answers_through

PAST = clock.with_suspend() - 1
FUTURE = PAST + 1e6
BATCH_BYTES = 20


class RepliesMachine(RuleBasedStateMachine):
    """``waiting`` and ``taken`` are the model's answers, ``control`` its control messages."""

    def __init__(self) -> None:
        super().__init__()
        self.small_batches = mock.patch("revconn.serving.line._BATCH_BYTES", BATCH_BYTES)
        self.small_batches.start()
        self.replies = Replies(doubt=1e6)
        self.line: Line | None = None
        self.old_lines: list[Line] = []
        self.numbers = itertools.count()
        self.waiting: list[Answer] = []
        self.taken: list[Answer] = []
        self.left: list[Answer] = []
        self.control: list[bytes] = []
        self.undelivered = 0
        self.has_only_its_own = False

    def teardown(self) -> None:
        self.small_batches.stop()

    @rule(deadline=st.sampled_from([None, PAST, FUTURE]), size=st.integers(1, BATCH_BYTES + 1))
    def an_answer_comes(self, deadline: float | None, size: int) -> None:
        made = answer((b"%d" % next(self.numbers)).ljust(size), deadline)
        with self.replies.lock:
            self.replies.put([made])
        self.waiting.append(made)

    @precondition(lambda self: self.line)
    @rule()
    def a_control_message_comes(self) -> None:
        message = b"control %d" % next(self.numbers)
        self.line.put_control(message)
        self.control.append(message)

    @precondition(lambda self: self.old_lines)
    @rule(data=st.data())
    def a_control_message_comes_too_late(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.old_lines)).put_control(b"too late")

    @precondition(lambda self: self.line is None)
    @rule()
    def a_stream_opens(self) -> None:
        self.has_only_its_own = not (self.waiting or self.replies.in_flight)
        self.line = self.replies.open_line()
        self.answering = self.nudged = False

    @rule()
    def a_request_comes_or_is_answered_elsewhere(self) -> None:
        if self.replies.in_flight:
            self.replies.in_flight.clear()
        else:
            self.replies.in_flight["r"] = mock.Mock()

    @precondition(lambda self: self.line)
    @rule()
    def another_stream_is_tried_in_vain(self) -> None:
        self.replies.open_line().close()

    @precondition(lambda self: self.line and self.answering)
    @rule()
    def another_stream_serves_for_a_while(self) -> None:
        other = self.replies.open_line()
        let_answers_through(other)
        other.close()
        self.has_only_its_own = False

    @precondition(lambda self: self.line)
    @rule()
    def the_handshake_ends(self) -> None:
        let_answers_through(self.line)
        if not self.answering:
            alive = [each for each in self.waiting if each[1] != PAST]
            self.undelivered += len(self.waiting) - len(alive)
            self.waiting = alive
        self.answering = True

    @precondition(lambda self: self.line)
    @rule()
    def somebody_nudges(self) -> None:
        self.line.nudge()
        self.nudged = True

    @precondition(
        lambda self: (
            self.line and (self.control or self.nudged or (self.answering and self.waiting))
        )
    )
    @rule()
    def the_sender_takes(self) -> None:
        self.left += self.taken
        expected, self.control, self.taken = self.control, [], []
        while self.answering and self.waiting and self.taken_bytes() < BATCH_BYTES:
            self.taken.append(self.waiting.pop(0))
        expected += [each[0] for each in self.taken]
        assert self.line.take() == expected
        self.nudged = False

    @precondition(lambda self: self.line)
    @rule()
    def the_stream_breaks(self) -> None:
        self.line.close()
        self.it_has_ended()

    @precondition(lambda self: self.line)
    @rule()
    def the_gateway_has_all_that_it_waited_for(self) -> None:
        self.line.close(dismissed=True)
        if self.has_only_its_own:
            self.left, self.taken = [], []
        self.it_has_ended()

    def it_has_ended(self) -> None:
        assert self.line.take() is None
        self.old_lines.append(self.line)
        doubtful = [each for each in self.left if each[1] != PAST]
        self.waiting = doubtful + self.taken + self.waiting
        self.line, self.taken, self.control, self.left = None, [], [], []

    def taken_bytes(self) -> int:
        return sum(len(each[0]) for each in self.taken)

    @invariant()
    def it_is_flushed_when_no_answer_waits_and_none_is_on_its_way(self) -> None:
        carried = self.line is not None and self.answering
        waiting = self.waiting if carried else [each for each in self.waiting if each[1] != PAST]
        flushed = not (waiting or self.taken)
        assert self.replies.wait_flushed(0) == flushed

    @invariant()
    def it_counts_what_it_dropped(self) -> None:
        assert self.replies.undelivered == self.undelivered


TestReplies = RepliesMachine.TestCase
