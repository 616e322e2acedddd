"""``revconn proxy``: a gRPC server that knows nothing of gateways, behind one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any, Callable

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from revconn.gateway import Gateway
from tests.serving.test_servicers import BEHAVIORS, handlers_of
from tests.serving.test_servicers import SERVICE as UNARY
from tests.serving.test_servicers import call as call_unary
from tests.serving.test_streaming_servicers import KINDS, SERVICE, call, handlers
from tests.support.waiting import eventually

TIMEOUT = 30.0
# What a handler is told of its caller: that is the proxy, or what time has gone by.
ABOUT_THE_CALLER = {"asked", "bounded_time"}


@pytest.fixture
def resources() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def gateway(resources: ExitStack) -> Gateway:
    return resources.enter_context(Gateway(api_keys="key"))


def serve(port: int = 0) -> tuple[grpc.Server, str]:
    """A server of all behaviors, with health and reflection, and its address."""
    server = grpc.server(ThreadPoolExecutor(8))
    unary = grpc.method_handlers_generic_handler(UNARY, handlers_of(BEHAVIORS))
    server.add_generic_rpc_handlers((handlers(), unary))
    health_pb2_grpc.add_HealthServicer_to_server(health.HealthServicer(), server)
    reflection.enable_server_reflection(
        [SERVICE, UNARY, "grpc.health.v1.Health", reflection.SERVICE_NAME], server
    )
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    return server, f"127.0.0.1:{port}"


@pytest.fixture
def target(resources: ExitStack) -> str:
    server, address = serve()
    resources.callback(server.stop, 0)
    return address


Proxy = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def proxy(resources: ExitStack, gateway: Gateway) -> Proxy:
    """The command, as a process, until the gateway knows what it serves."""

    def start(*arguments: str, ready: bool = True) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "revconn", "proxy", *arguments],
            env={**os.environ, "REVCONN_TARGET": gateway.address, "REVCONN_API_KEY": "key"},
            stderr=subprocess.PIPE,
            text=True,
        )
        resources.enter_context(process)  # which waits for it, and closes what it wrote to
        resources.callback(process.kill)
        if ready:
            eventually(gateway.connections)
        return process

    return start


def test_all_that_a_server_answers_reaches_callers_as_it_is(
    resources: ExitStack, gateway: Gateway, target: str, proxy: Proxy
) -> None:
    proxy("--to", target, "--service", SERVICE, "--service", UNARY)
    direct, through = (
        resources.enter_context(grpc.insecure_channel(address))
        for address in (target, gateway.address)
    )
    for name in BEHAVIORS.keys() - ABOUT_THE_CALLER:
        assert call_unary(through, name) == call_unary(direct, name), name
    requests = [b"3", b"4", b"", b"5" * 100_000]
    for kind, behaviors in KINDS.items():
        for name in {each.__name__ for each in behaviors} - ABOUT_THE_CALLER:
            assert call(through, kind, name, requests) == call(direct, kind, name, requests), name
    missing = call_unary(through, "missing")
    assert missing == call_unary(direct, "missing")


def test_services_are_discovered_and_health_and_reflection_pass(
    resources: ExitStack, gateway: Gateway, target: str, proxy: Proxy
) -> None:
    proxy("--to", target, "--discover")
    assert gateway.connections()[0].services == (SERVICE, UNARY)
    channel = resources.enter_context(grpc.insecure_channel(gateway.address))
    assert call_unary(channel, "said").response == b"hi"
    stub = health_pb2_grpc.HealthStub(channel)
    with pytest.raises(grpc.RpcError) as raised:  # the server's own word: it was told nothing
        stub.Check(health_pb2.HealthCheckRequest(service=UNARY), timeout=TIMEOUT)
    assert raised.value.code() is grpc.StatusCode.NOT_FOUND


@pytest.fixture
def serve_apart(resources: ExitStack) -> Callable[[int], tuple[subprocess.Popen[str], str]]:
    """A server in a process of its own: whoever ends that, closes its port for sure."""

    def start(port: int = 0) -> tuple[subprocess.Popen[str], str]:
        # Kept: grpc ends a server that nobody holds, a second later.
        program = (
            "import signal; from tests.cli.test_proxy import serve;"
            f"server, address = serve({port}); print(address, flush=True); signal.pause()"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", program],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        resources.enter_context(process)
        resources.callback(process.kill)
        assert process.stdout is not None
        return process, process.stdout.readline().strip()

    return start


def test_a_server_that_is_gone_is_unavailable_and_found_when_it_is_back(
    resources: ExitStack, gateway: Gateway, proxy: Proxy, serve_apart: Any
) -> None:
    server, address = serve_apart()
    proxy("--to", address, "--service", UNARY)
    channel = resources.enter_context(grpc.insecure_channel(gateway.address))
    assert call_unary(channel, "said").response == b"hi"
    server.kill()
    server.wait()
    eventually(lambda: call_unary(channel, "said").code is grpc.StatusCode.UNAVAILABLE)
    serve_apart(int(address.rpartition(":")[2]))
    eventually(lambda: call_unary(channel, "said").response == b"hi")


def test_of_two_discovered_servers_one_tells_of_its_health(
    resources: ExitStack, gateway: Gateway, target: str, proxy: Proxy
) -> None:
    server = grpc.server(ThreadPoolExecutor(2))
    health_pb2_grpc.add_HealthServicer_to_server(health.HealthServicer(), server)
    methods = {"Say": grpc.unary_unary_rpc_method_handler(lambda request, context: request)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("other.Other", methods),))
    names = ["other.Other", "grpc.health.v1.Health", reflection.SERVICE_NAME]
    reflection.enable_server_reflection(names, server)
    other = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    resources.callback(server.stop, 0)
    proxy("--to", target, "--to", other, "--discover")
    assert sorted(gateway.connections()[0].services) == ["other.Other", SERVICE, UNARY]


def test_several_servers_have_each_their_services(
    resources: ExitStack, gateway: Gateway, target: str, proxy: Proxy, serve_apart: Any
) -> None:
    server, other = serve_apart()
    proxy("--to", target, "--service", UNARY, "--to", other, "--service", SERVICE)
    channel = resources.enter_context(grpc.insecure_channel(gateway.address))
    assert call_unary(channel, "said").response == b"hi"
    assert call(channel, "stream_unary", "joins", [b"a"]).code is grpc.StatusCode.OK
    server.kill()
    server.wait()
    code = grpc.StatusCode.UNAVAILABLE
    eventually(lambda: call(channel, "stream_unary", "joins", [b"a"]).code is code)
    assert call_unary(channel, "said").response == b"hi"


def test_it_ends_as_serve_does(target: str, proxy: Proxy) -> None:
    process = proxy("--to", target, "--service", UNARY)
    process.send_signal(signal.SIGTERM)
    assert process.wait(TIMEOUT) == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--to"),
        (["--to", "127.0.0.1:1"], "no service of it is named"),
        (["--to", "localhost", "--service", "a.B"], "--to: not host:port"),
        (["--to", "http://localhost:1", "--service", "a.B"], "--to: a URL, not an address"),
        (["--to", "localhost:99999", "--service", "a.B"], "--to: port 99999 does not exist"),
        (["--to", "", "--service", "a.B"], "--to: not an address"),
        (["--service", "a.B"], "comes behind the --to of its server"),
        (["--to", "127.0.0.1:1", "--service", "a B"], "--service"),
        (["--to", "127.0.0.1:1", "--service", "a.B", "--ca", "/missing"], "--ca: cannot be read"),
        (["--to", "127.0.0.1:1", "--service", "a.B", "--service", "a.B"], "--service: given twice"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(proxy: Any, arguments: list[str], said: str) -> None:
    process = proxy(*arguments, ready=False)
    _, error = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 2
    assert said in error
    assert error.count("\n") == 1
