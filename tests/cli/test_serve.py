"""``revconn serve``: finding a user's connector, running it, and its exit codes."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path
from typing import Callable

import grpc
import pytest

from revconn.cli import main
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


@pytest.mark.parametrize(
    ("spec", "number"), [("app:connector", signal.SIGTERM), ("app:make", signal.SIGINT)]
)
def test_it_serves_a_connector_from_the_current_directory_until_a_signal_and_then_finishes(
    app: Path, channel: grpc.Channel, spec: str, number: signal.Signals
) -> None:
    with Command("serve", spec, cwd=app) as command:
        command.wait_for_line("INFO revconn.runtime.link: connected to")
        assert channel.unary_unary("/app.App/Say")(b"hello", timeout=TIMEOUT) == b"Echo: hello"
        waiting = channel.unary_unary("/app.App/Wait").future(b"", timeout=TIMEOUT)
        command.wait_for_line("a handler waits")
        command.signal(number)
        command.wait_for_line(f"{number.name}: finishing what was accepted")
        (app / "released").touch()
        assert waiting.result() == b"done"
        assert command.wait() == 0


def test_the_second_signal_leaves_at_once_although_a_handler_runs(
    app: Path, channel: grpc.Channel
) -> None:
    first, second = signal.SIGTERM, signal.SIGINT
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


def test_the_log_may_be_json_in_every_process(app: Path, gateway: TestGateway) -> None:
    arguments = ("--log-format=json", "--processes=2")
    with Command("serve", "app:connector", *arguments, cwd=app) as command:
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
def test_what_cannot_be_served_is_told_in_one_line(
    here: Path, spec: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "app.py").write_text(APP.format(target="127.0.0.1:1", key=KEY))
    (here / "broken.py").write_text("import gone\n")
    assert main(["serve", spec]) == 2
    assert_one_line(capsys, told)


def test_at_debug_the_traceback_of_an_error_inside_the_module_is_shown(app: Path) -> None:
    (app / "broken.py").write_text("import gone\n")
    result = serve(app, "broken:connector", "--log-level", "debug")
    assert result.returncode == 2
    assert result.stdout == ""
    assert "Traceback (most recent call last)" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("revconn serve: cannot import broken: ")


@pytest.mark.parametrize("arguments", [(), ("app:connector", "--log-level", "loud")])
def test_bad_arguments_are_refused_in_one_line(
    arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as refused:
        main(["serve", *arguments])
    assert refused.value.code == 2
    assert_one_line(capsys)


def assert_one_line(capsys: pytest.CaptureFixture[str], *parts: str) -> None:
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("revconn serve: ")
    for part in parts:
        assert part in line
