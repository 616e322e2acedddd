"""How streaming calls end, in each of the kinds, whoever ends them, on both transports."""

from __future__ import annotations

import collections
import contextlib
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, Callable

import grpc
import pytest

from revconn import Connector, Request, RequestError, StatusCode
from revconn.gateway import Gateway
from tests.support.connectors import TRANSPORTS
from tests.support.waiting import eventually, stands_still

TIMEOUT = 30.0
DOWN, UP, ECHO, SAY = (f"/a.B/{name}" for name in ("Down", "Up", "Echo", "Say"))


class Scene:
    """A gateway, a connector whose handlers go on until they are ended, and a caller."""

    def __init__(self, stack: ExitStack, transport: dict[str, Any], **options: Any) -> None:
        self.gateway = stack.enter_context(Gateway(api_keys="key"))
        self.connector = Connector(self.gateway.address, api_key="key", **transport, **options)
        self.began = threading.Semaphore(0)
        self.ended = threading.Semaphore(0)
        self.ends: list[str] = []
        self.yielded = 0
        self.may_end = threading.Event()
        connector = self.connector
        connector.add_method(DOWN, self.down)
        connector.add_method(UP, self.up, kind="client_streaming")
        connector.add_method(ECHO, self.echo, kind="bidirectional_streaming")
        connector.add_method("/a.B/Slow", self.slow, kind="client_streaming")
        connector.add_method("/a.B/Hold", self.hold)
        connector.add_method(SAY, lambda request: request.payload)
        stack.enter_context(connector)
        connector.wait_ready(TIMEOUT)
        self.channel = stack.enter_context(grpc.insecure_channel(self.gateway.address))
        stack.callback(self.may_end.set)

    def down(self, request: Request) -> Iterator[bytes]:
        """Answer until told to end; payload: bytes of a message."""
        message = b"x" * int(request.payload)
        request.add_callback(lambda: self.ends.append("called back"))
        self.began.release()
        try:
            while not self.may_end.is_set():
                self.yielded += 1
                yield message
        except GeneratorExit:
            self.ends.append("closed")
            raise
        finally:
            self.ended.release()

    def up(self, request: Request) -> bytes:
        """Count what comes."""
        return b"%d" % sum(1 for _ in self._read(request))

    def slow(self, request: Request) -> bytes:
        """Count what comes, but not before it may end."""
        self.hold(request)
        return b"%d" % sum(1 for _ in request.messages())

    def hold(self, request: Request) -> bytes:
        """Hold a worker until it may end."""
        self.began.release()
        self.may_end.wait(TIMEOUT)
        return b""

    def echo(self, request: Request) -> Iterator[bytes]:
        """Send back what comes."""
        yield from self._read(request)

    def _read(self, request: Request) -> Iterator[bytes]:
        request.add_callback(lambda: self.ends.append("called back"))
        self.began.release()
        try:
            yield from request.messages()
        except GeneratorExit:  # it was not waiting for a message just then
            self.ends.append("CANCELLED")
            raise
        except RequestError as error:
            self.ends.append(error.code.name)
            raise
        finally:
            self.ended.release()

    def open(self, kind: str, **options: Any) -> Any:
        """A call that has begun at its handler, and goes on."""
        silent = threading.Event()

        def requests() -> Iterator[bytes]:
            yield b"1"
            silent.wait(TIMEOUT)

        if kind == "down":
            call = self.channel.unary_stream(DOWN)(b"100000", **options)
        elif kind == "up":
            call = self.channel.stream_unary(UP).future(requests(), **options)
        else:
            call = self.channel.stream_stream(ECHO)(requests(), **options)
        call.add_done_callback(lambda _: silent.set())
        assert self.began.acquire(timeout=TIMEOUT)
        return call

    def say(self) -> bytes:
        """What a unary call gets now."""
        answer: bytes = self.channel.unary_unary(SAY)(b"hi", timeout=TIMEOUT)
        return answer

    @property
    def held(self) -> int:
        """Workers that streaming calls hold."""
        supervisor = self.connector._supervisor
        assert supervisor is not None
        return supervisor.calls.streams._running


