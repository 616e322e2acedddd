"""What tools can ask the gateway: health checks and reflection."""

from __future__ import annotations

import builtins
import logging
from collections.abc import Iterator
from typing import Any, Callable

import grpc
import pytest
from google.protobuf import descriptor_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2

from revconn.gateway import Gateway
from tests.support.threads import in_thread
from tests.support.waiting import eventually

Status = health_pb2.HealthCheckResponse


@pytest.fixture
def stub(gateway, resources) -> health_pb2_grpc.HealthStub:
    channel = resources.enter_context(grpc.insecure_channel(gateway.address))
    return health_pb2_grpc.HealthStub(channel)


def check(stub: health_pb2_grpc.HealthStub, service: str) -> int:
    return stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=60).status


class Watch:
    """What a client is told that watches a service."""

    def __init__(self, stub: health_pb2_grpc.HealthStub, service: str) -> None:
        self._call = stub.Watch(health_pb2.HealthCheckRequest(service=service), timeout=60)

    def next(self) -> int:
        return next(self._call).status

    def ended(self) -> tuple[grpc.StatusCode, str]:
        assert list(self._call_to_its_end()) == []
        return self._call.code(), self._call.details()

    def cancel(self) -> None:
        self._call.cancel()

    def _call_to_its_end(self) -> Iterator[Any]:
        try:
            yield from self._call
        except grpc.RpcError:
            return


# Health


def test_the_gateway_itself_is_healthy(stub) -> None:
    assert check(stub, "") == Status.SERVING


def test_a_service_is_healthy_while_somebody_serves_it(gateway, stub, connect) -> None:
    connectors = [connect(gateway, "echo.Echo", "a.A"), connect(gateway, "echo.Echo")]
    assert check(stub, "echo.Echo") == Status.SERVING
    for connector in connectors:
        assert check(stub, "echo.Echo") == Status.SERVING
        connector.disconnect()
        connector.ended()
    for service in ("echo.Echo", "never.Registered"):
        with pytest.raises(grpc.RpcError, match=f"no connector serves {service}") as refused:
            check(stub, service)
        assert refused.value.code() is grpc.StatusCode.NOT_FOUND


def test_a_service_is_healthy_if_a_call_of_it_would_be_forwarded(gateway, stub, connect) -> None:
    connect(gateway, "echo.Echo")
    assert check(stub, "echo.Echo.Child") == Status.SERVING


def test_an_endless_name_holds_up_nobody(stub) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        check(stub, "." * 4_000_000)
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND


def test_whoever_watches_a_service_is_told_when_it_comes_and_goes(gateway, stub, connect) -> None:
    watch, other = Watch(stub, "echo.Echo"), Watch(stub, "other.Other")
    assert watch.next() == other.next() == Status.SERVICE_UNKNOWN
    connector = connect(gateway, "echo.Echo")
    assert watch.next() == Status.SERVING
    connect(gateway, "other.Other")
    assert other.next() == Status.SERVING
    connector.disconnect()
    assert watch.next() == Status.SERVICE_UNKNOWN


def test_a_gateway_that_leaves_says_so_first_and_then_ends_the_watch(
    gateway, stub, connect, call
) -> None:
    connector = connect(gateway, "echo.Echo")
    watches = Watch(stub, ""), Watch(stub, "echo.Echo")
    assert [watch.next() for watch in watches] == [Status.SERVING] * 2
    pending = call(gateway, "/echo.Echo/Say")
    request = connector.receive_request()
    stopped = in_thread(gateway.stop)
    assert [watch.next() for watch in watches] == [Status.NOT_SERVING] * 2
    assert check(stub, "") == check(stub, "echo.Echo") == Status.NOT_SERVING
    connector.respond(request.request_id)
    assert pending.result() == b""
    for watch in watches:
        assert watch.ended() == (grpc.StatusCode.UNAVAILABLE, "the gateway is stopping")
    stopped.result(10)


def test_who_stops_watching_leaves_nothing_behind(gateway, stub) -> None:
    introspection = gateway._thread._serving._introspection
    watch = Watch(stub, "")
    watch.next()
    assert len(introspection.watchers) == 1
    watch.cancel()
    eventually(lambda: not introspection.watchers)


def test_watchers_are_limited_in_number(run_gateway, resources) -> None:
    gateway = run_gateway(max_pending=1)
    channel = resources.enter_context(grpc.insecure_channel(gateway.address))
    stub = health_pb2_grpc.HealthStub(channel)
    first = Watch(stub, "")
    first.next()
    code, details = Watch(stub, "").ended()
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert details == "1 calls watch a service (the gateway's max_pending)"
    assert gateway.stats()["refused_max_pending"] == 1


