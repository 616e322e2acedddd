"""What applications and callers do wrong has a status and one line in the log, and harms no other.

Of what outside callers do wrong there is no line, which they might write without end: the gateway
counts it.
"""

from __future__ import annotations

import collections
import logging
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, NamedTuple

import grpc
import pytest

from revconn import ConfigurationError, Connector, Request
from revconn.gateway import Gateway
from tests.support.connectors import TRANSPORTS
from tests.support.waiting import eventually

pytestmark = pytest.mark.costly

TIMEOUT = 30.0
LIMIT = 100_000
KINDS = {
    "unary_unary": "unary",
    "unary_stream": "server_streaming",
    "stream_unary": "client_streaming",
    "stream_stream": "bidirectional_streaming",
}
Code = grpc.StatusCode


# Servicers' methods


def says(argument: Any, context: Any) -> bytes:
    return b"said"


def yields(argument: Any, context: Any) -> Iterator[bytes]:
    yield b"said"


def repeats(messages: Iterator[bytes], context: Any) -> Iterator[bytes]:
    yield from messages


def joins(messages: Iterator[bytes], context: Any) -> bytes:
    return b"".join(messages)


GOOD = dict(zip(KINDS, (says, yields, joins, repeats)))


def is_not_implemented(argument: Any, context: Any) -> Any:
    """As generated for a method that a servicer lacks."""
    context.set_code(Code.UNIMPLEMENTED)
    context.set_details("Method not implemented!")
    raise NotImplementedError("Method not implemented!")


def returns_a_number(argument: Any, context: Any) -> Any:
    return 7


def yields_a_number(argument: Any, context: Any) -> Iterator[Any]:
    yield b"said"
    yield 7


def raises_half_way(argument: Any, context: Any) -> Iterator[bytes]:
    yield b"said"
    raise RuntimeError("on purpose")


def names_illegally(argument: Any, context: Any) -> bytes:
    context.send_initial_metadata((("Not Legal", "1"),))
    return b"said"


def names_illegally_at_once(argument: Any, context: Any) -> Iterator[bytes]:
    context.send_initial_metadata((("Not Legal", "1"),))
    yield b"said"


def names_illegally_in_the_end(argument: Any, context: Any) -> Iterator[bytes]:
    yield b"said"
    context.set_trailing_metadata((("grpc-status", "0"),))


def fails(message: Any) -> Any:
    raise ValueError("on purpose")


# And plain handlers


def plain_raises_half_way(request: Request) -> Iterator[bytes]:
    yield b"said"
    raise RuntimeError("on purpose")


def plain_returns_a_number(request: Request) -> Any:
    return 7


def plain_yields_a_number(request: Request) -> Iterator[Any]:
    yield b"said"
    yield 7


class Case(NamedTuple):
    """A method, and what its caller and the operator are told."""

    kind: str
    method: Any
    code: grpc.StatusCode
    details: str
    line: str
    answers: tuple[bytes, ...] = ()

    @property
    def path(self) -> str:
        is_plain = callable(self.method)
        return f"/{'p.P' if is_plain else 'a.B'}/Bad"


def servicers(kind: str, behavior: Any, code: Code, details: str, line: str, *more: Any) -> Case:
    method = getattr(grpc, f"{kind}_rpc_method_handler")(behavior)
    return Case(kind, method, code, details, line, *more)


def coded(kind: str, details: str, line: str, **coding: Any) -> Case:
    method = getattr(grpc, f"{kind}_rpc_method_handler")(GOOD[kind], **coding)
    return Case(kind, method, Code.INTERNAL, details, line)


FAILED, SAID = "its servicer failed", (b"said",)
ILLEGAL = "not a name that an application may set; use 0-9 a-z _ - . and neither grpc- nor HTTP's"
NO_NUMBER = "Exception calling application: 'int' object is not iterable"
NOT_SERIALIZED = "Failed to serialize response!"
CASES: dict[str, Case] = {}

