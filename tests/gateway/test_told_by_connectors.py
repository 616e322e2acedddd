"""Health and reflection servicers of connectors reach callers, for what each registered."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc

from revconn import Connector
from revconn.gateway import Gateway

TIMEOUT = 20.0
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def echo(request: bytes, context: Any) -> bytes:
    return request


def echo_handlers(service: str) -> Any:
    return grpc.method_handlers_generic_handler(
        service, {"Say": grpc.unary_unary_rpc_method_handler(echo)}
    )


@pytest.fixture
def told() -> Iterator[tuple[health.HealthServicer, grpc.Channel]]:
    """A connector that serves health and reflection beside a service, and one that does not."""
    with ExitStack() as stack:
        gateway = stack.enter_context(Gateway(api_keys="key"))
        servicer = health.HealthServicer()
        connector = Connector(gateway.address, api_key="key")
        # A service that reflection can describe: one whose schema is in the usual pool.
        connector.add_generic_rpc_handlers((echo_handlers("grpc.channelz.v1.Fake"),))
        connector.add_generic_rpc_handlers((echo_handlers("told.Service"),))
        health_pb2_grpc.add_HealthServicer_to_server(servicer, connector)
        reflection.enable_server_reflection(
            ["grpc.health.v1.Health", reflection.SERVICE_NAME], connector
        )
        other = Connector(gateway.address, api_key="key")
        other.add_generic_rpc_handlers((echo_handlers("other.Service"),))
        for each in (connector, other):
            stack.enter_context(each).wait_ready(TIMEOUT)
        channel = stack.enter_context(grpc.insecure_channel(gateway.address))
        yield servicer, channel


def check(channel: grpc.Channel, service: str) -> int:
    request = health_pb2.HealthCheckRequest(service=service)
    response = health_pb2_grpc.HealthStub(channel).Check(request, timeout=TIMEOUT)
    status: int = response.status
    return status


def test_a_connectors_own_word_about_its_health_goes_first(
    told: tuple[health.HealthServicer, grpc.Channel],
) -> None:
    servicer, channel = told
    servicer.set("told.Service", NOT_SERVING)
    assert check(channel, "told.Service") == NOT_SERVING
    servicer.set("told.Service", SERVING)
    assert check(channel, "told.Service") == SERVING
    assert check(channel, "other.Service") == SERVING
    assert check(channel, "") == SERVING
    with pytest.raises(grpc.RpcError) as raised:
        check(channel, "nobody.Service")
    assert raised.value.code() is grpc.StatusCode.NOT_FOUND


def test_who_watches_is_told_what_the_connector_says(
    told: tuple[health.HealthServicer, grpc.Channel],
) -> None:
    servicer, channel = told
    servicer.set("told.Service", SERVING)
    request = health_pb2.HealthCheckRequest(service="told.Service")
    watch = health_pb2_grpc.HealthStub(channel).Watch(request, timeout=TIMEOUT)
    assert next(watch).status == SERVING
    servicer.set("told.Service", NOT_SERVING)
    assert next(watch).status == NOT_SERVING
    watch.cancel()


def ask(channel: grpc.Channel, **question: Any) -> Any:
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    request = reflection_pb2.ServerReflectionRequest(**question)
    (answer,) = stub.ServerReflectionInfo(iter([request]), timeout=TIMEOUT)
    return answer


def test_what_connectors_registered_is_listed(
    told: tuple[health.HealthServicer, grpc.Channel],
) -> None:
    answer = ask(told[1], list_services="")
    names = {service.name for service in answer.list_services_response.service}
    assert {"told.Service", "other.Service", "registry.RegistryService"} <= names


def test_a_connectors_reflection_is_asked_for_what_it_registered(
    told: tuple[health.HealthServicer, grpc.Channel],
) -> None:
    channel = told[1]
    answer = ask(channel, file_containing_symbol="told.Service")
    # Its own words: there is no schema of that name in its pool.
    assert answer.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]
    assert answer.error_response.error_message == grpc.StatusCode.NOT_FOUND.value[1]
    nobody = ask(channel, file_containing_symbol="other.Service")
    assert nobody.error_response.error_message == "there is none here"
    own = ask(channel, file_containing_symbol="registry.RegistryService")
    assert own.HasField("file_descriptor_response")


def test_questions_are_answered_in_their_order(
    told: tuple[health.HealthServicer, grpc.Channel],
) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(told[1])
    symbols = ["told.Service", "registry.RegistryService", "told.Service", "other.Service"]
    questions = [
        reflection_pb2.ServerReflectionRequest(file_containing_symbol=symbol)
        for symbol in symbols * 5
    ]
    answers = list(stub.ServerReflectionInfo(iter(questions), timeout=TIMEOUT))
    own = [answer.HasField("file_descriptor_response") for answer in answers]
    assert own == [symbol == "registry.RegistryService" for symbol in symbols * 5]
