"""What tunnels of gRPC have got wrong, in each kind of method, on both transports.

The empty method, binary metadata beside other calls, the deadline that no handler saw, and the
graceful stop were faults of grpctunnel's.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any, Callable

import grpc
import pytest
from hyperframe.frame import DataFrame, HeadersFrame

from revconn import Connector
from revconn._proto.registry_pb2 import (
    ConnectionMessage,
    ForwardRequest,
    StreamFrame,
    StreamOpening,
)
from revconn.gateway import Gateway
from tests.support.connectors import TRANSPORTS
from tests.support.http2_caller import Http2Caller
from tests.support.scripted_connector import ScriptedConnector
from tests.support.scripted_gateway import Peer, ScriptedGateway
from tests.support.scripted_http2 import message
from tests.support.waiting import eventually

pytestmark = pytest.mark.costly

TIMEOUT = 30.0
KINDS = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")
NO_METHODS = ("", "/", "//", "/a.B/", "/a.B", "a.B", "//Say")
Metadata = tuple[tuple[str, Any], ...]


class Servicer:
    """A method of each kind. Each says back the caller's binary metadata, and may be held."""

    def __init__(self) -> None:
        self.began = threading.Semaphore(0)
        self.may_end = threading.Event()
        self.remaining: list[float] = []

    def begin(self, context: Any) -> None:
        self.remaining.append(context.time_remaining())
        metadata = dict(context.invocation_metadata())
        told = tuple((key, metadata[key]) for key in metadata if key.endswith("-bin"))
        context.send_initial_metadata(told)
        context.set_trailing_metadata(told)

    def hold(self, context: Any) -> None:
        self.began.release()
        if ("held", "yes") in map(tuple, context.invocation_metadata()):
            self.may_end.wait(TIMEOUT)

    def unary_unary(self, request: bytes, context: Any) -> bytes:
        self.begin(context)
        self.hold(context)
        return request

    def unary_stream(self, request: bytes, context: Any) -> Iterator[bytes]:
        self.begin(context)
        yield request
        self.hold(context)
        yield request

    def stream_unary(self, requests: Iterator[bytes], context: Any) -> bytes:
        self.begin(context)
        first = next(requests)
        self.hold(context)
        return b"".join((first, *requests))

    def stream_stream(self, requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
        self.begin(context)
        yield next(requests)
        self.hold(context)
        yield from requests

    def generic(self) -> Any:
        methods = {
            kind: getattr(grpc, f"{kind}_rpc_method_handler")(getattr(self, kind)) for kind in KINDS
        }
        return grpc.method_handlers_generic_handler("a.B", methods)


EXPECTED = {
    "unary_unary": [b"a"],
    "unary_stream": [b"a", b"a"],
    "stream_unary": [b"ab"],
    "stream_stream": [b"a", b"b"],
}


class Scene:
    """A gateway, a connector that serves the servicer, and a caller."""

    def __init__(self, stack: ExitStack, transport: dict[str, Any]) -> None:
        self.servicer = Servicer()
        self.gateway = stack.enter_context(Gateway(api_keys="key"))
        options = {"drain_timeout": 2 * TIMEOUT, **transport}
        self.connector = Connector(self.gateway.address, api_key="key", **options)
        self.connector.add_generic_rpc_handlers([self.servicer.generic()])
        stack.enter_context(self.connector)
        stack.callback(self.connector.abort)  # a gateway that has stopped is not waited for
        stack.callback(self.servicer.may_end.set)
        self.connector.wait_ready(TIMEOUT)
        self.channel = stack.enter_context(grpc.insecure_channel(self.gateway.address))

    def call(self, kind: str, metadata: Metadata = (), timeout: float | None = TIMEOUT) -> Any:
        """A call that goes on beside what follows."""
        method = getattr(self.channel, kind)(f"/a.B/{kind}")
        argument: Any = iter([b"a", b"b"]) if kind.startswith("stream_") else b"a"
        begin = method if kind.endswith("_stream") else method.future
        return begin(argument, timeout=timeout, metadata=metadata)

    def hold(self, kind: str, metadata: Metadata = ()) -> Any:
        """A call that is with its handler, until that may end."""
        call = self.call(kind, (("held", "yes"), *metadata))
        assert self.servicer.began.acquire(timeout=TIMEOUT)
        return call

    def assert_serves(self) -> None:
        """A call of each kind is answered."""
        for kind in KINDS:
            assert answers(self.call(kind), kind) == EXPECTED[kind]


def answers(call: Any, kind: str) -> list[bytes]:
    """All that a call is answered with. Raises what it ends with."""
    return list(call) if kind.endswith("_stream") else [call.result(TIMEOUT)]


@pytest.fixture(params=TRANSPORTS.values(), ids=TRANSPORTS)
def transport(request: pytest.FixtureRequest) -> dict[str, Any]:
    options: dict[str, Any] = request.param
    return options


@pytest.fixture
def scene(transport: dict[str, Any]) -> Iterator[Scene]:
    with ExitStack() as stack:
        yield Scene(stack, transport)


# An empty method


@pytest.mark.parametrize("kind", KINDS)
def test_a_caller_that_names_no_method_costs_nobody_else_anything(scene: Scene, kind: str) -> None:
    connection_id = scene.connector.connection_id
    beside = scene.hold(kind)
    with Http2Caller(scene.gateway.address) as caller:
        for number, path in enumerate(NO_METHODS):
            for stream_id, is_whole in ((4 * number + 1, True), (4 * number + 3, False)):
                caller.say(
                    HeadersFrame(stream_id, caller.request_block(path), flags=["END_HEADERS"]),
                    DataFrame(stream_id, message(b"a"), flags=["END_STREAM"] if is_whole else []),
                )
                if not is_whole:
                    caller.say(DataFrame(stream_id, message(b"b"), flags=["END_STREAM"]))
                answer = caller.hears_answer(stream_id)
                # UNIMPLEMENTED; what is no path at all HTTP/2 itself refuses.
                assert not answer.blocks or answer.status == "12", path
    scene.servicer.may_end.set()
    assert answers(beside, kind) == EXPECTED[kind]
    scene.assert_serves()
    assert scene.connector.connection_id == connection_id


def test_a_connector_that_asks_for_no_method_is_told_so(scene: Scene) -> None:
    with ScriptedConnector(scene.gateway.address) as asker:
        asker.register("x.X")
        for number, path in enumerate(NO_METHODS):
            asker.ask(f"r{number}", path)
            response = asker.receive_response()
            assert response.request_id == f"r{number}"
            # What is no path at all is the asker's own fault.
            assert response.headers["grpc-status"] in ("3", "12"), path
    scene.assert_serves()


@pytest.fixture
def peer(transport: dict[str, Any]) -> Iterator[Peer]:
    """A gateway's side of the tunnel, to a connector that serves."""
    with ExitStack() as stack:
        announces = {"revconn-features": "cancel,streams"}
        gateway = stack.enter_context(ScriptedGateway(announces=announces))
        connector = Connector(gateway.address, api_key="key", **transport)
        connector.add_generic_rpc_handlers([Servicer().generic()])
        stack.enter_context(connector)
        peer = gateway.accept_ready()
        yield peer
        peer.end()


def says(peer: Peer, stream_id: int, path: str, **more: Any) -> None:
    frame = StreamFrame(stream_id=stream_id, opening=StreamOpening(method_path=path), **more)
    peer.say(ConnectionMessage(stream=frame))


def test_a_gateway_that_asks_for_no_method_is_answered_and_goes_on(peer: Peer) -> None:
    for number, path in enumerate(NO_METHODS):
        asked = ForwardRequest(request_id=f"r{number}", method_path=path, timeout_seconds=30)
        peer.say(ConnectionMessage(request=asked))
        assert peer.answer(f"r{number}").headers["grpc-status"] == "12", path
    peer.request("good", "/a.B/unary_unary", b"a")
    assert peer.answer("good").payload == b"a"


def test_a_gateway_that_opens_a_stream_of_no_method_is_answered_and_goes_on(peer: Peer) -> None:
    says(peer, 1, "/a.B/stream_stream", messages=[b"a"])
    while not peer.hears("stream").messages:
        pass
    for number, path in enumerate(NO_METHODS):
        for stream_id, more in (
            (10 * number + 2, {"messages": [b"a"], "half_close": True}),
            (10 * number + 3, {"messages": [b"a"]}),
            (10 * number + 4, {}),
        ):
            says(peer, stream_id, path, **more)
            heard = peer.hears("stream")
            assert heard.stream_id == stream_id
            assert heard.status.code == 12, path
    goes_on = StreamFrame(stream_id=1, messages=[b"b"], half_close=True)
    peer.say(ConnectionMessage(stream=goes_on))
    seen: list[bytes] = []
    frame = StreamFrame()
    while not frame.HasField("status"):
        frame = peer.hears("stream")
        assert frame.stream_id == 1
        seen += frame.messages
    assert (seen, frame.status.code) == ([b"b"], 0)


# Binary metadata


def pairs(metadata: Any) -> set[tuple[str, bytes]]:
    """Metadata of names that do not repeat."""
    return {tuple(pair) for pair in metadata}


@pytest.mark.parametrize("kind", KINDS)
def test_binary_metadata_is_its_own_calls_while_others_are_in_flight(
    scene: Scene, kind: str
) -> None:
    def metadata_of(number: int) -> Metadata:
        draw = random.Random(number)
        sizes = (0, 1, 2, 3, 100, 1000)
        return tuple(
            (f"k{size}-bin", bytes(draw.randrange(256) for _ in range(size))) for size in sizes
        )

    held = scene.hold(kind, metadata_of(0))

    def call(number: int) -> None:
        each = KINDS[number % len(KINDS)]
        metadata = metadata_of(number)
        beside = scene.call(each, metadata)
        assert answers(beside, each) == EXPECTED[each]
        assert pairs(beside.initial_metadata()) == pairs(metadata)
        assert pairs(beside.trailing_metadata()) == pairs(metadata)

    with ThreadPoolExecutor(8) as executor:
        assert list(executor.map(call, range(1, 101))) == [None] * 100
    scene.servicer.may_end.set()
    assert answers(held, kind) == EXPECTED[kind]
    assert pairs(held.initial_metadata()) == pairs(metadata_of(0))
    assert pairs(held.trailing_metadata()) == pairs(metadata_of(0))


# Deadlines


@pytest.mark.parametrize("kind", KINDS)
def test_a_handler_sees_its_callers_deadline(scene: Scene, kind: str) -> None:
    began = time.monotonic()
    assert answers(scene.call(kind, timeout=20.0), kind) == EXPECTED[kind]
    took = time.monotonic() - began
    (remaining,) = scene.servicer.remaining
    # On its way it is rounded up: gRPC writes so many digits.
    assert 20.0 - took <= remaining <= 20.5


@pytest.mark.parametrize("kind", KINDS)
def test_a_handler_whose_caller_has_no_deadline_sees_none(scene: Scene, kind: str) -> None:
    assert answers(scene.call(kind, timeout=None), kind) == EXPECTED[kind]
    (remaining,) = scene.servicer.remaining
    # A unary call has the gateway's request_timeout.
    assert remaining == float("inf") if kind != "unary_unary" else 0 < remaining <= 30.5


# The graceful stop


def stop_connector(scene: Scene) -> None:
    scene.connector.stop()


def stop_gateway(scene: Scene) -> None:
    scene.gateway.stop(2 * TIMEOUT)


STOPS = [stop_connector, stop_gateway]


@pytest.mark.parametrize("stop", STOPS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_graceful_stop_lets_a_running_call_come_to_its_end(
    scene: Scene, kind: str, stop: Callable[[Scene], None]
) -> None:
    call = scene.hold(kind)
    began = time.monotonic()
    stopping = threading.Thread(target=stop, args=(scene,))
    stopping.start()
    if stop is stop_connector:
        eventually(lambda: scene.connector.state.name == "DRAINING")
    else:
        eventually(lambda: scene.gateway._thread._serving._callers.is_leaving)
    assert not call.done()
    scene.servicer.may_end.set()
    assert answers(call, kind) == EXPECTED[kind]
    assert call.code() is grpc.StatusCode.OK
    stopping.join(TIMEOUT)
    assert not stopping.is_alive()
    assert time.monotonic() - began < TIMEOUT


@pytest.mark.parametrize("stop", STOPS)
@pytest.mark.parametrize("has_served", [False, True])
def test_a_graceful_stop_with_no_call_running_waits_for_nothing(
    scene: Scene, stop: Callable[[Scene], None], *, has_served: bool
) -> None:
    if has_served:
        scene.assert_serves()
    began = time.monotonic()
    stop(scene)
    assert time.monotonic() - began < TIMEOUT
    assert scene.gateway.connections() == ()
