"""Interceptors that others wrote work as they are, around a connector's servicers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Callable

import grpc
import pytest

from revconn import Connector
from revconn._proto import demo_pb2, demo_pb2_grpc
from revconn.gateway import Gateway

TIMEOUT = 30.0
SERVICE = "demo.Greeter"


def hello(request: Any, context: Any) -> Any:
    if request.name == "abort":
        context.abort(grpc.StatusCode.NOT_FOUND, "no such thing")
    if request.name == "fail":
        raise RuntimeError("on purpose")
    return demo_pb2.HelloReply(greeting=request.name)


class Greeter(demo_pb2_grpc.GreeterServicer):
    def Hello(self, request: Any, context: Any) -> Any:
        return hello(request, context)


Call = Callable[[str], "tuple[grpc.StatusCode, Any]"]


@pytest.fixture
def serve() -> Iterator[Callable[..., Call]]:
    with Gateway(api_keys="key") as gateway, grpc.insecure_channel(gateway.address) as channel:
        connectors: list[Connector] = []

        def serve(*interceptors: Any) -> Call:
            connector = Connector(gateway.address, api_key="key", interceptors=interceptors)
            demo_pb2_grpc.add_GreeterServicer_to_server(Greeter(), connector)
            connectors.append(connector)
            connector.start(block=False)
            connector.wait_ready(TIMEOUT)
            return lambda name: call(channel, name)

        yield serve
        for connector in connectors:
            connector.stop()


def call(channel: grpc.Channel, name: str) -> tuple[grpc.StatusCode, Any]:
    method = demo_pb2_grpc.GreeterStub(channel).Hello
    try:
        response, outcome = method.with_call(demo_pb2.HelloRequest(name=name), timeout=TIMEOUT)
    except grpc.RpcError as error:
        return error.code(), error.details()
    return outcome.code(), response.greeting


def test_py_grpc_prometheus_counts(serve: Callable[..., Call]) -> None:
    from prometheus_client import CollectorRegistry
    from py_grpc_prometheus.prometheus_server_interceptor import PromServerInterceptor

    registry = CollectorRegistry()
    ask = serve(PromServerInterceptor(registry=registry))
    for request in ("hi", "abort", "fail"):
        ask(request)

    def handled(code: str) -> float | None:
        labels = {"grpc_service": SERVICE, "grpc_method": "Hello", "grpc_type": "UNARY"}
        return registry.get_sample_value("grpc_server_handled_total", {**labels, "grpc_code": code})

    assert handled("OK") == 1
    assert handled("NOT_FOUND") == 1
    assert handled("UNKNOWN") == 1


def test_grpc_interceptor_sees_requests_and_turns_exceptions_into_statuses(
    serve: Callable[..., Call],
) -> None:
    from grpc_interceptor import ExceptionToStatusInterceptor, ServerInterceptor
    from grpc_interceptor.exceptions import NotFound

    seen: list[tuple[str, str]] = []

    class Seeing(ServerInterceptor):
        def intercept(self, method: Any, request: Any, context: Any, method_name: str) -> Any:
            seen.append((request.name, method_name))
            if request.name == "missing":
                raise NotFound("not here")
            return method(request, context)

    ask = serve(ExceptionToStatusInterceptor(), Seeing())
    assert ask("hi") == (grpc.StatusCode.OK, "hi")
    assert ask("missing") == (grpc.StatusCode.NOT_FOUND, "not here")
    assert seen == [("hi", f"/{SERVICE}/Hello"), ("missing", f"/{SERVICE}/Hello")]


def test_opentelemetry_continues_the_callers_trace(serve: Callable[..., Call]) -> None:
    from opentelemetry.instrumentation.grpc import server_interceptor
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    ask = serve(server_interceptor(tracer_provider=provider))
    assert ask("hi") == (grpc.StatusCode.OK, "hi")
    assert ask("abort") == (grpc.StatusCode.NOT_FOUND, "no such thing")
    assert ask("fail")[0] is grpc.StatusCode.UNKNOWN
    spans = exporter.get_finished_spans()
    assert [span.name for span in spans] == [f"/{SERVICE}/Hello"] * 3
    codes = [dict(span.attributes or {})["rpc.grpc.status_code"] for span in spans]
    assert codes[:2] == [0, 5]
    assert dict(spans[0].attributes or {})["net.peer.ip"] in ("127.0.0.1", "localhost")


@pytest.mark.filterwarnings("ignore")  # it looks at all that it might integrate
def test_sentry_traces_what_a_servicer_does(serve: Callable[..., Call]) -> None:
    import sentry_sdk
    from sentry_sdk.integrations.grpc.server import ServerInterceptor

    traces: list[Any] = []
    sentry_sdk.init(
        dsn="https://key@sentry.example/1",
        default_integrations=False,
        traces_sample_rate=1.0,
        before_send_transaction=lambda event, hint: traces.append(event),
    )
    try:
        ask = serve(ServerInterceptor())
        assert ask("hi") == (grpc.StatusCode.OK, "hi")
        assert ask("abort") == (grpc.StatusCode.NOT_FOUND, "no such thing")
        assert ask("fail")[0] is grpc.StatusCode.UNKNOWN
    finally:
        sentry_sdk.init(dsn=None)
    assert [trace["transaction"] for trace in traces] == [f"/{SERVICE}/Hello"] * 3
