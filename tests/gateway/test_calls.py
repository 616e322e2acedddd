"""The table of calls, without an event loop: time, timers and backends are the test's own."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Coroutine, Generator
from typing import Any, Callable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from revconn._proto.registry_pb2 import (
    ConnectionMessage,
    ForwardRequest,
    ForwardResponse,
    ResponseStreamInfo,
)
from revconn.core.connection import CHUNKS
from revconn.core.routing import Wanted
from revconn.core.status import StatusCode, response_code
from revconn.gateway import calls as calls_module
from revconn.gateway.backends import BackendRequest, Backends, Reply, Unreachable
from revconn.gateway.call import Call, State
from revconn.gateway.calls import Calls
from revconn.gateway.limits import Counters, Limits
from revconn.gateway.refusals import NobodyServes, Refused
from revconn.gateway.rerouting import Rerouting
from revconn.gateway.routes import Connection, Registry
from tests.gateway.test_routes import make

ECHO = Wanted.by_connector("echo.Echo")
LIMITS = Limits(max_pending_per_connection=2)
TIMEOUT = 60.0
LATEST = 0.02  # seconds after its deadline that a call is given up


class Timer:
    def __init__(self, when: float, ring: Callable[[], object]) -> None:
        self.when = when
        self.ring = ring
        self.is_over = False

    def cancel(self) -> None:
        self.is_over = True


class Suspended:
    def __await__(self) -> Generator[None, Any, Any]:
        return (yield)


class Task:
    """A coroutine that waits for one thing, and goes on when the test says so."""

    def __init__(self, work: Coroutine[Any, Any, None]) -> None:
        self._work = work
        self.is_over = False
        work.send(None)

    def resume(self, outcome: Any) -> None:
        self.is_over = True
        go_on = self._work.throw if isinstance(outcome, BaseException) else self._work.send
        with pytest.raises(StopIteration):
            go_on(outcome)

    def cancel(self) -> None:
        self.is_over = True
        with pytest.raises(asyncio.CancelledError):
            self._work.throw(asyncio.CancelledError())


class Loop:
    """What the calls need of an event loop."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.timers: list[Timer] = []
        self.tasks: list[Task] = []

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, ring: Callable[..., object], *arguments: Any) -> Timer:
        timer = Timer(when, lambda: ring(*arguments))
        self.timers.append(timer)
        return timer

    def create_task(self, work: Coroutine[Any, Any, None]) -> Task:
        task = Task(work)
        self.tasks.append(task)
        return task

    def advance(self, seconds: float) -> None:
        self.now += seconds
        due = sorted((each for each in self.timers if each.when <= self.now), key=lambda t: t.when)
        for timer in due:
            if not timer.is_over:
                timer.is_over = True
                timer.ring()
        self.timers = [timer for timer in self.timers if not timer.is_over]


class Dialled(Backends):
    """Backends that answer when the test says so."""

    def __init__(self) -> None:
        self.on_change: list[Callable[[], None]] = []
        self.is_there = False

    def serves(self, wanted: Wanted) -> bool:
        return self.is_there

    async def call(self, *arguments: Any) -> Any:
        return await Suspended()

    def come(self, is_there: bool) -> None:
        self.is_there = is_there
        for listener in self.on_change:
            listener()


# Of what is said of a call; that one is SENT its connector's writer says, and nobody to the call.
ALLOWED = {
    State.NEW: {State.QUEUED, State.DIALLED, State.HELD},
    State.QUEUED: {State.QUEUED, State.DIALLED, State.HELD, State.SETTLED},
    State.SENT: {State.SETTLED},
    State.HELD: {State.QUEUED, State.DIALLED, State.SETTLED},
    State.DIALLED: {State.QUEUED, State.HELD, State.SETTLED},
    State.SETTLED: set(),
}


class AnyCall(Call):
    """A call of whoever; every outcome it was told."""

    def __init__(
        self, request_id: str, deadline: float, asker: Connection | None, wanted: Wanted
    ) -> None:
        super().__init__(request_id, f"/{wanted.service}/Say", wanted, deadline, asker)
        self.outcomes: list[ForwardResponse | Reply] = []

    def __setattr__(self, name: str, value: object) -> None:
        if name == "_state" and hasattr(self, name):
            assert value in ALLOWED[self.state], (self.state, value)
        super().__setattr__(name, value)

    def respond(
        self,
        response: ForwardResponse,
        data: bytes | None = None,
        payload: memoryview | None = None,
    ) -> None:
        self.outcomes.append(response)

    def relay(self, reply: Reply) -> None:
        self.outcomes.append(reply)

    def for_backend(self, request: ForwardRequest) -> BackendRequest:
        return BackendRequest(request.payload, (), 1.0)

    @property
    def codes(self) -> list[StatusCode]:
        return [
            each.code if isinstance(each, Reply) else response_code(each.status_code, each.headers)
            for each in self.outcomes
        ]


