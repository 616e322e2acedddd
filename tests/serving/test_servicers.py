"""A servicer behind a connector does what it does behind grpc.server: both are called alike."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any, Callable, NamedTuple

import grpc
import pytest

from revconn import Connector
from revconn._proto.registry_pb2 import ForwardRequest
from revconn.gateway import Gateway

SERVICE = "testing.Unary"
TIMEOUT = 30.0

Behavior = Callable[[bytes, grpc.ServicerContext], Any]


class Seen(NamedTuple):
    """All that a caller gets of a call."""

    code: grpc.StatusCode
    details: str
    response: bytes | None
    initial: tuple[tuple[str, Any], ...]
    trailing: tuple[tuple[str, Any], ...]


def handlers_of(behaviors: dict[str, Behavior]) -> dict[str, Any]:
    return {
        name: grpc.unary_unary_rpc_method_handler(
            behavior, request_deserializer=deserialize, response_serializer=serialize
        )
        for name, behavior in behaviors.items()
    }


def deserialize(data: bytes) -> str:
    return data.decode()


def serialize(text: str) -> bytes:
    return text.encode()


@pytest.fixture
def resources() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def serve(resources: ExitStack) -> Callable[..., list[grpc.Channel]]:
    """Channels to the same behaviors: behind grpc.server, and behind a connector."""

    def serve(
        behaviors: dict[str, Behavior], interceptors: tuple[Any, ...] = ()
    ) -> list[grpc.Channel]:
        generic = grpc.method_handlers_generic_handler(SERVICE, handlers_of(behaviors))
        server = grpc.server(ThreadPoolExecutor(4), interceptors=interceptors)
        server.add_generic_rpc_handlers((generic,))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        resources.callback(lambda: server.stop(0).wait())
        gateway = resources.enter_context(Gateway(api_keys="key"))
        connector = Connector(gateway.address, api_key="key", interceptors=interceptors)
        connector.add_generic_rpc_handlers((generic,))
        resources.enter_context(connector)
        connector.wait_ready(TIMEOUT)
        options = [("grpc.max_metadata_size", 64 << 10)]
        targets = f"127.0.0.1:{port}", gateway.address
        return [
            resources.enter_context(grpc.insecure_channel(target, options)) for target in targets
        ]

    return serve


def call(channel: grpc.Channel, name: str, request: bytes = b"hi", **options: Any) -> Seen:
    method = channel.unary_unary(f"/{SERVICE}/{name}")
    response = None
    try:
        response, outcome = method.with_call(request, timeout=TIMEOUT, **options)
    except grpc.RpcError as error:
        outcome = error
    return Seen(
        outcome.code(),
        outcome.details() or "",
        response,
        tuple(map(tuple, outcome.initial_metadata())),
        tuple(map(tuple, outcome.trailing_metadata())),
    )


def said(text: str, context: Any) -> str:
    return text


def with_metadata(text: str, context: Any) -> str:
    context.send_initial_metadata((("a", "1"), ("a", "2"), ("b-bin", b"\x00\xff")))
    context.set_trailing_metadata((("c", "1"), ("c", "2"), ("d-bin", b"\xff,\x00")))
    return text


def with_trailing(text: str, context: Any) -> str:
    context.set_trailing_metadata((("c", "1,2"), ("d-bin", b"")))
    return text


def with_initial(text: str, context: Any) -> str:
    context.send_initial_metadata((("a", "1"),))
    return text


def twice_initial(text: str, context: Any) -> str:
    context.send_initial_metadata((("a", "1"),))
    context.send_initial_metadata((("b", "1"),))
    return text


def fails(text: str, context: Any) -> str:
    raise RuntimeError("on purpose: ü")


def unprintable(text: str, context: Any) -> str:
    class Unprintable(Exception):
        def __str__(self) -> str:
            raise ValueError

    raise Unprintable


def aborts(text: str, context: Any) -> str:
    context.set_trailing_metadata((("why", "because"),))
    context.abort(grpc.StatusCode.NOT_FOUND, "no such thing: 100 % ü")
    return text


def aborts_with_ok(text: str, context: Any) -> str:
    context.abort(grpc.StatusCode.OK, "well")
    return text


class Status(grpc.Status):
    code = grpc.StatusCode.ABORTED
    details = "in detail"
    trailing_metadata = (("grpc-status-details-bin", b"\x08\x0a"),)


def aborts_with_status(text: str, context: Any) -> str:
    context.abort_with_status(Status())
    return text


def sets_a_code(text: str, context: Any) -> str:
    context.set_code(grpc.StatusCode.FAILED_PRECONDITION)
    context.set_details("not yet")
    assert context.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert context.details() == b"not yet"
    return text


def sets_a_code_and_fails(text: str, context: Any) -> str:
    context.set_code(grpc.StatusCode.UNIMPLEMENTED)
    context.set_details("Method not implemented!")
    raise NotImplementedError("Method not implemented!")


def sets_no_code(text: str, context: Any) -> str:
    context.set_code(5)
    return text


def sets_details_and_fails(text: str, context: Any) -> str:
    context.set_details("its own")
    raise RuntimeError("on purpose")


def catches_its_abort(text: str, context: Any) -> str:
    try:
        context.abort(grpc.StatusCode.NOT_FOUND, "gone")
    except Exception:  # noqa: BLE001 - which is what abort() raises
        return text
    return ""


def returns_nothing(text: str, context: Any) -> Any:
    return None


def yields(text: str, context: Any) -> Any:
    yield text


def asked(text: str, context: Any) -> str:
    metadata = [tuple(pair) for pair in context.invocation_metadata() if pair.key != "user-agent"]
    return repr((metadata, context.code(), context.details(), context.trailing_metadata()))


def bounded_time(text: str, context: Any) -> str:
    return str(0 < context.time_remaining() < TIMEOUT + 1 and context.is_active())


def compresses(text: str, context: Any) -> str:
    context.set_compression(grpc.Compression.Gzip)
    context.disable_next_message_compression()
    return text


def illegal_name(text: str, context: Any) -> str:
    context.send_initial_metadata((("Not Legal", "1"),))
    return text


BEHAVIORS: dict[str, Behavior] = {
    function.__name__: function  # type: ignore[dict-item]
    for function in (
        said,
        with_metadata,
        with_trailing,
        with_initial,
        fails,
        unprintable,
        aborts,
        aborts_with_ok,
        aborts_with_status,
        sets_a_code,
        sets_a_code_and_fails,
        sets_no_code,
        sets_details_and_fails,
        catches_its_abort,
        twice_initial,
        returns_nothing,
        yields,
        asked,
        bounded_time,
        compresses,
    )
}


def test_a_caller_gets_what_it_would_get_of_grpcs_own_server(
    serve: Callable[..., list[grpc.Channel]],
) -> None:
    direct, tunnelled = serve(BEHAVIORS)
    metadata = (("k", "1"), ("k", "2"), ("b-bin", b"\x00\xff"), ("e", ""))
    for name in (*BEHAVIORS, "missing"):
        expected = call(direct, name, metadata=metadata)
        assert call(tunnelled, name, metadata=metadata) == expected, name
    assert call(tunnelled, "said", b"\xff") == call(direct, "said", b"\xff")


def test_every_status_reaches_a_caller_with_its_message_and_details(
    serve: Callable[..., list[grpc.Channel]],
) -> None:
    messages = ["", "plain", "100 % of ünïcödé\n\t", "%20", "界" * 900, "x" * 8192]
    details = b"\x08\x05\x12" + bytes(range(256)) * 4

    def end(number: str, context: Any) -> str:
        code, message = divmod(int(number), len(messages))
        context.set_code(next(each for each in grpc.StatusCode if each.value[0] == code))
        context.set_details(messages[message])
        context.set_trailing_metadata((("grpc-status-details-bin", details),))
        return "an answer"

    direct, tunnelled = serve({"end": end})
    for number in range(17 * len(messages)):
        request = str(number).encode()
        seen, expected = call(tunnelled, "end", request), call(direct, "end", request)
        if expected.code is grpc.StatusCode.OK:  # some releases show words that go with it
            expected = expected._replace(details="")
        assert seen == expected
        if expected.code is not grpc.StatusCode.OK:
            assert seen.details == messages[number % len(messages)]
        assert seen.trailing == (("grpc-status-details-bin", details),)


def test_metadata_that_the_tunnel_cannot_carry_fails_loudly(
    serve: Callable[..., list[grpc.Channel]],
) -> None:
    seen = call(serve({"illegal": illegal_name})[1], "illegal")
    assert seen.code is grpc.StatusCode.UNKNOWN
    assert "metadata 'Not Legal': not a name that an application may set" in seen.details


def test_a_servicer_is_told_who_calls_by_the_gateway_alone(
    serve: Callable[..., list[grpc.Channel]],
) -> None:
    def who(text: str, context: Any) -> str:
        assert (context.peer_identities(), context.peer_identity_key()) == (None, None)
        assert context.auth_context() == {}
        peer: str = context.peer()
        return peer

    _, tunnelled = serve({"who": who})
    seen = call(tunnelled, "who", metadata=(("peer", "ipv4:1.2.3.4:5"),))
    assert seen.response is not None
    assert seen.response.startswith(b"ipv4:127.0.0.1:")


def test_a_servicer_may_end_its_call_and_is_told_of_its_end(
    serve: Callable[..., list[grpc.Channel]],
) -> None:
    over = threading.Event()

    def cancels(text: str, context: Any) -> str:
        assert context.add_callback(over.set)
        context.cancel()
        assert not context.is_active()
        assert not context.add_callback(over.set)
        return text

    direct, tunnelled = serve({"cancels": cancels})
    assert call(tunnelled, "cancels").code is call(direct, "cancels").code
    assert over.wait(TIMEOUT)


def test_without_a_deadline_the_time_is_a_number_without_an_end() -> None:
    from revconn.serving.context import Context
    from tests.support.requests import request_of

    assert Context(request_of(ForwardRequest(request_id="1"))).time_remaining() == float("inf")
    assert Context(request_of(ForwardRequest(request_id="1"))).peer() == "unknown"


class Tracing(grpc.ServerInterceptor):
    def __init__(self, name: str, seen: list[str]) -> None:
        self.name, self.seen = name, seen

    def intercept_service(self, continuation: Any, details: Any) -> Any:
        metadata = dict(details.invocation_metadata)
        self.seen.append(f"{self.name} {details.method} {metadata['k']}")
        handler = continuation(details)
        if handler is None or not handler.unary_unary:
            return handler

        def behavior(request: Any, context: Any) -> Any:
            return f"{self.name}({handler.unary_unary(request, context)})"

        return grpc.unary_unary_rpc_method_handler(
            behavior, handler.request_deserializer, handler.response_serializer
        )


def test_interceptors_stand_around_a_method_in_their_order(
    serve: Callable[..., list[grpc.Channel]],
) -> None:
    seen: list[str] = []
    direct, tunnelled = serve(
        {"said": said, "fails": fails}, (Tracing("outer", seen), Tracing("inner", seen))
    )
    for name in ("said", "fails", "missing"):
        expected = call(direct, name, metadata=(("k", "v"),))
        steps, seen[:] = list(seen), []
        assert call(tunnelled, name, metadata=(("k", "v"),)) == expected
        assert seen == steps
        seen.clear()
    assert call(tunnelled, "said", metadata=(("k", "v"),)).response == b"outer(inner(hi))"


def test_an_interceptor_that_fails_costs_its_call_what_it_costs_with_grpcs_server(
    serve: Callable[..., list[grpc.Channel]],
) -> None:
    class Failing(grpc.ServerInterceptor):
        def intercept_service(self, continuation: Any, details: Any) -> Any:
            raise RuntimeError("on purpose")

    direct, tunnelled = serve({"said": said}, (Failing(),))
    assert call(tunnelled, "said") == call(direct, "said")
