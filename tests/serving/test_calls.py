"""The table of calls: whoever asks whether all is answered misses no instant of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any, Callable

import pytest

from revconn import Request
from revconn._proto.registry_pb2 import ConnectionMessage, ForwardRequest, ForwardResponse
from revconn.core.rope import Data
from revconn.runtime import clock
from revconn.serving import calls as calls_module
from revconn.serving.calls import Calls
from revconn.serving.handlers import Handlers, Runs
from revconn.serving.line import Line
from revconn.serving.replies import Replies
from tests.support.lines import let_answers_through
from tests.support.requests import arrival
from tests.support.threads import TIMEOUT, in_thread
from tests.support.waiting import eventually

INLINE, POOLED = "/echo.Echo/Inline", "/echo.Echo/Pooled"
MIB = 1 << 20


def echo(request: Request) -> bytes:
    return request.payload


class Table:
    """Calls with one handler, for a method that is served inline and for one that is not."""

    def __init__(
        self,
        executor: ThreadPoolExecutor,
        handler: Callable[[Request], bytes],
        *,
        max_in_flight: int = 10,
        max_in_flight_bytes: int = MIB,
    ) -> None:
        handlers = Handlers()
        handlers.add_method(INLINE, handler, inline=True, replace=False)
        handlers.add_method(POOLED, handler, inline=False, replace=False)
        self.failures: list[BaseException] = []
        self.calls = Calls(
            handlers,
            executor,
            Runs(),
            max_workers=4,
            max_streams=2,
            max_in_flight=max_in_flight,
            max_in_flight_bytes=max_in_flight_bytes,
            max_message_bytes=64 * MIB,
            callbacks=executor,
            recruiter=None,
            on_failure=self.failures.append,
        )
        self.calls.start()
        self.link = self.new_link()

    def new_link(self) -> Replies:
        return self.calls.replies(replay_bytes=64 * MIB, doubt=50.0)

    def line(self, send_now: Callable[[list[bytes]], bool] | None = None) -> Line:
        """A stream of the link that carries answers."""
        line = self.link.open_line()
        let_answers_through(line, send_now=send_now)
        return line

    def arrive(
        self,
        *request_ids: str,
        method: str = POOLED,
        link: Replies | None = None,
        arrived: float | None = None,
        payload: bytes = b"\x0ahello",
        within: float | None = None,
    ) -> None:
        """These come, in one batch, ``arrived`` then; all but the first expire ``within`` that."""
        messages = [
            ForwardRequest(request_id=each, method_path=method, payload=payload)
            for each in request_ids
        ]
        if within is not None:
            for message in messages[1:]:
                message.headers["grpc-timeout"] = f"{int(within * 1000)}m"
        self.calls.arrived(
            self.link if link is None else link,
            map(arrival, messages),
            time.monotonic() if arrived is None else arrived,
            clock.with_suspend(),
        )

    def wait_answered(self, timeout: float, came_by: float = float("inf")) -> bool:
        """As a link's plan asks, whenever something is answered."""
        with self.link.lock, self.link.awaiting():
            return self.link.changed.wait_for(
                lambda: self.calls.is_answered(self.link, came_by), timeout
            )


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as executor:
        yield executor


@pytest.fixture
def table(executor: ThreadPoolExecutor) -> Iterator[Callable[..., Table]]:
    """``table(handler, **limits)``: a table of calls."""
    made: list[Table] = []

    def make(handler: Callable[[Request], bytes] = echo, **limits: int) -> Table:
        made.append(Table(executor, handler, **limits))
        return made[-1]

    yield make
    for each in made:
        each.calls.close()
        assert not each.failures


def responses(messages: list[Data]) -> list[ForwardResponse]:
    return [ConnectionMessage.FromString(bytes(message)).response for message in messages]


# No instant is missed


