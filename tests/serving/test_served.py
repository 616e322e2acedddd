"""Answers of workers that go on to the next request: settled together, and never too late."""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Executor, Future
from typing import Any

import pytest

from revconn import Request
from revconn.core.sending import answer
from revconn.serving import workers as workers_module
from revconn.serving.calls import Calls
from revconn.serving.handlers import encode_success
from tests.support.calls import METHOD, CallsLink, arrival, handlers_of, open_calls, send_home
from tests.support.lines import let_answers_through
from tests.support.threads import TIMEOUT, in_thread
from tests.support.waiting import eventually


class NoThreads(Executor):
    """Takes workers, and runs none: what waits is the test's."""

    def submit(self, *args: Any, **kwargs: Any) -> Future[Any]:
        return Future()


@pytest.fixture
def calls() -> Iterator[Calls]:
    handlers = handlers_of(lambda request: b"")
    with open_calls(handlers, NoThreads(), max_in_flight_bytes=1000) as calls:
        yield calls


def serve(calls: Calls) -> deque[Any]:
    """What waits is served, as a worker does it, and not settled yet."""
    served = calls.workers.served
    while calls.workers.waiting:
        request = calls.workers.waiting.popleft()
        served.append((request, answer(encode_success(request.request_id, b"\x0a"), None)))
    return served


def bring(link: CallsLink, *request_ids: str, **fields: Any) -> None:
    link.brings(*(arrival(each, **fields) for each in request_ids))


def sender_of(link: CallsLink, sent: list[bytes]) -> Any:
    """A stream's sender, which sleeps until it is woken."""

    def send() -> None:
        while (batch := link.line.take()) is not None:
            sent.extend(batch)

    sender = in_thread(send)
    eventually(lambda: link.line.parked)
    return sender


def counted(calls: Calls, *names: str) -> tuple[int, ...]:
    stats = calls.stats()
    return tuple(stats[name] for name in names)


def test_what_was_served_leaves_in_one_write_and_wakes_nobody(calls: Calls) -> None:
    link = CallsLink(calls)
    sender = sender_of(link, [])
    bring(link, "a", "b", "c")
    served = serve(calls)
    assert counted(calls, "answered", "in_flight") == (0, 3)
    assert calls._settle_served(served) == []
    assert [len(batch) for batch in link.batches] == [3]
    assert link.line.parked
    assert not served
    assert counted(calls, "answered", "in_flight") == (3, 0)
    assert link.replies.wait_flushed(0.0)
    link.line.close()
    sender.result(TIMEOUT)


