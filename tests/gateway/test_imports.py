"""What a gateway's process imports."""

from __future__ import annotations

import subprocess
import sys

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from revconn._proto.registry_pb2 import RegisterRequest
from tests.support.backend import Backend
from tests.support.scripted_connector import ScriptedConnector

PATIENCE = 60.0
RUN = """
import sys
from revconn.gateway import Gateway

with Gateway(api_keys="key", dial_private=True) as gateway:
    print(gateway.address, flush=True)
    sys.stdin.readline()
    print(gateway.stats()["calls_answered"], "grpc" in sys.modules, flush=True)
"""


def test_a_gateway_that_served_and_called_a_backend_has_not_imported_grpc() -> None:
    with subprocess.Popen(
        [sys.executable, "-I", "-c", RUN],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        encoding="utf-8",
    ) as program:
        assert program.stdout is not None
        address = program.stdout.readline().strip()
        with grpc.insecure_channel(address) as channel, Backend() as backend:
            register = channel.unary_unary("/registry.RegistryService/Register")
            request = RegisterRequest(
                api_key="key", address=backend.address, services=["a.Backend"]
            )
            register(request.SerializeToString(), timeout=PATIENCE)
            assert channel.unary_unary("/a.Backend/Say")(b"x", timeout=PATIENCE) == b"x"
            with ScriptedConnector(address) as connector:
                connector.register("echo.Echo", api_key="key")
                pending = channel.unary_unary("/echo.Echo/Say").future(b"y", timeout=PATIENCE)
                connector.respond(connector.receive_request().request_id, b"z")
                assert pending.result() == b"z"
            health = health_pb2_grpc.HealthStub(channel)
            checked = health.Check(health_pb2.HealthCheckRequest(), timeout=PATIENCE)
            assert checked.status == health_pb2.HealthCheckResponse.SERVING
        output, _ = program.communicate("\n", timeout=PATIENCE)
    assert program.returncode == 0
    assert output.split() == ["2", "False"]