class WatchedLock:
    """A lock whose holder has ``look`` called just before others may have it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.look: Callable[[], object] = lambda: None
        self.locked = self._lock.locked
        self.acquire = self._lock.acquire

    def release(self) -> None:
        self.look()
        self._lock.release()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *exc_info: object) -> None:
        self.release()


@pytest.mark.parametrize("at_once", [True, False], ids=["sent at once", "sent by the sender"])
@pytest.mark.parametrize(
    ("method", "limit"), [(POOLED, 10), (INLINE, 10), (POOLED, 0)], ids=["pool", "inline", "429"]
)
def test_from_when_a_call_is_in_flight_until_its_answer_has_left_nothing_is_quiet(
    table, monkeypatch: pytest.MonkeyPatch, method: str, limit: int, at_once: bool
) -> None:
    monkeypatch.setattr(
        calls_module,
        "threading",
        SimpleNamespace(Lock=WatchedLock, Condition=threading.Condition),
    )
    made: Table = table(max_in_flight=limit)
    lock: Any = made.calls._lock
    sent: list[bytes] = []
    sent_when_quiet: list[int] = []

    def look() -> None:
        if not made.calls._total and made.link.is_flushed():
            assert made.calls.is_answered(made.link)
            sent_when_quiet.append(len(sent))

    def send_now(messages: list[bytes]) -> bool:
        if at_once:
            sent.extend(messages)
        return at_once

    line = made.line(send_now)
    lock.look = look
    made.arrive("a", method=method)
    if not at_once:
        batch = line.take()
        assert batch is not None
        sent += batch
        line.nudge()
        assert line.take() == [], "it has left now"
    eventually(lambda: sent_when_quiet)
    lock.look = lambda: None
    assert set(sent_when_quiet) == {1}
    (response,) = responses(sent)
    assert (response.request_id, response.status_code) == ("a", 200 if limit else 429)
    assert made.calls.wait_idle(TIMEOUT)
    assert made.wait_answered(0.0)
    assert made.calls.stats()["in_flight"] == 0


@pytest.mark.parametrize("method", [POOLED, INLINE])
def test_an_id_that_came_twice_is_waited_for_and_answered_once(table, method: str) -> None:
    made: Table = table()
    line = made.line()
    made.arrive("a", "a", method=method)
    assert made.calls.wait_idle(TIMEOUT)
    assert [each.request_id for each in responses(line.take())] == ["a"]
    stats = made.calls.stats()
    assert (stats["accepted"], stats["answered"], stats["repeated"]) == (1, 1, 1)


@pytest.mark.parametrize("others", [(), ("b",)])
def test_one_that_is_cancelled_before_it_is_refused_leaves_no_trace(
    table, monkeypatch: pytest.MonkeyPatch, others: tuple[str, ...]
) -> None:
    made: Table = table(max_in_flight=0)
    sent: list[list[bytes]] = []
    made.line(lambda messages: not sent.append(messages))
    refuse = made.calls._refuse

    def cancel_first(replies: Replies, refused: list[Request]) -> None:
        made.calls.cancel(replies, ["a"])
        refuse(replies, refused)

    monkeypatch.setattr(made.calls, "_refuse", cancel_first)
    made.arrive("a", *others)
    answered = [[each.request_id for each in responses(messages)] for messages in sent]
    assert answered == [[each] for each in others]
    assert (made.calls._total, made.calls._exempt, made.calls._bytes) == (0, 0, 0)


class Held:
    """A handler that waits until its request is let go."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self._let_go: dict[str, threading.Event] = {}

    def __call__(self, request: Request) -> bytes:
        self.entered.release()
        assert self._event(request.request_id).wait(TIMEOUT)
        return b"\x0adone"

    def let_go(self, *request_ids: str) -> None:
        for each in request_ids:
            self._event(each).set()

    def _event(self, request_id: str) -> threading.Event:
        return self._let_go.setdefault(request_id, threading.Event())


def test_what_another_gateway_sent_and_what_came_later_is_not_waited_for(table) -> None:
    held = Held()
    made: Table = table(held)
    other = made.new_link()
    try:
        made.arrive("first", arrived=100.0)
        made.arrive("another's", arrived=100.0, link=other)
        made.arrive("later", arrived=101.0)
        waiting = in_thread(made.wait_answered, TIMEOUT, 100.5)
        eventually(lambda: made.link.awaited)
        held.let_go("first")
        assert waiting.result(TIMEOUT)
        assert not made.wait_answered(0.0)
        held.let_go("later")
        assert made.wait_answered(TIMEOUT)
        assert not made.calls.wait_idle(0.0)
        held.let_go("another's")
        assert made.calls.wait_idle(TIMEOUT)
    finally:
        held.let_go("first", "another's", "later")


def test_what_is_cancelled_and_what_is_abandoned_is_neither_waited_for_nor_answered(
    table, executor: ThreadPoolExecutor
) -> None:
    held = Held()
    made: Table = table(held)
    line = made.line()
    try:
        made.arrive("a", "b")
        waiting = in_thread(made.calls.wait_idle, TIMEOUT)
        made.calls.cancel(made.link, ["a"])
        assert not made.calls.wait_idle(0.0)
        made.calls.close()
        assert waiting.result(TIMEOUT)
        assert made.wait_answered(0.0)
    finally:
        held.let_go("a", "b")
    executor.shutdown()
    line.nudge()
    assert line.take() == []


def test_what_was_given_up_does_not_wait_after_the_end(table) -> None:
    held = Held()
    made: Table = table(held)
    made.line()
    try:
        made.arrive(*"abcdef")
        for _ in range(4):  # as many workers as there may be
            assert held.entered.acquire(timeout=TIMEOUT)
        assert made.calls.give_up() == 6
        made.calls.close()
        assert made.calls.stats()["waiting"] == 0
    finally:
        held.let_go(*"abcdef")


