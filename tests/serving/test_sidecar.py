"""Calls passed on to a server, in this process: how that is done, and what is left of it."""

from __future__ import annotations

import contextlib
import gc
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import grpc
import pytest

from revconn import Connector
from revconn.gateway import Gateway
from revconn.serving.sidecar import Sidecar
from revconn.testing import FaultProxy
from tests.support.waiting import eventually

TIMEOUT = 30.0
WORDS = "leaving\nERROR:root:" + "x" * 2_000


class Recorded:
    """A channel that notes which kinds of methods are asked for."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._channel = channel
        self.asked: list[str] = []

    def __getattr__(self, name: str) -> Any:
        self.asked.append(name)
        return getattr(self._channel, name)


class Scene:
    """A server, a connector that stands for it, and a caller."""

    def __init__(self, stack: ExitStack) -> None:
        self.may_end = threading.Event()
        stack.callback(self.may_end.set)
        self.server = grpc.server(ThreadPoolExecutor(8))
        methods = {
            "Down": grpc.unary_stream_rpc_method_handler(self.down),
            "Hold": grpc.unary_stream_rpc_method_handler(self.hold),
            "Leave": grpc.unary_unary_rpc_method_handler(self.leave),
            "Say": grpc.unary_unary_rpc_method_handler(self.say),
            "Echo": grpc.stream_stream_rpc_method_handler(self.echo),
        }
        generic = grpc.method_handlers_generic_handler("a.B", methods)
        self.server.add_generic_rpc_handlers([generic])
        port = self.server.add_insecure_port("127.0.0.1:0")
        self.server.start()
        stack.callback(lambda: self.server.stop(0).wait())
        gateway = stack.enter_context(Gateway(api_keys="key"))
        connector = Connector(gateway.address, api_key="key", max_workers=16, max_streams=16)
        self.proxy = stack.enter_context(FaultProxy(port))
        self.sidecar = Sidecar(self.proxy.address)
        self.recorded = Recorded(self.sidecar.channel)
        self.sidecar._channels[self.proxy.address] = self.recorded  # type: ignore[assignment]
        stack.callback(self.recorded._channel.close)
        connector._add_sidecar("a.B", self.sidecar)
        stack.enter_context(connector)
        connector.wait_ready(TIMEOUT)
        self.connector = connector
        self.channel = stack.enter_context(grpc.insecure_channel(gateway.address))

    def down(self, request: bytes, context: Any) -> Iterator[bytes]:
        for number in range(int(request)):
            yield b"%d" % number

    def leave(self, request: bytes, context: Any) -> bytes:
        context.abort(grpc.StatusCode.UNAVAILABLE, WORDS)
        raise AssertionError

    def hold(self, request: bytes, context: Any) -> Iterator[bytes]:
        context.add_callback(self.may_end.set)
        yield b"begun"
        self.may_end.wait(TIMEOUT)

    def say(self, request: bytes, context: Any) -> bytes:
        if not request:
            context.abort(grpc.StatusCode.NOT_FOUND, "none")
        return request

    def echo(self, requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
        yield from requests


@pytest.fixture
def scene() -> Iterator[Scene]:
    with ExitStack() as stack:
        yield Scene(stack)


def test_a_call_of_one_message_is_made_as_one(scene: Scene) -> None:
    channel = scene.channel
    assert channel.unary_unary("/a.B/Say")(b"hi", timeout=TIMEOUT) == b"hi"
    assert list(channel.unary_stream("/a.B/Down")(b"3", timeout=TIMEOUT)) == [b"0", b"1", b"2"]
    assert scene.recorded.asked == ["unary_stream"] * 2


def test_a_call_that_goes_on_is_made_as_a_stream(scene: Scene) -> None:
    may_go_on = threading.Event()

    def talk() -> Iterator[bytes]:
        yield b"a"
        may_go_on.wait(TIMEOUT)
        yield b"b"

    call = scene.channel.stream_stream("/a.B/Echo")(talk(), timeout=TIMEOUT)
    assert next(call) == b"a"
    may_go_on.set()
    assert list(call) == [b"b"]
    assert list(scene.channel.stream_stream("/a.B/Echo")(iter([]), timeout=TIMEOUT)) == []
    assert scene.recorded.asked == ["stream_stream"] * 2


def test_threads_that_call_first_at_once_have_one_channel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    both_make_one = threading.Barrier(2)

    def make(*_: Any) -> Any:
        both_make_one.wait(TIMEOUT)
        return object()

    monkeypatch.setattr(grpc, "insecure_channel", make)
    sidecar = Sidecar("127.0.0.1:1")
    with ThreadPoolExecutor(2) as executor:
        first, second = executor.map(lambda _: sidecar.channel, range(2))
    assert first is second is sidecar.channel


def test_a_server_that_is_slow_to_take_a_connection_is_waited_for(scene: Scene) -> None:
    scene.proxy.slow_down(0.5)  # whatever comes
    say = scene.channel.unary_unary("/a.B/Say")
    assert say(b"hi", timeout=TIMEOUT) == b"hi"


def test_a_server_that_is_gone_has_one_line_for_the_operator(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    say = scene.channel.unary_unary("/a.B/Say")
    scene.server.stop(0).wait()
    for _ in range(5):
        with pytest.raises(grpc.RpcError):
            say(b"hi", timeout=TIMEOUT)
    (line,) = (each for each in caplog.records if each.name == "revconn.serving.sidecar")
    assert line.levelname == "WARNING"
    assert line.getMessage().startswith(f"{scene.proxy.address}: UNAVAILABLE: ")


def test_what_a_server_says_is_one_line_of_the_log_and_no_long_one(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        scene.channel.unary_unary("/a.B/Leave")(b"", timeout=TIMEOUT)
    assert raised.value.details() == WORDS
    (line,) = (each for each in caplog.records if each.name == "revconn.serving.sidecar")
    message = line.getMessage()
    assert "\n" not in message
    assert len(message) < len(WORDS)


def calls_that_grpc_keeps() -> int:
    """Of all channels of the process."""
    gc.collect()
    return sum(type(each).__name__ == "_CallState" for each in gc.get_objects())


def test_nothing_is_kept_of_calls_however_they_end(scene: Scene) -> None:
    hold, say = scene.channel.unary_stream("/a.B/Hold"), scene.channel.unary_unary("/a.B/Say")
    before = calls_that_grpc_keeps()
    for _ in range(5):
        scene.may_end.clear()
        call = hold(b"", timeout=TIMEOUT)
        assert next(call) == b"begun"
        assert calls_that_grpc_keeps() > before
        call.cancel()
        assert scene.may_end.wait(TIMEOUT)  # the server has been told
        with contextlib.suppress(grpc.RpcError):
            say(b"", timeout=TIMEOUT)
    scene.may_end.clear()
    call = hold(b"", timeout=0.2)
    with contextlib.suppress(grpc.RpcError):
        list(call)
    assert call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    scene.server.stop(0).wait()
    for _ in range(20):
        with pytest.raises(grpc.RpcError) as raised:
            say(b"hi", timeout=TIMEOUT)
        assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
    eventually(lambda: scene.connector.stats()["in_flight"] == 0)
    del call, raised
    eventually(lambda: calls_that_grpc_keeps() <= before)