def outcome(call: Any, kind: str) -> tuple[grpc.StatusCode, str]:
    """How a call ended, for its caller, which has to read what came before that."""
    if kind != "up":
        with contextlib.suppress(grpc.RpcError):
            collections.deque(call, maxlen=0)
    code: grpc.StatusCode = call.code()
    return code, call.details()


@pytest.fixture(params=TRANSPORTS.values(), ids=TRANSPORTS)
def scene(request: pytest.FixtureRequest) -> Iterator[Callable[..., Scene]]:
    with ExitStack() as stack:
        yield lambda **options: Scene(stack, request.param, **options)


KINDS = ["down", "up", "echo"]
HEARD = {"down": "closed", "up": "CANCELLED", "echo": "CANCELLED"}


def assert_handler_ended(scene: Scene, kind: str, *others: str) -> None:
    assert scene.ended.acquire(timeout=TIMEOUT)
    heard = {HEARD[kind], *others}
    eventually(lambda: len(scene.ends) == 2)
    assert "called back" in scene.ends
    assert heard & {*scene.ends}
    eventually(lambda: scene.held == 0)
    assert scene.connector.stats()["in_flight"] == 0
    assert scene.say() == b"hi"


@pytest.mark.parametrize("kind", KINDS)
def test_a_caller_that_gives_up_ends_the_handler(scene: Callable[..., Scene], kind: str) -> None:
    here = scene()
    call = here.open(kind)
    call.cancel()
    assert_handler_ended(here, kind)
    assert here.connector.stats()["cancelled"] == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_deadline_ends_the_call_and_the_handler(scene: Callable[..., Scene], kind: str) -> None:
    here = scene()
    call = here.open(kind, timeout=0.5)
    assert outcome(call, kind)[0] is grpc.StatusCode.DEADLINE_EXCEEDED
    # Its own clock, or the gateway's word.
    assert_handler_ended(here, kind, "DEADLINE_EXCEEDED")


