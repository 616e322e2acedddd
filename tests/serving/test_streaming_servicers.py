"""A streaming servicer behind a connector does what it does behind grpc.server."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any, Callable, NamedTuple

import grpc
import pytest

from revconn import Connector
from revconn.gateway import Gateway
from tests.support.connectors import TRANSPORTS

SERVICE = "testing.Streams"
TIMEOUT = 30.0


class Seen(NamedTuple):
    """All that a caller gets of a call."""

    code: grpc.StatusCode
    details: str
    responses: list[bytes]
    initial: tuple[tuple[str, Any], ...]
    trailing: tuple[tuple[str, Any], ...]


def deserialize(data: bytes) -> str:
    return data.decode()


def serialize(text: str) -> bytes:
    return text.encode()


# One request, many answers


def counts(text: str, context: Any) -> Iterator[str]:
    for number in range(int(text)):
        yield str(number)


def with_metadata(text: str, context: Any) -> Iterator[str]:
    context.send_initial_metadata((("a", "1"), ("a", "2"), ("b-bin", b"\x00\xff")))
    yield text
    context.set_trailing_metadata((("c", "1"), ("c", "2"), ("d-bin", b"")))
    yield text


def late_initial(text: str, context: Any) -> Iterator[str]:
    yield text
    context.send_initial_metadata((("a", "1"),))


def raises_half_way(text: str, context: Any) -> Iterator[str]:
    yield text
    raise RuntimeError("on purpose: ü")


def aborts_half_way(text: str, context: Any) -> Iterator[str]:
    yield text
    context.abort(grpc.StatusCode.DATA_LOSS, "lost: 100 %")


def aborts_at_once(text: str, context: Any) -> Iterator[str]:
    context.set_trailing_metadata((("why", "because"),))
    context.abort(grpc.StatusCode.NOT_FOUND, "none")
    yield text


def sets_a_code(text: str, context: Any) -> Iterator[str]:
    yield text
    context.set_code(grpc.StatusCode.OUT_OF_RANGE)
    context.set_details("the end")


def yields_nothing(text: str, context: Any) -> Iterator[str]:
    yield from ()


def yields_empty(text: str, context: Any) -> Iterator[str]:
    yield ""
    yield ""


def yields_the_wrong_thing(text: str, context: Any) -> Iterator[Any]:
    yield text
    yield 7


def raises_as_it_is_called(text: str, context: Any) -> Iterator[str]:
    raise RuntimeError("not a generator")


def asked(text: str, context: Any) -> Iterator[str]:
    metadata = [tuple(pair) for pair in context.invocation_metadata() if pair.key != "user-agent"]
    yield repr((metadata, context.code(), context.details(), context.trailing_metadata()))
    yield str(0 < context.time_remaining() < TIMEOUT + 1 and context.is_active())


# Many requests, one answer


def joins(texts: Iterator[str], context: Any) -> str:
    return ",".join(texts)


def answers_early(texts: Iterator[str], context: Any) -> str:
    return next(texts)


def fails_while_reading(texts: Iterator[str], context: Any) -> str:
    next(texts)
    raise RuntimeError("on purpose")


# Both


def echoes(texts: Iterator[str], context: Any) -> Iterator[str]:
    yield from texts


def ends_early(texts: Iterator[str], context: Any) -> Iterator[str]:
    yield next(texts)


def speaks_first(texts: Iterator[str], context: Any) -> Iterator[str]:
    yield "hello"
    yield from texts
    yield "bye"


KINDS: dict[str, tuple[Callable[..., Any], ...]] = {
    "unary_stream": (
        counts, with_metadata, late_initial, raises_half_way, aborts_half_way,
        aborts_at_once, sets_a_code, yields_nothing, yields_empty, yields_the_wrong_thing,
        raises_as_it_is_called, asked,
    ),
    "stream_unary": (joins, answers_early, fails_while_reading),
    "stream_stream": (echoes, ends_early, speaks_first),
}  # fmt: skip


def handlers() -> Any:
    methods = {}
    for kind, behaviors in KINDS.items():
        make = getattr(grpc, f"{kind}_rpc_method_handler")
        for behavior in behaviors:
            methods[behavior.__name__] = make(
                behavior, request_deserializer=deserialize, response_serializer=serialize
            )
    return grpc.method_handlers_generic_handler(SERVICE, methods)


@pytest.fixture(params=TRANSPORTS.values(), ids=TRANSPORTS)
def channels(request: pytest.FixtureRequest) -> Iterator[list[grpc.Channel]]:
    """To the same servicer: behind grpc.server, and behind a connector."""
    with ExitStack() as stack:
        server = grpc.server(ThreadPoolExecutor(4))
        server.add_generic_rpc_handlers((handlers(),))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        stack.callback(lambda: server.stop(0).wait())
        gateway = stack.enter_context(Gateway(api_keys="key"))
        connector = Connector(gateway.address, api_key="key", **request.param)
        connector.add_generic_rpc_handlers((handlers(),))
        stack.enter_context(connector)
        connector.wait_ready(TIMEOUT)
        targets = f"127.0.0.1:{port}", gateway.address
        yield [stack.enter_context(grpc.insecure_channel(target)) for target in targets]


def call(channel: grpc.Channel, kind: str, name: str, requests: list[bytes]) -> Seen:
    method = getattr(channel, kind)(f"/{SERVICE}/{name}")
    metadata = (("k", "1"), ("k", "2"), ("b-bin", b"\x00\xff"))
    argument: Any = iter(requests) if kind.startswith("stream") else requests[0]
    responses: list[bytes] = []
    outcome: Any
    try:
        if kind.endswith("_stream"):
            outcome = method(argument, timeout=TIMEOUT, metadata=metadata)
            responses.extend(outcome)
        else:
            response, outcome = method.with_call(argument, timeout=TIMEOUT, metadata=metadata)
            responses.append(response)
    except grpc.RpcError as error:
        outcome = error
    return Seen(
        outcome.code(),
        outcome.details() or "",
        responses,
        tuple(map(tuple, outcome.initial_metadata())),
        tuple(map(tuple, outcome.trailing_metadata())),
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_caller_gets_what_it_would_get_of_grpcs_own_server(
    channels: list[grpc.Channel], kind: str
) -> None:
    direct, tunnelled = channels
    requests = [b"3", b"4", b"", b"5" * 1000]
    for name in (each.__name__ for each in KINDS[kind]):
        assert call(tunnelled, kind, name, requests) == call(direct, kind, name, requests), name
    assert call(tunnelled, kind, "missing", requests).code is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("kind", ["stream_unary", "stream_stream"])
def test_a_stream_without_messages_is_one_all_the_same(
    channels: list[grpc.Channel], kind: str
) -> None:
    direct, tunnelled = channels
    for each in KINDS[kind]:
        if each not in (ends_early, answers_early, fails_while_reading):
            expected = call(direct, kind, each.__name__, [])
            assert call(tunnelled, kind, each.__name__, []) == expected


def test_a_message_that_does_not_decode_costs_its_own_call(channels: list[grpc.Channel]) -> None:
    # Of grpc's own server such a call may keep a thread for ever: it is not asked.
    _, tunnelled = channels
    for kind, name in (("unary_stream", "counts"), ("stream_unary", "joins")):
        seen = call(tunnelled, kind, name, [b"\xff"])
        assert (seen.code, seen.details) == (
            grpc.StatusCode.INTERNAL,
            "Exception deserializing request!",
        )
    assert call(tunnelled, "stream_unary", "joins", [b"a", b"b"]).responses == [b"a,b"]


@pytest.mark.costly
def test_many_messages_come_in_their_order_each_way(channels: list[grpc.Channel]) -> None:
    _, tunnelled = channels
    seen = call(tunnelled, "unary_stream", "counts", [b"5000"])
    assert seen.responses == [str(number).encode() for number in range(5000)]
    requests = [str(number).encode() for number in range(3000)]
    assert call(tunnelled, "stream_stream", "echoes", requests).responses == requests
    assert call(tunnelled, "stream_unary", "joins", requests).responses == [b",".join(requests)]


def test_messages_of_all_sizes_come_whole(channels: list[grpc.Channel]) -> None:
    _, tunnelled = channels
    sizes = [0, 1, 1023, 1024, 16 << 10, (16 << 10) + 1, 64 << 10, 300_000, 3_000_000, 5]
    requests = [b"x" * size for size in sizes]
    assert call(tunnelled, "stream_stream", "echoes", requests).responses == requests


def test_a_conversation_goes_to_and_fro(channels: list[grpc.Channel]) -> None:
    said = threading.Semaphore(1)

    def ask() -> Iterator[bytes]:
        for number in range(200):
            said.acquire(timeout=TIMEOUT)
            yield str(number).encode()

    echo = channels[1].stream_stream(f"/{SERVICE}/echoes")
    for number, response in enumerate(echo(ask(), timeout=TIMEOUT)):
        assert response == str(number).encode()
        said.release()
    assert number == 199


class Shouting(grpc.ServerInterceptor):
    """Puts another method in the place of each, of the same kind."""

    def __init__(self, seen: list[str]) -> None:
        self.seen = seen

    def intercept_service(self, continuation: Any, details: Any) -> Any:
        self.seen.append(details.method)
        handler = continuation(details)
        if handler is None:
            return None
        given = {
            "request_deserializer": handler.request_deserializer,
            "response_serializer": handler.response_serializer,
        }
        if handler.unary_stream:

            def down(request: str, context: Any) -> Iterator[str]:
                return (f"{answer}!" for answer in handler.unary_stream(request, context))

            return grpc.unary_stream_rpc_method_handler(down, **given)
        if handler.stream_unary:

            def up(requests: Iterator[str], context: Any) -> str:
                return f"{handler.stream_unary((f'{each}?' for each in requests), context)}!"

            return grpc.stream_unary_rpc_method_handler(up, **given)

        def both(requests: Iterator[str], context: Any) -> Iterator[str]:
            return (f"{answer}!" for answer in handler.stream_stream(requests, context))

        return grpc.stream_stream_rpc_method_handler(both, **given)


def test_interceptors_stand_around_streaming_methods() -> None:
    seen: list[str] = []
    with Gateway(api_keys="key") as gateway:
        connector = Connector(gateway.address, api_key="key", interceptors=[Shouting(seen)])
        connector.add_generic_rpc_handlers((handlers(),))
        with connector, grpc.insecure_channel(gateway.address) as channel:
            connector.wait_ready(TIMEOUT)
            assert call(channel, "unary_stream", "counts", [b"2"]).responses == [b"0!", b"1!"]
            assert call(channel, "stream_unary", "joins", [b"a", b"b"]).responses == [b"a?,b?!"]
            assert call(channel, "stream_stream", "echoes", [b"a"]).responses == [b"a!"]
    assert seen == [f"/{SERVICE}/{name}" for name in ("counts", "joins", "echoes")]
