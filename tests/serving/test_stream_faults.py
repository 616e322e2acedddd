"""What streaming calls once did wrong at the connector, and what they leave behind."""

from __future__ import annotations

import contextlib
import gc
import math
import queue
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any, Callable

import grpc
import pytest

from revconn import ConfigurationError, Connector, Request, RequestError
from revconn._proto.registry_pb2 import CancelRequest
from revconn.core.streams import Streams
from revconn.gateway import Gateway
from revconn.serving.stream_calls import StreamCalls
from tests.support.connectors import TRANSPORTS
from tests.support.scripted_connector import ScriptedConnector
from tests.support.waiting import eventually

TIMEOUT = 30.0
DOWN, UP, ECHO, SAY = (f"/a.B/{name}" for name in ("Down", "Up", "Echo", "Say"))


def echo(request: Request) -> Iterator[bytes]:
    """Send back what comes."""
    yield from request.messages()


def say(request: Request) -> bytes:
    """Of one message: that."""
    return request.payload


class Scene:
    """A gateway, a connector that is not started yet, and a caller."""

    def __init__(self, stack: ExitStack, transport: dict[str, Any], **options: Any) -> None:
        self._stack = stack
        self._over = threading.Event()
        self.gateway = stack.enter_context(Gateway(api_keys=["key", "another"]))
        self.connector = Connector(self.gateway.address, api_key="key", **transport, **options)
        self.channel = self.new_channel()

    def new_channel(self) -> grpc.Channel:
        """A caller's, on a connection of its own."""
        options = [("grpc.use_local_subchannel_pool", 1)]
        channel: grpc.Channel = self._stack.enter_context(
            grpc.insecure_channel(self.gateway.address, options)
        )
        return channel

    def add(self, path: str, handler: Any, kind: Any = None) -> None:
        """Have the connector serve a method."""
        self.connector.add_method(path, handler, kind=kind)

    def add_servicer(self, service: str = "a.B", **methods: Any) -> None:
        """Have the connector serve a servicer's methods."""
        generic = grpc.method_handlers_generic_handler(service, methods)
        self.connector.add_generic_rpc_handlers([generic])

    def start(self) -> None:
        """Serve until the test is over."""
        self._stack.enter_context(self.connector)
        self._stack.callback(self._over.set)
        self.connector.wait_ready(TIMEOUT)

    def talk(self, *messages: bytes) -> Iterator[bytes]:
        """What a caller says who then keeps silent, until the test is over."""
        yield from messages
        self._over.wait(TIMEOUT)

    def attack(self) -> ScriptedConnector:
        """A connector of another key."""
        metadata = [("revconn-features", "cancel,streams")]
        attacker = ScriptedConnector(self.gateway.address, metadata=metadata)
        self._stack.enter_context(attacker)
        attacker.register("x.X", api_key="another")
        return attacker

    @property
    def calls(self) -> Any:
        """The connector's table of calls."""
        supervisor = self.connector._supervisor
        assert supervisor is not None
        return supervisor.calls

    @property
    def session(self) -> Any:
        """The one connection's."""
        assert self.connector._supervisor is not None
        (session,) = self.connector._supervisor.links[0]._sessions  # type: ignore[attr-defined]
        return session

    def assert_idle(self) -> None:
        """Nothing is under way, and nothing is counted as if it were."""
        eventually(lambda: self.calls.streams._running == 0)
        eventually(lambda: self.connector.stats()["in_flight"] == 0)
        assert (self.calls._total, self.calls._exempt) == (0, 0)


@pytest.fixture(params=TRANSPORTS.values(), ids=TRANSPORTS)
def scene(request: pytest.FixtureRequest) -> Iterator[Callable[..., Scene]]:
    with ExitStack() as stack:
        yield lambda **options: Scene(stack, request.param, **options)


def outcome(call: Any) -> tuple[list[bytes], grpc.StatusCode, str]:
    """What the caller of a stream gets of it, to its end."""
    seen: list[bytes] = []
    with contextlib.suppress(grpc.RpcError):
        seen.extend(call)
    return seen, call.code(), call.details()


# Threads that are no workers


