"""Handlers that promised not to block, and what becomes of those that do."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, Callable

import pytest

from revconn import Request
from revconn._proto.registry_pb2 import ForwardRequest
from revconn.core.connector_side import Arrival
from revconn.core.sending import Answer
from revconn.messages import received
from revconn.serving import calls as calls_module
from revconn.serving import inline as inline_module
from revconn.serving.calls import Calls
from tests.support.calls import METHOD, CallsLink, arrival, handlers_of, open_calls
from tests.support.threads import TIMEOUT, in_thread
from tests.support.waiting import eventually

MIB = 1 << 20


class Clock:
    """Stands still until a handler moves it."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(calls_module, "_monotonic", clock)
    monkeypatch.setattr(inline_module, "_monotonic", clock)
    monkeypatch.setattr("revconn.runtime.clock.with_suspend", clock)
    return clock


@pytest.fixture
def serve() -> Iterator[Callable[..., tuple[Calls, CallsLink]]]:
    """``serve(handler, **limits)``: a table with an inline handler, and a link of it."""
    with ExitStack() as stack:

        def serve(handler: Callable[[Request], Any], **limits: Any) -> tuple[Calls, CallsLink]:
            handlers = handlers_of(handler, inline=True)
            calls = stack.enter_context(open_calls(handlers, **limits))
            return calls, CallsLink(calls)

        yield serve


def request(number: int, method: str = METHOD, timeout: int = 30) -> Arrival:
    return arrival(f"r{number}", method, payload=b"\n\0", timeout_seconds=timeout)


def counted(calls: Calls, *names: str) -> tuple[int, ...]:
    stats = calls.stats()
    return tuple(stats[name] for name in names)


def test_a_batch_is_answered_as_one_in_the_thread_that_brings_it(serve) -> None:
    threads = []
    calls, link = serve(lambda request: threads.append(threading.current_thread()) or b"said")
    link.brings(request(1), request(2))
    assert [[response.request_id for response in batch] for batch in link.batches] == [["r1", "r2"]]
    assert link.batches[0][0].payload == b"said"
    assert set(threads) == {threading.current_thread()}
    assert counted(calls, "accepted", "answered", "expired", "repeated") == (2, 2, 0, 0)


def test_answers_that_leave_one_by_one_are_no_sign_of_a_gateway_that_does_not_read(serve) -> None:
    begun: list[int] = []
    _, link = serve(lambda request: b"")

    def send_now(messages: list[bytes]) -> bool:
        begun.extend(link.replies.unsent().values())  # as the watchdog may, each time it looks
        return True

    link.line._send_now = send_now
    for number in range(3):
        link.brings(request(number))
    assert begun == [begun[0], begun[0] + 1, begun[0] + 2]


def test_requests_for_other_handlers_are_told_apart_and_keep_their_order() -> None:
    came: list[tuple[str, str]] = []

    def note(request: Request) -> bytes:
        came.append((request.request_id, threading.current_thread().name))
        return b""

    handlers = handlers_of(note, inline=True)
    handlers.add_service("a.B", note, replace=False)
    with open_calls(handlers) as calls:
        link = CallsLink(calls)
        link.brings(request(1, "/a.B/C"), request(2), request(3, "/a.B/D"), request(4, METHOD[1:]))
        eventually(lambda: len(came) == 4)
    here = threading.current_thread().name
    assert [request_id for request_id, thread in came if thread == here] == ["r2", "r4"]
    assert [request_id for request_id, thread in came if thread != here] == ["r1", "r3"]


def test_time_in_the_queue_counts_and_an_expired_request_never_runs(serve, clock: Clock) -> None:
    ran: list[str] = []

    def handler(request: Request) -> bytes:
        ran.append(request.request_id)
        clock.now += 0.6
        return b""

    calls, link = serve(handler)
    batch = [request(number, timeout=1) for number in (1, 2, 3)]
    link.brings(*batch)
    assert ran == ["r1", "r2"]
    assert link.statuses() == {"r1": 200, "r2": 504, "r3": 504}
    assert counted(calls, "accepted", "answered", "expired", "repeated") == (3, 1, 2, 0)
    assert counted(calls, "in_flight") == (0,)


