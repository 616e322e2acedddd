"""Streaming calls: callers and a connector that are programs of their own, in other languages.

The Go connector knows the protocol's words alone: it has credit, pieces and ends of its own.
"""

from __future__ import annotations

import json
import queue
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import grpc
import pytest

from revconn.gateway import Gateway
from tests.interop.building import BUILD, GO, HERE, NODE
from tests.interop.conftest import Workshop
from tests.support.apps import TIMEOUT, App
from tests.support.waiting import eventually

KEY = "key"
SERVICE = "echo.Streams"
CONNECTORS = ("go", "python")
FAILURE = "keine Zahl, 100 % größer"
LARGE = 1 << 20
MANY = 5000

COMMANDS = {
    "go": ([f"{BUILD}/go/streamclient"], GO),
    "node": (["node", f"{BUILD}/node/streams.js"], NODE),
}
CASES = {
    "go": (
        "down",
        "down nothing",
        "down many",
        "up",
        "up nothing",
        "up empty",
        "up many",
        "up large",
        "echo",
        "echo nothing",
        "echo empty",
        "echo many",
        "echo large",
        "echo all sizes",
        "to and fro",
        "at once",
        "one is not read",
        "metadata",
        "error",
        "unknown method",
        "timeout told",
        "deadline",
        "cancel down",
        "cancel up",
        "cancel echo",
        "overdrawn",
    ),
    "node": (
        "down",
        "down many",
        "up",
        "echo",
        "echo large",
        "metadata",
        "error",
        "cancel down",
    ),
}
# Of plain handlers, which have no metadata to give, nor break rules.
NOT_OF_HANDLERS = {"metadata", "timeout told", "overdrawn"}
TRIES = [
    (connector, client, case)
    for connector in CONNECTORS
    for client, cases in CASES.items()
    for case in cases
    if connector == "go" or case not in NOT_OF_HANDLERS
]


class Meeting:
    """A gateway for each connector, and what each client found wrong with it."""

    def __init__(self, workshop: Workshop, directory: Path, opened: ExitStack) -> None:
        self.workshop = workshop
        self._directory = directory
        self._opened = opened
        self._gateways = {name: opened.enter_context(new_gateway()) for name in CONNECTORS}
        self._connectors: dict[str, App] = {}
        self._reports: dict[tuple[str, str], dict[str, str]] = {}

    def gateway(self, connector: str) -> Gateway:
        """A gateway that serves what ``connector`` registered."""
        gateway = self._gateways[connector]
        if connector not in self._connectors:
            app = start_connector(connector, self.workshop, gateway, self._directory)
            self._opened.callback(app.kill)
            self._connectors[connector] = app
        return gateway

    def times_given_up(self, connector: str, method: str) -> int:
        """How often a connector saw that its caller had given up."""
        seen = f"/{SERVICE}/{method} is over: the caller gave up"
        return self._connectors[connector].output.count(seen)

    def report(self, connector: str, client: str) -> dict[str, str]:
        """What was wrong when ``client`` tried a connector, by case; empty when right."""
        if (connector, client) not in self._reports:
            gateway = self.gateway(connector)
            cases = [case for one, other, case in TRIES if (one, other) == (connector, client)]
            self._reports[connector, client] = run(self.workshop, client, gateway, cases)
        return self._reports[connector, client]


def new_gateway() -> Gateway:
    return Gateway(api_keys=KEY)


def start_connector(connector: str, workshop: Workshop, gateway: Gateway, directory: Path) -> App:
    command = [sys.executable, f"{HERE}/python/stream_connector.py"]
    if connector == "go":
        workshop.needs(GO)
        command = [f"{BUILD}/go/streamconnector"]
    app = App([*command, gateway.address, KEY], directory)
    try:
        eventually(gateway.connections, TIMEOUT)
    except AssertionError:
        app.kill()
        raise AssertionError(f"the connector said:\n{app.output}") from None
    return app