def test_a_thread_that_reads_for_a_handler_ends_when_the_call_is_answered(
    scene: Callable[..., Scene],
) -> None:
    here = scene()
    heard: queue.SimpleQueue[Any] = queue.SimpleQueue()
    readers: list[threading.Thread] = []

    def read(messages: Iterator[bytes], has_begun: threading.Event) -> None:
        try:
            for _ in messages:
                has_begun.set()
        except (RequestError, grpc.RpcError) as error:
            heard.put(error)

    def begin_reading(messages: Iterator[bytes]) -> None:
        has_begun = threading.Event()
        reader = threading.Thread(target=read, args=(messages, has_begun), daemon=True)
        reader.start()
        readers.append(reader)
        assert has_begun.wait(TIMEOUT)

    def plain(request: Request) -> Iterator[bytes]:
        begin_reading(request.messages())
        yield b"done"

    def servicer(messages: Iterator[bytes], context: Any) -> Iterator[bytes]:
        begin_reading(messages)
        yield b"done"

    def fails(messages: Iterator[bytes], context: Any) -> bytes:
        begin_reading(messages)
        context.abort(grpc.StatusCode.NOT_FOUND, "none")
        return b""

    here.add("/p.P/Echo", plain, "bidirectional_streaming")
    here.add_servicer(
        Echo=grpc.stream_stream_rpc_method_handler(servicer),
        Fails=grpc.stream_unary_rpc_method_handler(fails),
    )
    here.start()
    for path in ("/p.P/Echo", ECHO):
        call = here.channel.stream_stream(path)(here.talk(b"a"), timeout=TIMEOUT)
        assert list(call) == [b"done"]
    failed = here.channel.stream_unary("/a.B/Fails").future(here.talk(b"a"), timeout=TIMEOUT)
    assert failed.exception(TIMEOUT).code() is grpc.StatusCode.NOT_FOUND
    for reader in readers:
        reader.join(TIMEOUT)
        assert not reader.is_alive()
    errors = [heard.get(timeout=TIMEOUT) for _ in readers]
    assert sorted(isinstance(each, RequestError) for each in errors) == [False, False, True]


