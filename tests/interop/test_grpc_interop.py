"""gRPC's own interop tests: its clients, as they are published, call its test service.

The service is written for ``grpc.server`` and stands on a connector as it is. What each case does
is said in grpc's doc/interop-test-descriptions.md, and what comes of it in
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
from tests.interop.grpc_java import GrpcJava
from tests.support.apps import TIMEOUT, App
from tests.support.waiting import eventually

KEY = "key"
TRANSPORTS = ("http2", "grpcio")

GO_CLIENT = f"{BUILD}/go/grpc-interop"
JAVA_CLIENTS = ("java-netty", "java-okhttp")
# A busy machine is no failure: the default lets no call take more than a second.
SOAK = (
    "--soak_iterations=20",
    "--soak_overall_timeout_seconds=60",
    "--soak_per_iteration_max_acceptable_latency_ms=30000",
)
# Of grpc-java's own tests: what looks into the server.
WITH_THEIR_OWN_SERVER = {"censusContextsPropagated", "sendsTimeoutHeader"}
UNAVAILABLE = "UNAVAILABLE, description=no connector serves"
MAX_MESSAGE_BYTES = 16 << 20  # very_large_request has 10 MiB

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
CASES_OF_JAVA = (
    *CASES,
    "very_large_request",
    "client_compressed_unary_noprobe",
    "client_compressed_streaming_noprobe",
    "server_compressed_unary",
    "server_compressed_streaming",
)
PASSING = [
    *((transport, "go", case) for transport in TRANSPORTS for case in CASES),
    *(("http2", client, case) for client in JAVA_CLIENTS for case in CASES_OF_JAVA),
]


class Meeting:
    """A gateway for each transport, with the test service behind it."""

    def __init__(self, workshop: Workshop, directory: Path, opened: ExitStack) -> None:
        self._workshop = workshop
        self._directory = directory
        self._opened = opened
        self._grpc_java = GrpcJava(directory)
        opened.callback(self._grpc_java.kill)
        self._gateways = {name: opened.enter_context(new_gateway()) for name in TRANSPORTS}

    def problem(self, transport: str, client: str, case: str) -> str:
        """What was wrong in one case of a client; empty when it passes."""
        host, port = self._address(transport)
        soak = SOAK if case.endswith("_soak") else ()
        flags = (f"--server_host={host}", f"--server_port={port}", f"--test_case={case}", *soak)
        if client == "go":
            self._workshop.needs(GRPC_INTEROP_GO)
            return run([GO_CLIENT, *flags])
        self._workshop.needs(GRPC_INTEROP_JAVA)
        own_transport = f"--use_okhttp={str(client == 'java-okhttp').lower()}"
        return self._grpc_java.ask("case", "--use_tls=false", own_transport, *flags)

    def problems_of_java(self, transport: str, own_transport: str) -> dict[str, str]:
        """What was wrong in each of grpc-java's own tests: nothing, ``skipped`` or a trace."""
        self._workshop.needs(GRPC_INTEROP_JAVA)
        _, port = self._address(transport)
        return self._grpc_java.ask("tests", own_transport, port)

    def _address(self, transport: str) -> tuple[str, str]:
        host, _, port = self._gateway(transport).address.rpartition(":")
        return host, port

    def _gateway(self, transport: str) -> Gateway:
        gateway = self._gateways[transport]
        if not gateway.connections():
            program = f"{HERE}/python/grpc_interop_connector.py"
            arguments = (gateway.address, KEY, transport, str(MAX_MESSAGE_BYTES))
            app = App([sys.executable, program, *arguments], self._directory)
            self._opened.callback(app.kill)
            try:
                eventually(gateway.connections, TIMEOUT)
            except AssertionError:
                raise AssertionError(f"the connector said:\n{app.output}") from None
        return gateway


def run(command: list[str]) -> str:
    """What a command that fails says; empty when it does not."""
    ran = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        timeout=TIMEOUT,
    )
    return "" if ran.returncode == 0 else f"it ended with {ran.returncode}:\n{ran.stdout}"


def new_gateway() -> Gateway:
    return Gateway(api_keys=KEY, max_message_bytes=MAX_MESSAGE_BYTES)


@pytest.fixture(scope="module")
def meeting(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Meeting]:
    with ExitStack() as opened:
        yield Meeting(workshop, tmp_path_factory.mktemp("grpc-interop"), opened)


@pytest.mark.parametrize(("transport", "client", "case"), PASSING)
def test_a_case_passes(meeting: Meeting, transport: str, client: str, case: str) -> None:
    problem = meeting.problem(transport, client, case)
    assert not problem, problem


@pytest.mark.parametrize("own_transport", ["netty", "okhttp"])
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_the_tests_of_grpc_javas_transports_pass(
    meeting: Meeting, transport: str, own_transport: str
) -> None:
    problems = meeting.problems_of_java(transport, own_transport)
    assert UNAVAILABLE in problems.pop("unimplementedService")
    # A gateway that sees the deadline pass before the caller does says so in its own words.
    deadline = problems.pop("deadlineExceeded")
    # On a slow machine so does its own look at how long that took.
    assert (
        deadline == ""
        or "AssertionError: the deadline has passed" in deadline
        or ("AssertionError: deadline exceeded" in deadline)
    )
    skipped = {name for name, problem in problems.items() if problem == "skipped"}
    assert skipped == WITH_THEIR_OWN_SERVER
    others = {name: problem for name, problem in problems.items() if name not in skipped}
    assert len(others) == 31
    assert not any(others.values()), "\n".join(others.values())


# What does not, and why


@pytest.mark.parametrize(
    ("client", "problem"),
    [
        ("go", "UnimplementedCall() = _, Unavailable, want _, Unimplemented"),
        ("java-netty", UNAVAILABLE),
        ("java-okhttp", UNAVAILABLE),
    ],
    ids=["go", *JAVA_CLIENTS],
)
def test_a_service_that_is_not_there_is_unavailable_since_it_may_come(
    meeting: Meeting, client: str, problem: str
) -> None:
    assert problem in meeting.problem("http2", client, "unimplemented_service")


@pytest.mark.parametrize("client", JAVA_CLIENTS)
def test_a_servicer_is_not_told_what_came_compressed(meeting: Meeting, client: str) -> None:
    # client_compressed_streaming ends in the same way, but the client waits 15 seconds for it.
    problem = meeting.problem("http2", client, "client_compressed_unary")
    assert "expected INVALID_ARGUMENT" in problem
