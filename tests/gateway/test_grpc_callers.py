"""Programs with grpcio, its synchronous API and its asyncio one, call through the gateway."""

from __future__ import annotations

import asyncio
import gzip
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from typing import Any, Callable, NamedTuple, Union

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from revconn import Connector, Request, Response
from revconn.gateway import Gateway
from tests.support.scripted_http2 import message
from tests.support.threads import in_thread
from tests.support.waiting import eventually

SAY = "/echo.Echo/Say"
TIMEOUT = 60.0
OPTIONS = [
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
]


class Outcome(NamedTuple):
    """What a caller is told."""

    code: grpc.StatusCode
    details: str
    payload: bytes | None
    trailing: list[tuple[str, str | bytes]]


class Call(NamedTuple):
    """A call under way."""

    outcome: Future[Outcome]
    cancel: Callable[[], object]


class SyncCaller:
    """grpcio's synchronous API."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.insecure_channel(address, options=OPTIONS)

    def start(self, path: str, payload: bytes = b"", **options: Any) -> Call:
        method = self._channel.unary_unary(path)
        call = method.future(payload, **{"timeout": TIMEOUT, **options})
        return Call(in_thread(self._outcome, call), call.cancel)

    @staticmethod
    def _outcome(call: Any) -> Outcome:
        try:
            payload = call.result()
        except (grpc.RpcError, grpc.FutureCancelledError):
            payload = None
        trailing = [(name, value) for name, value in call.trailing_metadata() or ()]
        return Outcome(call.code(), call.details(), payload, trailing)

    def check(self, service: str) -> int:
        stub = health_pb2_grpc.HealthStub(self._channel)
        return stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=TIMEOUT).status

    def close(self) -> None:
        self._channel.close()


class AioCaller:
    """grpcio's asyncio API, with a loop of its own."""

    def __init__(self, address: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="aio-caller")
        self._thread.start()
        self._channel = self._run(self._dial(address))

    def _run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(TIMEOUT)

    async def _dial(self, address: str) -> grpc.aio.Channel:
        return grpc.aio.insecure_channel(address, options=OPTIONS)

    def start(self, path: str, payload: bytes = b"", **options: Any) -> Call:
        call = self._run(self._call(path, payload, {"timeout": TIMEOUT, **options}))
        outcome = asyncio.run_coroutine_threadsafe(self._outcome(call), self._loop)
        return Call(outcome, lambda: self._loop.call_soon_threadsafe(call.cancel))

    async def _call(self, path: str, payload: bytes, options: dict[str, Any]) -> Any:
        return self._channel.unary_unary(path)(payload, **options)

    @staticmethod
    async def _outcome(call: Any) -> Outcome:
        try:
            payload = await call
        except (grpc.RpcError, asyncio.CancelledError):
            payload = None
        trailing = list(await call.trailing_metadata() or ())
        return Outcome(await call.code(), await call.details(), payload, trailing)

    def check(self, service: str) -> int:
        async def ask() -> int:
            stub = health_pb2_grpc.HealthStub(self._channel)
            request = health_pb2.HealthCheckRequest(service=service)
            return (await stub.Check(request, timeout=TIMEOUT)).status

        return self._run(ask())

    def close(self) -> None:
        self._run(self._channel.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(TIMEOUT)
        self._loop.close()


Caller = Union[SyncCaller, AioCaller]


@pytest.fixture(params=[SyncCaller, AioCaller], ids=["sync", "aio"])
def dial_as(request, resources) -> Callable[[str], Caller]:
    """A caller of either kind, on a connection of its own."""

    def dial_as(address: str) -> Caller:
        caller = request.param(address)
        resources.callback(caller.close)
        return caller

    return dial_as


@pytest.fixture
def connector(gateway, connect):
    return connect(gateway, "echo.Echo", features="cancel")


@pytest.fixture
def caller(dial_as, gateway) -> Caller:
    return dial_as(gateway.address)


# What goes through


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_a_compressed_call_is_answered_like_any_other(caller, connector, compression) -> None:
    call = caller.start(SAY, b"\x0a" * 100_000, compression=compression)
    request = connector.receive_request()
    assert request.payload == b"\x0a" * 100_000
    connector.respond(request.request_id, b"\x12" * 200_000)
    assert call.outcome.result(TIMEOUT).payload == b"\x12" * 200_000


def test_an_answer_that_a_connector_compressed_arrives_as_it_was(caller, connector) -> None:
    call = caller.start(SAY)
    headers = {"content-type": "application/grpc", "grpc-encoding": "gzip", "grpc-status": "0"}
    packed = message(gzip.compress(b"\x0a" * 100_000), compressed=True)
    connector.respond(connector.receive_request().request_id, packed, headers=headers)
    assert call.outcome.result(TIMEOUT).payload == b"\x0a" * 100_000


def test_metadata_is_text_or_bytes_once_or_repeated_and_comes_back(caller, connector) -> None:
    trace = bytes(range(256))
    sent = [("a", "1"), ("a", "two words, one comma"), ("trace-bin", trace), ("empty", "")]
    call = caller.start(SAY, metadata=sent)
    request = connector.receive_request()
    assert request.headers["a"] == "1,two words, one comma"
    assert request.headers["empty"] == ""
    connector.respond(request.request_id, headers=request.headers)
    trailing = dict(call.outcome.result(TIMEOUT).trailing)
    assert trailing["a"] == "1,two words, one comma"
    assert trailing["trace-bin"] == trace
    assert trailing["empty"] == ""


def test_repeated_bytes_reach_the_connector_one_after_the_other(caller, connector) -> None:
    call = caller.start(SAY, metadata=[("trace-bin", b"\x00\xff"), ("trace-bin", b"\x01")])
    request = connector.receive_request()
    assert request.headers["trace-bin"] == "AP8,AQ"
    connector.respond(request.request_id)
    call.outcome.result(TIMEOUT)


@contextmanager
def echoing(gateway: Gateway, **options: Any) -> Iterator[Connector]:
    """A connector that answers with what it was sent."""

    def echo(request: Request) -> Response:
        return Response(request.payload)

    connector = Connector(gateway.address, api_key="key", **options)
    connector.add_method(SAY, echo)
    with connector:
        connector.wait_ready(TIMEOUT)
        yield connector


LARGEST = 64 << 20


@pytest.mark.costly
def test_a_message_of_one_byte_to_64_megabytes_goes_both_ways(
    run_gateway, dial_as, resources: ExitStack
) -> None:
    limits = {"max_message_bytes": LARGEST + 1024, "max_sent_message_bytes": LARGEST + 1024}
    gateway = run_gateway(**limits, max_response_bytes=LARGEST)
    resources.enter_context(echoing(gateway, max_message_bytes=LARGEST + 1024))
    caller = dial_as(gateway.address)
    for size in (1, 16_379, 16_384, 65_536, 1 << 20, 4 << 20, LARGEST):
        payload = b"\x0a" * size
        outcome = caller.start(SAY, payload).outcome.result(TIMEOUT)
        assert outcome.code is grpc.StatusCode.OK, f"{size} bytes: {outcome.details}"
        assert outcome.payload == payload, f"{size} bytes came back as others"


# How it ends


@pytest.mark.parametrize(
    "code", [grpc.StatusCode.NOT_FOUND, grpc.StatusCode.DATA_LOSS, grpc.StatusCode.ABORTED]
)
def test_a_failure_is_told_with_its_code_words_and_metadata(caller, connector, code) -> None:
    call = caller.start(SAY)
    headers = {"grpc-status": str(code.value[0]), "note": "seen", "grpc-status-details-bin": "AAE"}
    request_id = connector.receive_request().request_id
    connector.respond(request_id, status_code=500, error_message="größer: 50 %\n", headers=headers)
    outcome = call.outcome.result(TIMEOUT)
    assert (outcome.code, outcome.details) == (code, "größer: 50 %\n")
    assert ("note", "seen") in outcome.trailing
    assert ("grpc-status-details-bin", b"\x00\x01") in outcome.trailing


def test_a_deadline_that_passes_is_told_to_both_ends(gateway, caller, connector) -> None:
    call = caller.start(SAY, timeout=0.5)
    request = connector.receive_request()
    assert 0 < request.timeout_seconds <= 1
    assert connector.receive().cancel.request_id == request.request_id
    assert call.outcome.result(TIMEOUT).code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert gateway.stats()["pending"] == 0


def test_a_call_that_is_cancelled_is_cancelled_at_the_connector(gateway, caller, connector) -> None:
    call = caller.start(SAY)
    request = connector.receive_request()
    call.cancel()
    assert connector.receive().cancel.request_id == request.request_id
    assert call.outcome.result(TIMEOUT).code is grpc.StatusCode.CANCELLED
    eventually(lambda: gateway.stats()["pending"] == 0)


def test_a_service_that_nobody_serves_is_unavailable(caller, connector) -> None:
    outcome = caller.start("/no.Body/Home").outcome.result(TIMEOUT)
    assert outcome.code is grpc.StatusCode.UNAVAILABLE
    assert outcome.details == "no connector serves no.Body"


def test_health_is_told(caller, connector) -> None:
    serving = health_pb2.HealthCheckResponse.SERVING
    assert caller.check("") == caller.check("echo.Echo") == serving


def test_one_channel_calls_a_gateway_before_and_after_its_restart(
    gateway, connect, dial_as
) -> None:
    caller = dial_as(gateway.address)
    later = Gateway(gateway.address, api_keys="key")
    connector = connect(gateway, "echo.Echo")
    call = caller.start(SAY)
    request = connector.receive_request()
    stopped = in_thread(gateway.stop, 30.0)
    connector.respond(request.request_id, b"\x0aok")
    assert call.outcome.result(TIMEOUT).payload == b"\x0aok"
    stopped.result(TIMEOUT)
    with later:
        connector = connect(later, "echo.Echo")
        call = caller.start(SAY, wait_for_ready=True)
        connector.respond(connector.receive_request().request_id, b"\x0aagain")
        assert call.outcome.result(TIMEOUT).payload == b"\x0aagain"