def test_a_call_that_is_taken_up_as_soon_as_it_is_aside_goes_on(
    scene: Callable[..., Scene], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = 0
    changed = threading.Condition()
    asides: list[bool] = []
    run, put_aside = StreamCalls.run, StreamCalls._put_aside

    def run_and_tell(self: StreamCalls, request: Any) -> None:
        nonlocal runs
        with changed:
            runs += 1
            changed.notify_all()
        run(self, request)

    def put_aside_and_wait(self: StreamCalls, request: Any, *why: Any) -> bool:
        # Until another worker has it: in the place of a switch of threads at a bad moment.
        before = runs
        is_aside = put_aside(self, request, *why)
        if is_aside:
            with changed:
                asides.append(changed.wait_for(lambda: runs > before, TIMEOUT))
        return is_aside

    monkeypatch.setattr(StreamCalls, "run", run_and_tell)
    monkeypatch.setattr(StreamCalls, "_put_aside", put_aside_and_wait)
    here = scene()

    def many(request: Request) -> Iterator[bytes]:
        for _ in range(300):
            yield b"x" * 4_000

    here.add(DOWN, many)
    here.start()
    seen, code, _ = outcome(here.channel.unary_stream(DOWN)(b"", timeout=TIMEOUT))
    assert (len(seen), code) == (300, grpc.StatusCode.OK)
    assert asides
    assert all(asides)
    here.assert_idle()


# What others say


def test_another_keys_connector_cannot_cancel_a_stream_by_an_id_of_its_own_making(
    scene: Callable[..., Scene],
) -> None:
    here = scene()
    may_end = threading.Event()

    def held(request: Request) -> Iterator[bytes]:
        yield b"1"
        may_end.wait(TIMEOUT)
        yield b"2"

    def get(request: Request) -> bytes:
        may_end.wait(TIMEOUT)
        return b""

    here.add(DOWN, held)
    here.add(SAY, get)
    here.start()
    call = here.channel.unary_stream(DOWN)(b"", timeout=TIMEOUT)
    assert next(call) == b"1"
    attacker = here.attack()
    stats = here.connector.stats
    for number, request_id in enumerate(("1@1", "2@1", "1"), 1):
        attacker.ask(request_id, SAY)
        eventually(lambda: stats()["accepted"] + stats()["repeated"] == 1 + number)  # noqa: B023
        attacker.send(cancel=CancelRequest(request_id=request_id))
        eventually(lambda: stats()["cancelled"] == number)  # noqa: B023
    may_end.set()
    assert list(call) == [b"2"]
    assert stats()["repeated"] == 0
    here.assert_idle()


def test_requests_that_bear_the_ids_that_streams_might_have_leave_nothing_behind(
    scene: Callable[..., Scene],
) -> None:
    here = scene(max_in_flight=4)
    may_end = threading.Event()

    def slow(request: Request) -> bytes:
        may_end.wait(TIMEOUT)
        return b"slow"

    here.add(DOWN, lambda request: iter([b"1"]), "server_streaming")
    here.add("/a.B/Slow", slow)
    here.add(SAY, say)
    here.start()
    attacker = here.attack()
    ids = {f"{number}@1" for number in (1, 2, 3, 4)}
    for request_id in ids:
        attacker.ask(request_id, "/a.B/Slow")
    eventually(lambda: here.connector.stats()["in_flight"] == 4)
    for _ in range(4):
        assert list(here.channel.unary_stream(DOWN)(b"", timeout=TIMEOUT)) == [b"1"]
    may_end.set()
    answered = [attacker.receive_response() for _ in ids]
    assert {(each.request_id, each.status_code) for each in answered} == {
        (request_id, 200) for request_id in ids
    }
    here.assert_idle()
    assert here.channel.unary_unary(SAY)(b"hi", timeout=TIMEOUT) == b"hi"


# Calls that are over


def test_messages_of_a_call_that_was_given_up_count_for_nothing_once_they_are_read(
    scene: Callable[..., Scene],
) -> None:
    here = scene()
    gave_up = threading.Event()
    has_read = threading.Semaphore(0)

    def works(request: Request) -> Iterator[bytes]:
        messages = request.messages()
        next(messages)
        yield b"got"
        gave_up.wait(TIMEOUT)
        try:
            next(messages)  # returns the credit of the one before
        finally:
            has_read.release()

    here.add(ECHO, works, "bidirectional_streaming")
    here.start()
    streams: Streams = here.session._line.streams
    calls = []
    for _ in range(4):
        call = here.channel.stream_stream(ECHO)(here.talk(b"x" * 10_000), timeout=TIMEOUT)
        assert next(call) == b"got"
        calls.append(call)
    assert streams.held == 4 * 10_032
    for call in calls:
        call.cancel()
    eventually(lambda: here.connector.stats()["cancelled"] == 4)
    gave_up.set()
    for _ in calls:
        assert has_read.acquire(timeout=TIMEOUT)
    here.assert_idle()
    assert streams.held == 0
    assert not streams.open


def test_a_stream_that_opens_as_its_line_is_closed_holds_no_worker(
    scene: Callable[..., Scene], monkeypatch: pytest.MonkeyPatch
) -> None:
    here = scene()
    take_in = StreamCalls.take_in
    retired: list[Any] = []

    def retire_and_take_in(self: StreamCalls, line: Any, frames: Any) -> None:
        if not retired:  # the first that comes opens a stream
            retired.append(here.session)  # as another thread does, at this very moment
            here.session.retire("on purpose")
        take_in(self, line, frames)

    monkeypatch.setattr(StreamCalls, "take_in", retire_and_take_in)
    here.add(ECHO, echo, "bidirectional_streaming")
    here.start()
    method = here.channel.stream_stream(ECHO)
    seen, code, _ = outcome(method(here.talk(b"1"), timeout=TIMEOUT))
    assert (seen, code) == ([], grpc.StatusCode.UNAVAILABLE)
    eventually(lambda: here.connector.state.name == "READY" and here.connector.connection_id)
    here.assert_idle()
    assert list(method(iter([b"1"]), timeout=TIMEOUT)) == [b"1"]


def test_an_executor_that_is_shut_down_fails_hundreds_of_streams_that_wait_for_it(
    scene: Callable[..., Scene],
) -> None:
    executor = ThreadPoolExecutor(1)
    here = scene(max_workers=4, max_streams=1, executor=executor)
    here.add(DOWN, lambda request: iter([b"1"]), "server_streaming")
    here.start()
    gate = threading.Event()
    executor.submit(gate.wait)
    try:
        channels = [here.new_channel() for _ in range(3)]
        calls = [
            channel.unary_stream(DOWN)(b"", timeout=TIMEOUT)
            for channel in channels
            for _ in range(200)
        ]
        eventually(lambda: here.connector.stats()["in_flight"] == len(calls))
        executor.shutdown(wait=False, cancel_futures=True)
    finally:
        gate.set()
    outcomes = {outcome(call)[1:] for call in calls}
    code = grpc.StatusCode.UNAVAILABLE
    assert outcomes == {(code, "the service has no thread to run it in")}
    here.assert_idle()


def test_what_a_servicer_says_after_it_cancelled_its_call_is_not_sent_and_what_it_said_is(
    scene: Callable[..., Scene],
) -> None:
    here = scene()

    def cancels(request: bytes, context: Any) -> Iterator[bytes]:
        yield b"1"
        context.cancel()
        yield b"2"

    here.add_servicer(Down=grpc.unary_stream_rpc_method_handler(cancels))
    here.start()
    seen, code, _ = outcome(here.channel.unary_stream(DOWN)(b"", timeout=TIMEOUT))
    assert (seen, code) == ([b"1"], grpc.StatusCode.CANCELLED)
    here.assert_idle()


def test_calls_that_a_stop_gives_up_are_answered_alike_and_their_stacks_are_logged(
    scene: Callable[..., Scene], caplog: pytest.LogCaptureFixture
) -> None:
    here = scene()
    may_end = threading.Event()
    began = threading.Semaphore(0)

    def hold() -> None:
        began.release()
        may_end.wait(TIMEOUT)

    def down_that_computes(request: bytes, context: Any) -> Iterator[bytes]:
        yield b"1"
        hold()
        yield b"2"

    def say_that_computes(request: bytes, context: Any) -> bytes:
        hold()
        return b""

    def plain_that_reads(request: Request) -> Iterator[bytes]:
        began.release()
        yield from request.messages()

    here.add_servicer(
        Down=grpc.unary_stream_rpc_method_handler(down_that_computes),
        Say=grpc.unary_unary_rpc_method_handler(say_that_computes),
    )
    here.add("/p.P/Reads", plain_that_reads, "bidirectional_streaming")
    here.start()
    down = here.channel.unary_stream(DOWN)(b"", timeout=TIMEOUT)
    said = here.channel.unary_unary(SAY).future(b"", timeout=TIMEOUT)
    reads = here.channel.stream_stream("/p.P/Reads")(here.talk(), timeout=TIMEOUT)
    for _ in range(3):
        assert began.acquire(timeout=TIMEOUT)
    here.connector.stop(0.5)
    code, details = grpc.StatusCode.UNAVAILABLE, "the service stopped before it could answer"
    assert said.exception(TIMEOUT).code() is code
    assert said.details() == details
    assert outcome(down) == ([b"1"], code, details)
    assert outcome(reads) == ([], code, details)
    may_end.set()
    records = [each for each in caplog.records if each.getMessage().startswith("gave up")]
    names = ("down_that_computes", "say_that_computes", "plain_that_reads")
    assert len(records) == len(names)
    for name in names:
        (stack,) = [each.stack_info for each in records if f"in {name}" in str(each.stack_info)]
        waits = "request.messages()" if name == "plain_that_reads" else "may_end.wait(TIMEOUT)"
        assert waits in str(stack)


# What is told


def test_streams_that_wait_for_a_worker_are_counted_as_waiting(
    scene: Callable[..., Scene],
) -> None:
    here = scene(max_workers=4)  # half of them for streams
    here.add(ECHO, echo, "bidirectional_streaming")
    here.start()
    method = here.channel.stream_stream(ECHO)
    said: list[queue.SimpleQueue[Any]] = [queue.SimpleQueue() for _ in range(4)]
    calls = []
    for number, each in enumerate(said):
        each.put(b"%d" % number)
        calls.append(method(iter(each.get, None), timeout=TIMEOUT))
        if number < 2:
            assert next(calls[number]) == b"%d" % number
    eventually(lambda: here.connector.stats()["in_flight"] == 4)
    assert here.connector.stats()["waiting"] == 2
    said[0].put(None)
    assert list(calls[0]) == []
    eventually(lambda: here.connector.stats()["waiting"] == 1)
    for each in said[1:]:
        each.put(None)
    assert [list(call) for call in calls[1:]] == [[], [b"2"], [b"3"]]
    assert here.connector.stats()["waiting"] == 0
    here.assert_idle()


def test_streams_that_wait_for_a_worker_and_are_given_up_are_forgotten(
    scene: Callable[..., Scene],
) -> None:
    here = scene(max_workers=2, max_streams=1)
    here.add(ECHO, echo, "bidirectional_streaming")
    here.start()
    method = here.channel.stream_stream(ECHO)
    holds = method(here.talk(b"1"), timeout=TIMEOUT)
    assert next(holds) == b"1"
    calls = [method(here.talk(b"x" * 1000), timeout=TIMEOUT) for _ in range(50)]
    eventually(lambda: here.connector.stats()["waiting"] == 50)
    for call in calls:
        call.cancel()
    eventually(lambda: here.connector.stats()["cancelled"] == 50)
    # The one worker may be held for days.
    assert here.connector.stats()["in_flight"] == 1
    assert here.connector.stats()["waiting"] == 0
    assert len(here.calls.streams._queue) == 0
    holds.cancel()


def test_a_stream_that_waits_for_its_caller_is_no_slow_handler(
    scene: Callable[..., Scene], caplog: pytest.LogCaptureFixture
) -> None:
    here = scene(slow_handler_after=0.1)
    may_end = threading.Event()

    def slow(request: Request) -> bytes:
        may_end.wait(TIMEOUT)
        return b""

    here.add(ECHO, echo, "bidirectional_streaming")
    here.add(SAY, slow)
    here.start()
    try:
        call = here.channel.stream_stream(ECHO)(here.talk(b"1"), timeout=TIMEOUT)
        assert next(call) == b"1"  # it began first, so it would be named first
        said = here.channel.unary_unary(SAY).future(b"", timeout=TIMEOUT)
        eventually(lambda: [each for each in caplog.messages if each.startswith("slow handler: ")])
    finally:
        may_end.set()
    assert said.result(TIMEOUT) == b""
    (line,) = [each for each in caplog.messages if each.startswith("slow handler: ")]
    assert SAY in line
    call.cancel()


def test_a_servicer_without_a_deadline_has_endless_time_whatever_its_kind(
    scene: Callable[..., Scene],
) -> None:
    here = scene()

    def left(request: bytes, context: Any) -> bytes:
        seconds = context.time_remaining()
        return b"endless" if seconds == math.inf else b"some" if seconds < TIMEOUT + 1 else b"more"

    def lefts(request: bytes, context: Any) -> Iterator[bytes]:
        yield left(request, context)

    here.add_servicer(
        Say=grpc.unary_unary_rpc_method_handler(left),
        Down=grpc.unary_stream_rpc_method_handler(lefts),
    )
    here.start()
    assert list(here.channel.unary_stream(DOWN)(b"")) == [b"endless"]
    assert list(here.channel.unary_stream(DOWN)(b"", timeout=TIMEOUT)) == [b"some"]
    # A unary call has the gateway's request_timeout.
    assert here.channel.unary_unary(SAY)(b"") == b"some"


# What may be registered


def test_a_streaming_method_that_is_new_after_the_start_is_refused(
    scene: Callable[..., Scene],
) -> None:
    here = scene()
    here.add(ECHO, echo, "bidirectional_streaming")
    here.start()
    with pytest.raises(ConfigurationError, match="streams, and is new after the start"):
        here.add(DOWN, echo)
    here.add(SAY, say)  # of one that does not stream gateways need not be told
    assert here.channel.unary_unary(SAY)(b"hi", timeout=TIMEOUT) == b"hi"

    def shouts(request: Request) -> Iterator[bytes]:
        for message in request.messages():
            yield message.upper()

    here.connector.add_method(ECHO, shouts, kind="bidirectional_streaming", replace=True)
    method = here.channel.stream_stream(ECHO)
    assert list(method(iter([b"a", b"b"]), timeout=TIMEOUT)) == [b"A", b"B"]


def test_the_one_message_of_a_method_that_streams_its_answers_is_among_its_messages(
    scene: Callable[..., Scene],
) -> None:
    here = scene()

    def down(request: Request) -> Iterator[bytes]:
        yield from request.messages()
        yield from request.messages()
        yield request.payload

    here.add(DOWN, down)
    here.start()
    assert list(here.channel.unary_stream(DOWN)(b"hi", timeout=TIMEOUT)) == [b"hi"] * 3


# What is left behind


class Message:
    """What a servicer is given of one message."""

    def __init__(self, data: bytes) -> None:
        self.data = data


def test_nothing_is_kept_of_a_call_that_was_answered(scene: Callable[..., Scene]) -> None:
    here = scene()
    given: list[weakref.ref[Any]] = []

    def note(*things: Any) -> None:
        given.extend(map(weakref.ref, things))

    def unary(request: Message, context: Any) -> bytes:
        note(request, context)
        return request.data

    def down(request: Message, context: Any) -> Iterator[bytes]:
        note(request, context)
        yield request.data

    def up(requests: Iterator[Message], context: Any) -> bytes:
        note(context)
        for request in requests:
            note(request)
        return b""

    def plain(request: Request) -> Iterator[bytes]:
        yield from request.messages()

    here.add_servicer(
        Say=grpc.unary_unary_rpc_method_handler(unary, request_deserializer=Message),
        Down=grpc.unary_stream_rpc_method_handler(down, request_deserializer=Message),
        Up=grpc.stream_unary_rpc_method_handler(up, request_deserializer=Message),
    )
    here.add("/p.P/Echo", plain, "bidirectional_streaming")
    here.start()
    channel = here.channel
    assert channel.unary_unary(SAY)(b"hi", timeout=TIMEOUT) == b"hi"
    assert list(channel.unary_stream(DOWN)(b"hi", timeout=TIMEOUT)) == [b"hi"]
    assert channel.stream_unary(UP)(iter([b"1", b"2"]), timeout=TIMEOUT) == b""
    assert list(channel.stream_stream("/p.P/Echo")(iter([b"1"]), timeout=TIMEOUT)) == [b"1"]
    gave_up = channel.stream_stream("/p.P/Echo")(here.talk(b"1"), timeout=TIMEOUT)
    assert next(gave_up) == b"1"
    gave_up.cancel()
    here.assert_idle()
    assert len(given) == 2 + 2 + 3

    def kept() -> list[Any]:
        gc.collect()
        # By their types: isinstance() asks objects of others, which may not like it.
        requests: list[Any] = [e for e in gc.get_objects() if issubclass(type(e), Request)]
        ours = [each for each in requests if each._replies is here.session._line.replies]
        return [*ours, *(each for each in (ref() for ref in given) if each is not None)]

    # A worker that waits for another call may have the last one at hand, until it goes.
    eventually(lambda: not kept(), 10.0)


def test_200_calls_at_once_make_no_more_threads_than_there_may_be_workers(
    scene: Callable[..., Scene],
) -> None:
    here = scene(max_workers=8)
    used: set[int] = set()
    running = most = 0
    lock = threading.Lock()
    all_busy, may_end = threading.Event(), threading.Event()

    def busy(request: bytes, context: Any) -> bytes:
        nonlocal running, most
        with lock:
            used.add(threading.get_ident())
            running += 1
            most = max(most, running)
            if running == 8:
                all_busy.set()
        may_end.wait(TIMEOUT)
        with lock:
            running -= 1
        return request

    here.add_servicer(Say=grpc.unary_unary_rpc_method_handler(busy))
    here.start()
    method = here.channel.unary_unary(SAY)
    calls = [method.future(b"%d" % number, timeout=TIMEOUT) for number in range(200)]
    try:
        assert all_busy.wait(TIMEOUT)
        eventually(lambda: here.connector.stats()["in_flight"] == 200)
        handlers = [each for each in threading.enumerate() if "revconn-handler" in each.name]
        assert len(handlers) == 8
    finally:
        may_end.set()
    assert [call.result(TIMEOUT) for call in calls] == [b"%d" % number for number in range(200)]
    assert most == 8
    assert len(used) == 8


def test_200_streams_at_once_make_no_more_threads_than_there_may_be_workers(
    scene: Callable[..., Scene],
) -> None:
    here = scene(max_workers=8, max_streams=4)
    used: set[int] = set()
    running = most = 0
    lock = threading.Lock()
    all_busy, may_end = threading.Event(), threading.Event()

    def busy(requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
        nonlocal running, most
        for request in requests:
            with lock:
                used.add(threading.get_ident())
                running += 1
                most = max(most, running)
                if running == 4:
                    all_busy.set()
            may_end.wait(TIMEOUT)
            with lock:
                running -= 1
            yield request

    here.add_servicer(Echo=grpc.stream_stream_rpc_method_handler(busy))
    here.start()
    method = here.channel.stream_stream(ECHO)
    calls = [method(iter([b"a", b"b"]), timeout=2 * TIMEOUT) for _ in range(200)]
    try:
        assert all_busy.wait(TIMEOUT)
        eventually(lambda: here.connector.stats()["in_flight"] == 200)
        handlers = [each for each in threading.enumerate() if "revconn-handler" in each.name]
        assert len(handlers) <= 8
    finally:
        may_end.set()
    assert [list(call) for call in calls] == [[b"a", b"b"]] * 200
    assert most == 4
    assert len(used) <= 8
    here.assert_idle()
