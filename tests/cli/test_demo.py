"""``revconn demo``: the whole of it in real processes, and what it says when something fails."""

from __future__ import annotations

import os
import pty
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from revconn.cli import main
from revconn.cli.demo import processes, story
from revconn.cli.demo.processes import Child
from tests.support.commands import TIMEOUT, Command, run_command

ID = r"[0-9a-f]{8}-[0-9a-f-]{27}"


# What it shows


def test_it_shows_calls_errors_and_a_gateway_that_dies_and_comes_back(tmp_path: Path) -> None:
    result = run_command("demo", "--requests", "20", "--payload", "100000", cwd=tmp_path)
    shown = result.stdout
    assert (result.returncode, result.stderr) == (0, "")
    assert "\x1b" not in shown
    assert "\r" not in shown
    first = re.search(f"registered, with the id ({ID})$", shown, re.MULTILINE)
    second = re.search(f"back after .* the new id is ({ID})$", shown, re.MULTILINE)
    assert first is not None
    assert second is not None
    assert first[1] != second[1]
    assert f"gateway   │ connection {first[1]} from" in shown
    assert f"gateway   │ connection {second[1]} from" in shown
    assert f"as {first[1]}\n" in shown
    assert f"again as {second[1]}: back after" in shown
    assert re.search(r"✓ heartbeats reach the gateway, \d\.\d s apart  ♥ ♥ ♥", shown)
    assert shown.count('Hello(name="world")  ──▶  "Hello, world!"') == 2
    assert shown.count("✓ 20 calls, all answered: p50 ") == 2
    assert 'Hello(name="")  ──▶  INVALID_ARGUMENT: the name is empty: greet whom?' in shown
    assert "──▶  UNIMPLEMENTED: unknown method /demo.Greeter/Goodbye" in shown
    assert "connector │ lost the connection" in shown
    assert re.search("calls  …?×+●+$", shown, re.MULTILINE)
    assert "connector │ SIGTERM: finishing what was accepted, then leaving" in shown
    assert "calls        40 made, 40 answered; p50 " in shown
    assert "errors       2 provoked, 2 returned with their exact status" in shown
    assert re.search("outage       answered again .* s after the kill; .* calls failed", shown)
    assert "✓ all of it worked, in " in shown