class Gateway:
    """The table, and what it stands between."""

    def __init__(self, grace: float = 0.0, limits: Limits = LIMITS) -> None:
        self.limits = limits
        self.loop: Any = Loop()
        self.registry, self.counters = Registry(grace, lambda: self.loop), Counters()
        self.backends: Any = Dialled()
        parts = (self.registry, self.backends)
        self.calls = Calls(*parts, limits, self.counters, lambda: self.loop)
        self.rerouting = Rerouting(self.calls, *parts, self.counters, lambda: self.loop)

    def add(
        self, name: str, *, max_message_bytes: int = 1000, key: int = 1, service: str = "echo.Echo"
    ) -> Connection:
        connection = make(name, service, limits=self.limits, key=key, features=(CHUNKS,))
        connection.max_message_bytes = max_message_bytes
        self.registry.add(connection)
        return connection

    def submit(
        self, request_id: str, asker: Connection | None = None, service: str = "echo.Echo"
    ) -> AnyCall:
        wanted = Wanted.by_connector(service)
        self.calls.admit(wanted, 0, asker, request_id)
        call = AnyCall(request_id, self.loop.time() + TIMEOUT, asker, wanted)
        message = ConnectionMessage(request=ForwardRequest(request_id=request_id))
        self.calls.submit(call, message.SerializeToString())
        return call

    def answer(self, request_id: str, sender: Connection, payload: bytes = b"") -> None:
        self.calls.answer(ForwardResponse(request_id=request_id, payload=payload), sender)

    def end(self, connection: Connection) -> None:
        self.registry.remove(connection)
        connection.outbound.discard()
        self.rerouting.connection_ended(connection, "the stream broke")