def run(workshop: Workshop, client: str, gateway: Gateway, cases: list[str]) -> dict[str, str]:
    command, sources = COMMANDS[client]
    workshop.needs(sources)
    ran = subprocess.run(
        [*command, *(f"{gateway.address}/{case}" for case in cases)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        timeout=TIMEOUT,
    )
    assert ran.returncode == 0, f"{client} ended with {ran.returncode}:\n{ran.stderr}"
    lines = [json.loads(line) for line in ran.stdout.splitlines()]
    return {line["try"].partition("/")[2]: line["problem"] for line in lines}


@pytest.fixture(scope="module")
def meeting(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Meeting]:
    with ExitStack() as opened:
        yield Meeting(workshop, tmp_path_factory.mktemp("streams"), opened)


@pytest.mark.parametrize(("connector", "client", "case"), TRIES)
def test_a_client_streams_with_a_connector(
    meeting: Meeting, connector: str, client: str, case: str
) -> None:
    assert meeting.report(connector, client)[case] == ""


@pytest.mark.parametrize("method", ["Down", "Up", "Echo"])
@pytest.mark.parametrize("connector", CONNECTORS)
def test_a_connector_sees_that_its_caller_gave_up(
    meeting: Meeting, connector: str, method: str
) -> None:
    gateway = meeting.gateway(connector)
    before = meeting.times_given_up(connector, method)
    case = f"cancel {method.lower()}"
    assert run(meeting.workshop, "go", gateway, [case]) == {case: ""}
    eventually(lambda: meeting.times_given_up(connector, method) == before + 1)


# grpcio


def down(channel: grpc.Channel) -> None:
    answers = channel.unary_stream(f"/{SERVICE}/Down")(str(MANY).encode(), timeout=TIMEOUT)
    assert list(answers) == [str(number).encode() for number in range(MANY)]


def up(channel: grpc.Channel) -> None:
    messages = [b"", b"x" * LARGE, b"y"]
    answer = channel.stream_unary(f"/{SERVICE}/Up")(iter(messages), timeout=TIMEOUT)
    assert answer == str(LARGE + 1).encode()


def echo(channel: grpc.Channel) -> None:
    messages = [b"", *(bytes([number]) * LARGE for number in range(4)), b"z"]
    messages += [str(number).encode() for number in range(MANY)]
    assert list(channel.stream_stream(f"/{SERVICE}/Echo")(iter(messages), timeout=TIMEOUT)) == (
        messages
    )


def metadata(channel: grpc.Channel) -> None:
    sent = (("echo-note", "a"), ("echo-note", "b"), ("echo-trace-bin", b"\x00\xff\x80 \n"))
    call = channel.stream_stream(f"/{SERVICE}/Echo")(
        iter([b"a", b"b"]), timeout=TIMEOUT, metadata=sent
    )
    assert tuple(map(tuple, call.initial_metadata())) == sent
    assert list(call) == [b"a", b"b"]
    assert call.code() is grpc.StatusCode.OK
    trailing = tuple(map(tuple, call.trailing_metadata()))
    assert trailing[:4] == (*sent, ("count", "2"))
    assert dict(trailing)["peer"].startswith("ipv4:127.0.0.1:")


def fails(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        list(channel.unary_stream(f"/{SERVICE}/Down")(b"no number", timeout=TIMEOUT))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details() == FAILURE


@pytest.mark.parametrize("case", [down, up, echo, metadata, fails])
def test_grpcio_streams_with_a_go_connector(
    meeting: Meeting, case: Callable[[grpc.Channel], None]
) -> None:
    with grpc.insecure_channel(meeting.gateway("go").address) as channel:
        case(channel)


# What becomes of streams whose connector goes


def test_a_caller_is_told_that_its_connector_was_killed(workshop: Workshop, tmp_path: Path) -> None:
    with new_gateway() as gateway:
        connector = start_connector("go", workshop, gateway, tmp_path)
        client = App([f"{BUILD}/go/streamclient", f"{gateway.address}/lost"], tmp_path)
        try:
            client.hears("reading")
            connector.kill()
            assert client.wait() == 0
        finally:
            client.kill()
            connector.kill()
    assert '"problem":""' in client.output


def test_a_connector_sees_that_its_caller_was_killed(meeting: Meeting, tmp_path: Path) -> None:
    gateway = meeting.gateway("go")
    before = meeting.times_given_up("go", "Down")
    client = App([f"{BUILD}/go/streamclient", f"{gateway.address}/lost"], tmp_path)
    try:
        client.hears("reading")
    finally:
        client.kill()
    eventually(lambda: meeting.times_given_up("go", "Down") == before + 1)


def test_a_connector_with_a_wrong_key_is_told_so(workshop: Workshop, tmp_path: Path) -> None:
    workshop.needs(GO)
    with new_gateway() as gateway:
        app = App([f"{BUILD}/go/streamconnector", gateway.address, "a-wrong-key"], tmp_path)
        try:
            assert app.wait() != 0
        finally:
            app.kill()
    assert "Invalid token" in app.output


def test_a_stream_ends_in_peace_on_a_connector_that_leaves(
    workshop: Workshop, tmp_path: Path
) -> None:
    said: queue.Queue[bytes | None] = queue.Queue()
    with new_gateway() as gateway:
        connector = start_connector("go", workshop, gateway, tmp_path)
        try:
            with grpc.insecure_channel(gateway.address) as channel:
                echo = channel.stream_stream(f"/{SERVICE}/Echo")
                call = echo(iter(said.get, None), timeout=TIMEOUT)
                said.put(b"before")
                assert next(call) == b"before"
                connector.signal(signal.SIGTERM)
                eventually(partial(is_leaving, gateway))
                for number in range(MANY):
                    said.put(str(number).encode())
                said.put(None)
                assert list(call) == [str(number).encode() for number in range(MANY)]
                assert call.code() is grpc.StatusCode.OK
            assert connector.wait() == 0, connector.output
        finally:
            said.put(None)
            connector.kill()


def is_leaving(gateway: Gateway) -> bool:
    return all(connection.draining for connection in gateway.connections())


def test_other_streams_go_on_while_a_caller_does_not_read(meeting: Meeting) -> None:
    with grpc.insecure_channel(meeting.gateway("go").address) as channel:
        downs = channel.unary_stream(f"/{SERVICE}/Down")
        unread = [downs(b"100000", timeout=TIMEOUT) for _ in range(20)]
        for call in unread:
            assert next(call) == b"0"
        with ThreadPoolExecutor(2) as callers:
            list(callers.map(up, (channel, channel)))
        down(channel)
        for call in unread:
            call.cancel()