@pytest.mark.parametrize("kind", KINDS)
def test_a_lost_connection_ends_the_call_at_both_ends(
    scene: Callable[..., Scene], kind: str
) -> None:
    here = scene()
    call = here.open(kind)
    before = here.connector.connection_id
    (connection,) = here.gateway._thread._serving.registry.connections  # type: ignore[union-attr]
    here.gateway._thread._loop.call_soon_threadsafe(  # type: ignore[union-attr]
        connection.end, StatusCode.INTERNAL, "on purpose"
    )
    code, details = outcome(call, kind)
    assert code is grpc.StatusCode.UNAVAILABLE
    assert details == "the connector's connection ended: on purpose"
    assert here.ended.acquire(timeout=TIMEOUT)
    eventually(lambda: here.connector.connection_id not in (None, before))
    assert here.say() == b"hi"
    eventually(lambda: here.held == 0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_connector_that_stops_ends_what_does_not_end_by_itself(
    scene: Callable[..., Scene], kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    here = scene()
    call = here.open(kind)
    here.connector.stop(0.5)
    code, details = outcome(call, kind)
    assert code is grpc.StatusCode.UNAVAILABLE
    assert "the service stopped before it could answer" in details
    assert here.ended.acquire(timeout=TIMEOUT)
    lines = [each for each in caplog.messages if each.startswith("gave up")]
    assert len(lines) == 1


def test_a_connector_that_stops_lets_a_running_stream_come_to_its_end(
    scene: Callable[..., Scene],
) -> None:
    here = scene()
    call = here.channel.unary_stream(DOWN)(b"3")
    assert next(call) == b"xxx"
    stopping = threading.Thread(target=here.connector.stop)
    stopping.start()
    eventually(lambda: here.connector.state.name == "DRAINING")
    assert next(call) == b"xxx"
    here.may_end.set()
    assert set(call) == {b"xxx"}
    assert call.code() is grpc.StatusCode.OK
    stopping.join(TIMEOUT)
    assert not stopping.is_alive()


@pytest.mark.parametrize("kind", KINDS)
def test_an_abort_ends_a_stream_at_once(scene: Callable[..., Scene], kind: str) -> None:
    here = scene()
    call = here.open(kind)
    here.connector.abort()
    assert outcome(call, kind)[0] is grpc.StatusCode.UNAVAILABLE
    assert here.ended.acquire(timeout=TIMEOUT)


@pytest.mark.parametrize("method", ["/a.B/Hold", "/a.B/Slow"], ids=["a unary call", "a stream"])
def test_an_abort_closes_what_a_handler_holds_open_though_no_worker_is_free(
    scene: Callable[..., Scene], method: str
) -> None:
    here = scene(max_workers=1)
    call = here.open("down")
    eventually(lambda: here.held == 0)
    holding = here.channel.unary_unary(method).future(b"1")
    assert here.began.acquire(timeout=TIMEOUT)
    here.connector.abort()
    assert here.ended.acquire(timeout=TIMEOUT)
    assert sorted(here.ends) == ["called back", "closed"]
    assert outcome(call, "down")[0] is grpc.StatusCode.UNAVAILABLE
    holding.cancel()


@pytest.mark.parametrize("kind", KINDS)
def test_a_gateway_that_stops_ends_a_stream(scene: Callable[..., Scene], kind: str) -> None:
    here = scene()
    call = here.open(kind)
    here.gateway.stop(0.2)
    code, details = outcome(call, kind)
    assert (code, details) == (grpc.StatusCode.UNAVAILABLE, "the gateway is stopping")
    assert here.ended.acquire(timeout=TIMEOUT)


def test_a_half_close_is_heard_and_the_answer_goes_on(scene: Callable[..., Scene]) -> None:
    here = scene()
    up = here.channel.stream_unary(UP)
    assert up(iter([b"1", b"2", b""]), timeout=TIMEOUT) == b"3"
    assert up(iter([]), timeout=TIMEOUT) == b"0"
    echo = here.channel.stream_stream(ECHO)
    assert list(echo(iter([b"", b"a"]), timeout=TIMEOUT)) == [b"", b"a"]


def test_a_handler_whose_caller_does_not_read_waits_and_holds_no_worker(
    scene: Callable[..., Scene],
) -> None:
    here = scene(max_workers=2)
    calls = [here.open("down") for _ in range(20)]
    eventually(lambda: here.held == 0)
    # What each has on its way is bounded: windows of HTTP/2, and of the tunnel.
    assert here.yielded < 20 * 60
    assert here.say() == b"hi"
    assert len(next(calls[7])) == 100_000
    here.may_end.set()
    for call in calls:
        assert {len(message) for message in call} == {100_000}


def test_streams_that_wait_for_messages_leave_unary_calls_some_workers(
    scene: Callable[..., Scene],
) -> None:
    here = scene(max_workers=3, max_streams=2)
    waiting = [here.open("echo") for _ in range(2)]
    third = here.channel.stream_unary(UP).future(iter([b"1"]), timeout=TIMEOUT)
    assert here.held == 2
    assert here.say() == b"hi"
    assert not third.done()
    waiting[0].cancel()
    assert third.result(TIMEOUT) == b"1"
    waiting[1].cancel()
    eventually(lambda: here.held == 0)


def test_a_handler_that_does_not_read_holds_its_caller_back(scene: Callable[..., Scene]) -> None:
    here = scene()
    sent = 0

    def requests() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(400):
            sent += 1
            yield b"x" * 50_000

    call = here.channel.stream_unary("/a.B/Slow").future(requests(), timeout=TIMEOUT)
    stands_still(lambda: sent)
    assert sent < 200
    here.may_end.set()
    assert call.result(TIMEOUT) == b"400"
