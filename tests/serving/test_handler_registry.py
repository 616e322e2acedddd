"""What grpc.Server's own calls register with a connector, and what they refuse."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from revconn import ConfigurationError, Connector
from revconn._proto import demo_pb2, demo_pb2_grpc
from revconn.gateway import Gateway

TIMEOUT = 30.0


@pytest.fixture
def connector() -> Connector:
    return Connector("127.0.0.1:1", api_key="key", start_blocks=False)


def echo(request: bytes, context: Any) -> bytes:
    return request


def loudly(request: bytes, context: Any) -> bytes:
    return request.upper()


ECHO = grpc.unary_unary_rpc_method_handler(echo)
LOUD = grpc.unary_unary_rpc_method_handler(loudly)


def generic(service: str, **methods: Any) -> Any:
    return grpc.method_handlers_generic_handler(service, methods)


class Greeter(demo_pb2_grpc.GreeterServicer):
    def Hello(self, request: Any, context: Any) -> Any:
        return demo_pb2.HelloReply(greeting=f"Hello, {request.name}")


class Nameless(grpc.GenericRpcHandler):
    def service(self, details: Any) -> Any:
        return ECHO if details.method.endswith("/Echo") else None


def test_generated_code_registers_a_servicer_with_a_connector_as_with_a_server() -> None:
    with Gateway(api_keys="key") as gateway:
        server = Connector(gateway.address, api_key="key", start_blocks=False)
        demo_pb2_grpc.add_GreeterServicer_to_server(Greeter(), server)
        server.start()
        server.wait_ready(TIMEOUT)
        with grpc.insecure_channel(gateway.address) as channel:
            stub = demo_pb2_grpc.GreeterStub(channel)
            reply = stub.Hello(demo_pb2.HelloRequest(name="you"), timeout=TIMEOUT)
            assert reply.greeting == "Hello, you"
            with pytest.raises(grpc.RpcError) as raised:
                stub.Goodbye(demo_pb2.HelloRequest(), timeout=TIMEOUT)
            assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED
            assert raised.value.details() == "Method not implemented!"
        stopped = server.stop(grace=TIMEOUT)
        assert not server.wait_for_termination(TIMEOUT)
        assert stopped.wait(0)
        assert stopped.is_set()
        assert repr(stopped) == "<Stopped set>"


def test_a_wait_for_the_end_says_that_its_time_ran_out() -> None:
    with Gateway(api_keys="key") as gateway:
        server = Connector(gateway.address, api_key="key", services=["a.B"], start_blocks=False)
        server.start()
        assert server.wait_for_termination(0.01)
        stopped = server.stop(5)  # by position it is how long stop() itself may take
        assert stopped.is_set()
        assert not server.wait_for_termination()


def test_a_grace_of_none_ends_what_runs_at_once() -> None:
    with Gateway(api_keys="key") as gateway:
        server = Connector(gateway.address, api_key="key", services=["a.B"], start_blocks=False)
        server.start()
        assert server.stop(grace=None).wait(TIMEOUT)


@pytest.mark.parametrize("options", [{"grace": -1}, {"timeout": "5"}, {"grace": "5"}])
def test_a_time_to_stop_is_a_number_of_seconds(connector: Connector, options: Any) -> None:
    (name,) = options
    with pytest.raises(ConfigurationError, match=f"{name}: "):
        connector.stop(**options)


def test_methods_registered_by_name_go_before_a_generic_handlers() -> None:
    with Gateway(api_keys="key") as gateway:
        connector = Connector(gateway.address, api_key="key", services=["c.D"])
        connector.add_generic_rpc_handlers((generic("a.B", Say=ECHO, Other=ECHO), Nameless()))
        connector.add_registered_method_handlers("a.B", {"Say": LOUD})
        with connector, grpc.insecure_channel(gateway.address) as channel:
            connector.wait_ready(TIMEOUT)

            def call(path: str) -> bytes:
                response: bytes = channel.unary_unary(path)(b"hi", timeout=TIMEOUT)
                return response

            assert call("/a.B/Say") == b"HI"
            assert call("/a.B/Other") == b"hi"
            assert call("/c.D/Echo") == b"hi"
            with pytest.raises(grpc.RpcError) as raised:
                call("/c.D/Say")
            assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_what_a_gateway_answers_itself_is_not_registered_there() -> None:
    with Gateway(api_keys="key") as gateway:
        connector = Connector(gateway.address, api_key="key")
        health = generic("grpc.health.v1.Health", Check=ECHO)
        connector.add_generic_rpc_handlers((health, generic("a.B", Say=ECHO)))
        with connector:
            connector.wait_ready(TIMEOUT)
            assert [each.services for each in gateway.connections()] == [("a.B",)]


def test_a_service_that_has_a_servicer_takes_no_second_one(connector: Connector) -> None:
    connector.add_generic_rpc_handlers((generic("a.B", Say=ECHO),))
    with pytest.raises(ConfigurationError, match=r"handler of: there is one already .*a\.B"):
        connector.add_generic_rpc_handlers((generic("a.B", Say=LOUD),))
    connector.add_registered_method_handlers("a.B", {"Say": ECHO})
    with pytest.raises(ConfigurationError, match="handler of: there is one already .*/a.B/Say"):
        connector.add_registered_method_handlers("a.B", {"Other": ECHO, "Say": LOUD})
    assert "/a.B/Other" not in connector._handlers.all.methods


async def say_async(request: bytes, context: Any) -> bytes:
    return request


async def stream_async(request: bytes, context: Any) -> Any:
    yield request


@pytest.mark.parametrize(
    "handler",
    [
        grpc.unary_unary_rpc_method_handler(say_async),
        grpc.unary_stream_rpc_method_handler(stream_async),
    ],
)
def test_a_servicer_of_grpc_aio_is_refused_with_the_way_to_go(
    connector: Connector, handler: Any
) -> None:
    with pytest.raises(ConfigurationError, match=r"asynchronous \(grpc.aio\).*run_coroutine"):
        connector.add_generic_rpc_handlers((generic("a.B", Say=handler),))
    with pytest.raises(ConfigurationError, match=r"handler of /a.B/Say: is asynchronous"):
        connector.add_registered_method_handlers("a.B", {"Say": handler})


@pytest.mark.parametrize("handler", [None, echo, grpc.unary_unary_rpc_method_handler(None)])
def test_what_is_no_method_is_refused(connector: Connector, handler: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"handler of /a.B/Say: not a grpc.RpcMethodHan"):
        connector.add_registered_method_handlers("a.B", {"Say": handler})


@pytest.mark.parametrize("handlers", [None, [("Say", ECHO)]])
def test_methods_by_name_are_a_mapping(connector: Connector, handlers: Any) -> None:
    with pytest.raises(ConfigurationError, match="method_handlers: not a mapping"):
        connector.add_registered_method_handlers("a.B", handlers)
    with pytest.raises(ConfigurationError, match="service_name"):
        connector.add_registered_method_handlers("", {"Say": ECHO})


def test_what_is_no_generic_handler_is_refused(connector: Connector) -> None:
    with pytest.raises(ConfigurationError, match="not a grpc.GenericRpcHandler"):
        connector.add_generic_rpc_handlers((Greeter(),))  # type: ignore[arg-type]


def test_a_port_is_refused_with_what_to_do_instead(connector: Connector) -> None:
    with pytest.raises(ConfigurationError, match=r"add_insecure_port\(\).*the gateway's address"):
        connector.add_insecure_port("[::]:50051")
    with pytest.raises(ConfigurationError, match=r"add_secure_port\(\).*tls="):
        connector.add_secure_port("[::]:50051", None)


@pytest.mark.parametrize("interceptors", [1, [1], [grpc.ServerInterceptor]])
def test_what_is_no_interceptor_is_refused(interceptors: Any) -> None:
    with pytest.raises(ConfigurationError, match="interceptors: not a"):
        Connector("127.0.0.1:1", api_key="key", interceptors=interceptors)


def test_an_asynchronous_interceptor_is_refused() -> None:
    class Interceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc]
        async def intercept_service(self, continuation: Any, details: Any) -> Any:
            return await continuation(details)

    with pytest.raises(ConfigurationError, match=r"interceptors: is asynchronous"):
        Connector("127.0.0.1:1", api_key="key", interceptors=[Interceptor()])


def test_a_new_service_is_refused_after_the_start() -> None:
    with Gateway(api_keys="key") as gateway:
        connector = Connector(gateway.address, api_key="key", services=["a.B"])
        with connector:
            connector.add_registered_method_handlers("a.B", {"Say": ECHO})
            with pytest.raises(ConfigurationError, match="is new after the start"):
                connector.add_generic_rpc_handlers((generic("c.D", Say=ECHO),))
            with pytest.raises(ConfigurationError, match="is new after the start"):
                connector.add_registered_method_handlers("c.D", {"Say": ECHO})