def test_without_a_restart_the_gateway_lives_and_the_users_own_settings_do_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("REVCONN_MAX_WORKERS", "REVCONN_APIKEYS"):
        monkeypatch.setenv(name, "many")
    result = run_command("demo", "--requests", "3", "--no-restart", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert "kill -KILL" not in result.stdout
    assert "outage" not in result.stdout
    assert "calls        3 made, 3 answered" in result.stdout


def test_on_a_terminal_it_is_live_and_coloured(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-I", "-m", "revconn", "demo", "--requests", "100", "--no-restart"],
        cwd=tmp_path,
        env={**os.environ, "TERM": "xterm", "NO_COLOR": ""},
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
    ) as process:
        os.close(theirs)
        shown = read_terminal(ours)
        assert process.wait(TIMEOUT) == 0
    assert "\r\x1b[K     heartbeats\x1b[31m ♥\x1b[0m" in shown
    assert re.search(r"█.*░.* \d+/100  p50 .* ms, p99 .* ms", shown)
    assert "\x1b[32m✓\x1b[0m all of it worked" in shown


def read_terminal(descriptor: int) -> str:
    """Everything until the other side is closed, which Linux reports as an error."""
    read = b""
    while True:
        try:
            chunk = os.read(descriptor, 65536)
        except OSError:
            chunk = b""
        if not chunk:
            os.close(descriptor)
            return read.decode()
        read += chunk


# What it says when something fails


def fail(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line on stderr of a demo that ends with exit code 1."""
    assert main(["demo", "--requests", "2", *arguments]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("revconn demo: ")
    return line


def alter_child(
    monkeypatch: pytest.MonkeyPatch, nth: int, arguments: Sequence[str] = (), **environment: str
) -> None:
    """Start the ``nth`` process with other arguments after the command, or environment."""
    started = []

    def start(name: str, given: Sequence[str], env: dict[str, str], *rest: Any) -> Child:
        started.append(name)
        if len(started) == nth:
            given, env = [given[0], *(arguments or given[1:])], {**env, **environment}
        return Child(name, given, env, *rest)

    monkeypatch.setattr(story, "Child", start)


@pytest.fixture
def taken_port() -> Any:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def test_a_taken_port_is_the_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], taken_port: int
) -> None:
    monkeypatch.setattr(story, "free_port", lambda: taken_port)
    reason = fail(capsys)
    assert "the gateway process ended with exit code 1" in reason
    assert f"cannot listen on 127.0.0.1:{taken_port}" in reason


def test_a_connector_that_is_refused_is_the_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    alter_child(monkeypatch, 2, REVCONN_API_KEY="wrong")
    reason = fail(capsys)
    assert "the connector process ended with exit code 1" in reason
    assert "UNAUTHENTICATED" in reason


def test_a_gateway_that_dies_when_it_is_started_again_is_the_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], taken_port: int
) -> None:
    alter_child(monkeypatch, 3, ["--address", f"127.0.0.1:{taken_port}"])
    reason = fail(capsys)
    assert "the gateway process ended with exit code 1" in reason
    assert "cannot listen on" in reason


def test_a_gateway_that_does_not_come_back_where_it_was_is_the_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(story, "_RETURN_TIMEOUT", 1.0)
    alter_child(monkeypatch, 3, ["--address", "127.0.0.1:0"])
    reason = fail(capsys)
    assert "no call was answered within 1 seconds after the gateway was killed" in reason
    assert "UNAVAILABLE" in reason


def test_a_gateway_that_never_listens_is_the_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(story, "_START_TIMEOUT", 0.0)
    assert "the gateway did not listen within 0 seconds" in fail(capsys)


ALTERED_GREETER = """\
import atexit, os
from revconn._proto.demo_pb2 import HelloReply
from revconn.cli.demo import greeter
from revconn.cli.demo.greeter import connector

ids = []

def alter_reply(change):
    greeter.HelloReply = lambda **fields: HelloReply(**{**fields, **change(fields)})

"""


@pytest.mark.parametrize(
    ("alteration", "reason"),
    [
        ("greeter.HelloReply = None", "a call failed: INTERNAL: internal error"),
        (
            "alter_reply(lambda fields: {'greeting': 'Hi'})",
            "a reply is not what the handler returned: 'Hi'",
        ),
        (
            "alter_reply(lambda fields: {'padding': b'x'})",
            "a reply is not what the handler returned: 'Hello, world!'",
        ),
        (
            "alter_reply(lambda fields: {'connection_id': 'x'})",
            "a call was answered on connection x, not on ",
        ),
        (
            "alter_reply(lambda f: ids.append(f['connection_id']) or {'connection_id': ids[0]})",
            "the connector came back with its old id, ",
        ),
        (
            "greeter.RequestError = ValueError",
            'Hello(name="") was to fail with INVALID_ARGUMENT, not with INTERNAL',
        ),
        ("atexit.register(os._exit, 3)", "the connector left with exit code 3, not 0"),
    ],
)
def test_a_connector_that_does_not_do_as_it_should_is_the_reason(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    alteration: str,
    reason: str,
) -> None:
    (tmp_path / "altered.py").write_text(ALTERED_GREETER + alteration + "\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(story, "_GREETER", "altered:connector")
    assert reason in fail(capsys)


def test_a_process_that_does_not_leave_is_killed_and_is_the_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(processes, "_END_TIMEOUT", 0.0)
    assert "the connector left with exit code -9, not 0" in fail(capsys, "--no-restart")


# Interrupted: every process ends


def children(shown: str) -> list[int]:
    """The processes that it says it has started."""
    return [int(pid) for pid in re.findall(r"# pid (\d+)$", shown, re.MULTILINE)]


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_ends_the_demo_and_its_processes(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    with Command("demo", "--requests", "1000000", cwd=tmp_path) as demo:
        demo.wait_for_line('Hello(name="world")')
        assert all(map(is_alive, children(demo.output)))
        demo.signal(number)
        assert demo.wait() == code
        assert demo.lines[-1] == f"revconn demo: interrupted by {number.name}"
        assert "Traceback" not in demo.output
        assert len(children(demo.output)) == 2
        assert not any(map(is_alive, children(demo.output)))


def test_a_reader_that_goes_away_ends_the_demo_and_its_processes(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-I", "-m", "revconn", "demo", "--requests", "1000000"],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        shown = ""
        while "registered, " not in shown:
            shown += process.stdout.readline().decode()
        process.stdout.close()
        assert process.wait(TIMEOUT) == 1
        assert process.stderr.read() == b""
    assert len(children(shown)) == 2
    assert not any(map(is_alive, children(shown)))


# Bad arguments


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--requests", "0"], "'0' is not a whole number, 1 or more"),
        (["--requests", "many"], "'many' is not a whole number, 1 or more"),
        (["--payload", "-1"], "'-1' is not a whole number, 0 to 4,000,000"),
        (["--payload", "5000000"], "'5000000' is not a whole number, 0 to 4,000,000"),
        (["--fast"], "unrecognized arguments: --fast"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], told: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["demo", *arguments])
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("revconn")
    assert told in line