for kind in KINDS:
    is_streamed = kind.endswith("_stream")
    response = "a response" if kind != "unary_unary" else "the response"
    request = "a request" if kind != "unary_unary" else "the request"
    # What a servicer lacks
    told = Code.UNIMPLEMENTED, "Method not implemented!", FAILED
    CASES[f"{kind}, missing"] = servicers(kind, is_not_implemented, *told)
    # The wrong kind
    serializing = Code.INTERNAL, NOT_SERIALIZED, f"serializing {response} failed"
    told = (Code.UNKNOWN, NO_NUMBER, FAILED) if is_streamed else serializing
    CASES[f"{kind}, a number"] = servicers(kind, returns_a_number, *told)
    other = says if is_streamed else yields
    CASES[f"{kind}, of another kind"] = servicers(kind, other, *serializing)
    said = "failed" if is_streamed else "gave no answer"
    line = f"handler plain_returns_a_number {said}"
    if kind == "unary_unary":
        line = "handler plain_returns_a_number returned int; return bytes"
    told = Code.INTERNAL, "internal error", line
    CASES[f"{kind}, a plain number"] = Case(kind, plain_returns_a_number, *told)
    # What raises
    CASES[f"{kind}, a serializer"] = coded(
        kind, NOT_SERIALIZED, f"serializing {response} failed", response_serializer=fails
    )
    CASES[f"{kind}, a deserializer"] = coded(
        kind,
        "Exception deserializing request!",
        f"deserializing {request} failed",
        request_deserializer=fails,
    )
    # Illegal names
    doing = "iterating responses" if is_streamed else "calling application"
    told = Code.UNKNOWN, f"Exception {doing}: metadata 'Not Legal': {ILLEGAL}", FAILED
    illegal = names_illegally_at_once if is_streamed else names_illegally
    CASES[f"{kind}, illegal metadata"] = servicers(kind, illegal, *told)
    if not is_streamed:
        continue
    # Half-way
    told = Code.UNKNOWN, "Exception iterating responses: on purpose", FAILED, SAID
    CASES[f"{kind}, raises half-way"] = servicers(kind, raises_half_way, *told)
    CASES[f"{kind}, a number half-way"] = servicers(kind, yields_a_number, *serializing, SAID)
    told = Code.INTERNAL, "internal error", "handler plain_raises_half_way failed", SAID
    CASES[f"{kind}, plain raises half-way"] = Case(kind, plain_raises_half_way, *told)
    told = Code.INTERNAL, "internal error", "handler plain_yields_a_number gave no answer", SAID
    CASES[f"{kind}, a plain number half-way"] = Case(kind, plain_yields_a_number, *told)
    told = Code.UNKNOWN, f"Exception iterating responses: metadata 'grpc-status': {ILLEGAL}", FAILED
    CASES[f"{kind}, illegal trailing metadata"] = servicers(
        kind, names_illegally_in_the_end, *told, SAID
    )


class Scene:
    """A gateway, a connector with a good servicer and whatever a test adds, and a caller."""

    def __init__(
        self, stack: ExitStack, transport: dict[str, Any], caplog: pytest.LogCaptureFixture
    ) -> None:
        self._stack = stack
        self._caplog = caplog
        limits = {"max_message_bytes": LIMIT, "max_response_bytes": LIMIT}
        self.gateway = stack.enter_context(Gateway(api_keys="key", **limits))
        self.connector = Connector(self.gateway.address, api_key="key", **transport)
        good = {
            kind: getattr(grpc, f"{kind}_rpc_method_handler")(each) for kind, each in GOOD.items()
        }
        self.add_servicer("g.G", **good)
        self.may_go_on = threading.Event()

    def add_servicer(self, service: str, **methods: Any) -> None:
        generic = grpc.method_handlers_generic_handler(service, methods)
        self.connector.add_generic_rpc_handlers([generic])

    def start(self) -> None:
        """Serve, and have a good call begin that goes on beside whatever comes."""
        self._stack.enter_context(self.connector)
        self._stack.callback(self.may_go_on.set)
        self.connector.wait_ready(TIMEOUT)
        self.channel = self._stack.enter_context(grpc.insecure_channel(self.gateway.address))

        def talk() -> Iterator[bytes]:
            yield b"1"
            self.may_go_on.wait(TIMEOUT)
            yield b"2"

        self.beside = self.channel.stream_stream("/g.G/stream_stream")(talk(), timeout=TIMEOUT)
        assert next(self.beside) == b"1"
        self.connection_id = self.connector.connection_id

    def call(self, kind: str, path: str, *messages: bytes) -> tuple[Any, ...]:
        """What a caller gets: answers, code and details."""
        method = getattr(self.channel, kind)(path)
        argument: Any = iter(messages) if kind.startswith("stream_") else messages[0]
        answers: list[bytes] = []
        outcome: Any
        try:
            if kind.endswith("_stream"):
                outcome = method(argument, timeout=TIMEOUT)
                answers.extend(outcome)
            else:
                answer, outcome = method.with_call(argument, timeout=TIMEOUT)
                answers.append(answer)
        except grpc.RpcError as error:
            outcome = error
        return tuple(answers), outcome.code(), outcome.details()

    def lines(self) -> list[str]:
        """What the operator is told of trouble."""
        records = self._caplog.records
        return [each.getMessage() for each in records if each.levelno >= logging.WARNING]

    def assert_all_else_is_well(self) -> None:
        """The call beside comes to its end, and others come after, on the same connection."""
        self.may_go_on.set()
        assert list(self.beside) == [b"2"]
        for kind in KINDS:
            expected = b"x" if kind.startswith("stream_") else b"said"
            path = f"/g.G/{kind}"
            assert self.call(kind, path, b"x")[:2] == ((expected,), Code.OK)
        assert self.connector.connection_id == self.connection_id
        eventually(lambda: self.connector.stats()["in_flight"] == 0)