def test_a_deadline_counts_what_the_machine_slept(serve, clock: Clock) -> None:
    _, link = serve(lambda request: b"")
    link.brings(request(1, timeout=1), now=5000.0)
    link.brings(request(2, timeout=0), now=5000.0)
    assert link.statuses() == {"r1": 200, "r2": 200}


def test_a_handler_that_blocked_is_named_once(
    serve, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    def handler(request: Request) -> bytes:
        clock.now += 0.2
        return b""

    _, link = serve(handler)
    with caplog.at_level(logging.WARNING, "revconn"):
        link.brings(request(1), request(2))
    assert [record.getMessage() for record in caplog.records] == [
        "the inline handler of /echo.Echo/Say blocked for 0.2 s, and the whole connection with it:"
        " register it without inline=True"
    ]


def test_a_handler_that_is_stuck_is_named_while_it_is(
    serve, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    begun, released = threading.Event(), threading.Event()

    def handler(request: Request) -> bytes:
        begun.set()
        released.wait(10.0)
        return b""

    calls, link = serve(handler)
    serving = in_thread(lambda: link.brings(request(1)))
    assert begun.wait(10.0)
    with caplog.at_level(logging.WARNING, "revconn"):
        calls.inline.watch(clock.now + 0.05)
        assert not caplog.records
        calls.inline.watch(clock.now + 7.0)
    released.set()
    serving.result(TIMEOUT)
    assert "/echo.Echo/Say blocked for 7.0 s" in caplog.text
    assert "released.wait(10.0)" in caplog.text


def test_a_repeated_id_runs_once_until_its_answer_is_queued(serve) -> None:
    ran: list[str] = []
    calls, link = serve(lambda request: ran.append(request.request_id) or b"")
    link.brings(request(1), request(2), request(1))
    assert ran == ["r1", "r2"]
    assert [[response.request_id for response in batch] for batch in link.batches] == [["r1", "r2"]]
    assert counted(calls, "repeated") == (1,)
    link.brings(request(1))
    assert ran == ["r1", "r2", "r1"], "answered long since: a new request, as in the pool"


def test_one_that_comes_by_two_connections_at_once_runs_once(serve) -> None:
    ran: list[str] = []

    def hears_it_again(_: Request) -> bytes:
        """As another session of the same link would, in its own thread."""
        ran.append("r1")
        in_thread(lambda: link.brings(request(1))).result(TIMEOUT)
        return b"said"

    _, link = serve(hears_it_again)
    link.brings(request(1))
    assert ran == ["r1"]
    assert [len(batch) for batch in link.batches] == [1]


def test_one_that_comes_by_two_connections_is_told_apart_from_another_gateways(serve) -> None:
    calls, link = serve(lambda request: in_thread(lambda: another.brings(other)).result(TIMEOUT))
    another = CallsLink(calls)
    other = arrival("r1", "/echo.Echo/Nope")
    calls.start()
    link.brings(request(1))
    assert link.statuses() == {"r1": 200}
    eventually(lambda: counted(calls, "answered") == (2,))
    assert another.statuses() == {"r1": 404}


def test_a_request_that_runs_into_a_bug_is_answered_and_the_rest_of_its_batch_is(
    serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, link = serve(lambda request: b"said")

    def answer(asked: Request) -> Answer:
        if asked.request_id == "r1":
            raise SystemExit("a bug")
        return good(asked)

    good = calls.inline._answer
    monkeypatch.setattr(calls.inline, "_answer", answer)
    link.brings(request(1), request(2))
    assert [response.status_code for response in link.batches[0]] == [500, 200]
    link.brings(request(1))
    assert [response.status_code for response in link.batches[1]] == [500]


def test_so_is_one_that_there_is_no_memory_for(serve, monkeypatch: pytest.MonkeyPatch) -> None:
    _, link = serve(lambda request: b"said")

    def make(message: ForwardRequest, *rest: Any) -> Request:
        if message.request_id == "r1":
            raise MemoryError
        return received(message, *rest)

    monkeypatch.setattr(calls_module, "received", make)
    link.brings(request(1), request(2))
    assert link.statuses() == {"r1": 500, "r2": 200}


def test_one_that_is_cancelled_while_it_runs_is_not_answered(serve) -> None:
    def handler(request: Request) -> bytes:
        link.cancels(request.request_id)
        assert not request.is_active()
        return b"said"

    calls, link = serve(handler)
    link.brings(request(1))
    assert link.statuses() == {}
    assert counted(calls, "cancelled", "late", "answered", "in_flight") == (1, 1, 0, 0)


def test_one_that_is_cancelled_before_its_turn_never_runs(serve) -> None:
    ran: list[str] = []

    def handler(request: Request) -> bytes:
        ran.append(request.request_id)
        link.cancels("r2")
        return b"said"

    calls, link = serve(handler)
    link.brings(request(1), request(2), request(3))
    assert ran == ["r1", "r3"]
    assert link.statuses() == {"r1": 200, "r3": 200}
    assert counted(calls, "in_flight") == (0,)


def test_one_that_is_stuck_when_the_time_to_stop_runs_out_is_given_up(serve) -> None:
    begun, released = threading.Event(), threading.Event()

    def handler(request: Request) -> bytes:
        begun.set()
        assert released.wait(TIMEOUT)
        return b"said"

    calls, link = serve(handler)
    serving = in_thread(lambda: link.brings(request(1)))
    assert begun.wait(TIMEOUT)
    assert not calls.wait_idle(0.0)
    assert calls.give_up() == 1
    assert calls.wait_idle(0.0)
    released.set()
    serving.result(TIMEOUT)
    assert link.statuses() == {"r1": 503}


def test_what_inline_handlers_run_takes_no_room_from_workers(serve) -> None:
    def handler(request: Request) -> bytes:
        others.brings(arrival("pooled", "/echo.Echo/Nope"))
        return b"said"

    calls, link = serve(handler, max_in_flight=1)
    others = CallsLink(calls)
    link.brings(request(1))
    eventually(lambda: counted(calls, "in_flight") == (0,))
    assert others.statuses() == {"pooled": 404}
    assert counted(calls, "overloaded") == (0,)


# While the gateway does not read


@pytest.fixture
def little_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer of 2 MiB that has not left is more than should wait."""
    for module in ("revconn.core.sending", "revconn.serving.replies"):
        monkeypatch.setattr(f"{module}.ROOM_BYTES", MIB)


@pytest.mark.usefixtures("little_room")
def test_while_answers_do_not_leave_workers_take_the_rest_of_a_batch_and_wait(serve) -> None:
    ran: list[str] = []

    def handler(request: Request) -> bytes:
        ran.append(request.request_id)
        return bytes(2 * MIB)

    calls, link = serve(handler)
    link.brings(request(1), request(2), request(3))
    eventually(lambda: len(calls.workers.held) == 2)
    assert ran == ["r1"]
    statuses: dict[str, int] = {}
    eventually(lambda: statuses.update(link.statuses()) or len(statuses) == 3)
    assert statuses == {"r1": 200, "r2": 200, "r3": 200}
    assert counted(calls, "accepted", "answered", "in_flight") == (3, 3, 0)


@pytest.mark.usefixtures("little_room")
def test_what_waits_then_expires_at_its_deadline(serve) -> None:
    calls, link = serve(lambda request: bytes(2 * MIB))
    calls.start()
    soon = arrival("r2", headers={"grpc-timeout": "50m"})
    link.brings(request(1), soon)
    eventually(lambda: counted(calls, "expired", "in_flight") == (1, 0))
    assert link.statuses() == {"r1": 200, "r2": 504}


@pytest.mark.usefixtures("little_room")
def test_what_waits_then_counts_as_what_is_in_flight_does(serve) -> None:
    let_go = threading.Event()

    def handle(request: Request) -> bytes:
        assert request.request_id == "r1" or let_go.wait(TIMEOUT)
        return bytes(2 * MIB)

    calls, link = serve(handle, max_in_flight=2, max_in_flight_bytes=10_000)
    link.brings(request(1), arrival("r2", payload=bytes(20_000)), request(3), request(4))
    assert calls.saturated
    assert link.line.blocked
    let_go.set()
    statuses: dict[str, int] = {}
    eventually(lambda: statuses.update(link.statuses()) or len(statuses) == 4)
    assert statuses == {"r1": 200, "r2": 200, "r3": 200, "r4": 429}
    assert not calls.saturated
    assert not link.line.blocked
    assert counted(calls, "accepted", "answered", "overloaded", "in_flight") == (3, 3, 1, 0)
