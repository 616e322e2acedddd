"""gRPC's own interop tests: its clients, as they are published, call its test service.

The service is written for ``grpc.server`` and stands on a connector as it is. What each case does is
said in grpc's doc/interop-test-descriptions.md, and what came of it in
docs/topics/interoperability.md.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from revconn.gateway import Gateway
from tests.interop.building import BUILD, GRPC_INTEROP_GO, GRPC_INTEROP_JAVA, HERE
from tests.interop.conftest import Workshop
from tests.support.apps import TIMEOUT, App
from tests.support.waiting import eventually

KEY = "key"
TRANSPORTS = ("http2", "grpcio")

JAVA_COMMAND = (
    "java",
    "-XX:TieredStopAtLevel=1",
    "-XX:+UseSerialGC",
    "-cp",
    f"{BUILD}/java-grpc-interop/libraries/*",
    "io.grpc.testing.integration.TestServiceClient",
    "--use_tls=false",
)
CLIENTS = {
    "go": ((f"{BUILD}/go/grpc-interop",), GRPC_INTEROP_GO),
    "java-netty": (JAVA_COMMAND, GRPC_INTEROP_JAVA),
    "java-okhttp": ((*JAVA_COMMAND, "--use_okhttp=true"), GRPC_INTEROP_JAVA),
}
SOAK = ("--soak_iterations=20", "--soak_overall_timeout_seconds=30")

CASES = (
    "empty_unary",
    "large_unary",
    "client_streaming",
    "server_streaming",
    "ping_pong",
    "empty_stream",
    "cancel_after_begin",
    "cancel_after_first_response",
    "timeout_on_sleeping_server",
    "custom_metadata",
    "status_code_and_message",
    "special_status_message",
    "unimplemented_method",
    "pick_first_unary",
    "rpc_soak",
    "channel_soak",
)
# What only the Java clients have.
COMPRESSED_CASES = (
    "client_compressed_unary_noprobe",
    "client_compressed_streaming_noprobe",
    "server_compressed_unary",
    "server_compressed_streaming",
    "very_large_request",
)
TRIES = [
    *((transport, "go", case) for transport in TRANSPORTS for case in CASES),
    *(("http2", client, case) for client in ("java-netty", "java-okhttp") for case in CASES),
]


class Meeting:
    """A gateway for each transport, with the test service behind it."""

    def __init__(self, workshop: Workshop, directory: Path, opened: ExitStack) -> None:
        self._workshop = workshop
        self._directory = directory
        self._opened = opened
        self._gateways: dict[str, Gateway] = {}

    def run(self, transport: str, client: str, case: str) -> subprocess.CompletedProcess[str]:
        """Run a client's case, to its end."""
        command, sources = CLIENTS[client]
        self._workshop.needs(sources)
        host, _, port = self._gateway(transport).address.rpartition(":")
        return subprocess.run(
            [*command, f"--server_host={host}", f"--server_port={port}", f"--test_case={case}"]
            + (list(SOAK) if case.endswith("_soak") else []),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            timeout=TIMEOUT,
        )

    def _gateway(self, transport: str) -> Gateway:
        if transport not in self._gateways:
            gateway = self._opened.enter_context(Gateway(api_keys=KEY))
            program = f"{HERE}/python/grpc_interop_connector.py"
            app = App([sys.executable, program, gateway.address, KEY, transport], self._directory)
            self._opened.callback(app.kill)
            eventually(gateway.connections, TIMEOUT)
            self._gateways[transport] = gateway
        return self._gateways[transport]


@pytest.fixture(scope="module")
def meeting(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Meeting]:
    with ExitStack() as opened:
        yield Meeting(workshop, tmp_path_factory.mktemp("grpc-interop"), opened)


@pytest.mark.parametrize(("transport", "client", "case"), TRIES)
def test_a_case_passes(meeting: Meeting, transport: str, client: str, case: str) -> None:
    ran = meeting.run(transport, client, case)
    assert ran.returncode == 0, ran.stdout


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("case", ["unimplemented_service"])
def test_x(meeting: Meeting, client: str, case: str) -> None:
    ran = meeting.run("http2", client, case)
    assert ran.returncode == 0, ran.stdout

@pytest.mark.parametrize("client", ["java-netty", "java-okhttp"])
@pytest.mark.parametrize("case", [*COMPRESSED_CASES, "client_compressed_unary", "client_compressed_streaming"])
def test_y(meeting: Meeting, client: str, case: str) -> None:
    ran = meeting.run("http2", client, case)
    assert ran.returncode == 0, ran.stdout
