"""``revconn serve``: finding a user's connector, running it, and its exit codes."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path
from typing import Callable

import grpc
import pytest

from revconn.testing import TestGateway
from tests.support.commands import TIMEOUT, Command, run_command
from tests.support.waiting import eventually

KEY = "the-right-key"

APP = """\
import pathlib
import time
from revconn import Connector

connector = Connector({target!r}, api_key={key!r})

@connector.method("/app.App/Say")
def say(request):
    return b"Echo: " + request.payload

@connector.method("/app.App/Wait")
def wait(request):
    print("a handler waits", flush=True)
    while not pathlib.Path("released").exists():
        time.sleep(0.01)
    return b"done"

def make():
    return connector

KEY = {key!r}

def misconfigured():
    return Connector({target!r}, api_key="")

def useless():
    return Connector({target!r}, api_key=KEY)
"""


@pytest.fixture
def gateway(make_revconn_gateway: Callable[..., TestGateway]) -> TestGateway:
    return make_revconn_gateway(api_key=KEY)


@pytest.fixture
def app(gateway: TestGateway, tmp_path: Path) -> Path:
    """A directory with a module ``app`` whose connector goes to the gateway."""
    (tmp_path / "app.py").write_text(APP.format(target=gateway.address, key=KEY))
    return tmp_path


@pytest.fixture
def channel(gateway: TestGateway) -> grpc.Channel:
    return gateway.channel


def serve(cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run_command("serve", *arguments, cwd=cwd)


# Serving


@pytest.mark.parametrize("spec", ["app:connector", "app:make"])
def test_it_serves_a_connector_from_the_current_directory_until_sigterm(
    app: Path, channel: grpc.Channel, spec: str
) -> None:
    with Command("serve", spec, cwd=app) as command:
        command.wait_for_line("INFO revconn.runtime.link: connected to")
        assert channel.unary_unary("/app.App/Say")(b"hello", timeout=TIMEOUT) == b"Echo: hello"
        command.signal(signal.SIGTERM)
        assert command.wait() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_lets_what_was_accepted_be_answered(
    app: Path, channel: grpc.Channel, number: signal.Signals
) -> None:
    with Command("serve", "app:connector", cwd=app) as command:
        command.wait_for_line("connected to")
        waiting = channel.unary_unary("/app.App/Wait").future(b"", timeout=TIMEOUT)
        command.wait_for_line("a handler waits")
        command.signal(number)
        command.wait_for_line(f"{number.name}: finishing what was accepted")
        (app / "released").touch()
        assert waiting.result() == b"done"
        assert command.wait() == 0


@pytest.mark.parametrize(
    ("first", "second"), [(signal.SIGINT, signal.SIGTERM), (signal.SIGTERM, signal.SIGINT)]
)
def test_the_second_signal_leaves_at_once_although_a_handler_runs(
    app: Path, channel: grpc.Channel, first: signal.Signals, second: signal.Signals
) -> None:
    with Command("serve", "app:connector", cwd=app) as command:
        command.wait_for_line("connected to")
        waiting = channel.unary_unary("/app.App/Wait").future(b"", timeout=TIMEOUT)
        command.wait_for_line("a handler waits")
        command.signal(first)
        command.wait_for_line("finishing what was accepted")
        command.signal(second)
        assert command.wait() == 128 + second
        assert "leaving while 1 handlers still run" in command.output
        assert "Traceback" not in command.output
        assert not waiting.done()  # the answer might come on another connection
        waiting.cancel()


def test_the_log_level_hides_what_is_less_important(app: Path, gateway: TestGateway) -> None:
    with Command("serve", "app:connector", "--log-level", "warning", cwd=app) as command:
        eventually(gateway.connections, TIMEOUT)
        command.signal(signal.SIGTERM)
        assert command.wait() == 0
        assert command.lines == []


@pytest.mark.parametrize("processes", [(), ("--processes", "2")])
def test_the_log_may_be_json_in_every_process(
    app: Path, gateway: TestGateway, processes: tuple[str, ...]
) -> None:
    with Command("serve", "app:connector", "--log-format=json", *processes, cwd=app) as command:
        command.wait_for_line('"connected to ')
        command.signal(signal.SIGTERM)
        assert command.wait() == 0
        logged = [json.loads(line) for line in command.lines]
    assert {"time", "level", "logger", "message"} <= set.intersection(*map(set, logged))


def test_a_refused_key_ends_it_with_one_line_and_exit_code_1(
    gateway: TestGateway, tmp_path: Path
) -> None:
    (tmp_path / "app.py").write_text(APP.format(target=gateway.address, key="a-wrong-key"))
    result = serve(tmp_path, "app:connector")
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert "ERROR" in line
    assert "UNAUTHENTICATED" in line
    assert "check api_key" in line
    assert "a-wrong-key" not in line


# What cannot be served: one line, exit code 2


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("app", "write package.module:connector"),
        ("nowhere:connector", "No module named 'nowhere'"),
        ("broken:connector", "cannot import broken: ModuleNotFoundError: No module named 'gone'"),
        ("app:nothing", "app has no nothing"),
        ("app:KEY", "app:KEY is of type str, neither a Connector nor a function"),
        ("app:misconfigured", "app:misconfigured() failed: api_key: is empty"),
        ("app:useless", "nothing to serve"),
    ],
)
def test_what_cannot_be_served_is_told_in_one_line(app: Path, spec: str, told: str) -> None:
    (app / "broken.py").write_text("import gone\n")
    result = serve(app, spec)
    assert result.returncode == 2
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("revconn serve: ")
    assert told in line


def test_at_debug_the_traceback_of_an_error_inside_the_module_is_shown(app: Path) -> None:
    (app / "broken.py").write_text("import gone\n")
    result = serve(app, "broken:connector", "--log-level", "debug")
    assert result.returncode == 2
    assert "Traceback (most recent call last)" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("revconn serve: cannot import broken: ")


@pytest.mark.parametrize("arguments", [(), ("app:connector", "--log-level", "loud")])
def test_bad_arguments_are_refused_in_one_line(app: Path, arguments: tuple[str, ...]) -> None:
    result = serve(app, *arguments)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("revconn serve: ")
