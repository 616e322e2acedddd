"""Any order of large answers, streams with and without chunks, cancels and breaks."""

from __future__ import annotations

import itertools

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from revconn._proto.registry_pb2 import ConnectionMessage
from revconn.core.chunks import ChunkJoiner, LargeAnswer
from revconn.core.responses import encode_response
from revconn.core.sending import answer
from revconn.serving.line import Line
from revconn.serving.replies import Replies
from tests.support.lines import let_answers_through

LIMIT = 1024


class LargeAnswersMachine(RuleBasedStateMachine):
    """``due`` are the payloads still to be heard; ``unsure`` those of the last batch, too."""

    def __init__(self) -> None:
        super().__init__()
        self.replies = Replies(doubt=0.0)
        self.line: Line | None = None
        self.answering = self.chunks = False
        self.numbers = itertools.count()
        self.due: dict[str, bytes] = {}
        self.unsure: dict[str, bytes] = {}
        self.joiners: dict[str, ChunkJoiner] = {}
        self.cancelled: set[str] = set()

    def teardown(self) -> None:
        """On a last stream that takes chunks everything is heard, and nothing twice."""
        if self.line is not None:
            self.the_stream_breaks()
        self.a_stream_opens()
        self.the_handshake_ends(chunks=True)
        while self.due:
            self.the_sender_takes()
        self.line.nudge()
        for message in self.line.take():
            self.hear(message)
        self.line.nudge()
        assert self.line.take() == []
        assert self.replies.wait_flushed(0)

    @rule(size=st.integers(1, 5 * LIMIT), encoded=st.booleans())
    def an_answer_comes(self, size: int, encoded: bool) -> None:
        request_id = f"r{next(self.numbers)}"
        payload = request_id.encode().ljust(size, b"x")
        if encoded:
            made = answer(encode_response(request_id, payload), None)
        else:
            made = LargeAnswer(encode_response(request_id, b""), None, payload)
        with self.replies.lock:
            self.replies.put([made])
        self.due[request_id] = payload

    @precondition(lambda self: self.line is None)
    @rule()
    def a_stream_opens(self) -> None:
        self.line = self.replies.open_line()
        self.answering = False
        self.joiners = {}

    @precondition(lambda self: self.line and not self.answering)
    @rule(chunks=st.booleans())
    def the_handshake_ends(self, chunks: bool) -> None:
        let_answers_through(self.line, LIMIT, chunks=chunks)
        self.answering, self.chunks = True, chunks

    @precondition(lambda self: self.line and self.answering and self.due)
    @rule()
    def the_sender_takes(self) -> None:
        self.unsure = {}
        for message in self.line.take():
            assert len(message) <= LIMIT
            self.hear(message)

    def hear(self, message: bytes) -> None:
        response = ConnectionMessage.FromString(message).response
        request_id = response.request_id
        if response.response_stream_info.is_streamed:
            assert self.chunks
            joiner = self.joiners.setdefault(request_id, ChunkJoiner(1 << 20))
            response = joiner.add(response)
            if response is None:
                return
        if request_id in self.cancelled:  # where there were no chunks it had failed already
            assert response.status_code == 500
            return
        payload = self.due.pop(request_id)
        self.unsure[request_id] = payload
        if response.status_code == 200:
            assert response.payload == payload
        else:
            assert len(payload) > LIMIT - 100
            assert "is larger than the limit of 1,024 bytes" in response.error_message

    @precondition(lambda self: self.line)
    @rule()
    def the_stream_breaks(self) -> None:
        self.line.close()
        self.line = None
        self.due.update(self.unsure)
        self.unsure = {}

    @rule(data=st.data())
    def one_is_cancelled(self, data: st.DataObject) -> None:
        large = sorted(each for each, size in self.due.items() if len(size) > LIMIT)
        if large and self.line and self.answering and self.chunks:
            request_id = data.draw(st.sampled_from(large))
            self.replies.withdraw([request_id])
            self.cancelled.add(request_id)
            del self.due[request_id]

    @invariant()
    def it_is_flushed_when_nothing_is_due(self) -> None:
        if not self.cancelled:
            assert self.replies.wait_flushed(0) == (not self.due and not self.unsure)


TestLargeAnswers = LargeAnswersMachine.TestCase