@pytest.mark.skipif(not hasattr(health_pb2, "HealthListRequest"), reason="an older health.v1")
def test_all_that_is_served_is_listed_with_its_health(gateway, stub, connect) -> None:
    connector = connect(gateway, "echo.Echo", "a.A")

    def listed() -> dict[str, int]:
        statuses = stub.List(health_pb2.HealthListRequest(), timeout=60).statuses
        return {service: response.status for service, response in statuses.items()}

    assert listed() == dict.fromkeys(("", "echo.Echo", "a.A"), Status.SERVING)
    connector.disconnect()
    connector.ended()
    assert listed() == {"": Status.SERVING}


def test_a_connector_cannot_answer_for_the_gateway(gateway, stub, connect) -> None:
    connect(gateway, "Health")  # by its last part
    assert check(stub, "") == Status.SERVING


# Reflection


@pytest.fixture(params=["v1", "v1alpha"])
def reflect(request, gateway, resources) -> Callable[..., Any]:
    """Ask the reflection service of one version a single question."""
    channel = resources.enter_context(grpc.insecure_channel(gateway.address))
    method = channel.stream_stream(
        f"/grpc.reflection.{request.param}.ServerReflection/ServerReflectionInfo",
        reflection_pb2.ServerReflectionRequest.SerializeToString,
        reflection_pb2.ServerReflectionResponse.FromString,
    )

    def reflect(**question: str) -> Any:
        asked = iter([reflection_pb2.ServerReflectionRequest(**question)])
        (answer,) = method(asked, timeout=60)
        return answer

    return reflect


def test_it_lists_the_gateways_own_services_and_what_is_registered(
    reflect, gateway, connect
) -> None:
    connect(gateway, "echo.Echo")
    services = reflect(list_services="").list_services_response.service
    assert {service.name for service in services} == {
        "registry.RegistryService",
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
        "echo.Echo",
    }


def test_it_describes_each_of_them(reflect) -> None:
    for service in reflect(list_services="").list_services_response.service:
        answer = reflect(file_containing_symbol=service.name).file_descriptor_response
        files = map(descriptor_pb2.FileDescriptorProto.FromString, answer.file_descriptor_proto)
        names = {f"{file.package}.{each.name}" for file in files for each in file.service}
        assert service.name in names


def test_it_knows_a_method_by_its_name(reflect) -> None:
    answer = reflect(file_containing_symbol="grpc.health.v1.Health.Check")
    by_service = reflect(file_containing_symbol="grpc.health.v1.Health")
    assert answer.file_descriptor_response == by_service.file_descriptor_response


def test_what_is_behind_connectors_it_does_not_know(reflect) -> None:
    answer = reflect(file_containing_symbol="echo.Echo")
    assert answer.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]


# Without the libraries


@pytest.mark.parametrize("missing", ["grpc_health", "grpc_reflection"])
def test_without_the_libraries_it_serves_all_else_and_says_what_to_install(
    missing, monkeypatch, run_gateway, connect, call, caplog
) -> None:
    def refuse(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith((missing, "revconn.gateway.introspection")):
            raise ImportError(f"No module named {missing!r}")
        return imported(name, *rest, **more)

    imported = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", refuse)
    caplog.set_level(logging.INFO, "revconn.gateway.serving")
    gateway: Gateway = run_gateway()
    said = f"no health checks and no reflection: No module named {missing!r}; pip install 'revconn["
    assert said in caplog.text
    with pytest.raises(grpc.RpcError, match=r"no connector serves grpc\.health\.v1\.Health"):
        call(gateway, "/grpc.health.v1.Health/Check").result()
    connector = connect(gateway, "echo.Echo")
    pending = call(gateway, "/echo.Echo/Say")
    connector.respond(connector.receive_request().request_id, b"\x0a")
    assert pending.result() == b"\x0a"
    gateway.stop()
    assert connector.ended() == (grpc.StatusCode.UNAVAILABLE, "the gateway is stopping")


@pytest.mark.parametrize(
    "path",
    [
        "/grpc.health.v1.Health/Check",
        "/grpc.health.v1.Health/Watch",
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    ],
)
def test_garbage_is_refused_and_nothing_is_logged(gateway, resources, caplog, path) -> None:
    channel = resources.enter_context(grpc.insecure_channel(gateway.address))
    with pytest.raises(grpc.RpcError, match="bytes that are no .*Request") as refused:
        list(channel.stream_stream(path)(iter([b"\xff\xff"]), timeout=60))
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert caplog.text == ""