def test_where_there_is_no_way_past_the_sender_it_is_woken(
    calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = CallsLink(calls)
    sent: list[bytes] = []
    sender = sender_of(link, sent)
    monkeypatch.setattr(link.line, "_send_now", None)
    bring(link, "a", "b", "c")
    calls._settle_served(serve(calls))
    eventually(lambda: len(sent) == 3)
    assert link.batches == []
    link.line.close()
    sender.result(TIMEOUT)


def test_what_expires_or_is_cancelled_meanwhile_is_late(calls: Calls) -> None:
    link = CallsLink(calls)
    bring(link, "a", "b", "c")
    served = serve(calls)
    link.cancels("a")
    calls._expire(served[1][0])
    calls._settle_served(served)
    assert link.statuses() == {"b": 504, "c": 200}
    assert counted(calls, "answered", "cancelled", "expired", "late") == (1, 1, 1, 2)
    assert counted(calls, "in_flight") == (0,)


def test_an_answer_is_not_taken_for_another_request_that_came_with_the_same_id(
    calls: Calls,
) -> None:
    link = CallsLink(calls)
    bring(link, "a")
    served = serve(calls)
    link.cancels("a")
    bring(link, "a")
    calls._settle_served(served)
    assert link.batches == []
    assert counted(calls, "in_flight", "late") == (1, 1)


def test_each_link_has_its_own_answers(calls: Calls) -> None:
    links = [CallsLink(calls) for _ in range(2)]
    for number, request_ids in enumerate(["ab", "c", "d"]):
        bring(links[number % 2], *request_ids)
    served = serve(calls)
    while served:
        calls._settle_served(served)
    assert [[len(batch) for batch in link.batches] for link in links] == [[2, 1], [1]]


def test_when_all_is_settled_that_was_too_much_the_gateway_is_read_again(calls: Calls) -> None:
    link = CallsLink(calls)
    bring(link, "a", "b", payload=bytes(600))
    assert calls.saturated
    assert link.line.blocked
    calls._settle_served(serve(calls))
    assert calls._bytes == 0
    assert not calls.saturated
    assert not link.line.blocked


def test_what_was_served_when_its_stream_breaks_leaves_by_the_next(calls: Calls) -> None:
    link = CallsLink(calls)
    bring(link, "a")
    served = serve(calls)
    link.line.close()
    calls._settle_served(served)
    assert link.batches == []
    link.line = link.replies.open_line()
    let_answers_through(link.line)
    batch = link.line.take()
    assert batch is not None
    assert len(batch) == 1


def test_a_callback_that_comes_before_its_request_is_settled_is_called(calls: Calls) -> None:
    link = CallsLink(calls)
    bring(link, "a", "b")
    served = serve(calls)
    request = served[0][0]
    assert request.add_callback(lambda: None)
    assert calls._settle_served(served) == [request]
    assert not request.add_callback(lambda: None)


def test_at_the_end_what_was_served_is_answered_with_that(calls: Calls) -> None:
    link = CallsLink(calls)
    bring(link, "served", "waiting")
    waiting = calls.workers.waiting.pop()
    serve(calls)
    calls.workers.waiting.append(waiting)
    assert calls.give_up() == 1
    assert counted(calls, "answered") == (2,)
    assert [len(batch) for batch in link.batches] == [1, 1]


# By workers


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


def test_no_answer_waits_for_a_handler_that_lets_no_other_thread_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(workers_module, "_LINGER", TIMEOUT)
    monkeypatch.setattr(workers_module, "_BRIEF", 0.0)  # the handler of "hogs" took long before
    both = threading.Barrier(2)
    had_left: list[list[str]] = []

    def handler(request: Request) -> bytes:
        if request.request_id.startswith("both"):
            both.wait(TIMEOUT)
        if request.request_id == "hogs":
            had_left.append(answered(link))
        return b""

    interval = sys.getswitchinterval()
    with open_calls(handlers_of(handler), max_workers=2) as calls:
        link = CallsLink(calls)
        sender = sender_of(link, [])
        link.brings(arrival("both-1"), arrival("both-2"))
        eventually(lambda: calls.workers._parked == 2)
        # One worker is called, and comes to "a" and to the other's call; that one gets no turn
        # until somebody blocks.
        sys.setswitchinterval(TIMEOUT)
        try:
            link.brings(arrival("a"), arrival("hogs"))
            eventually(lambda: had_left)
        finally:
            sys.setswitchinterval(interval)
        assert "a" in had_left[0]
        send_home(calls.workers, monkeypatch)
        link.line.close()
        sender.result(TIMEOUT)


def test_a_handler_that_is_quick_again_has_its_answers_settled_together_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with open_calls(handlers_of(lambda request: b"")) as calls:
        link = CallsLink(calls)
        sender = sender_of(link, [])
        monkeypatch.setattr(workers_module, "_BRIEF", 0.0)
        link.brings(arrival("lengthy"))
        eventually(lambda: answered(link) == ["lengthy"])
        assert calls.workers._lengthy == {METHOD}
        monkeypatch.setattr(workers_module, "_BRIEF", TIMEOUT)
        link.brings(arrival("quick"))
        eventually(lambda: answered(link) == ["lengthy", "quick"])
        assert calls.workers._lengthy == set()
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
        send_home(calls.workers, monkeypatch)
        link.line.close()
        sender.result(TIMEOUT)
