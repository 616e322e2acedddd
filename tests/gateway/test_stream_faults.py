"""What streaming calls once did wrong at the gateway, and what they cost those beside them."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any, Callable

import grpc
import pytest
from hyperframe.frame import DataFrame, HeadersFrame

from revconn import Connector, Request, RequestError
from revconn._proto.registry_pb2 import (
    ConnectionRegister,
    ConnectionStatus,
    MetadataEntry,
    StreamFrame,
    StreamMetadata,
    StreamStatus,
)
from revconn.gateway import Gateway
from tests.support.http2_caller import Http2Caller
from tests.support.scripted_connector import ScriptedConnector
from tests.support.scripted_http2 import message
from tests.support.waiting import eventually

TIMEOUT = 30.0
DOWN, UP, ECHO, SAY = (f"/a.B/{name}" for name in ("Down", "Up", "Echo", "Say"))

Script = Callable[..., ScriptedConnector]
Serve = Callable[..., Connector]


@pytest.fixture
def script(dial: Script) -> Script:
    """``script(gateway, services, streaming, mixed)``: a scripted connector that has streams."""

    def script(
        gateway: Gateway,
        services: Iterable[str] = ("a.B",),
        streaming: Iterable[str] = (),
        mixed: Iterable[str] = (),
        *more: tuple[str, str],
    ) -> ScriptedConnector:
        connector = dial(gateway, metadata=[("revconn-features", "streams"), *more])
        connector.send(
            register=ConnectionRegister(
                api_key="key",
                services=services,
                streaming_methods=streaming,
                mixed_services=mixed,
            )
        )
        assert connector.receive().status.status == ConnectionStatus.CONNECTED
        return connector

    return script


@pytest.fixture
def serve(resources: contextlib.ExitStack) -> Serve:
    """``serve(gateway, {path: (handler, kind)})``: a connector that is ready, of real ones."""

    def serve(gateway: Gateway, methods: dict[str, Any], **options: Any) -> Connector:
        connector = Connector(gateway.address, api_key="key", **options)
        for path, (handler, kind) in methods.items():
            connector.add_method(path, handler, kind=kind)
        resources.enter_context(connector)
        connector.wait_ready(TIMEOUT)
        return connector

    return serve


@pytest.fixture
def channel(resources: contextlib.ExitStack) -> Callable[..., grpc.Channel]:
    """A caller on a connection of its own."""

    def channel(gateway: Gateway, *more: tuple[str, Any]) -> grpc.Channel:
        options = [("grpc.use_local_subchannel_pool", 1), *more]
        return resources.enter_context(grpc.insecure_channel(gateway.address, options))

    return channel


@pytest.fixture
def talk(resources: contextlib.ExitStack) -> Callable[..., Iterator[bytes]]:
    """``talk(*messages)``: what a caller says who then keeps silent, until the test is over."""
    over = threading.Event()
    resources.callback(over.set)

    def talk(*messages: bytes) -> Iterator[bytes]:
        yield from messages
        over.wait(TIMEOUT)

    return talk


def next_frame(connector: ScriptedConnector) -> StreamFrame:
    """The next frame of a stream."""
    received = connector.receive()
    assert received.WhichOneof("message_type") == "stream", received
    return received.stream


def down(request: Request) -> Iterator[bytes]:
    """Two messages."""
    yield b"1"
    yield b"2"


def join(request: Request) -> bytes:
    """All messages in one."""
    return b",".join(request.messages())


def echo(request: Request) -> Iterator[bytes]:
    """Send back what comes."""
    yield from request.messages()


def say(request: Request) -> bytes:
    """Of one message: that."""
    return request.payload


METHODS: dict[str, Any] = {
    DOWN: (down, None),
    UP: (join, "client_streaming"),
    ECHO: (echo, "bidirectional_streaming"),
    SAY: (say, None),
}


def end_of(call: Any) -> tuple[grpc.StatusCode, str]:
    """How a call ends that is not over before it fails."""
    with contextlib.suppress(grpc.RpcError):
        for _ in call:
            pass
    return call.code(), call.details()


# What connectors say


def test_a_connector_that_gives_endless_credit_loses_that_stream_alone(
    gateway: Gateway, script: Script, channel, talk
) -> None:
    connector = script(gateway, streaming=[UP])
    up = channel(gateway).stream_unary(UP)
    call = up.future(talk(b"first"), timeout=TIMEOUT)
    opened = next_frame(connector)
    for _ in range(3):
        connector.send(stream=StreamFrame(stream_id=opened.stream_id, credit=2**32 - 1))
    assert call.exception(TIMEOUT).code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert call.details() == "the connector allowed more than 8,388,608 bytes at once"
    received = opened
    while not received.HasField("cancel"):  # the message may come in a frame of its own
        received = next_frame(connector)
    assert received.stream_id == opened.stream_id
    # The connection goes on.
    second = up.future(iter([b"second"]), timeout=TIMEOUT)
    opened = received = next_frame(connector)
    while not received.half_close:
        received = next_frame(connector)
    answer = StreamFrame(stream_id=opened.stream_id, messages=[b"ok"], status=StreamStatus())
    connector.send(stream=answer)
    assert second.result(TIMEOUT) == b"ok"


FORGED = {
    "a second status": ("grpc-status", b"0"),
    "a message of it": ("grpc-message", b"forged"),
    "an encoding": ("grpc-encoding", b"gzip"),
    "a content type": ("content-type", b"text/html"),
    "a pseudo-header": (":status", b"404"),
    "a connection's header": ("connection", b"close"),
    "a transfer's header": ("transfer-encoding", b"chunked"),
    "a line break": ("b", b"x\r\ny: z"),
    "what is not ASCII": ("b", b"\xff"),
    "a name that is not": ("ü€", b"1"),
    "no name": ("", b"1"),
}


def test_metadata_that_no_application_may_send_is_left_out_of_a_streams_answer(
    gateway: Gateway, script: Script, channel
) -> None:
    connector = script(gateway, streaming=[DOWN])
    method = channel(gateway).unary_stream(DOWN)
    for what, (key, value) in {**FORGED, "upper case": ("Upper", b"1")}.items():
        entries = [MetadataEntry(key=key, value=value), MetadataEntry(key="a", value=b"1")]
        call = method(b"", timeout=TIMEOUT)
        answer = StreamFrame(
            stream_id=next_frame(connector).stream_id,
            initial_metadata=StreamMetadata(entries=entries),
            messages=[b"ok"],
            status=StreamStatus(code=5, message="none", trailing_metadata=entries),
        )
        connector.send(stream=answer)
        assert next(call) == b"ok", what
        assert end_of(call) == (grpc.StatusCode.NOT_FOUND, "none"), what
        expected = {("a", "1")} | ({("upper", "1")} if what == "upper case" else set())
        assert {*map(tuple, call.initial_metadata())} == expected, what
        assert {*map(tuple, call.trailing_metadata())} == expected, what


@pytest.mark.parametrize("ends", ["answered", "lost"])
def test_a_caller_that_does_not_read_is_forgotten_a_while_after_its_call_has_ended(
    run_gateway, script: Script, ends: str
) -> None:
    gateway = run_gateway(request_timeout=0.3)
    connector = script(gateway, streaming=[DOWN])
    with Http2Caller(gateway.address) as caller:
        caller.call(DOWN)
        answer = StreamFrame(stream_id=next_frame(connector).stream_id, messages=[b"x" * 200_000])
        if ends == "answered":
            answer.status.SetInParent()
        connector.send(stream=answer)
        while not (1 in caller.answers and len(caller.answers[1].data) == 0xFFFF):
            caller.hears_frame()  # it opens no window
        if ends == "lost":
            connector.close()
        # Else the rest would be kept for as long as the caller likes.
        ended = caller.hears_answer()
    assert len(ended.data) == 0xFFFF
    assert ended.reset is not None


# Whose calls they are


def test_calls_of_a_service_go_to_who_registered_it_though_a_parent_may_stream(
    gateway: Gateway, script: Script, channel
) -> None:
    child = script(gateway, ["a.b.C"])
    parent = script(gateway, ["a"], mixed=["a"])
    caller = channel(gateway)
    for number in range(4):
        call = caller.unary_unary("/a.b.C/Get").future(b"", timeout=TIMEOUT)
        request = child.receive_request()
        child.respond(request.request_id, b"%d" % number)
        assert call.result(TIMEOUT) == b"%d" % number
    # What nobody else has is the parent's.
    other = caller.unary_unary("/a.d.E/Get").future(b"", timeout=TIMEOUT)
    opened = next_frame(parent)
    assert opened.opening.method_path == "/a.d.E/Get"
    answer = StreamFrame(stream_id=opened.stream_id, messages=[b"ok"], status=StreamStatus())
    parent.send(stream=answer)
    assert other.result(TIMEOUT) == b"ok"


def test_of_two_connectors_the_one_that_streams_a_method_gets_all_of_its_calls(
    gateway: Gateway, serve: Serve, channel
) -> None:
    def answer_all(request: Request) -> bytes:
        return b"unary"

    both = {SAY: (lambda request: b"both", None)}
    streams = serve(gateway, {DOWN: (down, None), **both})
    other = serve(gateway, {DOWN: (answer_all, None), **both})
    caller = channel(gateway)
    for _ in range(4):
        assert list(caller.unary_stream(DOWN)(b"", timeout=TIMEOUT)) == [b"1", b"2"]
    # Of other methods each gets its share.
    for _ in range(4):
        assert caller.unary_unary(SAY)(b"", timeout=TIMEOUT) == b"both"
    assert (streams.stats()["accepted"], other.stats()["accepted"]) == (4 + 2, 2)
    streams.stop()
    eventually(lambda: len(gateway.connections()) == 1)
    assert caller.unary_unary(DOWN)(b"", timeout=TIMEOUT) == b"unary"


@pytest.mark.parametrize("leave", ["stop", "abort"])
def test_streaming_calls_wait_for_a_connector_that_comes_back(
    gateway: Gateway, serve: Serve, channel, leave: str
) -> None:
    getattr(serve(gateway, METHODS), leave)()
    eventually(lambda: not gateway.connections())
    caller = channel(gateway)
    streams = {
        (b"1", b"2"): caller.unary_stream(DOWN)(b"", timeout=TIMEOUT),
        (b"a", b"b"): caller.stream_stream(ECHO)(iter([b"a", b"b"]), timeout=TIMEOUT),
        (): caller.stream_stream(ECHO)(iter([]), timeout=TIMEOUT),
    }
    answers = {
        b"": caller.stream_unary(UP).future(iter([]), timeout=TIMEOUT),
        b"a": caller.stream_unary(UP).future(iter([b"a"]), timeout=TIMEOUT),
        b"a,b": caller.stream_unary(UP).future(iter([b"a", b"b"]), timeout=TIMEOUT),
    }
    eventually(lambda: gateway.stats()["calls_held"] == len(streams) + len(answers), TIMEOUT)
    serve(gateway, METHODS)
    for said, stream in streams.items():
        assert list(stream) == [*said]
    for joined, answer in answers.items():
        assert answer.result(TIMEOUT) == joined


def test_a_stopping_gateway_lets_no_streaming_call_wait_for_a_connector(
    gateway: Gateway, serve: Serve, channel
) -> None:
    serve(gateway, METHODS).stop()
    eventually(lambda: not gateway.connections())
    waiting = channel(gateway).stream_unary(UP).future(iter([b"a"]), timeout=2 * TIMEOUT)
    eventually(lambda: gateway.stats()["calls_held"] == 1, TIMEOUT)
    started = time.monotonic()
    gateway.stop(grace=TIMEOUT)
    assert time.monotonic() - started < TIMEOUT / 2
    assert waiting.code() is grpc.StatusCode.UNAVAILABLE
    assert waiting.details() == "the gateway is stopping"


# Many messages, and large ones


def test_thousands_of_small_messages_are_no_flood(
    impatient, gateway: Gateway, serve: Serve
) -> None:
    batches, at_once = 16, 500

    def count(request: Request) -> bytes:
        return b"%d" % sum(1 for _ in request.messages())

    serve(gateway, {UP: (count, "client_streaming")})
    body = message(b"y")
    small = DataFrame(1, body).serialize() * at_once
    with Http2Caller(gateway.address) as caller:
        caller.say(HeadersFrame(1, caller.request_block(UP), flags=["END_HEADERS"]))
        caller.ping()  # its SETTINGS, and with them the first window, have come
        for _ in range(batches):
            while caller.window < at_once * len(body):
                caller.hears_frame()
            caller.connection_window -= at_once * len(body)
            caller.stream_window -= at_once * len(body)
            caller.say(small)
        caller.say(DataFrame(1, b"", flags=["END_STREAM"]))
        answer = caller.hears_answer()
    assert (answer.status, answer.data[5:]) == ("0", b"%d" % (batches * at_once))
    assert gateway.stats()["connections_flooding"] == 0


@pytest.mark.parametrize("limit", [2048, 20_000, 100_000])
def test_a_gateway_that_takes_little_at_once_gets_large_messages_in_pieces(
    run_gateway, serve: Serve, channel, limit: int
) -> None:
    def of_size(request: Request) -> Iterator[bytes]:
        for _ in range(3):
            yield b"x" * int(request.payload)

    gateway = run_gateway(max_message_bytes=limit)
    connector = serve(gateway, {DOWN: (of_size, None), ECHO: METHODS[ECHO]})
    connection_id = connector.connection_id
    caller = channel(gateway)
    for size in (1000, limit - 100, limit, 5 * limit):
        answers = list(caller.unary_stream(DOWN)(b"%d" % size, timeout=TIMEOUT))
        assert [*map(len, answers)] == [size] * 3
    requests = [b"x" * 1000, b"y" * (limit - 100), b"z"]
    assert list(caller.stream_stream(ECHO)(iter(requests), timeout=TIMEOUT)) == requests
    assert connector.connection_id == connection_id


def test_a_connector_that_takes_little_at_once_is_sent_no_larger_frame(
    gateway: Gateway, script: Script, channel
) -> None:
    limit = ("revconn-max-message-bytes", "20000")
    connector = script(gateway, ["a.B"], [UP], (), limit)
    messages = [b"a" * 300_000, b"b" * 15_000, b"c" * 60]
    call = channel(gateway).stream_unary(UP).future(iter(messages), timeout=TIMEOUT)
    frames: list[StreamFrame] = []
    seen = piece = b""
    while not (frames and frames[-1].half_close):
        frame = next_frame(connector)
        seen += b"".join(frame.messages)
        if frame.HasField("piece"):
            piece += frame.piece.data
            if not frame.piece.missing:
                seen, piece = seen + piece, b""
        frames.append(frame)
        connector.send(stream=StreamFrame(stream_id=frame.stream_id, credit=20_000))
    assert seen == b"".join(messages)
    assert max(map(len, connector.received_bytes)) <= 20_000
    answer = StreamFrame(stream_id=frames[0].stream_id, messages=[b"ok"], status=StreamStatus())
    connector.send(stream=answer)
    assert call.result(TIMEOUT) == b"ok"


def test_a_request_over_the_gateways_limit_in_mid_stream_ends_that_call_alone(
    run_gateway, serve: Serve, channel, talk
) -> None:
    ends: list[str] = []

    def hears(request: Request) -> Iterator[bytes]:
        try:
            yield from request.messages()
        except RequestError as error:
            ends.append(error.code.name)
            raise

    gateway = run_gateway(max_message_bytes=100_000)
    connector = serve(gateway, {ECHO: (hears, "bidirectional_streaming"), SAY: (say, None)})
    caller = channel(gateway)
    may_go_on = threading.Event()

    def good() -> Iterator[bytes]:
        yield b"1"
        may_go_on.wait(TIMEOUT)
        yield b"2"

    beside = caller.stream_stream(ECHO)(good(), timeout=TIMEOUT)
    assert next(beside) == b"1"
    is_answered = threading.Event()

    def bad() -> Iterator[bytes]:
        yield b"small"
        is_answered.wait(TIMEOUT)
        yield from talk(b"x" * 100_001)

    call = caller.stream_stream(ECHO)(bad(), timeout=TIMEOUT)
    assert next(call) == b"small"
    is_answered.set()
    with pytest.raises(grpc.RpcError) as raised:
        list(call)
    assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert raised.value.details() == (
        "a message of 100,001 bytes exceeds 100,000 (the gateway's max_message_bytes)"
    )
    eventually(lambda: ends == ["CANCELLED"])
    may_go_on.set()
    assert list(beside) == [b"2"]
    assert caller.unary_unary(SAY)(b"hi", timeout=TIMEOUT) == b"hi"
    assert gateway.stats()["refused_max_message_bytes"] == 1
    assert len(gateway.connections()) == 1
    eventually(lambda: connector.stats()["in_flight"] == 0)


def test_an_answer_over_the_gateways_limit_in_mid_stream_ends_that_call_alone(
    run_gateway, serve: Serve, channel
) -> None:
    closed = threading.Event()

    def grows(request: Request) -> Iterator[bytes]:
        try:
            yield b"small"
            yield b"x" * 100_001
            for _ in itertools.count():
                yield b"more"
        finally:
            closed.set()

    gateway = run_gateway(max_response_bytes=100_000)
    connector = serve(gateway, {**METHODS, DOWN: (grows, None)})
    caller = channel(gateway)
    may_go_on = threading.Event()

    def good() -> Iterator[bytes]:
        yield b"1"
        may_go_on.wait(TIMEOUT)
        yield b"2"

    beside = caller.stream_stream(ECHO)(good(), timeout=TIMEOUT)
    assert next(beside) == b"1"
    call = caller.unary_stream(DOWN)(b"", timeout=TIMEOUT)
    with pytest.raises(grpc.RpcError) as raised:
        list(call)
    assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    expected = "the connector sent a message of 100,001 bytes; 100,000 may be"
    assert raised.value.details() == expected
    assert closed.wait(TIMEOUT)
    may_go_on.set()
    assert list(beside) == [b"2"]
    assert len(gateway.connections()) == 1
    eventually(lambda: connector.stats()["in_flight"] == 0)


def test_200_callers_that_do_not_read_leave_another_one_all_of_its_messages(
    gateway: Gateway, serve: Serve, channel
) -> None:
    began = threading.Semaphore(0)
    message, count = b"x" * 100, 20_000

    def endless(request: Request) -> Iterator[bytes]:
        began.release()
        while True:
            yield b"y" * 2_000

    def many(request: Request) -> Iterator[bytes]:
        for _ in range(count):
            yield message

    serve(gateway, {"/a.B/Endless": (endless, None), DOWN: (many, None), SAY: (say, None)})
    with Http2Caller(gateway.address) as unread, Http2Caller(gateway.address) as fast:
        for number in range(200):
            unread.call("/a.B/Endless", stream_id=2 * number + 1)
        for _ in range(200):
            assert began.acquire(timeout=TIMEOUT)
        caller = channel(gateway)
        done = threading.Event()
        said: list[bytes] = []

        def ask() -> None:
            while not done.is_set():
                said.append(caller.unary_unary(SAY)(b"hi", timeout=TIMEOUT))

        asking = threading.Thread(target=ask)
        asking.start()
        try:
            fast.call(DOWN)
            fast.open_window(2**31 - 1 - 0xFFFF)
            answer = fast.hears_answer()
        finally:
            done.set()
            asking.join(TIMEOUT)
    assert answer.status == "0"
    assert answer.data == (b"\0\0\0\0\x64" + message) * count
    assert len(said) > 1
    assert {*said} == {b"hi"}
