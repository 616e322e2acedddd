"""Answers of workers that go on to the next request: they leave together, and never too late."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any, Callable

import pytest

from revconn import Request
from revconn.core.sending import answer
from revconn.serving import workers as workers_module
from revconn.serving.replies import Line, Replies
from tests.support.calls import CallsLink, arrival, handlers_of, open_calls
from tests.support.lines import let_answers_through
from tests.support.threads import TIMEOUT, in_thread
from tests.support.waiting import eventually

MIB = 1 << 20


class Sender:
    """A stream: its sender sleeps until it is called, and others may send past it."""

    def __init__(self, replies: Replies, *, past_it: bool = True) -> None:
        self.past: list[list[bytes]] = []
        self.batches: list[list[bytes]] = []
        self.line = replies.open_line()
        let_answers_through(self.line, send_now=self._send_now if past_it else None)
        self._done = in_thread(self._send)
        eventually(lambda: self.line.parked)

    def _send_now(self, messages: list[bytes]) -> bool:
        self.past.append(messages)
        return True

    def _send(self) -> None:
        while (batch := self.line.take()) is not None:
            self.batches.append(batch)

    def close(self) -> None:
        self.line.close()
        self._done.result(TIMEOUT)


@pytest.fixture
def replies() -> Replies:
    return Replies()


@pytest.fixture
def stream(replies: Replies) -> Iterator[Callable[..., Sender]]:
    """``stream()``: a stream of the replies, whose sender sleeps."""
    opened: list[Sender] = []

    def stream(**options: Any) -> Sender:
        opened.append(Sender(replies, **options))
        return opened[-1]

    yield stream
    for each in opened:
        each.close()


def linger(replies: Replies, *messages: bytes) -> None:
    for message in messages:
        with replies.lock:
            assert replies.put((answer(message, None),), lingers=True) is None


def flush(replies: Replies) -> Line | None:
    with replies.lock:
        line = replies.take_lingering()
    replies.send_out(line)
    return line


def test_what_lingers_wakes_nobody_and_leaves_in_one_when_a_worker_says_so(
    replies: Replies, stream
) -> None:
    sender = stream()
    linger(replies, b"a", b"b", b"c")
    assert replies.lingers
    assert sender.line.parked
    assert not replies.wait_flushed(0.0)
    assert flush(replies) is sender.line
    assert sender.past == [[b"a", b"b", b"c"]]
    assert sender.batches == []
    assert replies.wait_flushed(0.0)
    assert not replies.lingers


def test_an_answer_that_does_not_linger_takes_those_along_that_do(replies: Replies, stream) -> None:
    sender = stream()
    linger(replies, b"a")
    replies.answer([answer(b"b", None)])
    eventually(lambda: sender.batches == [[b"a", b"b"]])
    assert flush(replies) is None


@pytest.mark.parametrize("size", [1, 2 * MIB], ids=["a stream without a way past", "too many"])
def test_what_cannot_leave_past_the_sender_leaves_by_it(
    replies: Replies, stream, size: int
) -> None:
    sender = stream(past_it=size > 1)
    messages = [bytes([number]) * size for number in range(3)]
    linger(replies, *messages)
    assert flush(replies) is None
    eventually(lambda: [each for batch in sender.batches for each in batch] == messages)
    assert sender.past == []


def test_what_lingers_when_another_stream_begins_leaves_all_the_same(
    replies: Replies, stream
) -> None:
    sender = stream()
    linger(replies, b"a")
    opening = replies.open_line()
    assert flush(replies) is None
    eventually(lambda: sender.batches == [[b"a"]])
    opening.close()


def test_what_lingers_when_another_stream_carries_answers_too_leaves_all_the_same(
    replies: Replies, stream
) -> None:
    sender = stream()
    linger(replies, b"a")
    stream()
    assert flush(replies) is None
    eventually(lambda: sender.batches == [[b"a"]])


def test_what_lingers_when_its_stream_breaks_leaves_by_the_next(replies: Replies, stream) -> None:
    first = stream()
    linger(replies, b"a")
    first.close()
    assert flush(replies) is None
    second = stream()
    eventually(lambda: second.batches == [[b"a"]])


def test_too_much_to_linger_does_not_and_its_link_is_relieved_when_it_has_left(
    stream, replies: Replies
) -> None:
    sender = stream()
    linger(replies, bytes(17 * MIB))
    eventually(lambda: sender.batches)
    assert not replies.lingers
    eventually(lambda: not replies.congested)
    assert not sender.line.blocked


# By the table of calls


class Gate:
    """Holds each request whose id it was told; the others are answered at once."""

    def __init__(self, *held: str) -> None:
        self.let_go = threading.Event()
        self.entered: list[str] = []
        self._held = held

    def __call__(self, request: Request) -> bytes:
        self.entered.append(request.request_id)
        if request.request_id in self._held:
            assert self.let_go.wait(TIMEOUT)
        return b""


def answered(link: CallsLink) -> list[str]:
    return [response.request_id for batch in link.batches for response in batch]


def test_no_answer_waits_for_the_handler_that_its_worker_enters_next() -> None:
    gate = Gate("held")
    with open_calls(handlers_of(gate), max_workers=1) as calls:
        link = CallsLink(calls)
        sender = in_thread(link.line.take)
        eventually(lambda: link.line.parked)
        link.brings(arrival("a"), arrival("b"), arrival("held"), arrival("c"))
        eventually(lambda: answered(link) == ["a", "b"])
        assert "held" in gate.entered
        gate.let_go.set()
        eventually(lambda: sorted(answered(link)) == ["a", "b", "c", "held"])
        link.line.close()
        sender.result(TIMEOUT)


def test_no_answer_waits_for_its_callbacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers_module, "_LINGER", TIMEOUT)
    gate = Gate("held")
    calling_back = threading.Event()

    def handler(request: Request) -> bytes:
        if request.request_id == "a":
            request.add_callback(lambda: calling_back.set() or gate.let_go.wait(TIMEOUT))
        return gate(request)

    with open_calls(handlers_of(handler), max_workers=2) as calls:
        link = CallsLink(calls)
        sender = in_thread(link.line.take)
        eventually(lambda: link.line.parked)
        link.brings(arrival("held"))
        eventually(lambda: gate.entered == ["held"])
        link.brings(arrival("a"))
        assert calling_back.wait(TIMEOUT)
        assert answered(link) == ["a"]
        gate.let_go.set()
        eventually(lambda: sorted(answered(link)) == ["a", "held"])
        link.line.close()
        sender.result(TIMEOUT)
