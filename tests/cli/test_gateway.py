"""``revconn gateway``: a gateway until a signal comes."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest

from revconn.cli import main
from tests.support.commands import Command
from tests.support.scripted_connector import ScriptedConnector

LISTENING = "gateway listening on "


@pytest.fixture
def resources() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def run(resources: ExitStack, tmp_path: Path) -> Callable[..., Command]:
    """Run the command on a free port; other options and variables as given."""

    def run(*options: str, **variables: str) -> Command:
        arguments = ("gateway", "--address", "127.0.0.1:0", *options)
        return resources.enter_context(Command(*arguments, cwd=tmp_path, env=variables))

    return run


@pytest.fixture
def connect(resources: ExitStack) -> Callable[..., ScriptedConnector]:
    def connect(command: Command, key: str, *services: str) -> ScriptedConnector:
        connector = resources.enter_context(ScriptedConnector(address(command)))
        connector.register(*services, api_key=key)
        return connector

    return connect


def address(command: Command) -> str:
    return command.wait_for_line(LISTENING).partition(LISTENING)[2]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_until_a_signal_and_ends_in_peace(run, connect, resources, number) -> None:
    command = run("--api-key", "secret")
    connector = connect(command, "secret", "echo.Echo")
    channel = resources.enter_context(grpc.insecure_channel(address(command)))
    pending = channel.unary_unary("/echo.Echo/Say").future(b"\x0a", timeout=10)
    request = connector.receive_request()
    command.signal(number)
    command.wait_for_line(f"{number.name}: finishing what was accepted")
    connector.respond(request.request_id, b"\x0b")
    assert pending.result() == b"\x0b"
    assert connector.ended() == (grpc.StatusCode.UNAVAILABLE, "the gateway is stopping")
    assert command.wait() == 0
    assert "Traceback" not in command.output
    assert "secret" not in command.output


def test_a_second_signal_ends_it_at_once(run, connect, resources) -> None:
    command = run("--api-key", "secret")
    connector = connect(command, "secret", "echo.Echo")
    channel = resources.enter_context(grpc.insecure_channel(address(command)))
    held = channel.unary_unary("/echo.Echo/Say").future(b"", timeout=10)
    connector.receive_request()
    command.signal(signal.SIGTERM)
    command.wait_for_line("SIGTERM: finishing what was accepted")
    refused = channel.unary_unary("/echo.Echo/Say")
    with pytest.raises(grpc.RpcError):  # it takes nothing new: the first signal is being obeyed
        refused(b"", timeout=10)
    command.signal(signal.SIGTERM)
    assert command.wait() == -signal.SIGTERM
    assert held.code() is grpc.StatusCode.UNAVAILABLE


def test_several_keys_are_accepted(run, connect) -> None:
    command = run("--api-key", "one", "--api-key", "two")
    connect(command, "one")
    connect(command, "two")


def test_keys_may_stand_in_a_file(run, connect, tmp_path) -> None:
    (tmp_path / "keys").write_text("\none\n  two  \n\n", encoding="utf-8")
    command = run("--api-key-file", "keys")
    connect(command, "one")
    connect(command, "two")
    command.signal(signal.SIGTERM)
    assert command.wait() == 0


def test_keys_may_come_from_the_environment(run, connect) -> None:
    command = run(REVCONN_API_KEYS="one, two,")
    connect(command, "one")
    connect(command, "two")


def test_keys_that_are_given_replace_those_of_the_environment(run, resources) -> None:
    command = run("--api-key", "one", REVCONN_API_KEYS="two")
    connector = resources.enter_context(ScriptedConnector(address(command)))
    with pytest.raises(EOFError, match="Invalid token"):
        connector.register(api_key="two")


def test_its_limits_are_those_given(run, connect, resources) -> None:
    command = run("--api-key", "key", "--heartbeat-timeout", "0.5", "--request-timeout", "0.1")
    connector = connect(command, "key", "echo.Echo")
    channel = resources.enter_context(grpc.insecure_channel(address(command)))
    with pytest.raises(grpc.RpcError, match="did not answer in time"):
        channel.unary_unary("/echo.Echo/Say")(b"", timeout=10)
    assert connector.ended() == (grpc.StatusCode.UNAVAILABLE, "no heartbeat for 0.5 seconds")


def test_the_log_says_no_more_than_asked_for(run, connect) -> None:
    command = run("--api-key", "key", "--log-level", "error")
    connect(command, "key", "echo.Echo")
    command.signal(signal.SIGTERM)
    assert command.wait() == 0
    assert len(command.lines) == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "no key given; give --api-key or --api-key-file, or set REVCONN_API_KEYS"),
        (("--api-key", ""), "api_keys: is empty"),
        (("--api-key-file", "missing"), "--api-key-file: cannot be read"),
        (("--api-key-file", "empty"), "--api-key-file: holds no key"),
        (("--api-key-file", "binary"), "--api-key-file: cannot be read"),
        (("--api-key", "k", "--address", "nowhere"), "address: not an address to listen on"),
        (("--api-key", "k", "--request-timeout", "-1"), "request_timeout: not a duration"),
        (("--api-key", "k", "--heartbeat-timeout", "soon"), "invalid float value: 'soon'"),
        (("--api-key", "k", "--log-level", "loud"), "invalid choice: 'loud'"),
        (("--unknown",), "unrecognized arguments: --unknown"),
    ],
)
def test_bad_arguments_are_one_line_and_exit_code_2(
    arguments, said, capsys, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("REVCONN_API_KEYS", raising=False)
    (tmp_path / "empty").write_text("\n", encoding="utf-8")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    assert exit_code("gateway", *arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("revconn")
    assert said in captured.err


def test_a_port_that_is_taken_is_one_line_and_exit_code_1(capfd) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        arguments = ("--address", f"127.0.0.1:{port}", "--api-key", "k")
        assert exit_code("gateway", *arguments) == 1
    last = capfd.readouterr().err.splitlines()[-1]
    assert last.startswith(f"revconn gateway: cannot listen on 127.0.0.1:{port}")


def exit_code(*arguments: str) -> int:
    try:
        return main(arguments)
    except SystemExit as end:
        return end.code