@pytest.fixture(params=TRANSPORTS.values(), ids=TRANSPORTS)
def scene(request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture) -> Iterator[Scene]:
    with ExitStack() as stack:
        yield Scene(stack, request.param, caplog)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_method_that_does_wrong_costs_its_own_call_alone(scene: Scene, case: Case) -> None:
    if callable(case.method):
        kind: Any = KINDS[case.kind]
        scene.connector.add_method(case.path, case.method, kind=kind)
    else:
        scene.add_servicer("a.B", Bad=case.method)
    scene.start()
    answers, code, details = scene.call(case.kind, case.path, b"1", b"2")
    assert (answers, code) == (case.answers, case.code)
    assert details.startswith(case.details)
    scene.assert_all_else_is_well()
    (line,) = scene.lines()
    assert line.startswith(f"Request('{case.path}', request_id='")
    assert f"'): {case.line}" in line


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_over_the_limit_costs_its_own_call_alone(scene: Scene, kind: str) -> None:
    def answers(argument: Any, context: Any) -> Any:
        large = b"x" * (LIMIT + 1)
        return iter([b"said", large, b"more"]) if kind.endswith("_stream") else large

    scene.add_servicer("a.B", Bad=getattr(grpc, f"{kind}_rpc_method_handler")(answers))
    scene.start()
    _, code, details = scene.call(kind, "/a.B/Bad", b"1")
    assert code is Code.RESOURCE_EXHAUSTED
    assert "100,001 bytes" in details
    scene.assert_all_else_is_well()
    (line,) = scene.lines()
    assert line.startswith(f"connection {scene.connection_id}: ignored ")
    assert "/a.B/Bad: " in line
    assert "100,001 bytes" in line


@pytest.mark.parametrize("kind", KINDS)
def test_a_request_over_the_limit_costs_its_own_call_alone(scene: Scene, kind: str) -> None:
    scene.start()
    messages = [b"1"] if kind.startswith("stream_") else []
    seen = scene.call(kind, f"/g.G/{kind}", *messages, b"x" * (LIMIT + 1))
    assert seen[1] is Code.RESOURCE_EXHAUSTED
    assert seen[2].endswith("of 100,001 bytes exceeds 100,000 (the gateway's max_message_bytes)")
    scene.assert_all_else_is_well()
    assert scene.lines() == []
    assert scene.gateway.stats()["refused_max_message_bytes"] == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_method_that_nobody_has_costs_its_own_call_alone(scene: Scene, kind: str) -> None:
    scene.start()
    answers, code, details = scene.call(kind, "/g.G/Missing", b"1", b"2")
    assert (answers, code) == ((), Code.UNIMPLEMENTED)
    several = "the request is not exactly one message, and the method does not stream"
    assert details == (several if kind.startswith("stream_") else "Method not found!")
    scene.assert_all_else_is_well()
    assert scene.lines() == []


def test_a_stream_that_never_ends_is_given_up_at_a_drain_and_one_that_ends_is_not(
    scene: Scene,
) -> None:
    is_over = threading.Event()
    message = b"x" * 50_000  # few of them are under way when it ends

    def endless(argument: Any, context: Any) -> Iterator[bytes]:
        try:
            while True:
                yield message
        finally:
            is_over.set()

    scene.add_servicer("a.B", Bad=grpc.unary_stream_rpc_method_handler(endless))
    scene.start()
    bad = scene.channel.unary_stream("/a.B/Bad")(b"1", timeout=TIMEOUT)
    assert next(bad) == message
    stopping = threading.Thread(target=scene.connector.stop, args=(2.0,))
    stopping.start()
    eventually(lambda: scene.connector.state.name == "DRAINING")
    scene.may_go_on.set()
    assert list(scene.beside) == [b"2"]
    stopping.join(TIMEOUT)
    with pytest.raises(grpc.RpcError) as raised:
        collections.deque(bad, maxlen=0)
    assert raised.value.code() is Code.UNAVAILABLE
    assert raised.value.details() == "the service stopped before it could answer"
    assert is_over.wait(TIMEOUT)
    (line,) = scene.lines()
    assert line.startswith("gave up Request('/a.B/Bad', request_id='")
    assert line.endswith(": its handler was between two answers when the time to stop ran out")


def test_a_method_that_is_registered_twice_is_refused_and_the_first_one_serves(
    scene: Scene,
) -> None:
    first = {"Say": grpc.unary_unary_rpc_method_handler(says)}
    scene.add_servicer("a.B", **first)
    with pytest.raises(ConfigurationError, match=r"handler of: there is one already .*a\.B"):
        scene.add_servicer("a.B", Say=grpc.unary_unary_rpc_method_handler(is_not_implemented))
    scene.connector.add_registered_method_handlers("a.B", first)
    with pytest.raises(ConfigurationError, match=r"handler of: there is one already .*/a\.B/Say"):
        scene.connector.add_registered_method_handlers("a.B", first)
    scene.connector.add_method("/p.P/Down", plain_yields_a_number)
    with pytest.raises(ConfigurationError, match=r"there is one already"):
        scene.connector.add_method("/p.P/Down", plain_raises_half_way)
    scene.start()
    assert scene.call("unary_unary", "/a.B/Say", b"1")[:2] == (SAID, Code.OK)
    scene.assert_all_else_is_well()
    assert scene.lines() == []