def test_a_link_that_is_forgotten_takes_its_calls_along_and_no_others(table) -> None:
    held = Held()
    made: Table = table(held)
    line = made.line()
    other = made.calls.replies(replay_bytes=MIB, doubt=50.0)
    try:
        made.arrive("a", "b")
        now = time.monotonic(), clock.with_suspend()
        request = ForwardRequest(request_id="c", method_path=POOLED)
        made.calls.arrived(other, [arrival(request)], *now)
        for _ in range(3):
            assert held.entered.acquire(timeout=TIMEOUT)
        made.calls.forget(other)
        assert made.calls.stats()["in_flight"] == 2
        held.let_go("c")  # what it returns now belongs to nobody
        eventually(lambda: made.calls.stats()["late"] == 1)
    finally:
        held.let_go("a", "b", "c")
    assert made.calls.wait_idle(TIMEOUT)
    line.nudge()
    assert len(line.take() or []) == 2


def test_an_inline_request_that_is_cancelled_while_it_runs_is_not_answered(table) -> None:
    def cancel(request: Request) -> bytes:
        made.calls.cancel(made.link, [request.request_id])
        return b"\x0atoo late"

    made: Table = table(cancel)
    line = made.line()
    made.arrive("a", method=INLINE)
    assert made.calls.wait_idle(0.0)
    line.nudge()
    assert line.take() == []
    stats = made.calls.stats()
    assert (stats["cancelled"], stats["late"], stats["in_flight"]) == (1, 1, 0)


def test_one_that_is_cancelled_before_its_turn_inline_is_not_run_though_its_id_came_again(
    table,
) -> None:
    run: list[tuple[str, bytes]] = []
    held = threading.Event()

    def cancel_the_next_which_comes_again(request: Request) -> bytes:
        if request.method == POOLED:
            assert held.wait(TIMEOUT)
        run.append((request.request_id, request.payload))
        if request.request_id == "a":  # on another stream
            made.calls.cancel(made.link, ["b"])
            made.arrive("b", payload=b"again")
        return b""

    made: Table = table(cancel_the_next_which_comes_again)
    made.line()
    made.arrive("a", "b", method=INLINE, payload=b"first")
    assert run == [("a", b"first")]
    held.set()
    assert made.calls.wait_idle(TIMEOUT)
    assert run == [("a", b"first"), ("b", b"again")]
    stats = made.calls.stats()
    assert (stats["cancelled"], stats["answered"], stats["late"]) == (1, 2, 0)


# What inline handlers leave to workers while a gateway does not read


def large(request: Request) -> bytes:
    """An answer of more than may wait, to the first request."""
    return b"\x0a" + bytes(17 * MIB if request.request_id == "r0" else 1)


@pytest.fixture(params=["together", "one by one"])
def arrive(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Requests come in one batch, or in as many as they are."""

    def arrive(made: Table, *ids: str, **options: Any) -> None:
        for batch in [ids] if request.param == "together" else [(each,) for each in ids]:
            made.arrive(*batch, method=INLINE, **options)

    return arrive


def test_what_is_left_to_workers_runs_when_the_gateway_reads_again(table, arrive) -> None:
    made: Table = table(large)
    line = made.line()
    arrive(made, "r0", "r1", "r2")
    assert made.link.congested
    eventually(lambda: len(made.calls.workers.held) == 2)
    assert made.calls.stats()["in_flight"] == 2
    (first,) = responses(line.take())
    assert first.request_id == "r0"
    assert made.calls.wait_idle(TIMEOUT)
    rest = []
    while len(rest) < 2:
        rest += [each.request_id for each in responses(line.take())]
    assert sorted(rest) == ["r1", "r2"]
    stats = made.calls.stats()
    assert (stats["accepted"], stats["answered"], stats["in_flight"]) == (3, 3, 0)


def test_what_is_left_to_workers_expires_while_it_waits(table) -> None:
    made: Table = table(large)
    line = made.line()
    made.arrive("r0", "r1", method=INLINE, within=1.0)
    eventually(lambda: made.calls.stats()["expired"])
    batch = line.take() + line.take()
    assert [each.status_code for each in responses(batch)] == [200, 504]


def test_what_is_left_to_workers_counts_for_both_limits(table, arrive) -> None:
    made: Table = table(large, max_in_flight=1, max_in_flight_bytes=1000)
    line = made.line()
    arrive(made, "r0", "r1", "r2", payload=b"\x0a" + bytes(2000))
    assert made.calls.saturated
    stats = made.calls.stats()
    assert (stats["accepted"], stats["overloaded"], stats["in_flight"]) == (2, 1, 1)
    batch = line.take()
    assert made.calls.wait_idle(TIMEOUT)
    assert not made.calls.saturated
    while len(batch) < 3:
        batch += line.take()
    answered = {each.request_id: each.status_code for each in responses(batch)}
    assert answered == {"r0": 200, "r1": 200, "r2": 429}