def chunk(request_id: str, index: int, *, size: int = 2, final: bool = False) -> ForwardResponse:
    info = ResponseStreamInfo(
        is_streamed=True, chunk_index=index, is_final_chunk=final, chunk_size=size
    )
    payload = b"xy" * (size // 2)
    return ForwardResponse(request_id=request_id, payload=payload, response_stream_info=info)


def write(connection: Connection) -> bytes | None:
    """What the connector's stream takes next."""
    return next(iter(connection.outbound.take(1)), None)


@pytest.fixture
def gateway() -> Gateway:
    return Gateway()


# An answer, and what may pass for one


def test_an_answer_settles_its_call_alone(gateway) -> None:
    a = gateway.add("a")
    first, second = gateway.submit("1"), gateway.submit("2")
    gateway.answer("1", a, b"x")
    assert [each.payload for each in first.outcomes] == [b"x"]
    assert (first.state, second.state) == (State.SETTLED, State.QUEUED)
    assert a.pending == {"2"}


def test_a_call_outlives_its_connection_and_is_answered_on_the_next(gateway) -> None:
    a = gateway.add("a")
    call = gateway.submit("1")
    write(a)
    assert call.state is State.SENT
    gateway.end(a)
    assert call.state is State.SENT
    gateway.answer("1", gateway.add("b"))
    assert call.codes == [StatusCode.OK]


def test_a_connection_with_another_key_may_not_answer(gateway, caplog) -> None:
    gateway.add("a")
    call = gateway.submit("1")
    stranger = gateway.add("b", key=2)
    caplog.clear()  # of what that was worth
    for _ in range(2):
        gateway.answer("1", stranger)
    assert call.outcomes == []
    assert stranger.unmatched == 2
    assert gateway.counters.answers_foreign == 2
    said = "connection b: ignored an answer to what another key was asked: '1'"
    assert caplog.messages == [said]


def test_a_second_answer_is_late_and_one_to_nothing_unknown(gateway, caplog) -> None:
    a = gateway.add("a")
    gateway.submit("1")
    gateway.answer("1", a)
    gateway.calls.give_up(gateway.submit("2"), "the caller gave up")
    for request_id in ("1", "2", "never asked", "nor this"):
        gateway.answer(request_id, a)
    assert a.unmatched == 4
    assert (gateway.counters.answers_late, gateway.counters.answers_unknown) == (2, 2)
    assert caplog.messages == [
        "connection a: ignored an answer to what nobody asked: 'never asked'"
    ]


def test_what_was_settled_is_not_remembered_for_ever(gateway, monkeypatch) -> None:
    monkeypatch.setattr(calls_module, "_REMEMBERED", 2)
    a = gateway.add("a")
    for number in range(5):
        gateway.calls.give_up(gateway.submit(str(number)), "the caller gave up")
    for number in range(5):
        gateway.answer(str(number), a)
    assert (gateway.counters.answers_late, gateway.counters.answers_unknown) == (3, 2)


def test_a_call_whose_time_is_up_half_way_through_its_answer_is_told_so(gateway) -> None:
    a = gateway.add("a")
    call = gateway.submit("1")
    write(a)
    gateway.calls.answer(chunk("1", 0), a)
    assert gateway.calls.joining.held_bytes == 2
    gateway.loop.advance(TIMEOUT + LATEST)
    assert call.codes == [StatusCode.DEADLINE_EXCEEDED]
    assert "final chunk" in call.outcomes[0].error_message
    assert gateway.calls.joining.held_bytes == 0
    assert write(a) is None  # it did not announce that it can be told


def test_chunks_of_a_connection_that_ended_are_dropped_and_the_next_begins_afresh(gateway) -> None:
    a = gateway.add("a")
    call = gateway.submit("1")
    write(a)
    gateway.calls.answer(chunk("1", 0), a)
    gateway.end(a)
    assert gateway.calls.joining.held_bytes == 0
    b = gateway.add("b")
    gateway.calls.answer(chunk("1", 0), b)
    gateway.calls.answer(chunk("1", 1, final=True), b)
    assert [each.payload for each in call.outcomes] == [b"xyxy"]
    assert gateway.calls.joining.held_bytes == 0


# Admission


def test_more_than_the_limit_is_refused_by_name() -> None:
    gateway = Gateway(limits=Limits(max_pending=2))
    gateway.add("a")
    gateway.submit("1")
    gateway.submit("2")
    with pytest.raises(Refused, match="2 calls wait for an answer .*max_pending") as refused:
        gateway.submit("3")
    assert refused.value.code is StatusCode.RESOURCE_EXHAUSTED
    assert gateway.counters.refused["max_pending"] == 1


def test_an_id_that_is_pending_is_not_taken_again_whoever_asks(gateway) -> None:
    gateway.add("a")
    gateway.submit("1")
    with pytest.raises(Refused, match="the id '1' is pending already") as refused:
        gateway.submit("1", gateway.add("b"))
    assert refused.value.code is StatusCode.ALREADY_EXISTS
    assert len(gateway.calls) == 1


def test_two_askers_may_give_one_id_to_calls_of_a_backend(gateway) -> None:
    """A backend is not told the id."""
    askers = [gateway.add(name) for name in "ab"]
    for asker in askers:
        gateway.registry.forget(asker)
    gateway.backends.come(is_there=True)
    first, second = (gateway.submit("1", asker) for asker in askers)
    assert gateway.calls.cancel("1", askers[0])
    gateway.loop.tasks[1].resume(Reply(StatusCode.OK, ""))
    assert (first.outcomes, second.codes) == ([], [StatusCode.OK])


# Whose turn a call becomes


class Scene(Gateway):
    """A service with connectors a and b, and calls that wait to be written to a."""

    def __init__(self, grace: float = 0.0, **of_b: Any) -> None:
        super().__init__(grace)
        self.a = self.add("a")
        self.submitted = [self.submit(request_id) for request_id in "12"]
        self.b = self.add("b", **of_b)

    @property
    def settled(self) -> list[Any]:
        return [outcome for call in self.submitted for outcome in call.outcomes]

    def end_a(self) -> None:
        self.end(self.a)


def test_another_connector_gets_what_was_not_written() -> None:
    scene = Scene(key=2)
    scene.end_a()
    assert (scene.a.pending, scene.b.pending) == (set(), {"1", "2"})
    scene.answer("1", scene.a)  # whose key was never sent it
    scene.answer("1", scene.b, b"x")
    assert [response.payload for response in scene.settled] == [b"x"]
    assert scene.counters.calls_rerouted == 2


def test_of_what_was_written_nobody_else_hears() -> None:
    scene = Scene()
    write(scene.a)
    scene.end_a()
    assert (scene.a.pending, scene.b.pending) == ({"1"}, {"2"})
    assert scene.settled == []


@pytest.mark.parametrize("obstacle", ["it is full", "the request is too large for it"])
def test_what_the_other_connector_cannot_take_is_unavailable(obstacle) -> None:
    scene = Scene(max_message_bytes=3 if obstacle.startswith("the request") else 1000)
    if obstacle == "it is full":
        scene.b.pending |= {"x", "y"}
    scene.end_a()
    assert [call.codes for call in scene.submitted] == [[StatusCode.UNAVAILABLE]] * 2
    assert scene.counters.calls_lost == 2


def test_a_stalled_connector_is_better_than_none_when_a_connection_ended() -> None:
    scene = Scene()
    scene.b.outbound._writing_since = -1000.0
    scene.rerouting.relieve(scene.a)
    assert scene.b.pending == set()
    scene.end_a()
    assert scene.b.pending == {"1", "2"}


def test_what_is_given_up_before_it_was_written_is_withdrawn() -> None:
    scene = Scene()
    for call in scene.submitted:
        scene.calls.give_up(call, "the caller gave up")
    assert write(scene.a) is None
    assert len(scene.calls) == 0


def test_a_draining_connection_ends_with_its_last_call() -> None:
    scene = Scene()
    for _ in scene.submitted:
        write(scene.a)
    scene.rerouting.drain(scene.a, "it left")
    scene.calls.give_up(scene.submitted[0], "the caller gave up")
    assert scene.a.end == []
    scene.answer("2", scene.a)
    assert scene.a.end == [StatusCode.OK]


def test_a_draining_asker_ends_when_its_last_call_is_settled(gateway) -> None:
    a, asker = gateway.add("a"), gateway.add("b")
    call = gateway.submit("1", asker)
    assert asker.asked == {"1"}
    gateway.rerouting.drain(asker, "it left")
    assert asker.end == []
    gateway.answer("1", a)
    assert call.codes == [StatusCode.OK]
    assert asker.end == [StatusCode.OK]


# Backends


def dialled(grace: float = 0.0) -> tuple[Gateway, AnyCall]:
    gateway = Gateway(grace)
    if grace:
        gateway.end(gateway.add("a"))
    gateway.backends.come(is_there=True)
    call = gateway.submit("1")
    assert call.state is State.DIALLED
    return gateway, call


def test_a_call_that_waits_goes_to_a_backend_that_comes() -> None:
    gateway = Gateway(grace=5.0)
    gateway.end(gateway.add("a"))
    call = gateway.submit("1")
    assert call.state is State.HELD
    gateway.backends.come(is_there=True)
    gateway.loop.tasks[0].resume(Reply(StatusCode.NOT_FOUND, "no such thing"))
    assert call.codes == [StatusCode.NOT_FOUND]


def test_what_a_backend_was_surely_not_sent_waits_for_a_connector() -> None:
    gateway, call = dialled(grace=5.0)
    gateway.loop.tasks[0].resume(Unreachable(is_unsent=True))
    assert call.state is State.HELD
    a = gateway.add("a")
    gateway.answer("1", a)
    assert call.codes == [StatusCode.OK]


def add_without_room(gateway: Gateway, name: str) -> None:
    """A connector comes for which as many requests wait as may."""
    connection = make(name, "echo.Echo", limits=gateway.limits)
    connection.pending |= {"x", "y"}
    gateway.registry.add(connection)


def test_what_no_backend_was_sent_is_refused_where_no_connector_has_room() -> None:
    gateway, call = dialled(grace=5.0)
    add_without_room(gateway, "b")
    gateway.loop.tasks[0].resume(Unreachable(is_unsent=True))
    assert call.codes == [StatusCode.RESOURCE_EXHAUSTED]
    assert len(gateway.calls) == 0


# Who fills what all share


numbers = itertools.count()


def fill(gateway: Gateway, service: str, most: int = 1000) -> int:
    """Make calls of a service that answers none, until one is refused; how many were not."""
    for number in range(most):
        try:
            gateway.submit(f"number {next(numbers)}", service=service)
        except Refused:
            return number
    return most


@pytest.mark.parametrize(
    ("keys", "kept"),
    [
        ((1, 1, 1, 1, 1), (4, 4, 4, 4, 12)),
        ((1, 2, 3, 4, 5), (4, 4, 4, 4, 4)),
        ((1, 1, 1, 1, 2), (4, 4, 4, 8, 8)),
        ((2, 1, 1, 1, 1), (4, 4, 4, 4, 8)),
    ],
)
def test_connectors_that_answer_nothing_leave_each_other_its_part_of_the_places(
    keys: tuple[int, ...], kept: tuple[int, ...]
) -> None:
    gateway = Gateway(limits=Limits(max_pending=400))
    for number, key in enumerate(keys):
        gateway.add(f"connector {number}", key=key, service=f"service.{number}")
    # A sixteenth is kept for connections, as much for keys; of each a part is for one who comes.
    first, *others = (fill(gateway, f"service.{number}") for number in range(len(keys)))
    assert first == 400 - sum(kept)
    assert tuple(others) == kept[:-1]
    assert gateway.counters.refused["max_pending"] == 5
    gateway.add("newcomer", key=9, service="service.new")
    assert 3 <= fill(gateway, "service.new") <= kept[-1]


def test_a_connector_that_comes_again_and_again_has_what_it_was_sent_before_on_its_account() -> (
    None
):
    gateway = Gateway(limits=Limits(max_pending=400))
    gateway.add("honest", key=1, service="service.honest")
    for number in range(20):
        silent = gateway.add(f"silent {number}", key=2, service="service.silent")
        fill(gateway, "service.silent", most=200)
        while write(silent):
            pass
        gateway.end(silent)
    assert gateway.calls.at(gateway.add("honest too", key=1)) == []
    assert fill(gateway, "service.honest") >= 4


def test_where_there_are_too_many_for_parts_some_places_are_for_who_has_very_few() -> None:
    gateway = Gateway(limits=Limits(max_pending=1000))
    for number in range(70):
        gateway.add(f"honest {number}", key=number, service=f"service.{number}")
    for number in range(3):
        gateway.add(f"silent {number}", key=100 + number, service=f"silent.{number}")
        fill(gateway, f"silent.{number}")
    assert [fill(gateway, f"service.{number}") for number in range(12)] == [4] * 12


def test_a_key_is_forgotten_once_it_has_neither_connections_nor_calls() -> None:
    gateway = Gateway()
    first = gateway.add("first", key=1)
    gateway.submit("1")
    write(first)
    gateway.end(first)
    assert list(gateway.registry._loads) == [1]
    gateway.loop.advance(TIMEOUT + LATEST)
    gateway.add("second", key=2)
    assert list(gateway.registry._loads) == [2]


def test_one_connector_may_have_nearly_all_the_places_and_of_few_all() -> None:
    gateway = Gateway(limits=Limits(max_pending=400))
    gateway.add("a")
    assert fill(gateway, "echo.Echo") == 400 - 12
    gateway = Gateway(limits=Limits(max_pending=16))
    gateway.add("a")
    assert fill(gateway, "echo.Echo") == 16


def test_where_there_are_more_connectors_than_places_kept_nothing_is() -> None:
    gateway = Gateway(limits=Limits(max_pending=16))
    for number in range(3):
        gateway.add(f"connector {number}", service=f"service.{number}", key=number)
    assert [fill(gateway, f"service.{number}") for number in range(3)] == [16, 0, 0]


def test_what_waits_for_nobody_that_is_there_leaves_the_places_that_are_kept() -> None:
    gateway = Gateway(grace=5.0, limits=Limits(max_pending=80))
    gateway.end(gateway.add("a", service="service.gone"))
    gateway.add("b")
    assert fill(gateway, "service.gone") == 70
    gateway.backends.is_there = True
    assert fill(gateway, "service.dialled") == 0
    assert fill(gateway, "echo.Echo") == 8


@pytest.mark.parametrize("keys", [(1, 1, 1), (1, 2, 3)])
def test_answers_that_do_not_become_whole_make_room_for_those_that_do(
    keys: tuple[int, ...],
) -> None:
    gateway = Gateway(limits=Limits(max_joining_bytes=1000))
    connectors = [
        gateway.add(f"connector {number}", key=key, service=f"service.{number}")
        for number, key in enumerate(keys)
    ]
    sizes = {"0a": 300, "0b": 300, "1": 400, "2": 200}
    calls = {name: gateway.submit(name, service=f"service.{name[0]}") for name in sizes}
    for name, size in sizes.items():
        gateway.calls.answer(chunk(name, 0, size=size), connectors[int(name[0])])
    # The first of who has the most.
    assert calls["0a"].codes == [StatusCode.RESOURCE_EXHAUSTED]
    assert gateway.counters.refused["max_joining_bytes"] == 1
    gateway.calls.answer(chunk("2", 1, size=100, final=True), connectors[2])
    assert calls["2"].codes == [StatusCode.OK]
    assert calls["0b"].codes == calls["1"].codes == []
    assert gateway.calls.joining.held_bytes == 700


def test_a_call_that_makes_room_itself_on_another_connection_is_over_once() -> None:
    gateway = Gateway(limits=Limits(max_joining_bytes=1000))
    first, second = gateway.add("first"), gateway.add("second")
    call = gateway.submit("1")
    gateway.calls.answer(chunk("1", 0, size=900), first)
    gateway.calls.answer(chunk("1", 0, size=200, final=True), second)
    assert call.codes == [StatusCode.RESOURCE_EXHAUSTED]
    assert gateway.calls.joining.held_bytes == 0
    assert len(gateway.calls) == 0


def test_what_was_not_written_makes_room_among_those_that_wait_for_another_service() -> None:
    gateway = Gateway(grace=5.0, limits=Limits(max_pending_per_connection=2))
    gateway.end(gateway.add("a", service="service.a"))
    waiting = [gateway.submit(name, service="service.a") for name in "12"]
    b = gateway.add("b", service="service.b")
    call = gateway.submit("3", service="service.b")
    gateway.end(b)
    assert call.state is State.HELD
    assert [each.codes for each in waiting] == [[StatusCode.RESOURCE_EXHAUSTED], []]


def test_a_call_that_no_backend_could_be_sent_keeps_its_place() -> None:
    gateway = Gateway(grace=5.0, limits=Limits(max_pending=1))
    gateway.end(gateway.add("a"))
    gateway.backends.come(is_there=True)
    call = gateway.submit("1")
    gateway.loop.tasks[0].resume(Unreachable(is_unsent=True))
    assert call.state is State.HELD
    assert call.codes == []


def test_who_waits_for_one_service_leaves_room_for_who_waits_for_another() -> None:
    gateway = Gateway(grace=5.0, limits=Limits(max_pending_per_connection=2))
    for number in range(2):
        gateway.end(gateway.add(f"connector {number}", service=f"service.{number}"))
    waiting = [gateway.submit(str(number), service="service.0") for number in range(2)]
    other = gateway.submit("other", service="service.1")
    assert waiting[0].codes == [StatusCode.RESOURCE_EXHAUSTED]
    assert waiting[1].state is other.state is State.HELD
    assert gateway.counters.refused["max_pending_per_connection"] == 1
    with pytest.raises(Refused, match="2 calls"):
        gateway.submit("one too many", service="service.0")


def test_who_waits_with_the_largest_requests_makes_room_for_who_waits_for_another_service() -> None:
    gateway = Gateway(grace=5.0, limits=Limits(max_queued_bytes=20))
    for number in range(2):
        gateway.end(gateway.add(f"connector {number}", service=f"service.{number}"))
    waiting = gateway.submit("long " * 20, service="service.0")
    other = gateway.submit("other", service="service.1")
    assert waiting.codes == [StatusCode.RESOURCE_EXHAUSTED]
    assert other.state is State.HELD
    assert gateway.counters.refused["max_queued_bytes"] == 1


# Where what is held goes


def test_a_held_call_is_refused_where_who_comes_has_no_room() -> None:
    gateway = Gateway(grace=5.0)
    gateway.end(gateway.add("a"))
    call = gateway.submit("1")
    add_without_room(gateway, "b")
    assert call.codes == [StatusCode.RESOURCE_EXHAUSTED]
    assert gateway.calls.held_requests._bytes.used == 0


def test_what_was_not_written_when_its_connection_ended_goes_to_a_backend() -> None:
    gateway = Gateway()
    a = gateway.add("a")
    call = gateway.submit("1")
    gateway.backends.come(is_there=True)
    gateway.end(a)
    assert call.state is State.DIALLED
    gateway.loop.tasks[0].resume(Reply(StatusCode.OK, ""))
    assert call.codes == [StatusCode.OK]


def test_of_two_calls_by_one_id_one_that_was_held_once_leaves_the_other_held() -> None:
    gateway = Gateway(grace=5.0)
    gateway.end(gateway.add("a"))
    askers = [make(name, limits=gateway.limits) for name in "xy"]
    for asker in askers:
        gateway.registry.add(asker)
    first = gateway.submit("1", askers[0])
    gateway.backends.come(is_there=True)
    assert first.state is State.DIALLED
    gateway.backends.come(is_there=False)
    second = gateway.submit("1", askers[1])
    assert second.state is State.HELD
    gateway.loop.tasks[0].resume(Reply(StatusCode.OK, ""))
    assert first.codes == [StatusCode.OK]
    assert write(gateway.add("b")) is not None
    assert second.state is State.SENT


def test_what_came_of_an_answer_too_early_is_dropped_as_a_backend_is_asked() -> None:
    gateway = Gateway()
    waited_for = gateway.add("a")
    call = gateway.submit("1")
    early = make("b", limits=gateway.limits, features=(CHUNKS,))
    gateway.registry.add(early)
    gateway.calls.answer(chunk("1", 0), early)
    assert gateway.calls.joining.held_bytes
    gateway.backends.come(is_there=True)
    gateway.end(waited_for)
    assert call.state is State.DIALLED
    assert gateway.calls.joining.held_bytes == 0
    gateway.loop.tasks[0].resume(Reply(StatusCode.OK, ""))
    assert call.codes == [StatusCode.OK]


def test_what_a_call_has_waited_is_taken_from_its_time_once() -> None:
    gateway = Gateway(grace=10.0)
    gateway.end(gateway.add("a"))
    call = AnyCall("1", gateway.loop.time() + TIMEOUT, None, ECHO)
    request = ForwardRequest(request_id="1", timeout_seconds=60)
    gateway.calls.submit(call, ConnectionMessage(request=request).SerializeToString())
    gateway.loop.advance(5)
    b = gateway.add("b")  # which ends before it is sent the call; nor does the backend get it
    gateway.backends.come(is_there=True)
    gateway.end(b)
    gateway.loop.tasks[0].resume(Unreachable(is_unsent=True))
    sent = write(gateway.add("c"))
    assert ConnectionMessage.FromString(sent or b"").request.timeout_seconds == 55


@pytest.mark.parametrize("is_unsent", [True, False])
def test_what_a_backend_may_have_been_sent_goes_nowhere_else(is_unsent) -> None:
    gateway, call = dialled(grace=0.0 if is_unsent else 5.0)
    gateway.loop.tasks[0].resume(Unreachable(is_unsent=is_unsent))
    assert call.codes == [StatusCode.UNAVAILABLE]


def test_a_gateway_that_stops_answers_for_a_backend() -> None:
    gateway, call = dialled()
    gateway.calls.fail_all(StatusCode.UNAVAILABLE, "stopping")
    assert call.codes == [StatusCode.UNAVAILABLE]
    assert gateway.loop.tasks[0].is_over
    assert len(gateway.calls) == 0


# All of it together, in any order

MACHINE_LIMITS = Limits(max_pending=5, max_pending_per_connection=2)


class AnyOrder(RuleBasedStateMachine):
    """Connectors, backends and askers come and go; nothing is settled twice, or forgotten."""

    def __init__(self) -> None:
        super().__init__()
        self.gateway = Gateway(grace=2.0, limits=MACHINE_LIMITS)
        self.connections: list[Connection] = []  # all that there ever were
        self.submitted: list[AnyCall] = []
        self.given_up: set[str] = set()
        self.written: dict[str, str] = {}

    @initialize()
    def begin(self) -> None:
        self.connect(1)

    @property
    def live(self) -> tuple[Connection, ...]:
        return self.gateway.registry.connections

    @property
    def open(self) -> list[AnyCall]:
        return [call for call in self.submitted if call.state is not State.SETTLED]

    def some(self, data: st.DataObject, of: Any) -> Any:
        return data.draw(st.sampled_from(list(of)))

    @precondition(lambda self: len(self.live) < 4)
    @rule(key=st.sampled_from([1, 2]))
    def connect(self, key: int) -> None:
        self.connections.append(self.gateway.add(f"c{len(self.connections)}", key=key))

    @rule(data=st.data(), is_outsider=st.booleans())
    def submit(self, data: st.DataObject, is_outsider: bool) -> None:
        asker = None if is_outsider or not self.live else self.some(data, self.live)
        before = len(self.gateway.calls)
        problem: Refused
        try:
            self.submitted.append(self.gateway.submit(f"r{len(self.submitted)}", asker))
        except NobodyServes as nobody:
            problem = nobody
            assert not self.gateway.registry.serves(ECHO)
        except Refused as refused:
            problem = refused
        else:
            return
        is_full = problem.code is StatusCode.RESOURCE_EXHAUSTED
        assert is_full != isinstance(problem, NobodyServes)
        assert len(self.gateway.calls) == before

    @precondition(lambda self: self.connections)
    @rule(data=st.data())
    def write(self, data: st.DataObject) -> None:
        connection = self.some(data, self.connections)
        message = None if connection.outbound.is_discarded else write(connection)
        if message is not None:
            request_id = ConnectionMessage.FromString(message).request.request_id
            if request_id:
                assert request_id not in self.written, "two connectors were sent it"
                self.written[request_id] = connection.id

    @precondition(lambda self: self.live and self.submitted)
    @rule(data=st.data(), kind=st.sampled_from(["whole", "chunk", "final", "too large"]))
    def answer(self, data: st.DataObject, kind: str) -> None:
        sender, call = self.some(data, self.live), self.some(data, self.submitted)
        if kind == "whole":
            self.gateway.answer(call.id, sender)
        elif kind == "too large":
            self.gateway.calls.refuse_too_large(ForwardResponse(request_id=call.id), sender, 10**9)
        else:
            index = data.draw(st.integers(0, 2))
            self.gateway.calls.answer(chunk(call.id, index, final=kind == "final"), sender)

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        call = self.some(data, self.open)
        if call.asker is None:
            self.gateway.calls.give_up(call, "the caller gave up")
            self.gateway.calls.give_up(call, "the caller gave up")  # twice is once
        else:
            assert self.gateway.calls.cancel(call.id, call.asker)
            assert not self.gateway.calls.cancel(call.id, call.asker)
        self.given_up.add(call.id)

    @precondition(lambda self: self.live)
    @rule(data=st.data(), politely=st.booleans())
    def leave(self, data: st.DataObject, politely: bool) -> None:
        connection = self.some(data, self.live)
        if politely:
            self.gateway.rerouting.drain(connection, "it left")
        else:
            self.end(connection)

    def end(self, connection: Connection) -> None:
        self.given_up |= {call.id for call in self.open if call.asker is connection}
        self.gateway.end(connection)

    @rule(seconds=st.sampled_from([0.5, 2.5, TIMEOUT]))
    def wait(self, seconds: float) -> None:
        self.gateway.loop.advance(seconds)

    @rule(is_there=st.booleans())
    def backend(self, is_there: bool) -> None:
        self.gateway.backends.come(is_there)

    @precondition(lambda self: any(not task.is_over for task in self.gateway.loop.tasks))
    @rule(data=st.data(), outcome=st.sampled_from(["reply", "unsent", "unreachable"]))
    def backend_answers(self, data: st.DataObject, outcome: str) -> None:
        task = self.some(data, [each for each in self.gateway.loop.tasks if not each.is_over])
        replied = Reply(StatusCode.OK, "")
        task.resume(replied if outcome == "reply" else Unreachable(is_unsent=outcome == "unsent"))

    @invariant()
    def whoever_left_in_peace_is_gone(self) -> None:
        while ended := [each for each in self.live if each.end]:
            self.end(ended[0])

    @invariant()
    def every_call_is_settled_at_most_once(self) -> None:
        for call in self.submitted:
            told = len(call.outcomes) + (call.id in self.given_up)
            assert told == (call.state is State.SETTLED)

    @invariant()
    def limits_hold_and_nothing_is_left_behind(self) -> None:
        gateway, waiting = self.gateway, self.open
        assert len(gateway.calls) == len(waiting) <= MACHINE_LIMITS.max_pending
        for connection in self.connections:
            at = {call.id for call in waiting if call.connection is connection}
            assert connection.pending == at
            assert connection.asked == {call.id for call in waiting if call.asker is connection}
            assert max(len(at), len(connection.asked)) <= connection.max_pending
        held = {call.id for call in waiting if call.state is State.HELD}
        assert set(gateway.calls.held_requests.sizes) == held
        assert len(held) <= MACHINE_LIMITS.max_pending_per_connection
        joiners = [each for call in waiting if call.joiners for each in call.joiners.values()]
        assert gateway.calls.joining.held_bytes == sum(each.held_bytes for each in joiners)
        timed = [call for call in waiting if call.state is not State.DIALLED]
        assert {call for slot in gateway.calls._deadlines._slots.values() for call in slot} == {
            *timed
        }

    def teardown(self) -> None:
        self.gateway.calls.leave()
        self.gateway.calls.fail_all(StatusCode.UNAVAILABLE, "stopping")
        assert self.open == []
        self.every_call_is_settled_at_most_once()
        self.limits_hold_and_nothing_is_left_behind()
        assert self.gateway.calls.held_requests._bytes.used == 0


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
